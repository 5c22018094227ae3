package outbox

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/crashpoint"
)

// jobStep bounds the rows that one step of a job writes, and with it how long a group has to wait for it.
const jobStep = 500

// job is work on many rows that the Ledger does in steps between its groups. A step runs in a transaction of its own
// that may be tried again; what it needs to go on stands in the database.
type job interface {
	step(ctx context.Context, tx querier) (finished bool, err error)
	// committed tells that the last step is durable, and returns the endpoints that have rows due at once after it.
	committed() (requeued []string)
	// pause returns how long to wait before the next step.
	pause() time.Duration
	// abandon ends a job whose steps fail by themselves, for this reason, so that it does not hold up everything else.
	abandon(ctx context.Context, tx querier, reason string) error
}

// jobTries is how often a step may fail by itself.
const jobTries = 3

const (
	// missEndpoints bounds the endpoints of one step of missJob, which share jobStep rows. One of them ends missLeast rows
	// at least, if it has so many.
	missEndpoints = 500
	missLeast     = 4
)

// missJob turns the pending rows of endpoints that are disabled or gone into missed ones. There is one for all of them: an
// app may remove a hundred thousand endpoints at once, and a transaction for each would take minutes. It belongs to the
// Ledger's goroutine.
type missJob struct {
	waiting map[string]Missing // by endpoint
	order   []string           // of the endpoints in waiting, as they came; some may have left, or stand twice
	taken   []string           // of the step under way
	ended   []string           // those of taken that have no rows left
	// finished takes note of an endpoint that is gone for good.
	finished func(endpointID string)
}

// add takes an endpoint in, or a later word about one that waits already.
func (j *missJob) add(m Missing) {
	before, waits := j.waiting[m.EndpointID]
	if waits && before.Version > m.Version {
		return
	}
	if j.waiting[m.EndpointID] = m; waits {
		return
	}
	if len(j.order) > 2*len(j.waiting)+missEndpoints { // endpoints that are turned off and on again while others wait
		j.order = slices.Collect(maps.Keys(j.waiting))
		return
	}
	j.order = append(j.order, m.EndpointID)
}

// stop ends the work for an endpoint up to a version. It reports whether that was the end of an endpoint that is gone, whose
// counter is not deleted yet.
func (j *missJob) stop(endpointID string, version int) (counterLeft bool) {
	m, waits := j.waiting[endpointID]
	if !waits || m.Version > version {
		return false
	}
	delete(j.waiting, endpointID)
	return m.Removed
}

const missPending = `
with picked as (
    select d.endpoint_id, d.event_id, w.reason
    from unnest($1::text[], $2::text[]) w (endpoint_id, reason),
         lateral (select endpoint_id, event_id from webhooks.deliveries
                  where endpoint_id = w.endpoint_id and status = 'pending'
                    and not exists (select from unnest($3::text[], $4::text[]) k (endpoint_id, event_id)
                                    where k.endpoint_id = deliveries.endpoint_id and k.event_id = deliveries.event_id)
                  order by next_attempt_at limit $5) d
), ended as (
    update webhooks.deliveries d set status = 'missed', next_attempt_at = null, finished = now(), last_error = p.reason
    from picked p where d.endpoint_id = p.endpoint_id and d.event_id = p.event_id
    returning d.endpoint_id, d.replay_id
)
select endpoint_id, coalesce(replay_id, ''), count(*) from ended group by 1, 2`

const deleteHealth = `
delete from webhooks.endpoint_health where endpoint_id = any($1)`

func (j *missJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	j.take()
	var reasons, keepEndpoints, keepEvents []string
	for _, id := range j.taken {
		m := j.waiting[id]
		reasons = append(reasons, m.Reason)
		for _, event := range m.Keep {
			keepEndpoints, keepEvents = append(keepEndpoints, id), append(keepEvents, event)
		}
	}
	limit := int64(max(jobStep/max(1, len(j.taken)), missLeast))
	var (
		rows    = map[string]int64{} // that ended, by endpoint
		replays = map[string]int64{}
	)
	_, err = queryRows(ctx, tx, missPending, func(row pgx.CollectableRow) (struct{}, error) {
		var (
			endpointID, replayID string
			n                    int64
		)
		err := row.Scan(&endpointID, &replayID, &n)
		rows[endpointID] += n
		if replayID != "" {
			replays[replayID] += n
		}
		return struct{}{}, err
	}, j.taken, reasons, keepEndpoints, keepEvents, limit)
	if err != nil {
		return false, err
	}
	for id, n := range replays {
		if err := exec(ctx, tx, countReplays, []string{id}, []int64{n}); err != nil {
			return false, err
		}
	}
	var removed []string
	for _, id := range j.taken {
		if rows[id] == limit {
			continue
		}
		j.ended = append(j.ended, id)
		if j.waiting[id].Removed {
			removed = append(removed, id)
		}
	}
	if len(removed) > 0 {
		if err := exec(ctx, tx, deleteHealth, removed); err != nil {
			return false, err
		}
	}
	return len(j.ended) == len(j.waiting), nil
}

// take chooses the endpoints of the next step: those that came first.
func (j *missJob) take() {
	j.taken, j.ended = nil, nil
	looked := 0
	chosen := map[string]struct{}{}
	for _, id := range j.order {
		if len(j.taken) == missEndpoints {
			break
		}
		_, waits := j.waiting[id]
		if _, twice := chosen[id]; waits && !twice {
			chosen[id] = struct{}{}
			j.taken = append(j.taken, id)
		}
		looked++
	}
	j.order = append(slices.Clone(j.taken), j.order[looked:]...)
}

func (j *missJob) committed() []string {
	for _, id := range j.ended {
		if j.waiting[id].Removed {
			j.finished(id)
		}
		delete(j.waiting, id)
	}
	// Those that have more wait behind the others.
	j.order = j.order[len(j.taken):]
	for _, id := range j.taken {
		if _, waits := j.waiting[id]; waits {
			j.order = append(j.order, id)
		}
	}
	if len(j.waiting) == 0 {
		j.order = nil
	}
	return nil
}

func (j *missJob) pause() time.Duration { return 0 }

// abandon leaves the rows as they are: the next term ends them.
func (j *missJob) abandon(context.Context, querier, string) error {
	j.take()
	j.ended = j.taken
	return nil
}

// Disabling asks for an endpoint to be disabled, unless it was enabled again meanwhile.
type Disabling struct {
	EndpointID string
	Reason     string // ReasonFailures or ReasonGone
	Generation int64
}

// disableJob disables an endpoint. It is a job of its own because the app may hold the row: nothing else is to wait for that.
// When the agent dies before it is done, the recorded counter tells the next one.
type disableJob struct {
	Disabling
	locked bool
}

const lockPause = 100 * time.Millisecond

const disableUnlocked = `
with wanted as (
    select id from webhooks.endpoints where id = $1 and disabled_at is null and generation = $3 for update skip locked
), disabled as (
    update webhooks.endpoints e set disabled_at = now(), disabled_reason = $2 from wanted w where e.id = w.id returning e.id
)
select exists (select from webhooks.endpoints where id = $1 and disabled_at is null and generation = $3)
       and not exists (select from disabled)`

func (j *disableJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	err = tx.QueryRow(ctx, disableUnlocked, j.EndpointID, j.Reason, j.Generation).Scan(&j.locked)
	return !j.locked, err
}

func (j *disableJob) committed() []string { return nil }

func (j *disableJob) pause() time.Duration { return lockPause }

func (j *disableJob) abandon(context.Context, querier, string) error { return nil }

// replayJob sets the deliveries of a replay back to pending. Its cursor stands in the replays row, so a restart goes on
// where it was.
type replayJob struct {
	Replay
	endpointID string // of the last step that requeued rows
	unseen     bool   // the last step did not see the row yet
}

// visibilityPause is the wait for a transaction that the stream has told of and queries do not see yet: a commit is sent
// as soon as its record is on disk, which is before it becomes visible, and with synchronous replication long before.
const visibilityPause = 100 * time.Millisecond

// selectReplay also tells whether the transaction that inserted the row must be visible by now.
const selectReplay = `
select webhooks.handed_over($2::text::xid, pg_current_snapshot()),
       r.id is not null, coalesce(r.state in ('pending', 'running') and not r.requeued, false),
       coalesce(r.endpoint_id, ''), r.event_ids, case when isfinite(r.since) then r.since end,
       case when isfinite(r.until) then r.until else coalesce(r.created, now()) end, r.statuses, r.cursor_created,
       coalesce(r.cursor_event_id, ''), e.id is not null, e.disabled_at is not null, coalesce(h.unusable, '')
from (select $1::text as id) wanted
left join webhooks.replays r on r.id = wanted.id
left join webhooks.endpoints e on e.id = r.endpoint_id
left join webhooks.endpoint_health h on h.endpoint_id = e.id`

// The two statements differ in what they walk: the named events, or the endpoint's part of the log from the cursor on.
const (
	requeueEvents = `
with picked as (
    select event_id, created from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and event_id = any($4::text[])
      and venue = (select venue from webhooks.endpoints where id = $1) and (created, event_id) > ($5, $6)
    order by created, event_id limit $7
)` + requeuePicked

	requeueRange = `
with picked as (
    select event_id, created from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and created >= $5 and created < $4
      and venue = (select venue from webhooks.endpoints where id = $1) and (created, event_id) > ($5, $6)
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
	j.endpointID, j.unseen = "", false
	var (
		settled, exists, open          bool
		endpointID, cursorID, unusable string
		eventIDs, statuses             []string
		since, cursor                  *time.Time
		until                          time.Time
		haveEndpoint, disabled         bool
	)
	row := tx.QueryRow(ctx, selectReplay, j.ID, strconv.FormatUint(uint64(j.XID), 10))
	err = row.Scan(&settled, &exists, &open, &endpointID, &eventIDs, &since, &until, &statuses, &cursor, &cursorID,
		&haveEndpoint, &disabled, &unusable)
	switch {
	case err != nil:
		return false, err
	case !exists && j.XID != 0 && !settled:
		j.unseen = true
		return false, nil
	case !open: // deleted, or carried out before
		return true, nil
	case !haveEndpoint:
		return true, exec(ctx, tx, refuseReplay, j.ID, "there is no endpoint "+endpointID)
	case disabled:
		return true, exec(ctx, tx, refuseReplay, j.ID, "the endpoint is disabled: enable it first, then replay again")
	case unusable != "":
		return true, exec(ctx, tx, refuseReplay, j.ID, "the endpoint cannot be sent to: "+unusable)
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
		picked, err = queryRows(ctx, tx, requeueEvents, scan, endpointID, statuses, j.ID, eventIDs, *cursor, cursorID, jobStep)
	} else {
		picked, err = queryRows(ctx, tx, requeueRange, scan, endpointID, statuses, j.ID, until, *cursor, cursorID, jobStep)
	}
	if err != nil {
		return false, err
	}
	crashpoint.Hit(crashpoint.InReplay)
	last := key{*cursor, cursorID}
	if n := len(picked); n > 0 {
		last = picked[n-1]
		j.endpointID = endpointID
	}
	finished = len(picked) < jobStep
	return finished, exec(ctx, tx, advanceReplay, j.ID, len(picked), last.created, last.eventID, finished)
}

func (j *replayJob) committed() []string {
	if j.endpointID == "" {
		return nil
	}
	return []string{j.endpointID}
}

func (j *replayJob) pause() time.Duration {
	if j.unseen {
		return visibilityPause
	}
	return 0
}

func (j *replayJob) abandon(ctx context.Context, tx querier, reason string) error {
	return exec(ctx, tx, refuseReplay, j.ID, "it cannot be carried out: "+reason)
}
