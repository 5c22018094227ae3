package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// EventInfo is an event of the outbox.
type EventInfo struct {
	ID      string     `json:"id"`
	Type    string     `json:"type"`
	Venue   string     `json:"venue"`
	Created *time.Time `json:"created"` // nil where it has none that can be sent
	// Data is null where it has more than MaxShownData bytes.
	Data      json.RawMessage `json:"data"`
	DataBytes int64           `json:"data_bytes"`
}

// MaxShownData is the most data of an event that are shown, in bytes: several people may look at
// the same time, and the agent needs its memory.
const MaxShownData = 4 << 20

// EventTypeInfo is a type of the app's catalogue.
type EventTypeInfo struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	Example     json.RawMessage `json:"example"`
}

// EventExplanation says for each endpoint why an event was or was not sent to it.
type EventExplanation struct {
	EventID string     `json:"event_id"`
	Found   string     `json:"found"` // outbox, or log where only the delivery log has it still
	Type    string     `json:"type"`
	Venue   string     `json:"venue"`
	Created *time.Time `json:"created"`
	// Read reports that the agent has surely read the event. What has just been written may be read
	// without being known to be.
	Read      bool              `json:"read"`
	Endpoints []EndpointVerdict `json:"endpoints"`
	// Truncated reports that the venue has more endpoints than are shown.
	Truncated bool `json:"truncated"`

	notice []byte // the data of a notice that the outbox has
}

// EndpointVerdict is what came of an event for an endpoint.
type EndpointVerdict struct {
	EndpointID string `json:"endpoint_id"`
	Host       string `json:"host"`
	// Verdict is the status of the delivery, or why there is none: see the constants.
	Verdict string `json:"verdict"`
	Text    string `json:"text"` // the same as a sentence
	// Patterns are the event types that the endpoint asks for now. It has none when it was removed.
	Patterns []string `json:"-"`
	// Format and Args are Text in parts, for who translates it.
	Format string `json:"-"`
	Args   []any  `json:"-"`
}

// Verdicts on an event that has no delivery to an endpoint.
const (
	VerdictNotSubscribed   = "not_subscribed"   // no pattern of the endpoint asks for the type
	VerdictNotOffered      = "not_offered"      // outbox.types does not ask for the type
	VerdictRegisteredLater = "registered_later" // the endpoint is younger than the event
	VerdictAboutItself     = "about_itself"     // the event is a notice about the endpoint
	VerdictNotReadYet      = "not_read_yet"     // the agent may still come to it
	VerdictUnknown         = "unknown"          // it should have a delivery as the endpoint is now
)

// What EventExplanation.Found is.
const (
	foundInOutbox = "outbox"
	foundInLog    = "log"
)

// The data of an event may be large, so they are read only where they are shown.
const (
	withData    = true
	withoutData = false
)

// selectEventsSQL returns the events that the outbox has under an id.
func (m *mapping) selectEventsSQL(data bool) string {
	id := "o." + quoteIdent(m.cfg.Columns.ID)
	_, venue, _, eventType := m.eventColumns()
	shown, size := "''", "0"
	if data {
		text := "coalesce(o." + quoteIdent(m.cfg.Columns.Data) + "::text, 'null')"
		size = "octet_length(" + text + ")"
		shown = pieces{"text": text, "size": size, "most": fmt.Sprint(MaxShownData)}.in("case when ${size} <= ${most} then ${text} else 'null' end")
	}
	passed := "webhooks.handed_over(o.xmin, (select horizon from webhooks.checkpoint where slot = $2))"
	return pieces{
		"venue": venue, "type": eventType, "created": m.usableCreated(), "data": shown, "size": size, "outbox": m.cfg.table(),
		"id": id, "key": eventKey("$1::text", m.idType), "passed": passed, "many": fmt.Sprint(manyRows), "notice": m.noticeSQL(eventType),
	}.in(`
select ${venue}, ${type}, ${created}, ${data}, ${size}, ${passed}, coalesce(${notice}, '')
from ${outbox} o where ${id} = ${key} and ${id}::text = $1{ and ${venue} = @venue} limit ${many}`)
}

// storedEvent is an event of the outbox, and whether the horizon sees its row.
type storedEvent struct {
	EventInfo
	passed bool
	notice string // the data of a notice
}

// storedEvents returns the events that the outbox has under an id.
func (v view) storedEvents(ctx context.Context, eventID string, data bool) (events []storedEvent, err error) {
	if v.db == nil {
		return nil, errNoVenue
	}
	m, err := v.db.configured().mapping(ctx)
	if err != nil {
		return nil, err
	}
	err = v.look(ctx, "look for the event in the outbox", func(q narrowed) error {
		events, err = queryRows(ctx, q, m.selectEventsSQL(data), func(row pgx.CollectableRow) (e storedEvent, err error) {
			var text string
			err = row.Scan(&e.Venue, &e.Type, moment{&e.Created}, &text, &e.DataBytes, &e.passed, &e.notice)
			e.ID, e.Data = eventID, json.RawMessage(text)
			return e, err
		}, eventID, v.db.cfg.Slot)
		return err
	})
	return events, err
}

// Event returns the events that the outbox has under an id: one, unless an app's own table has the
// id more than once.
func (v view) Event(ctx context.Context, eventID string) ([]EventInfo, error) {
	stored, err := v.storedEvents(ctx, eventID, withData)
	if err != nil {
		return nil, err
	}
	if len(stored) == 0 {
		return nil, noEvent(eventID)
	}
	events := make([]EventInfo, len(stored))
	for i, e := range stored {
		events[i] = e.EventInfo
	}
	return events, nil
}

func noEvent(eventID string) *Problem {
	return &Problem{Thing: fmt.Sprintf("event %q", eventID), Reason: "neither the delivery log nor the outbox has it",
		Remedy: "webhook-agent deliveries list shows the newest; what is older than outbox.retention is deleted", Err: ErrNotFound}
}

const selectEventTypes = `
select name, coalesce(description, ''), coalesce(example::text, 'null') from webhooks.event_types order by name limit 1000`

// EventTypes returns the types of the app's catalogue, which all venues share.
func (v view) EventTypes(ctx context.Context) (types []EventTypeInfo, err error) {
	if v.db == nil {
		return nil, errNoVenue
	}
	err = v.db.look(ctx, "list the event types", func(tx pgx.Tx) error {
		types, err = queryRows(ctx, tx, selectEventTypes, func(row pgx.CollectableRow) (e EventTypeInfo, err error) {
			var example string
			err = row.Scan(&e.Name, &e.Description, &example)
			e.Example = json.RawMessage(example)
			return e, err
		})
		return err
	})
	return types, err
}

// selectCandidates are the endpoints of a venue with what decides whether they get an event, and
// with what the log has of it. Those with a delivery come first, also when they were removed.
const selectCandidates = `
select id, host, events, created, disabled_at is not null, unusable, status, attempts, last_error from (
    select d.endpoint_id as id, webhooks.url_host(e.url) as host, coalesce(e.events, '{}')::text as events, null::timestamptz as created,
           null::timestamptz as disabled_at, '' as unusable, d.status, d.attempts, coalesce(d.last_error, '') as last_error, 1 as choice
    from webhooks.deliveries d left join webhooks.endpoints e on e.id = d.endpoint_id
    where d.event_id = $1 and d.venue = $2 and d.type = $3{ and d.venue = @venue}
    union all
    select e.id, webhooks.url_host(e.url), e.events::text, e.created, e.disabled_at, coalesce(h.unusable, ''), '', 0, '', 2
    from webhooks.endpoints e left join webhooks.endpoint_health h on h.endpoint_id = e.id
    where e.venue = $2{ and e.venue = @venue}
      and not exists (select from webhooks.deliveries d where d.event_id = $1 and d.endpoint_id = e.id and d.venue = $2 and d.type = $3)
) candidates
order by choice, id limit $4`

// candidateEndpoint is a row of selectCandidates.
type candidateEndpoint struct {
	id, host, unusable, lastError string
	events                        []string
	created                       *time.Time
	disabled                      bool
	status                        Status
	attempts                      int
}

// ExplainEvent says for each endpoint of an event's venue why the event was or was not sent to it.
// It compares the event with the endpoints as they are now: what they were is not kept. An event
// that neither the outbox nor the log has is a Problem.
func (v view) ExplainEvent(ctx context.Context, eventID string) (x EventExplanation, err error) {
	stored, err := v.storedEvents(ctx, eventID, withoutData)
	if err != nil {
		return x, err
	}
	x.EventID, x.Found, x.Endpoints = eventID, foundInOutbox, []EndpointVerdict{}
	if len(stored) > 0 {
		e := stored[0]
		x.Type, x.Venue, x.Created, x.Read, x.notice = e.Type, e.Venue, e.Created, e.passed, []byte(e.notice)
	}
	err = v.look(ctx, "explain an event", func(q narrowed) error {
		if len(stored) == 0 {
			logged, err := queryRows(ctx, q, selectEventDeliveries, scanDeliveryInfo, eventID, "", 1)
			if err != nil {
				return err
			}
			if len(logged) == 0 {
				return noEvent(eventID)
			}
			x.Found, x.Type, x.Venue, x.Created, x.Read = foundInLog, logged[0].Type, logged[0].Venue, logged[0].Created, true
		}
		candidates, err := queryRows(ctx, q, selectCandidates, scanCandidate, eventID, x.Venue, x.Type, maxDetails+1)
		if err != nil {
			return err
		}
		if x.Truncated = len(candidates) > maxDetails; x.Truncated {
			candidates = candidates[:maxDetails]
		}
		x.Read = x.Read || slices.ContainsFunc(candidates, func(c candidateEndpoint) bool { return c.status != "" })
		for _, c := range candidates {
			x.Endpoints = append(x.Endpoints, x.judge(c, v.db.cfg.patterns()))
		}
		return nil
	})
	return x, err
}

func scanCandidate(row pgx.CollectableRow) (c candidateEndpoint, err error) {
	var events string
	err = row.Scan(&c.id, &c.host, &events, moment{&c.created}, &c.disabled, &c.unusable, &c.status, &c.attempts, &c.lastError)
	c.events = parseTextArray(events)
	return c, err
}

// judge says what came of the event for an endpoint. offered are the patterns of outbox.types.
func (x *EventExplanation) judge(c candidateEndpoint, offered Patterns) EndpointVerdict {
	verdict := func(verdict, format string, args ...any) EndpointVerdict {
		return EndpointVerdict{EndpointID: c.id, Host: c.host, Patterns: c.events, Verdict: verdict, Text: fmt.Sprintf(format, args...), Format: format, Args: args}
	}
	now, why := "", "" // what is true of the endpoint besides
	switch {
	case c.disabled:
		now = "; the endpoint is disabled now"
	case c.unusable != "":
		now, why = "; the endpoint cannot be sent to now: ", c.unusable
	}
	patterns, _ := ParsePatterns(c.events)
	switch {
	case c.status == Succeeded:
		return verdict(string(Succeeded), "it was delivered")
	case c.status == Pending:
		return verdict(string(Pending), "it is being delivered; attempts so far: %d", c.attempts)
	case c.status == Missed:
		return verdict(string(Missed), "it was not sent: %s", orElse(c.lastError, "the endpoint was disabled or removed"))
	case c.status == Failed:
		return verdict(string(Failed), "it was not delivered; attempts: %d, the last failed with: %s", c.attempts, orElse(c.lastError, "no reason"))
	case !offered.Match(x.Type):
		return verdict(VerdictNotOffered, "outbox.types in the agent's configuration does not ask for %s", x.Type)
	case !patterns.Match(x.Type):
		return verdict(VerdictNotSubscribed, "the endpoint does not ask for %s, the nearest that it asks for is %s%s%s", x.Type, nearest(x.Type, c.events), now, why)
	case names(x.notice, c.id):
		return verdict(VerdictAboutItself, "the event is about this endpoint, which gets no notice about itself")
	case x.Created != nil && c.created != nil && c.created.After(*x.Created):
		return verdict(VerdictRegisteredLater, "the endpoint was registered at %s, after the event%s%s", c.created.UTC().Format(time.RFC3339), now, why)
	case !x.Read:
		return verdict(VerdictNotReadYet, "the agent has not read the event yet, or has not recorded that it has; look again in a few minutes%s%s", now, why)
	}
	return verdict(VerdictUnknown, "the endpoint asks for %s now, so it was changed after the event, or the event's time is not that of its commit%s%s", x.Type, now, why)
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// nearest returns the pattern that has the longest beginning with an event type in common.
func nearest(eventType string, events []string) string {
	best, length := "nothing", -1
	for _, pattern := range events {
		n := 0
		for n < len(pattern) && n < len(eventType) && pattern[n] == eventType[n] {
			n++
		}
		if n > length {
			best, length = strings.TrimSpace(pattern), n
		}
	}
	return best
}
