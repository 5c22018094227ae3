package agent

import (
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// OpenTarget returns the target of an endpoint whose secrets may be sealed. With an error, nothing
// can be sent to the target. A former secret that cannot be opened is left out, so it signs
// nothing.
func OpenTarget(webhook *sink.Webhook, keys secret.Keyring, e *outbox.Endpoint) (*sink.Target, error) {
	current, err := keys.Open(e.ID, e.Secret)
	var former []sink.Former
	for _, f := range e.Former() {
		// The command check names the missing key.
		if opened, err := keys.Open(e.ID, f.Secret); err == nil {
			former = append(former, sink.Former{Secret: opened, Until: f.Until})
		}
	}
	target := webhook.Target(e.URL.Reveal(), current, former...)
	if err == nil {
		err = target.Err()
	}
	return target, err
}
