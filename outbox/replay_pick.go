package outbox

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// This file picks the deliveries that a step of a replay takes: of the events that the replay names,
// or of the endpoint's part of the log, from where the last step stood.

// lookStep bounds the rows that one step looks at. Most rows of an endpoint may have none of the
// statuses that a replay is of, and every group waits for the step. A step looks at each row once.
const lookStep = 10 * jobStep

// lookOn returns the endpoint's part of the log ($1) from a place on, whose parts are parameters. The
// index has its order, and so have the statements that read from it: they stop once they have enough.
func lookOn(created, eventID string) string {
	return pieces{"created": created, "event": eventID, "step": strconv.Itoa(lookStep)}.in(`(
        select endpoint_id, created, event_id, status, venue, last_error, finished from webhooks.deliveries
        where endpoint_id <= $1 and (endpoint_id, created, event_id) > ($1, ${created}, ${event})
        order by endpoint_id, created, event_id limit ${step}) looked`)
}

// selectLooked returns the place of the last row that a step looks at. It returns no row if the step
// comes to the end of the endpoint's log.
var selectLooked = `
select created, event_id from ` + lookOn("$2", "$3") + `
order by endpoint_id, created, event_id offset ` + strconv.Itoa(lookStep-1)

// ofFormer returns the condition that a delivery is of a removed endpoint, and that the endpoint which
// has its id now was registered after its event. No replay sends it (P10). An endpoint that is restored
// with its former time of registration gets it. Where the endpoint has reused the id, an event that is
// older than it and that it has missed may be that of a long transaction; it is left out as well.
// Registrations of before version 24 of the schema know nothing of a reuse.
func ofFormer(id string) string {
	registered := `select created from webhooks.endpoints where id = ` + id
	return pieces{"removed": EndpointRemoved, "registered": "(" + registered + ")", "registered again": "(" + registered + " and reused)"}.in(
		`(created < ${registered} and last_error = '${removed}'
          or created < ${registered again} and (status = 'missed' or finished < ${registered again}))`)
}

// The statements differ in what they walk, the named events or the endpoint's part of the log, from
// the cursor on, and in what they do with it. Those that count look at the deliveries of a removed
// endpoint, too.
var (
	pickEvents = `
with picked as (
    select event_id, created from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and event_id = any($3::text[])`

	// Named events are found by the primary key. The sum is no column of an index, so none is
	// walked for the order's sake.
	pickNextNamed = ` and (created + interval '0', event_id) > ($4, $5)
    order by created + interval '0', event_id limit $6
)`

	ofRegistered  = ` and ` + ofFormer("$1") + ` is not true`
	ofVenue       = ` and venue = (select venue from webhooks.endpoints where id = $1)`
	ofAnyVenue    = ` and venue = coalesce((select venue from webhooks.endpoints where id = $1), venue)`
	selectPicked  = `select created, event_id from picked order by created, event_id`
	requeuePicked = `, requeued as (
    update webhooks.deliveries d
    set status = 'pending', attempts = 0, next_attempt_at = now(), finished = null, replay_id = $7,
        former = jsonb_build_object('status', d.status, 'attempts', d.attempts, 'finished', d.finished, 'last_code', d.last_code,
                 'last_class', d.last_class, 'last_error', d.last_error, 'last_latency_ms', d.last_latency_ms)
    from picked p where d.endpoint_id = $1 and d.event_id = p.event_id
)
` + selectPicked

	requeueEvents = pickEvents + ofVenue + ofRegistered + pickNextNamed + requeuePicked
	leaveEvents   = pickEvents + ofAnyVenue + ofRegistered + pickNextNamed + selectPicked

	pickRange = `
with picked as (
    select event_id, created from ` + lookOn("$4", "$5") + `
    where status = any($2) and created < $3`

	pickNext = `
    order by endpoint_id, created, event_id limit $6
)`

	requeueRange = pickRange + ofVenue + ofRegistered + pickNext + requeuePicked
	leaveRange   = pickRange + ofAnyVenue + ofRegistered + pickNext + selectPicked
)

// pick runs a statement that picks up to most deliveries from the replay's place on: ofRange, or
// ofEvents if the replay names its events. It returns how many it picked, the place where the next
// step goes on, and whether there may be more.
func (j *replayJob) pick(ctx context.Context, tx querier, r openReplay, ofRange, ofEvents string, most int, further ...any) (n int, at replayPlace, more bool, err error) {
	statement, within := ofRange, any(r.until)
	if r.eventIDs != nil {
		statement, within = ofEvents, r.eventIDs
	}
	from := r.place()
	args := append([]any{r.endpointID, r.statuses, within, from.created, from.eventID, most}, further...)
	picked, err := queryRows(ctx, tx, statement, scanReplayPlace, args...)
	if err != nil {
		return 0, from, false, err
	}
	at = from
	if n = len(picked); n > 0 {
		at = picked[n-1]
	}
	if n == most || r.eventIDs != nil {
		return n, at, n == most, nil
	}
	// It has picked all that fits of what it has looked at.
	looked, err := queryRows(ctx, tx, selectLooked, scanReplayPlace, r.endpointID, from.created, from.eventID)
	if err != nil || len(looked) == 0 {
		return n, at, false, err
	}
	return n, looked[0], looked[0].created.Before(r.until), nil
}

func scanReplayPlace(row pgx.CollectableRow) (p replayPlace, err error) {
	err = row.Scan(&p.created, &p.eventID)
	return p, err
}

// selectUnfitEvents returns how many of the named events a replay cannot send, with the first of
// them and the state of its delivery, empty where there is none.
var selectUnfitEvents = `
select count(*) over (), id, coalesce(d.status, '')
from (select distinct unnest($3::text[]) as id) named
left join webhooks.deliveries d on d.endpoint_id = $1 and d.event_id = named.id
     and d.venue = (select venue from webhooks.endpoints where id = $1)` + ofRegistered + `
where d.status is null or not d.status = any($2)
order by id limit 1`

// unfitEvents returns how many of the named events cannot be sent again, and why.
func unfitEvents(ctx context.Context, tx querier, r openReplay) (n int, reason string, err error) {
	_, err = queryRows(ctx, tx, selectUnfitEvents, func(row pgx.CollectableRow) (struct{}, error) {
		var id, status string
		err := row.Scan(&n, &id, &status)
		reason = "event " + id
		if n > 1 {
			reason += fmt.Sprintf(" (and %d more)", n-1)
		}
		if status == "" {
			reason += ": the delivery log has no delivery of it to this endpoint"
		} else {
			reason += fmt.Sprintf(": its delivery is %s, and the replay is of those that are %s", status, strings.Join(r.statuses, " or "))
		}
		return struct{}{}, err
	}, r.endpointID, r.statuses, r.eventIDs)
	return n, reason, err
}
