package manage

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// Desk does what people ask for, within a view.
type Desk struct {
	Config *config.Config
	View   outbox.View
	// Webhook checks URLs and sends samples.
	Webhook *sink.Webhook
}

// FieldError is an error in what was given.
type FieldError struct {
	// Field is the name of what is wrong, as the API calls it: url, events, secret.
	Field string
	Err   error
	// Unquoted is the reason without a part of what was given, where Err quotes one.
	Unquoted string
}

// Error returns the field and the reason.
func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *FieldError) Unwrap() error { return e.Err }

// ErrManaged is in the error of a change that the configuration file forbids.
var ErrManaged = errors.New("managed by the configuration file")

// fieldError returns a *FieldError, or nil where err is nil.
func fieldError(field string, err error) error {
	if err == nil {
		return nil
	}
	return &FieldError{Field: field, Err: err}
}

// checkURL returns an error for a URL that the agent would not send to.
func (d *Desk) checkURL(url string) error { return fieldError("url", d.Webhook.CheckURL(url)) }

// maxPattern is the greatest length of an event pattern, in characters: that of a filter by type. A
// list shows the patterns of many endpoints at once, so their length is memory.
const maxPattern = 200

// checkEvents returns an error for patterns that the agent could not match, and for those that are too
// long to be registered. A row that has longer ones stays as it is.
func checkEvents(events []string) error {
	for i, event := range events {
		if utf8.RuneCountInString(event) > maxPattern {
			return &FieldError{Field: "events", Err: fmt.Errorf("has as number %d a text of more than %d characters; shorten it", i+1, maxPattern)}
		}
	}
	_, err := outbox.ParsePatterns(events)
	if err == nil {
		return nil
	}
	unquoted := "names no event type; use types such as lead.created, lead.* or *"
	for i, event := range events {
		if _, err := outbox.ParsePatterns([]string{event}); err != nil {
			unquoted = fmt.Sprintf("has as number %d what is no event type; use types such as lead.created, lead.* or *", i+1)
			break
		}
	}
	return &FieldError{Field: "events", Err: err, Unquoted: unquoted}
}

// secretOr returns the secret that was given, or a new one where none was. made reports that it is
// new.
func secretOr(given secret.Text) (s secret.Text, made bool, err error) {
	if given.IsZero() {
		return sink.GenerateSecret(), true, nil
	}
	return given, false, fieldError("secret", sink.CheckSecret(given))
}

// managed returns the error of a change to an endpoint of the configuration file. The agent would
// undo the change at its next start.
func managed(id string) error {
	return &outbox.Problem{Thing: "endpoint " + id, Reason: "it is managed by the configuration file",
		Remedy: "change its [[endpoint]] there and restart the agent", Err: ErrManaged}
}

// revealed returns the text of a secret that was just made: it is shown once. Otherwise it returns
// "".
func revealed(s secret.Text, made bool) string {
	if !made {
		return ""
	}
	return s.Reveal()
}

// checkText returns an error for a text that PostgreSQL cannot store or a page cannot show, and for
// one of more than so many characters.
func checkText(field, text string, most int) error {
	if utf8.RuneCountInString(text) > most {
		return &FieldError{Field: field, Err: fmt.Errorf("has more than %d characters; shorten it", most)}
	}
	return fieldError(field, outbox.CheckText(text))
}
