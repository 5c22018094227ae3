package outbox

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/crashpoint"
)

// replayJob sets the deliveries of a replay back to pending. Its cursor stands in the replays row,
// so a restart goes on where it was. Where the endpoint can be sent to no longer, it counts what is
// left and leaves that as it is.
type replayJob struct {
	Replay
	withdraw   func(endpointID, replayID string) []string // LedgerConfig.Withdraw
	slot       string
	endpointID string        // of the last step that requeued rows
	rest       time.Duration // until the next step
	ended      int64         // deliveries of the replay that were counted since the last step
	full       bool          // the look-ahead was full
	back       wayBack       // of a canceled one, up to the last step that is durable
	backNext   wayBack       // the same with the step under way
}

// visibilityPause is the wait for a transaction that the stream has told of and queries do not see
// yet: a commit is sent as soon as its record is on disk, which is before it becomes visible, and
// with synchronous replication long before.
const visibilityPause = 100 * time.Millisecond

const (
	// lookAhead is how many deliveries of a replay are pending at most, so that a pause acts at
	// once. Those wait for their first attempt or for a further one.
	lookAhead = jobStep
	// pacedAhead is the least look-ahead of a paced replay, which is else what it sends in two
	// seconds.
	pacedAhead = 20
	// aheadPause is how long a replay rests whose look-ahead is full. It is woken before, when a
	// part of that has ended.
	aheadPause = 250 * time.Millisecond
	// requeuedPause is how often a replay that has set back all is looked at, and pausedPause how
	// often one that is paused is.
	requeuedPause = time.Second
	pausedPause   = 2 * time.Second
)

// lockReplay reports whether the row is there, and whether this transaction has it now. People
// change the row as well, and may keep it locked: nothing is to wait for that.
const lockReplay = `
select exists (select from webhooks.replays where id = $1),
       exists (select from (select from webhooks.replays where id = $1 for update skip locked) taken)`

// countLeft counts what countReplays left aside.
const countLeft = `
with counts as (
    select uncounted->$2::text as of from webhooks.checkpoint where slot = $1 and uncounted ? $2::text
), gone as (
    update webhooks.checkpoint set uncounted = uncounted - $2::text where slot = $1 and uncounted ? $2::text
)
update webhooks.replays r set done = r.done + (of->>'done')::bigint, unsent = r.unsent + (of->>'unsent')::bigint,
       error = coalesce(r.error, of->>'reason')
from counts where r.id = $2::text`

// selectReplay also returns whether the transaction that inserted the row must be visible by now.
const selectReplay = `
select webhooks.handed_over($2::text::xid, pg_current_snapshot()),
       r.id is not null, coalesce(r.finished is null, false), coalesce(r.state, ''), coalesce(r.requeued, false),
       coalesce(r.total, 0) - coalesce(r.done, 0) - coalesce(r.unsent, 0), coalesce(r.per_second, 0),
       coalesce(extract(epoch from now() - r.paced_until), -1)::float8, r.total is not null,
       coalesce(r.endpoint_id, ''), r.event_ids, case when isfinite(r.since) then r.since end,
       case when isfinite(r.until) then r.until else coalesce(r.created, now()) end, r.statuses, r.cursor_created,
       coalesce(r.cursor_event_id, ''), e.id is not null, e.disabled_at is not null, coalesce(h.unusable, ''),
       exists (select from webhooks.checkpoint where slot = $3 and uncounted ? $1)
from (select $1::text as id) wanted
left join webhooks.replays r on r.id = wanted.id
left join webhooks.endpoints e on e.id = r.endpoint_id
left join webhooks.endpoint_health h on h.endpoint_id = e.id`

// formerlySucceeded is the condition that a delivery had succeeded before its replay. Agents of
// before kept nothing else.
const formerlySucceeded = `(former is not null and coalesce(former->>'status', 'succeeded') = 'succeeded')`

// endOrRestore returns what is set of a delivery d that its replay does not send: it becomes what
// it was before (former, an expression), or missed for a reason where nothing is known of that.
// Agents of before version 15 of the schema kept the former state of those alone that had
// succeeded, and without its status.
func endOrRestore(former, reason string) string {
	return pieces{"former": former, "reason": reason}.in(`next_attempt_at = null, former = null,
           status = case when ${former} is null then 'missed' else coalesce(${former}->>'status', 'succeeded') end,
           finished = case when ${former} is null then now() else (${former}->>'finished')::timestamptz end,
           attempts = case when ${former} is null then d.attempts else (${former}->>'attempts')::smallint end,
           last_code = case when ${former} is null then d.last_code else (${former}->>'last_code')::int end,
           last_class = case when ${former} is null then d.last_class else ${former}->>'last_class' end,
           last_error = case when ${former} is null then ${reason} else ${former}->>'last_error' end,
           last_latency_ms = case when ${former} is null then d.last_latency_ms else (${former}->>'last_latency_ms')::int end`)
}

// advanceReplay uses up the pace for what is set back. What was not used for two seconds is lost,
// so that there is no burst.
const advanceReplay = `
update webhooks.replays set state = 'running', total = coalesce(total, 0) + $2 + $3, unsent = unsent + $3, error = coalesce(error, $4),
       cursor_created = $5, cursor_event_id = $6, requeued = $7,
       paced_until = case when per_second is not null then
                     greatest(coalesce(paced_until, now() - interval '1 second' / per_second), now() - interval '2 seconds')
                     + interval '1 second' / per_second * $2::int end
where id = $1`

// agentEnds is part of each statement that ends replays: the trigger of the table refuses that to
// others. The setting ends with the transaction.
const agentEnds = `(select set_config('webhooks.ends_replays', 'on', true)) agent_ends`

// refuseReplay ends a replay for a reason. One that is canceled stays so: the trigger of the table
// refuses any other state, and an error here would hold up all that the Ledger does.
const refuseReplay = `
update webhooks.replays set state = case when state = 'canceled' then state else 'failed' end, error = $2, finished = now()
from ` + agentEnds + `
where id = $1 and finished is null`

// openReplay is a row of webhooks.replays with all that decides whether it can go on.
type openReplay struct {
	settled, exists, open, begun bool
	state                        string
	requeued                     bool
	waiting                      int64   // deliveries that it has set back and that have not ended
	perSecond                    int     // 0 where it is not paced
	unused                       float64 // seconds since the pace was used up, negative before anything was
	endpointID                   string
	eventIDs, statuses           []string // eventIDs is nil for a range
	since, cursor                *time.Time
	until                        time.Time
	cursorID                     string
	haveEndpoint, disabled       bool
	unusable                     string
	uncounted                    bool // countLeft has something to count
}

func (j *replayJob) read(ctx context.Context, tx querier) (r openReplay, err error) {
	row := tx.QueryRow(ctx, selectReplay, j.ID, strconv.FormatUint(uint64(j.XID), 10), j.slot)
	err = row.Scan(&r.settled, &r.exists, &r.open, &r.state, &r.requeued, &r.waiting, &r.perSecond, &r.unused, &r.begun, &r.endpointID, &r.eventIDs, &r.since, &r.until, &r.statuses, &r.cursor, &r.cursorID,
		&r.haveEndpoint, &r.disabled, &r.unusable, &r.uncounted)
	return r, err
}

// EndpointRemoved is the reason why a delivery is missed whose endpoint was removed
// (deliveries.last_error).
const EndpointRemoved = "the endpoint was removed"

// refusal is why nothing can be sent to the endpoint, empty when it can.
func (r *openReplay) refusal() string {
	switch {
	case !r.haveEndpoint && r.begun:
		return EndpointRemoved
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

// room returns how many deliveries the replay may set back now.
func (r *openReplay) room() int {
	most := int64(lookAhead)
	if r.perSecond > 0 {
		most = min(most, int64(max(2*r.perSecond, pacedAhead)))
	}
	room := min(most-r.waiting, jobStep)
	if r.perSecond > 0 {
		due := 1.0 // the first one
		if r.unused >= 0 {
			due = min(r.unused, 2) * float64(r.perSecond)
		}
		room = min(room, int64(due))
	}
	return int(max(room, 0))
}

// replayAction is what the next step of a replay does.
type replayAction int

const (
	replayRests   replayAction = iota // nothing
	replayIsOver                      // it was deleted, or has ended
	replayEnds                        // see whether all that it has set back has ended
	replayCancels                     // take something back
	replayRefuses                     // end it, since nothing can be sent
	replayLeaves                      // count what is left
	replayRequeues
)

// next returns what the next step does. It sets rest and full where that is nothing.
func (j *replayJob) next(r *openReplay) replayAction {
	rests := func(rest time.Duration) replayAction {
		j.rest = rest
		return replayRests
	}
	switch {
	case !r.exists && j.XID != 0 && !r.settled:
		return rests(visibilityPause)
	case !r.open:
		return replayIsOver
	case r.state == ReplayCanceled && j.back.waits(j.kept(r.endpointID)):
		return rests(aheadPause)
	case r.state == ReplayCanceled:
		return replayCancels
	case r.requeued && r.waiting > 0:
		return rests(requeuedPause)
	case r.requeued:
		return replayEnds
	case r.state == ReplayPaused:
		return rests(pausedPause)
	case r.refusal() != "" && r.begun:
		return replayLeaves
	case r.refusal() != "":
		return replayRefuses
	case r.room() == 0:
		j.full = true
		return rests(aheadPause)
	}
	return replayRequeues
}

// look implements looker: a replay that is paused or waits is to cost no commit.
func (j *replayJob) look(ctx context.Context, tx querier) (idle bool, err error) {
	if j.rest == 0 {
		return false, nil
	}
	j.ended, j.full = 0, false
	r, err := j.read(ctx, tx)
	if err != nil || r.uncounted {
		return false, err
	}
	rest := j.rest
	if idle = j.next(&r) == replayRests; !idle {
		j.rest = rest
	}
	return idle, nil
}

func (j *replayJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	j.endpointID, j.rest, j.ended, j.full, j.backNext = "", 0, 0, false, j.back
	var exists, locked bool
	if err := tx.QueryRow(ctx, lockReplay, j.ID).Scan(&exists, &locked); err != nil {
		return false, err
	}
	if exists && !locked {
		j.rest = lockPause
		return false, nil
	}
	if err := exec(ctx, tx, countLeft, j.slot, j.ID); err != nil {
		return false, err
	}
	r, err := j.read(ctx, tx)
	if err != nil {
		return false, err
	}
	if r.exists && !locked {
		// The row has become visible since lockReplay looked. It is not locked, so somebody may
		// pause it while the step goes on.
		j.rest = visibilityPause
		return false, nil
	}
	switch j.next(&r) {
	case replayIsOver:
		return true, nil
	case replayEnds:
		j.rest = requeuedPause
		return false, exec(ctx, tx, finishReplays, []string{j.ID})
	case replayCancels:
		return j.cancel(ctx, tx, &r)
	case replayRefuses:
		return true, exec(ctx, tx, refuseReplay, j.ID, r.refusal())
	case replayLeaves:
		return j.leave(ctx, tx, r, r.refusal())
	case replayRequeues:
		return false, j.requeue(ctx, tx, r)
	}
	return false, nil
}

// requeue sets as many deliveries back as the look-ahead and the pace have room for.
func (j *replayJob) requeue(ctx context.Context, tx querier, r openReplay) (err error) {
	room := r.room()
	var unsent int
	reason := ""
	if r.eventIDs != nil && !r.begun {
		if unsent, reason, err = unfitEvents(ctx, tx, r); err != nil {
			return err
		}
	}
	n, at, more, err := j.pick(ctx, tx, r, requeueRange, requeueEvents, room, j.ID)
	if err != nil {
		return err
	}
	crashpoint.Hit(crashpoint.InReplay)
	if n > 0 {
		j.endpointID = r.endpointID
	}
	switch {
	case !more:
		j.rest = requeuedPause
	case n == room && r.perSecond > 0:
		j.rest = aheadPause
	}
	_, err = j.advance(ctx, tx, n, unsent, reason, at, !more)
	return err
}

// leave counts what a replay has not set back and is not to, for this reason.
func (j *replayJob) leave(ctx context.Context, tx querier, r openReplay, reason string) (finished bool, err error) {
	n, at, more, err := j.pick(ctx, tx, r, leaveRange, leaveEvents, lookStep)
	if err != nil {
		return false, err
	}
	return j.advance(ctx, tx, 0, n, reason, at, !more)
}

// advance notes where a replay stands, and how many it has set back or not sent since it stood
// elsewhere.
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

func (j *replayJob) committed() []string {
	j.back = j.backNext
	if j.endpointID == "" {
		return nil
	}
	return []string{j.endpointID}
}

func (j *replayJob) pause() time.Duration { return j.rest }

func (j *replayJob) abandon(ctx context.Context, tx querier, reason string) error {
	return exec(ctx, tx, refuseReplay, j.ID, "it cannot be carried out: "+reason)
}

// replayCounts counts deliveries that have ended for the replays that they belong to. The zero
// value is empty.
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

// countReplays counts for the replays whose rows nobody else holds. The rest is left in the
// checkpoint, which this transaction has locked, for the replays' own steps.
const countReplays = `
with given as (
    select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) x (id, done, unsent, reason)
), free as materialized (
    select r.id from webhooks.replays r where r.id = any($1) and r.finished is null order by r.id for update skip locked
), counted as (
    update webhooks.replays r set done = r.done + x.done, unsent = r.unsent + x.unsent, error = coalesce(r.error, x.reason)
    from given x, free f where r.id = x.id and r.id = f.id
), left_aside as (
    select x.* from given x join webhooks.replays r on r.id = x.id and r.finished is null where x.id not in (select id from free)
)
update webhooks.checkpoint c set uncounted = c.uncounted || (
    select jsonb_object_agg(x.id, jsonb_build_object('done', x.done + coalesce((c.uncounted->x.id->>'done')::bigint, 0),
           'unsent', x.unsent + coalesce((c.uncounted->x.id->>'unsent')::bigint, 0),
           'reason', coalesce(c.uncounted->x.id->>'reason', x.reason)))
    from left_aside x)
where c.slot = $5 and exists (select from left_aside)`

// finishReplays ends those replays that have nothing left. Until then error is the reason alone.
const finishReplays = `
with free as materialized (
    select id from webhooks.replays where id = any($1) and state in ('pending', 'running', 'paused') and requeued
      and done + unsent >= total order by id for update skip locked
)
update webhooks.replays r set finished = now(), state = case when unsent > 0 then 'failed' else 'done' end,
       error = case when unsent > 0 then unsent || ' of ' || total || case when total = 1 then ' delivery' else ' deliveries' end
                    || case when unsent = 1 then ' was not sent: ' else ' were not sent: ' end || coalesce(error, 'the log says why') end
from free f, ` + agentEnds + ` where r.id = f.id`

func (c *replayCounts) queue(b *pgx.Batch, slot string) {
	if len(c.ids) > 0 {
		b.Queue(countReplays, c.ids, c.done, c.unsent, c.reasons, slot)
		b.Queue(finishReplays, c.ids)
	}
}

func (c *replayCounts) write(ctx context.Context, tx querier, slot string) error {
	var b pgx.Batch
	c.queue(&b, slot)
	return tx.SendBatch(ctx, &b).Close()
}

// restoreDeliveries makes deliveries that a replay has not sent what they were before it.
var restoreDeliveries = pieces{"end or restore": endOrRestore("d.former", "d.last_error")}.in(`
update webhooks.deliveries d set ${end or restore}
from unnest($1::text[], $2::text[], $3::text[]) x (event_id, endpoint_id, replay_id)
where d.event_id = x.event_id and d.endpoint_id = x.endpoint_id and d.replay_id = x.replay_id and d.status = 'pending'`)

// restores reports whether the delivery is to be what it was before its replay: one that is not
// sent since its endpoint is off, and one that had succeeded and is not attempted at all. What had
// failed before, and cannot be attempted for another reason, says that reason.
func (r *Record) restores() bool {
	return r.Delivery.hasFormer && r.Status == Missed || r.Delivery.hadSucceeded && r.unsent()
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
	for _, r := range g.rows {
		switch {
		case r.Status == Pending:
		case !r.unsent():
			counts.add(r.Delivery.ReplayID, 1, 0, "")
		case r.Status == Missed:
			counts.add(r.Delivery.ReplayID, 0, 1, missedReason(r.Error))
		default:
			counts.add(r.Delivery.ReplayID, 0, 1, r.Error)
		}
	}
	g.ended = counts
	counts.queue(b, g.slot)
}
