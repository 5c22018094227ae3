package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// jobStep bounds the rows that one step of a job writes, and with it how long a group has to wait for it.
const jobStep = 500

// job is work on many rows that the Ledger does in steps between its groups. A step runs in a transaction of its own
// that may be tried again; what it needs to go on stands in the database.
type job interface {
	step(ctx context.Context, tx querier) (finished bool, err error)
	// requeued returns the endpoint that has rows due at once after the last step, or "".
	requeued() string
}

// missJob turns the pending rows of an endpoint that is disabled or gone into missed ones.
type missJob struct{ Missing }

const missPending = `
with picked as (
    select event_id from webhooks.deliveries
    where endpoint_id = $1 and status = 'pending' and not event_id = any($3::text[])
    order by next_attempt_at limit $4
), ended as (
    update webhooks.deliveries d set status = 'missed', next_attempt_at = null, finished = now(), last_error = $2
    from picked p where d.endpoint_id = $1 and d.event_id = p.event_id
    returning d.replay_id
)
select coalesce(replay_id, ''), count(*) from ended group by 1`

const deleteHealth = `
delete from webhooks.endpoint_health where endpoint_id = $1`

func (j *missJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	type ended struct {
		replayID string
		n        int64
	}
	keep := j.Keep
	if keep == nil {
		keep = []string{}
	}
	counts, err := queryRows(ctx, tx, missPending, func(row pgx.CollectableRow) (e ended, err error) {
		err = row.Scan(&e.replayID, &e.n)
		return e, err
	}, j.EndpointID, j.Reason, keep, jobStep)
	if err != nil {
		return false, err
	}
	var total int64
	for _, c := range counts {
		total += c.n
		if c.replayID != "" {
			if err := exec(ctx, tx, countReplays, []string{c.replayID}, []int64{c.n}); err != nil {
				return false, err
			}
		}
	}
	if total == jobStep {
		return false, nil
	}
	if j.Removed {
		return true, exec(ctx, tx, deleteHealth, j.EndpointID)
	}
	return true, nil
}

func (j *missJob) requeued() string { return "" }

// replayJob sets the deliveries of a replay back to pending. Its cursor stands in the replays row, so a restart goes
// on where it was.
type replayJob struct {
	id         string
	endpointID string // of the last step that requeued rows
}

const selectReplay = `
select r.endpoint_id, r.event_ids, r.since, coalesce(r.until, r.created), r.statuses, r.cursor_created, coalesce(r.cursor_event_id, ''),
       e.id is not null, e.disabled_at is not null
from webhooks.replays r
left join webhooks.endpoints e on e.id = r.endpoint_id
where r.id = $1 and r.state in ('pending', 'running') and not r.requeued`

// The two statements differ in what they walk: the named events, or the endpoint's part of the log from the cursor on.
const (
	requeueEvents = `
with picked as (
    select event_id, created from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and event_id = any($4::text[]) and (created, event_id) > ($5, $6)
    order by created, event_id limit $7
)` + requeuePicked

	requeueRange = `
with picked as (
    select event_id, created from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and created >= $5 and created < $4 and (created, event_id) > ($5, $6)
    order by created, event_id limit $7
)` + requeuePicked

	requeuePicked = `, requeued as (
    update webhooks.deliveries d
    set status = 'pending', attempts = 0, next_attempt_at = now(), finished = null, replay_id = $3
    from picked p where d.endpoint_id = $1 and d.event_id = p.event_id
)
select created, event_id from picked order by created, event_id`
)

const advanceReplay = `
update webhooks.replays set state = case when $5 and done >= coalesce(total, 0) + $2 then 'done' else 'running' end,
       finished = case when $5 and done >= coalesce(total, 0) + $2 then now() end,
       total = coalesce(total, 0) + $2, cursor_created = $3, cursor_event_id = $4, requeued = $5
where id = $1`

const refuseReplay = `
update webhooks.replays set state = 'failed', error = $2, finished = now() where id = $1`

func (j *replayJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	j.endpointID = ""
	var (
		endpointID, cursorID   string
		eventIDs, statuses     []string
		since, cursor          *time.Time
		until                  time.Time
		haveEndpoint, disabled bool
	)
	err = tx.QueryRow(ctx, selectReplay, j.id).Scan(&endpointID, &eventIDs, &since, &until, &statuses, &cursor, &cursorID, &haveEndpoint, &disabled)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return true, nil // deleted, or carried out before
	case err != nil:
		return false, err
	case !haveEndpoint:
		return true, exec(ctx, tx, refuseReplay, j.id, "there is no endpoint "+endpointID)
	case disabled:
		return true, exec(ctx, tx, refuseReplay, j.id, "the endpoint is disabled: enable it first, then replay again")
	}
	if cursor == nil {
		cursor = since
	}
	if cursor == nil {
		cursor = &time.Time{}
	}
	type key struct {
		created time.Time
		eventID string
	}
	scan := func(row pgx.CollectableRow) (k key, err error) {
		err = row.Scan(&k.created, &k.eventID)
		return k, err
	}
	var picked []key
	if eventIDs != nil {
		picked, err = queryRows(ctx, tx, requeueEvents, scan, endpointID, statuses, j.id, eventIDs, *cursor, cursorID, jobStep)
	} else {
		picked, err = queryRows(ctx, tx, requeueRange, scan, endpointID, statuses, j.id, until, *cursor, cursorID, jobStep)
	}
	if err != nil {
		return false, err
	}
	last := key{*cursor, cursorID}
	if n := len(picked); n > 0 {
		last = picked[n-1]
		j.endpointID = endpointID
	}
	finished = len(picked) < jobStep
	return finished, exec(ctx, tx, advanceReplay, j.id, len(picked), last.created, last.eventID, finished)
}

func (j *replayJob) requeued() string { return j.endpointID }
