package manage

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// Sample is the result of an attempt with a sample event.
type Sample struct {
	EndpointID string `json:"endpoint_id"`
	EventID    string `json:"event_id"`
	Type       string `json:"type"`
	Succeeded  bool   `json:"succeeded"`
	Code       int    `json:"code"` // 0 when no status arrived
	Class      string `json:"class"`
	Error      string `json:"error"`
	LatencyMS  int64  `json:"latency_ms"`
	Response   string `json:"response"`

	Host string `json:"-"` // the scheme and the host of the endpoint's URL
}

// Send makes one real attempt with a sample event of a type, now and once. An empty type stands for
// the first that the endpoint has asked for. The attempt is not logged and does not count, neither
// as a failure nor as a success.
func (d *Desk) Send(ctx context.Context, id, eventType string) (Sample, error) {
	e, err := d.View.EndpointWithSecret(ctx, id)
	if err != nil {
		return Sample{}, err
	}
	if _, err := outbox.ParsePatterns(e.Events); err != nil {
		return Sample{}, fmt.Errorf("endpoint %s: %w", e.ID, err)
	}
	asked := e
	if eventType != "" {
		if _, err := outbox.ParsePatterns([]string{eventType}); err != nil || strings.Contains(eventType, "*") {
			return Sample{}, &FieldError{Field: "type", Err: errors.New("is no event type; use one such as lead.created")}
		}
		asked.Events = []string{eventType}
	}
	event, err := d.View.SampleEvent(ctx, asked)
	if err != nil {
		return Sample{}, err
	}
	target, err := config.OpenTarget(d.Webhook, d.Config.Keyring(), &e)
	if err != nil && !errors.Is(err, target.Err()) { // the secret cannot be opened
		return Sample{}, fmt.Errorf("endpoint %s: %w", e.ID, err)
	}
	// The database's clock says how long a former secret signs, as it does for deliveries.
	r := d.Webhook.Attempt(ctx, sink.Request{Target: target, EventID: event.ID, Body: event.Envelope(), At: event.Created, Test: true})
	if r.Outcome == sink.Canceled {
		return Sample{}, ctx.Err()
	}
	return Sample{e.ID, event.ID, event.Type, r.Outcome == sink.Succeeded, r.Code, string(r.Class), r.Error, r.Latency.Milliseconds(), r.Response, sink.RedactURL(e.URL.Reveal())}, nil
}
