package outbox

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// jobStep bounds the rows that one step of a job writes. What it reads must be bounded too, because
// every group waits for the step.
const jobStep = 500

// job is work on many rows that the Ledger does in steps between its groups. A step runs in a
// transaction of its own that may be tried again; what it needs to go on stands in the database.
type job interface {
	step(ctx context.Context, tx querier) (finished bool, err error)
	// committed says to the job that its last step is durable. It returns the endpoints that have
	// rows due at once after it.
	committed() (requeued []string)
	// pause returns how long to wait before the next step.
	pause() time.Duration
	// abandon ends a job whose steps fail by themselves, for this reason, so that it does not hold
	// up everything else.
	abandon(ctx context.Context, tx querier, reason string) error
}

// looker is a job that waits for others most of the time.
type looker interface {
	// look reports, by reads alone, whether a step would change nothing. pause then returns how
	// long to wait before the next look.
	look(ctx context.Context, tx querier) (idle bool, err error)
}

// jobTries is how often a step may fail by itself.
const jobTries = 3

const (
	// missEndpoints bounds the endpoints of one step of missJob, which share jobStep rows. One of
	// them ends missLeast rows at least, if it has so many.
	missEndpoints = 500
	missLeast     = 4
)

// missJob turns the pending rows of endpoints that are disabled or gone into missed ones. There is
// one for all of them: an app may remove a hundred thousand endpoints at once, and a transaction
// for each would take minutes. It belongs to the Ledger's goroutine.
type missJob struct {
	waiting map[string]Missing // by endpoint
	order   []string           // of the endpoints in waiting, as they came; some may have left, or stand twice
	taken   []string           // of the step under way
	ended   []string           // those of taken that have no rows left
	slot    string
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

// stop ends the work for an endpoint up to a version. It reports whether that was the end of an
// endpoint that is gone, whose counter is not deleted yet.
func (j *missJob) stop(endpointID string, version int) (counterLeft bool) {
	m, waits := j.waiting[endpointID]
	if !waits || m.Version > version {
		return false
	}
	delete(j.waiting, endpointID)
	return m.Removed
}

var missPending = pieces{"end or restore": endOrRestore("p.former", "p.reason")}.in(`
with picked as (
    select d.endpoint_id, d.event_id, d.attempts, w.reason, case when d.replay_id is not null then d.former end as former
    from unnest($1::text[], $2::text[]) w (endpoint_id, reason),
         lateral (select endpoint_id, event_id, attempts, replay_id, former from webhooks.deliveries
                  where endpoint_id = w.endpoint_id and status = 'pending'
                    and not exists (select from unnest($3::text[], $4::text[]) k (endpoint_id, event_id)
                                    where k.endpoint_id = deliveries.endpoint_id and k.event_id = deliveries.event_id)
                  order by next_attempt_at limit $5) d
), ended as (
    update webhooks.deliveries d set ${end or restore}
    from picked p where d.endpoint_id = p.endpoint_id and d.event_id = p.event_id
    returning d.endpoint_id, d.replay_id, p.attempts, p.reason
)
select endpoint_id, coalesce(replay_id, ''), count(*) filter (where attempts > 0), count(*) filter (where attempts = 0), min(reason)
from ended group by 1, 2`)

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
		replays replayCounts
	)
	_, err = queryRows(ctx, tx, missPending, func(row pgx.CollectableRow) (struct{}, error) {
		var (
			endpointID, replayID, reason string
			tried, unsent                int64
		)
		err := row.Scan(&endpointID, &replayID, &tried, &unsent, &reason)
		rows[endpointID] += tried + unsent
		replays.add(replayID, tried, unsent, missedReason(reason))
		return struct{}{}, err
	}, j.taken, reasons, keepEndpoints, keepEvents, limit)
	if err != nil {
		return false, err
	}
	if err := replays.write(ctx, tx, j.slot); err != nil {
		return false, err
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

// disableJob disables an endpoint. It is a job of its own because the app may hold the row, and
// nothing else must wait for that. If the agent dies before it is done, the next one does it by the
// recorded counter.
type disableJob struct {
	Disabling
	announcer *announcer
	locked    bool
	notices   []news // of the last step
}

const lockPause = 100 * time.Millisecond

const disableUnlocked = `
with wanted as (
    select id from webhooks.endpoints where id = $1 and disabled_at is null and generation = $3 for update skip locked
), disabled as (
    update webhooks.endpoints e set disabled_at = now(), disabled_reason = $2 from wanted w where e.id = w.id returning e.id
)
select exists (select from webhooks.endpoints where id = $1 and disabled_at is null and generation = $3)
       and not exists (select from disabled), exists (select from disabled)`

// step announces what it does. An endpoint that a person has disabled meanwhile is not announced.
func (j *disableJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	var disabled bool
	if err = tx.QueryRow(ctx, disableUnlocked, j.EndpointID, j.Reason, j.Generation).Scan(&j.locked, &disabled); err != nil {
		return false, err
	}
	if j.notices = nil; disabled {
		j.notices = []news{{j.EndpointID, Notice{Generation: j.Generation, Level: NoticeDisabled}}}
	}
	return !j.locked, j.announcer.write(ctx, tx, j.notices)
}

func (j *disableJob) committed() []string {
	j.announcer.done(j.notices)
	return nil
}

func (j *disableJob) pause() time.Duration { return lockPause }

func (j *disableJob) abandon(context.Context, querier, string) error { return nil }
