package outbox

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/crashpoint"
)

// replayJob sets the deliveries of a replay back to pending. Its cursor stands in the replays row, so a restart goes on
// where it was. Where the endpoint can be sent to no longer, it counts what is left and leaves that as it is.
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
       r.id is not null, coalesce(r.state in ('pending', 'running') and not r.requeued, false), r.total is not null,
       coalesce(r.endpoint_id, ''), r.event_ids, case when isfinite(r.since) then r.since end,
       case when isfinite(r.until) then r.until else coalesce(r.created, now()) end, r.statuses, r.cursor_created,
       coalesce(r.cursor_event_id, ''), e.id is not null, e.disabled_at is not null, coalesce(h.unusable, '')
from (select $1::text as id) wanted
left join webhooks.replays r on r.id = wanted.id
left join webhooks.endpoints e on e.id = r.endpoint_id
left join webhooks.endpoint_health h on h.endpoint_id = e.id`

// The statements differ in what they walk, the named events or the endpoint's part of the log, from the cursor on, and in
// what they do with it. Those that count look at the deliveries of a removed endpoint, too.
const (
	pickEvents = `
with picked as (
    select event_id, created from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and event_id = any($3::text[])`

	pickRange = `
with picked as (
    select event_id, created from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and created >= $4 and created < $3`

	pickNext = ` and (created, event_id) > ($4, $5)
    order by created, event_id limit $6
)`
	// Named events are found by the primary key. The sum is no column of an index, so none is walked for the order's sake.
	pickNextNamed = ` and (created + interval '0', event_id) > ($4, $5)
    order by created + interval '0', event_id limit $6
)`

	ofVenue       = ` and venue = (select venue from webhooks.endpoints where id = $1)`
	ofAnyVenue    = ` and venue = coalesce((select venue from webhooks.endpoints where id = $1), venue)`
	selectPicked  = `select created, event_id from picked order by created, event_id`
	requeuePicked = `, requeued as (
    update webhooks.deliveries d
    set status = 'pending', attempts = 0, next_attempt_at = now(), finished = null, replay_id = $7,
        former = case when d.status = 'succeeded' then jsonb_build_object('attempts', d.attempts, 'finished', d.finished,
                      'last_code', d.last_code, 'last_latency_ms', d.last_latency_ms) end
    from picked p where d.endpoint_id = $1 and d.event_id = p.event_id
)
` + selectPicked

	requeueEvents = pickEvents + ofVenue + pickNextNamed + requeuePicked
	requeueRange  = pickRange + ofVenue + pickNext + requeuePicked
	leaveEvents   = pickEvents + ofAnyVenue + pickNextNamed + selectPicked
	leaveRange    = pickRange + ofAnyVenue + pickNext + selectPicked
)

// leaveStep bounds the rows that one step only counts.
const leaveStep = 20 * jobStep

// selectUnfitEvents returns how many of the named events a replay cannot send, with the first of them and the state of its
// delivery, empty where there is none.
const selectUnfitEvents = `
select count(*) over (), id, coalesce(d.status, '')
from (select distinct unnest($3::text[]) as id) named
left join webhooks.deliveries d on d.endpoint_id = $1 and d.event_id = named.id
     and d.venue = (select venue from webhooks.endpoints where id = $1)
where d.status is null or not d.status = any($2)
order by id limit 1`

const advanceReplay = `
update webhooks.replays set state = 'running', total = coalesce(total, 0) + $2 + $3, unsent = unsent + $3, error = coalesce(error, $4),
       cursor_created = $5, cursor_event_id = $6, requeued = $7
where id = $1`

const refuseReplay = `
update webhooks.replays set state = 'failed', error = $2, finished = now() where id = $1`

// openReplay is a row of webhooks.replays with what tells whether it can go on.
type openReplay struct {
	settled, exists, open, begun bool
	endpointID                   string
	eventIDs, statuses           []string // eventIDs is nil for a range
	since, cursor                *time.Time
	until                        time.Time
	cursorID                     string
	haveEndpoint, disabled       bool
	unusable                     string
}

func (j *replayJob) read(ctx context.Context, tx querier) (r openReplay, err error) {
	row := tx.QueryRow(ctx, selectReplay, j.ID, strconv.FormatUint(uint64(j.XID), 10))
	err = row.Scan(&r.settled, &r.exists, &r.open, &r.begun, &r.endpointID, &r.eventIDs, &r.since, &r.until, &r.statuses, &r.cursor, &r.cursorID,
		&r.haveEndpoint, &r.disabled, &r.unusable)
	return r, err
}

// refusal is why nothing can be sent to the endpoint, empty when it can.
func (r *openReplay) refusal() string {
	switch {
	case !r.haveEndpoint && r.begun:
		return "the endpoint was removed"
	case !r.haveEndpoint:
		return "there is no endpoint " + r.endpointID
	case r.disabled:
		return "the endpoint is disabled: enable it first, then replay again"
	case r.unusable != "":
		return "the endpoint cannot be sent to: " + r.unusable
	}
	return ""
}

// replayPlace is where a replay stands in the log.
type replayPlace struct {
	created time.Time
	eventID string
}

// place returns where the replay goes on.
func (r *openReplay) place() replayPlace {
	switch {
	case r.cursor != nil:
		return replayPlace{*r.cursor, r.cursorID}
	case r.since != nil:
		return replayPlace{*r.since, r.cursorID}
	}
	return replayPlace{}
}

func (j *replayJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	j.endpointID, j.unseen = "", false
	r, err := j.read(ctx, tx)
	switch {
	case err != nil:
		return false, err
	case !r.exists && j.XID != 0 && !r.settled:
		j.unseen = true
		return false, nil
	case !r.open: // deleted, or carried out before
		return true, nil
	}
	refusal := r.refusal()
	if refusal != "" && r.begun {
		return j.leave(ctx, tx, r, refusal)
	}
	if refusal != "" {
		return true, exec(ctx, tx, refuseReplay, j.ID, refusal)
	}
	var unsent int
	reason := ""
	if r.eventIDs != nil && !r.begun {
		if unsent, reason, err = unfitEvents(ctx, tx, r); err != nil {
			return false, err
		}
	}
	statement, within := requeueRange, any(r.until)
	if r.eventIDs != nil {
		statement, within = requeueEvents, r.eventIDs
	}
	at := r.place()
	picked, err := queryRows(ctx, tx, statement, scanReplayPlace, r.endpointID, r.statuses, within, at.created, at.eventID, jobStep, j.ID)
	if err != nil {
		return false, err
	}
	crashpoint.Hit(crashpoint.InReplay)
	if n := len(picked); n > 0 {
		j.endpointID = r.endpointID
		at = picked[n-1]
	}
	return j.advance(ctx, tx, len(picked), unsent, reason, at, len(picked) < jobStep)
}

// leave counts what a replay has not set back and is not to, for this reason.
func (j *replayJob) leave(ctx context.Context, tx querier, r openReplay, reason string) (finished bool, err error) {
	statement, within := leaveRange, any(r.until)
	if r.eventIDs != nil {
		statement, within = leaveEvents, r.eventIDs
	}
	at := r.place()
	left, err := queryRows(ctx, tx, statement, scanReplayPlace, r.endpointID, r.statuses, within, at.created, at.eventID, leaveStep)
	if err != nil {
		return false, err
	}
	n := len(left)
	if n > 0 {
		at = left[n-1]
	}
	return j.advance(ctx, tx, 0, n, reason, at, n < leaveStep)
}

// advance notes where a replay stands, and how many it has set back or not sent since it stood elsewhere.
func (j *replayJob) advance(ctx context.Context, tx querier, requeued, unsent int, reason string, at replayPlace, finished bool) (bool, error) {
	if unsent == 0 {
		reason = ""
	}
	err := exec(ctx, tx, advanceReplay, j.ID, requeued, unsent, orNull(reason), at.created, at.eventID, finished)
	if err == nil && finished {
		err = exec(ctx, tx, finishReplays, []string{j.ID})
	}
	return finished, err
}

func scanReplayPlace(row pgx.CollectableRow) (p replayPlace, err error) {
	err = row.Scan(&p.created, &p.eventID)
	return p, err
}

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

// replayCounts counts deliveries that have ended for the replays that they belong to. The zero value is empty.
type replayCounts struct {
	ids     []string
	done    []int64 // those that were attempted
	unsent  []int64 // those that were not
	reasons []*string
	place   map[string]int
}

// add counts for a replay; an empty id is none. The reason is that of what was not sent.
func (c *replayCounts) add(id string, done, unsent int64, reason string) {
	if id == "" {
		return
	}
	at, known := c.place[id]
	if !known {
		if c.place == nil {
			c.place = map[string]int{}
		}
		at = len(c.ids)
		c.place[id] = at
		c.ids, c.done, c.unsent, c.reasons = append(c.ids, id), append(c.done, 0), append(c.unsent, 0), append(c.reasons, nil)
	}
	c.done[at] += done
	c.unsent[at] += unsent
	if unsent > 0 && c.reasons[at] == nil {
		c.reasons[at] = orNull(reason)
	}
}

// missedReason is a reason for which deliveries were missed, with the remedy.
func missedReason(reason string) string { return reason + "; once that is mended, replay again" }

const countReplays = `
update webhooks.replays r set done = r.done + x.done, unsent = r.unsent + x.unsent, error = coalesce(r.error, x.reason)
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) x (id, done, unsent, reason)
where r.id = x.id and r.state = 'running'`

// finishReplays ends those replays that have nothing left. Until then error is the reason alone.
const finishReplays = `
update webhooks.replays set finished = now(), state = case when unsent > 0 then 'failed' else 'done' end,
       error = case when unsent > 0 then unsent || ' of ' || total || case when total = 1 then ' delivery' else ' deliveries' end
                    || case when unsent = 1 then ' was not sent: ' else ' were not sent: ' end || coalesce(error, 'the log says why') end
where id = any($1) and state = 'running' and requeued and done + unsent >= total`

func (c *replayCounts) queue(b *pgx.Batch) {
	if len(c.ids) > 0 {
		b.Queue(countReplays, c.ids, c.done, c.unsent, c.reasons)
		b.Queue(finishReplays, c.ids)
	}
}

func (c *replayCounts) write(ctx context.Context, tx querier) error {
	var b pgx.Batch
	c.queue(&b)
	return tx.SendBatch(ctx, &b).Close()
}

// restoreDeliveries makes deliveries that a replay has not sent what they were before it.
const restoreDeliveries = `
update webhooks.deliveries d set status = 'succeeded', next_attempt_at = null, last_class = null, last_error = null, former = null,
       finished = (former->>'finished')::timestamptz, attempts = (former->>'attempts')::smallint,
       last_code = (former->>'last_code')::int, last_latency_ms = (former->>'last_latency_ms')::int
from unnest($1::text[], $2::text[], $3::text[]) x (event_id, endpoint_id, replay_id)
where d.event_id = x.event_id and d.endpoint_id = x.endpoint_id and d.replay_id = x.replay_id and d.status = 'pending'`

// restores reports whether the delivery is to be what it was before its replay: one that had succeeded, and that nobody
// has attempted to the end.
func (r *Record) restores() bool {
	return r.Delivery.hadSucceeded && (r.Status == Missed || r.unsent())
}

// unsent reports whether the delivery has ended without an attempt in this round.
func (r *Record) unsent() bool {
	return (r.Status == Missed || r.Status == Failed) && r.attempts() == 0
}

func queueRestored(b *pgx.Batch, results []*Record) {
	if len(results) == 0 {
		return
	}
	eventIDs, endpointIDs, replayIDs := make([]string, len(results)), make([]string, len(results)), make([]string, len(results))
	for i, r := range results {
		eventIDs[i], endpointIDs[i], replayIDs[i] = r.Delivery.EventID, r.Delivery.EndpointID, r.Delivery.ReplayID
	}
	b.Queue(restoreDeliveries, eventIDs, endpointIDs, replayIDs)
}

// queueReplays counts the deliveries that have ended for the replays that they belong to.
func (g *group) queueReplays(b *pgx.Batch) {
	var counts replayCounts
	for _, row := range g.rows {
		switch r := g.records[row.latest]; {
		case r.Status == Pending:
		case !r.unsent():
			counts.add(r.Delivery.ReplayID, 1, 0, "")
		case r.Status == Missed:
			counts.add(r.Delivery.ReplayID, 0, 1, missedReason(r.Error))
		default:
			counts.add(r.Delivery.ReplayID, 0, 1, r.Error)
		}
	}
	counts.queue(b)
}
