package outbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// DeliveryInfo is a row of the delivery log as people see it. Times and numbers are nil where there
// is none.
type DeliveryInfo struct {
	EventID       string     `json:"event_id"`
	EndpointID    string     `json:"endpoint_id"`
	Venue         string     `json:"venue"`
	Type          string     `json:"type"`
	Status        Status     `json:"status"`
	Attempts      int        `json:"attempts"`
	NextAttemptAt *time.Time `json:"next_attempt_at"`
	LastCode      *int       `json:"last_code"`
	LastClass     string     `json:"last_class"`
	LastError     string     `json:"last_error"`
	LastLatencyMS *int       `json:"last_latency_ms"`
	ReplayID      string     `json:"replay_id"`
	Created       *time.Time `json:"created"` // the event's; nil when it cannot be shown (moment)
	Finished      *time.Time `json:"finished"`
	Cursor        string     `json:"cursor"` // for DeliveryFilter.Before
}

// AttemptInfo is a failed attempt as people see it.
type AttemptInfo struct {
	Attempt   int       `json:"attempt"`
	At        time.Time `json:"at"`
	Code      *int      `json:"code"`
	Class     string    `json:"class"`
	Error     string    `json:"error"`
	LatencyMS *int      `json:"latency_ms"`
	Response  string    `json:"response"`
}

// DeliveryDetail is a delivery with its failed attempts, oldest first.
type DeliveryDetail struct {
	DeliveryInfo
	FailedAttempts []AttemptInfo `json:"failed_attempts"`
	// InOutbox reports whether the event's row is there, without which it cannot be sent again.
	InOutbox bool `json:"in_outbox"`
}

// DeliveryFilter narrows a list of deliveries. Empty fields do not narrow it.
type DeliveryFilter struct {
	EndpointID, Venue, EventID string
	Statuses                   []Status
	Type                       string     // lead.created, or lead.* for all types of lead
	Since, Until               *time.Time // when the event was created: from Since on, before Until
	Before                     string     // the Cursor of the last row of the page before
	BeforeEvent                string     // instead of Before: the id of the last event of the page before
	Limit                      int
}

const deliveryColumns = `event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, last_code, coalesce(last_class, ''),
       coalesce(last_error, ''), last_latency_ms, coalesce(replay_id, ''), created, created::text as place, finished`

func scanDeliveryInfo(row pgx.CollectableRow) (d DeliveryInfo, err error) {
	return scanDeliveryRow(row)
}

// scanDeliveryRow scans deliveryColumns, and what comes after them.
func scanDeliveryRow(row pgx.CollectableRow, further ...any) (d DeliveryInfo, err error) {
	var place cursor
	err = row.Scan(append([]any{&d.EventID, &d.EndpointID, &d.Venue, &d.Type, &d.Status, &d.Attempts, moment{&d.NextAttemptAt}, &d.LastCode, &d.LastClass,
		&d.LastError, &d.LastLatencyMS, &d.ReplayID, moment{&d.Created}, &place.Created, moment{&d.Finished}}, further...)...)
	place.EventID, place.EndpointID = d.EventID, d.EndpointID
	d.Cursor = place.String()
	return d, err
}

// texts returns statuses as a text[] that is never null.
func texts(statuses []Status) []string {
	list := make([]string, len(statuses))
	for i, s := range statuses {
		list[i] = string(s)
	}
	return list
}

// maxDetails bounds what one event shows, in endpoints and in attempts of each.
const maxDetails = 200

const selectEventDeliveries = `
select ` + deliveryColumns + `
from webhooks.deliveries
where event_id = $1 and ($2 = '' or endpoint_id = $2){ and venue = @venue}
order by endpoint_id limit $3`

const selectAttempts = `
select attempt, at, code, coalesce(class, ''), coalesce(error, ''), latency_ms, coalesce(response, '')
from webhooks.attempts a
where event_id = $1 and endpoint_id = $2{ and exists (
      select from webhooks.deliveries d where d.event_id = a.event_id and d.endpoint_id = a.endpoint_id and d.venue = @venue)}
order by at, attempt limit $3`

// EventDeliveries returns the deliveries of an event, to one endpoint or with an empty endpointID
// to all. An event without any is a Problem that says whether the outbox has it.
func (v view) EventDeliveries(ctx context.Context, eventID, endpointID string) (details []DeliveryDetail, err error) {
	err = v.look(ctx, "read deliveries", func(q narrowed) error {
		found, err := queryRows(ctx, q, selectEventDeliveries, scanDeliveryInfo, eventID, endpointID, maxDetails)
		if err != nil {
			return err
		}
		for _, d := range found {
			attempts, err := queryRows(ctx, q, selectAttempts, scanAttemptInfo, d.EventID, d.EndpointID, maxDetails)
			if err != nil {
				return err
			}
			details = append(details, DeliveryDetail{DeliveryInfo: d, FailedAttempts: attempts})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(details) == 0 {
		return nil, v.explainNoDelivery(ctx, eventID, endpointID)
	}
	events, err := v.storedEvents(ctx, eventID, withoutData)
	for i, d := range details {
		details[i].InOutbox = slices.ContainsFunc(events, func(e storedEvent) bool { return e.Venue == d.Venue && e.Type == d.Type })
	}
	return details, err
}

func scanAttemptInfo(row pgx.CollectableRow) (a AttemptInfo, err error) {
	err = row.Scan(&a.Attempt, &a.At, &a.Code, &a.Class, &a.Error, &a.LatencyMS, &a.Response)
	return a, err
}

// explainNoDelivery says why the log has no row for an event.
func (v view) explainNoDelivery(ctx context.Context, eventID, endpointID string) error {
	events, err := v.storedEvents(ctx, eventID, withoutData)
	thing := fmt.Sprintf("event %q", eventID)
	switch {
	case err != nil:
		return err
	case len(events) == 0:
		return noEvent(eventID)
	case endpointID != "":
		return &Problem{Thing: thing, Reason: fmt.Sprintf("it has no delivery to endpoint %q", endpointID),
			Remedy: "webhook-agent deliveries show " + eventID + " shows where it went", Err: ErrNotFound}
	}
	if e := events[0]; !v.db.cfg.patterns().Match(e.Type) {
		return &Problem{Thing: thing, Reason: fmt.Sprintf("outbox.types does not ask for its type, %q", e.Type), Remedy: "add the type to outbox.types for events to come", Err: ErrNotFound}
	}
	return &Problem{Thing: thing, Reason: fmt.Sprintf("it is in the outbox, but no endpoint of venue %q had asked for %q when it was committed, or the agent has not read it yet", events[0].Venue, events[0].Type),
		Remedy: "webhook-agent status shows how far the agent is", Err: ErrNotFound}
}
