package console

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/quintago/webhook-agent/outbox"
)

// words are the states, verdicts and classes of failures that other packages name, as people read them
// in English. A language has each under "word:" and its name: a word about one thing may differ from
// the same text about several.
var words = map[string]string{
	// of endpoints
	"enabled": "enabled", "disabled": "disabled", "unusable": "unusable", "failing": "failing",
	// of deliveries and replays
	"succeeded": "succeeded", "pending": "pending", "failed": "failed", "missed": "missed",
	"running": "running", "paused": "paused", "done": "done", "canceled": "canceled",
	// of agents
	"leading": "leading", "standby": "standing by", "waiting": "waiting",
	// verdicts on an event that has no delivery
	"not_subscribed": "not subscribed", "not_offered": "not offered", "about_itself": "about itself", "registered_later": "registered later",
	"not_read_yet": "not read yet", "unknown": "unknown",
	// classes of failures
	"invalid_url": "invalid URL", "invalid_secret": "invalid secret", "invalid_event_id": "invalid event id",
	"blocked_address": "blocked address", "dns_error": "DNS error", "connect_refused": "connection refused",
	"connect_timeout": "no connection in time", "tls_expired": "certificate expired", "tls_untrusted": "certificate not trusted",
	"tls_wrong_host": "certificate of another host", "tls_error": "TLS error", "tls_client_certificate": "client certificate asked for",
	"timeout": "no answer in time", "connection_reset": "connection reset", "not_http": "no HTTP", "http2_only": "HTTP/2 only",
	"h2c": "HTTP/2 without TLS", "response_too_large": "answer too large", "redirect": "redirect", "http_status": "HTTP status",
	"network_error": "network error", "internal_error": "internal error", "local_fault": "fault of the agent's machine",
}

// word returns a state, a verdict or a class for people. One that is not known keeps its name.
func (t *texts) word(name string) string {
	if translated, ok := t.of["word:"+name]; ok {
		return translated
	}
	if text, ok := words[name]; ok {
		return text
	}
	return strings.ReplaceAll(name, "_", " ")
}

// numbers are those in a text that another package has made.
var numbers = regexp.MustCompile(`[0-9]+`)

// foreign translates a text of another package that is not there as a whole. A language has it with a
// verb in place of each number, or the beginning of it up to a colon.
func (t *texts) foreign(text string) string {
	var found []any
	key := numbers.ReplaceAllStringFunc(strings.ReplaceAll(text, "%", "%%"), func(n string) string {
		found = append(found, n)
		return "%d"
	})
	if format, ok := t.of[key]; ok && len(found) > 0 {
		return fmt.Sprintf(strings.ReplaceAll(format, "%d", "%s"), found...)
	}
	if beginning, rest, ok := strings.Cut(text, ": "); ok && t.of[beginning+": "] != "" {
		return t.of[beginning+": "] + t.say(rest)
	}
	return text
}

// why says what came of an event for an endpoint. What fills the sentence is one of ours or what others
// have written, such as the type.
func (t *texts) why(v outbox.EndpointVerdict) string {
	args := make([]any, len(v.Args))
	for i, arg := range v.Args {
		if text, ok := arg.(string); ok {
			if strings.Contains(text, " ") {
				text = t.say(text)
			}
			arg = clean(text)
		}
		args[i] = arg
	}
	return t.say(v.Format, args...)
}

// decimal returns a number with one digit after the point, or after the comma.
func (t *texts) decimal(n float64) string {
	text := fmt.Sprintf("%.1f", n)
	if t.language == "pt" {
		text = strings.ReplaceAll(text, ".", ",")
	}
	return text
}
