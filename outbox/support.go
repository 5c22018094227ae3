package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file answers what people who support customers ask.

// lookAll is DB.look for statements that are the operator's alone.
func (v AllVenues) lookAll(ctx context.Context, operation string, do func(tx pgx.Tx) error) error {
	if v.db == nil {
		return errNoVenue
	}
	return v.db.look(ctx, operation, do)
}

// Leading says who delivers.
type Leading struct {
	Leader *LeaderInfo // nil before the first agent has run
	Slot   *SlotInfo   // nil when there is none
}

// Leads reports whether an agent is connected and has taken over.
func (l Leading) Leads() bool { return l.Leader != nil && l.Slot != nil && l.Slot.Active }

// Leading returns who delivers. Unlike Overview it counts nothing.
func (db *DB) Leading(ctx context.Context) (l Leading, err error) {
	err = db.look(ctx, "see who leads", func(tx pgx.Tx) error {
		l, err = readLeading(ctx, tx, db.cfg.Slot)
		return err
	})
	return l, err
}

func readLeading(ctx context.Context, q rowQuerier, slot string) (l Leading, err error) {
	leaders, err := queryRows(ctx, q, selectLeaderInfo, func(row pgx.CollectableRow) (l LeaderInfo, err error) {
		err = row.Scan(&l.Holder, &l.Epoch, &l.LSN, &l.Recovering, &l.Updated)
		return l, err
	}, slot)
	if err != nil {
		return l, err
	}
	if len(leaders) > 0 {
		l.Leader = &leaders[0]
	}
	slots, err := queryRows(ctx, q, selectSlotInfo, scanSlotInfo, slot)
	if len(slots) > 0 {
		l.Slot = &slots[0]
	}
	return l, err
}

// A last success is looked for among so many deliveries of an endpoint: successWalk for one, and
// for a long list as many as keep the whole look-up at successWalkAll.
const (
	successWalk, successWalkLeast = 1000, 20
	successWalkAll                = 100_000
)

// selectLastSuccess walks the deliveries of each endpoint from the newest event on, those of a
// series of failures left out: since it began nothing has succeeded. So nearly always the first row
// is the one. The agent records only the success that ends a series of failures, since one more
// update for each delivery would cost more than the delivery's own row.
const selectLastSuccess = `
select w.id, greatest(h.last_success_at, (
    select finished from (
        select d.status, d.finished, d.venue from webhooks.deliveries d
        where d.endpoint_id = w.id and d.created < coalesce(case when h.generation = e.generation then h.first_failure_at end, 'infinity')
        order by d.created desc, d.event_id desc limit $2) newest
    where status = 'succeeded'{ and newest.venue = @venue} limit 1))
from unnest($1::text[]) w (id)
left join webhooks.endpoints e on e.id = w.id
left join webhooks.endpoint_health h on h.endpoint_id = w.id{
where e.venue = @venue}`

// LastSuccesses returns when each of the endpoints has last taken an event. One without a success
// among its latest deliveries has no entry. An event of long ago that was replayed does not count.
func (v view) LastSuccesses(ctx context.Context, endpointIDs []string) (map[string]time.Time, error) {
	found := map[string]time.Time{}
	err := v.look(ctx, "look for the last successes", func(q narrowed) error {
		if err := exec(ctx, q.querier, walkInOrder); err != nil {
			return err
		}
		walk := min(successWalk, max(successWalkLeast, successWalkAll/max(1, len(endpointIDs))))
		_, err := queryRows(ctx, q, selectLastSuccess, func(row pgx.CollectableRow) (struct{}, error) {
			var id string
			var at *time.Time
			err := row.Scan(&id, moment{&at})
			if at != nil {
				found[id] = *at
			}
			return struct{}{}, err
		}, endpointIDs, walk)
		return err
	})
	return found, err
}

// FindLastSuccesses sets LastSuccessAt of endpoints to when each has last taken an event. What is
// recorded there is only the success that ended the last series of failures. If the search takes too
// long, that stays: the rest of an answer is worth having.
func (v view) FindLastSuccesses(ctx context.Context, endpoints []EndpointInfo) error {
	ids := make([]string, len(endpoints))
	for i, e := range endpoints {
		ids[i] = e.ID
	}
	found, err := v.LastSuccesses(ctx, ids)
	if errors.Is(err, ErrTooSlow) {
		return nil
	}
	for i, e := range endpoints {
		if at, ok := found[e.ID]; ok {
			endpoints[i].LastSuccessAt = &at
		}
	}
	return err
}

const countPending = `
select count(*) from (select from webhooks.deliveries where endpoint_id = $1 and status = 'pending' limit $2) pending`

// CountPending counts what is to be sent to an endpoint still, up to MaxOverviewCount.
func (v AllVenues) CountPending(ctx context.Context, endpointID string) (deliveries int64, err error) {
	err = v.lookAll(ctx, "count what is pending", func(q pgx.Tx) error {
		return q.QueryRow(ctx, countPending, endpointID, MaxOverviewCount).Scan(&deliveries)
	})
	return deliveries, err
}

// FormerDelivery is what a delivery was before its last replay.
type FormerDelivery struct {
	Status    Status     `json:"status"`
	Attempts  int        `json:"attempts"`
	Finished  *time.Time `json:"finished"`
	LastCode  *int       `json:"last_code"`
	LastClass string     `json:"last_class"`
	LastError string     `json:"last_error"`
	LatencyMS *int       `json:"last_latency_ms"`
}

const selectFormer = `
select endpoint_id, former::text from webhooks.deliveries
where event_id = $1 and former is not null
order by endpoint_id limit $2`

// FormerDeliveries returns what the deliveries of an event were before their last replays, by
// endpoint.
func (v AllVenues) FormerDeliveries(ctx context.Context, eventID string) (map[string]FormerDelivery, error) {
	former := map[string]FormerDelivery{}
	err := v.lookAll(ctx, "read what deliveries were", func(q pgx.Tx) error {
		_, err := queryRows(ctx, q, selectFormer, func(row pgx.CollectableRow) (struct{}, error) {
			var id, text string
			if err := row.Scan(&id, &text); err != nil {
				return struct{}{}, err
			}
			f := FormerDelivery{Status: Succeeded} // agents of before kept no other status
			if err := json.Unmarshal([]byte(text), &f); err != nil {
				return struct{}{}, fmt.Errorf("what the delivery to %s was: %w", id, err)
			}
			former[id] = f
			return struct{}{}, nil
		}, eventID, maxDetails)
		return err
	})
	return former, err
}

// ReplayOutcome is what came of a replay that has ended.
type ReplayOutcome struct {
	Succeeded int64 `json:"succeeded"`
	Failed    int64 `json:"failed"` // after all attempts
	// Missed are those that were not sent to the end: the replay was canceled, the endpoint is off,
	// the event is gone. They are again what they were where that is known.
	Missed int64 `json:"missed"`
	// ReplayedSince are those that a later replay has set back.
	ReplayedSince int64 `json:"replayed_since"`
}

// AllSucceeded reports whether nothing is left to be sent.
func (o ReplayOutcome) AllSucceeded() bool {
	return o.Failed == 0 && o.Missed == 0 && o.ReplayedSince == 0
}

// A delivery that is again what it was has no former state. No index has the replay, since that
// would cost each delivery; this walks what the replay has walked. The comparison of rows fits the
// index of an endpoint's part of the log alone.
const (
	selectOutcome = `
select count(*) filter (where d.former is not null and d.status = 'succeeded'),
       count(*) filter (where d.former is not null and d.status = 'failed' and d.attempts > 0), count(*) filter (where d.former is null)
from webhooks.replays r cross join webhooks.deliveries d
where r.id = $1 and d.replay_id = $1`

	selectRangeOutcome = selectOutcome + `
  and (d.endpoint_id, d.created) >= (r.endpoint_id, coalesce(r.since, '-infinity'))
  and (d.endpoint_id, d.created) < (r.endpoint_id, case when isfinite(r.until) then r.until else r.created end)`

	selectNamedOutcome = selectOutcome + `
  and d.endpoint_id = r.endpoint_id and d.event_id = any(r.event_ids)`
)

// ReplayOutcome counts what came of a replay.
func (v AllVenues) ReplayOutcome(ctx context.Context, r ReplayInfo) (o ReplayOutcome, err error) {
	count := selectRangeOutcome
	if r.Events != nil {
		count = selectNamedOutcome
	}
	var restored int64
	err = v.lookAll(ctx, "count what came of a replay", func(q pgx.Tx) error {
		return q.QueryRow(ctx, count, r.ID).Scan(&o.Succeeded, &o.Failed, &restored)
	})
	o.Missed = max(r.Total-o.Succeeded-o.Failed, 0)
	if r.State == ReplayDone { // all were attempted, so what it has neither ended nor put back is another replay's now
		o.ReplayedSince = max(o.Missed-restored, 0)
		o.Missed -= o.ReplayedSince
	}
	return o, err
}
