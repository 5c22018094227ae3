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

// Event is one row of the outbox. ID, Type and Venue are as the log has them (logText).
type Event struct {
	ID      string
	Type    string
	Venue   string
	Created time.Time
	// Undated reports that the row has no usable created; Created is then the time of the commit.
	Undated bool
	// Data is the row's JSON as the producer spelled it.
	Data []byte
	// Unfit is why the event cannot be sent to anybody, "" when it can.
	Unfit string

	// Late reports that the event is an old one that was written once more, by a restore, say, or must be taken for one.
	// Suspect reports that it may be: it is if the log has it already (MarkLate).
	Late, Suspect bool

	insertedBy *uint32   // low half of the column xid of the agent's own table, nil where there is none
	local      time.Time // created as it stands in a column without a zone, else zero
}

// Delivery returns the delivery of the event to an endpoint. The body is the event's Envelope.
func (e *Event) Delivery(endpointID string, committed time.Time, body []byte) *Delivery {
	return &Delivery{
		EventID: e.ID, EndpointID: endpointID, Venue: e.Venue, Type: e.Type, Created: e.Created, Committed: committed, Body: body, Unfit: e.Unfit, undated: e.Undated,
	}
}

// In the agent's own table the column xid says exactly whether a row was written once more: it names the transaction that inserted the
// event first. An app's table has none. There an event that claims to be older than its commit by lateAfter is taken for an old
// one, and one by suspectAfter if the log has it: created is the start of a transaction, or whatever the app has written.
const (
	lateAfter    = backdated
	suspectAfter = 2 * time.Second
)

// judge sets Late and Suspect, given the transaction that the stream brings the event by.
func (e *Event) judge(xid uint32, committed time.Time) {
	switch age := committed.Sub(e.Created); {
	case e.insertedBy != nil:
		e.Late = *e.insertedBy != xid
	case e.Undated:
	default:
		e.Late, e.Suspect = age > lateAfter, age > suspectAfter
	}
}

// digestMark stands before the digest of a text that is too long for the log.
const digestMark = "...sha256:"

// logText returns the form in which an id, a type or a venue stands in the log: as it is up to maxLogText bytes, and abbreviated beyond. The
// function webhooks.log_text does the same in SQL.
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

// abbreviated reports whether a text is what logText makes of a longer one.
func abbreviated(s string) bool {
	at := len(s) - 2*sha256.Size
	return at >= len(digestMark) && s[at-len(digestMark):at] == digestMark
}

// unfit returns why an event cannot be sent to anybody, given its id, type and venue as the log has them; "" when it can.
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

// Envelope returns the body that customers receive: id, type, created, venue and data, in that order, created in
// whole seconds of UTC, data byte for byte. It depends on nothing but the row, so every attempt, after a restart too,
// gets the same bytes.
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
		b = append(b, "null"...) // a column of another table may be null
	}
	b = append(b, e.Data...)
	return append(b, '}')
}

// appendJSONString appends s as a JSON string. Ids and types are plain ASCII nearly always, which need no escaping.
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
	_ = enc.Encode(s) // a string always encodes
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})...)
}

// Endpoint is one row of webhooks.endpoints.
type Endpoint struct {
	ID       string
	Venue    string
	URL      secret.Text // its path and query may hold the customer's own token
	Events   []string
	Secret   secret.Text
	Previous secret.Text // also signs until PreviousUntil
	// PreviousUntil is zero when there is no previous secret.
	PreviousUntil time.Time
	// Older are what Previous was before, the newest first, and OlderUntil is when each of them
	// ends. See Former.
	Older          []secret.Text
	OlderUntil     []time.Time
	Disabled       bool
	DisabledReason string
	// Generation counts how often the endpoint was enabled. Failures are counted within one generation.
	Generation int64
	Created    time.Time
	Subscribed time.Time // when venue or events were changed last, zero when never
}

// Since returns when the endpoint began to want what it wants.
func (e *Endpoint) Since() time.Time {
	if e.Subscribed.IsZero() {
		return e.Created
	}
	return e.Subscribed
}

// MostFormerSecrets is how many former secrets of an endpoint may sign at a time. Migration 013
// holds it as well.
const MostFormerSecrets = 5

// FormerSecret is a secret that also signs until a time.
type FormerSecret struct {
	Secret secret.Text
	Until  time.Time
}

// Former returns the former secrets, the newest first, whether or not their time is over.
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

// Same reports whether two rows of an endpoint do not differ in anything that is read of them.
func (e *Endpoint) Same(other *Endpoint) bool {
	return e.ID == other.ID && e.Venue == other.Venue && slices.Equal(e.Events, other.Events) && e.SameTarget(other) &&
		e.Disabled == other.Disabled && e.DisabledReason == other.DisabledReason && e.Generation == other.Generation &&
		e.Created.Equal(other.Created) && e.Subscribed.Equal(other.Subscribed)
}

// SameTarget reports whether two rows of an endpoint lead to the same place and sign alike.
func (e *Endpoint) SameTarget(other *Endpoint) bool {
	return e.URL.Equal(other.URL) && e.Secret.Equal(other.Secret) && slices.EqualFunc(e.Former(), other.Former(),
		func(a, b FormerSecret) bool { return a.Secret.Equal(b.Secret) && a.Until.Equal(b.Until) })
}

// Reasons why an endpoint is disabled (endpoints.disabled_reason).
const (
	ReasonFailures = "failures"
	ReasonManual   = "manual"
	ReasonGone     = "gone"
)

// Replay is one row of webhooks.replays that is to be carried out.
type Replay struct {
	ID string
	// XID is the transaction that inserted it; zero when it was read by a query, which sees what is committed only.
	XID uint32
}

// EndpointChange is one change of webhooks.endpoints.
type EndpointChange struct {
	// Removed tells that the endpoint of this ID is gone, AllRemoved that all are (TRUNCATE).
	Removed, AllRemoved bool
	ID                  string
	// Endpoint is the row after the change, nil when it was removed.
	Endpoint *Endpoint
	// unchanged are the columns that are not in the stream, because the change left a large value as it was.
	unchanged []string
}

// Merge fills in, from the row before the change, what the stream has left out because it is large and unchanged.
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
			if !c.Endpoint.PreviousUntil.IsZero() { // the end of the overlap is a column of its own
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
	// Index is the place of the change in its transaction, counted from one, which is the same each
	// time it is sent.
	Index int
}

// Batch is a committed transaction, or a part of a large one. Batches come in commit order.
type Batch struct {
	Changes []Change
	// XID is the transaction's id.
	XID uint32
	// Committed is the server's clock when it committed.
	Committed time.Time
	// Commit is where the transaction's commit record begins.
	Commit LSN
	// End is where the transaction ends, the position to record; it is zero in all parts of a transaction but the
	// last. A Batch without changes only tells that the stream has come as far as End.
	End LSN
	// Bytes is the size of the events' data.
	Bytes int
}

// Idle tells whether the batch carries a position only.
func (b *Batch) Idle() bool { return b.XID == 0 }
