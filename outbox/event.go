package outbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pglogrepl"

	"github.com/quintago/webhook-agent/secret"
)

// LSN is a position in the write-ahead log. The zero LSN is no position.
type LSN = pglogrepl.LSN

// Event is one row of the outbox. ID, Type and Venue have the form that the log has (logText).
type Event struct {
	ID      string
	Type    string
	Venue   string
	Created time.Time
	// Undated reports that the row has no usable time created. Created is then the time of the
	// commit.
	Undated bool
	// Data is the row's JSON, byte for byte as the producer wrote it.
	Data []byte
	// Unfit is the reason why the event cannot be sent to anybody, or "".
	Unfit string
	// Traceparent says to which trace the event belongs. It is "" if the row has no valid one.
	Traceparent Traceparent

	// Late reports that the event is an old one that was written once more, for example by a
	// restore, or that must be treated as one. Suspect reports that this is possible. A suspect is
	// late if the log has it already (MarkLate).
	Late, Suspect bool

	insertedBy *uint32   // the low half of the column xid of the agent's own table; nil without one
	local      time.Time // created as a column without a zone has it; zero otherwise
}

// Delivery returns the delivery of the event to an endpoint. The body is the event's Envelope.
func (e *Event) Delivery(endpointID string, committed time.Time, body []byte) *Delivery {
	return &Delivery{
		EventID: e.ID, EndpointID: endpointID, Venue: e.Venue, Type: e.Type, Created: e.Created, Committed: committed, Body: body, Unfit: e.Unfit,
		Traceparent: e.Traceparent, undated: e.Undated,
	}
}

// In the agent's own table, the column xid says exactly whether a row was written once more,
// because it names the transaction that first inserted the event. An app's table has no such
// column. There, an event counts as old if its created is earlier than its commit by lateAfter. If
// it is earlier by suspectAfter, the event counts as old if the log has it. This is not exact,
// because created is the start of a transaction, or any time that the app has written.
const (
	lateAfter    = backdated
	suspectAfter = 2 * time.Second
)

// judge sets Late and Suspect. xid is the transaction in which the stream brings the event.
func (e *Event) judge(xid uint32, committed time.Time) {
	switch age := committed.Sub(e.Created); {
	case e.insertedBy != nil:
		e.Late = *e.insertedBy != xid
	case e.Undated:
	default:
		e.Late, e.Suspect = age > lateAfter, age > suspectAfter
	}
}

// digestMark comes before the digest of a text that is too long for the log.
const digestMark = "...sha256:"

// logText returns the form in which the log holds an id, a type or a venue. Up to maxLogText bytes,
// a text stays as it is. A longer text is abbreviated. The function webhooks.log_text does the same
// in SQL.
func logText(s string) string {
	if len(s) <= maxLogText {
		return s
	}
	n := 0
	for n < 64 && s[n] >= '!' && s[n] <= '~' {
		n++
	}
	return fmt.Sprintf("%s%s%x", s[:n], digestMark, sha256.Sum256([]byte(s)))
}

// abbreviated reports whether logText has made this text from a longer one.
func abbreviated(s string) bool {
	at := len(s) - 2*sha256.Size
	return at >= len(digestMark) && s[at-len(digestMark):at] == digestMark
}

// unfit returns why an event cannot be sent to anybody, or "". It takes the event's id, type and
// venue as the log has them.
func (c Config) unfit(id, eventType, venue string, data []byte) string {
	for _, column := range []struct{ key, text string }{{"id", id}, {"type", eventType}, {"venue", venue}} {
		switch {
		case abbreviated(column.text):
			return fmt.Sprintf("the event's %s is longer than %d bytes; write a shorter one", column.key, maxLogText)
		case !utf8.ValidString(column.text):
			return "the event's " + column.key + " is not valid UTF-8; write it in UTF-8 (the database's encoding, SQL_ASCII, checks nothing)"
		}
	}
	if c.MaxBody > 0 && len(data) > c.MaxBody {
		return fmt.Sprintf("the event's data have %d bytes, delivery.max_body allows %d; write less, such as a link to the rest, or allow more", len(data), c.MaxBody)
	}
	if !utf8.Valid(data) {
		return "the event's data are not valid UTF-8; write them in UTF-8 (the database's encoding, SQL_ASCII, checks nothing)"
	}
	return ""
}

// Envelope returns the body that customers receive: id, type, created, venue and data, in that
// order. created is in whole seconds of UTC, and data are kept byte for byte. The body depends only
// on the row. So every attempt sends the same bytes, even after a restart.
func (e *Event) Envelope() []byte {
	b := make([]byte, 0, len(e.Data)+len(e.ID)+len(e.Type)+len(e.Venue)+96)
	b = append(b, `{"id":`...)
	b = appendJSONString(b, e.ID)
	b = append(b, `,"type":`...)
	b = appendJSONString(b, e.Type)
	b = append(b, `,"created":"`...)
	b = e.Created.UTC().AppendFormat(b, "2006-01-02T15:04:05Z")
	b = append(b, `","venue":`...)
	b = appendJSONString(b, e.Venue)
	b = append(b, `,"data":`...)
	if len(e.Data) == 0 {
		b = append(b, "null"...) // a column in an app's table may be null
	}
	b = append(b, e.Data...)
	return append(b, '}')
}

// appendJSONString appends s as a JSON string. Ids and types are nearly always plain ASCII, which
// needs no escaping.
func appendJSONString(b []byte, s string) []byte {
	plain := true
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string can always be encoded
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})...)
}

// Endpoint is one row of webhooks.endpoints.
type Endpoint struct {
	ID       string
	Venue    string
	URL      secret.Text // the path and the query may hold the customer's own token
	Events   []string
	Secret   secret.Text
	Previous secret.Text // also signs until PreviousUntil
	// PreviousUntil is zero if there is no previous secret.
	PreviousUntil time.Time
	// Older are the secrets before Previous, the newest first. OlderUntil holds the time until
	// which each of them signs. See Former.
	Older          []secret.Text
	OlderUntil     []time.Time
	Disabled       bool
	DisabledReason string
	// Generation counts how often the endpoint was enabled. Failures are counted within one
	// generation.
	Generation int64
	Created    time.Time
	Subscribed time.Time // when venue or events were last changed; zero if never
	Reused     bool      // an endpoint with the same id was removed before this one was registered
}

// Since returns since when the endpoint wants the events that it wants now.
func (e *Endpoint) Since() time.Time {
	if e.Subscribed.IsZero() {
		return e.Created
	}
	return e.Subscribed
}

// MostFormerSecrets is the most former secrets of an endpoint that may sign at a time. Migration
// 013 has the same number.
const MostFormerSecrets = 5

// FormerSecret is a secret that still signs until a certain time.
type FormerSecret struct {
	Secret secret.Text
	Until  time.Time
}

// Former returns the former secrets, the newest first, including those whose time is over.
func (e *Endpoint) Former() (former []FormerSecret) {
	add := func(s secret.Text, until time.Time) {
		if !s.IsZero() && !until.IsZero() {
			former = append(former, FormerSecret{s, until})
		}
	}
	add(e.Previous, e.PreviousUntil)
	for i := range min(len(e.Older), len(e.OlderUntil)) {
		add(e.Older[i], e.OlderUntil[i])
	}
	return former
}

// Same reports whether two rows of an endpoint are equal in everything that the agent reads.
func (e *Endpoint) Same(other *Endpoint) bool {
	return e.ID == other.ID && e.Venue == other.Venue && slices.Equal(e.Events, other.Events) && e.SameTarget(other) &&
		e.Disabled == other.Disabled && e.DisabledReason == other.DisabledReason && e.Generation == other.Generation &&
		e.Created.Equal(other.Created) && e.Subscribed.Equal(other.Subscribed)
}

// SameTarget reports whether two rows of an endpoint have the same URL and the same secrets.
func (e *Endpoint) SameTarget(other *Endpoint) bool {
	return e.URL.Equal(other.URL) && e.Secret.Equal(other.Secret) && slices.EqualFunc(e.Former(), other.Former(),
		func(a, b FormerSecret) bool { return a.Secret.Equal(b.Secret) && a.Until.Equal(b.Until) })
}

// These are the reasons why an endpoint is disabled (endpoints.disabled_reason).
const (
	ReasonFailures = "failures"
	ReasonManual   = "manual"
	ReasonGone     = "gone"
)

// Replay is one row of webhooks.replays that is to be carried out.
type Replay struct {
	ID string
	// XID is the transaction that inserted the replay. It is zero if a query read the replay,
	// since a query sees only what is committed.
	XID uint32
}

// EndpointChange is one change of webhooks.endpoints.
type EndpointChange struct {
	// Removed reports that the endpoint with this ID is gone. AllRemoved reports that all endpoints
	// are gone (TRUNCATE).
	Removed, AllRemoved bool
	ID                  string
	// Endpoint is the row after the change. It is nil if the row was removed.
	Endpoint *Endpoint
	// unchanged are the columns that the stream left out because their values are large and did not
	// change.
	unchanged []string
}

// Merge fills in the large unchanged values that the stream has left out. It takes them from the
// row before the change.
func (c *EndpointChange) Merge(before *Endpoint) {
	for _, column := range c.unchanged {
		switch column {
		case "events":
			c.Endpoint.Events = before.Events
		case "url":
			c.Endpoint.URL = before.URL
		case "secret":
			c.Endpoint.Secret = before.Secret
		case "previous_secret":
			// The end of the overlap is in a column of its own.
			if !c.Endpoint.PreviousUntil.IsZero() {
				c.Endpoint.Previous = before.Previous
			}
		case "older_secrets":
			c.Endpoint.Older = before.Older
		case "older_secrets_until":
			c.Endpoint.OlderUntil = before.OlderUntil
		}
	}
}

// Change is one change in a Batch. Exactly one of Event, Endpoint and Replay is set.
type Change struct {
	Event    *Event
	Endpoint *EndpointChange
	Replay   *Replay
	// Index is the place of the change in its transaction, counted from one. It is the same each
	// time the transaction is sent.
	Index int
}

// Batch is a committed transaction, or a part of a large one. Batches come in commit order.
type Batch struct {
	Changes []Change
	// XID is the transaction's id.
	XID uint32
	// Committed is the time of the commit by the server's clock.
	Committed time.Time
	// Commit is where the transaction's commit record begins.
	Commit LSN
	// End is where the transaction ends, which is the position to record. In all parts of a
	// transaction except the last, it is zero. A Batch without changes only says that the stream
	// has come as far as End.
	End LSN
	// Bytes is the size of the events' data.
	Bytes int
}

// Idle reports whether the batch carries only a position.
func (b *Batch) Idle() bool { return b.XID == 0 }
