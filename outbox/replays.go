package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// ReplayRequest asks to send deliveries again: those of EventIDs, to one endpoint or to all that have them, or else all of
// EndpointID whose event was created from Since on and before Until. Pending deliveries are never replayed.
type ReplayRequest struct {
	EndpointID   string
	EventIDs     []string
	Statuses     []Status
	Since, Until *time.Time
}

// ReplayPlan is what a replay of one endpoint would do.
type ReplayPlan struct {
	EndpointID string     `json:"endpoint_id"`
	EventIDs   []string   `json:"event_ids"` // nil for a time range
	Statuses   []Status   `json:"statuses"`
	Since      *time.Time `json:"since"`
	Until      *time.Time `json:"until"`
	// Deliveries is how many it would send again, counted up to MaxReplayCount.
	Deliveries int64 `json:"deliveries"`
	// Refused is why nothing can be sent to the endpoint, with the remedy; empty when it can.
	Refused string `json:"refused"`
}

// MaxReplayCount is how far PlanReplay counts; beyond it the number would cost more than it tells.
const MaxReplayCount = 100_000

// MaxReplayEvents is how many events one request may name.
const MaxReplayEvents = 1000

// ReplayInfo is how far a replay is.
type ReplayInfo struct {
	ID         string     `json:"id"`
	EndpointID string     `json:"endpoint_id"`
	State      string     `json:"state"`  // pending, running, done or failed
	Total      int64      `json:"total"`  // grows while the replay looks for its deliveries
	Done       int64      `json:"done"`   // those that were attempted and have ended
	Unsent     int64      `json:"unsent"` // those that were not attempted; Error says why
	Error      string     `json:"error"`
	Created    time.Time  `json:"created"`
	Finished   *time.Time `json:"finished"`
}

// Ended tells whether nothing more will come of the replay.
func (r ReplayInfo) Ended() bool { return r.State == "done" || r.State == "failed" }

const countReplay = `
select count(*) from (
    select from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and venue = coalesce((select venue from webhooks.endpoints where id = $1), venue)
      and ($3::timestamptz is null or created >= $3) and created < coalesce($4, now()){ and venue = @venue}
    limit $5
) found`

const selectReplayEvents = `
select endpoint_id, array_agg(event_id order by event_id)
from webhooks.deliveries
where event_id = any($1) and ($2 = '' or endpoint_id = $2) and status = any($3)
  and venue = coalesce((select venue from webhooks.endpoints where id = deliveries.endpoint_id), venue){ and venue = @venue}
group by endpoint_id order by endpoint_id limit $4`

const selectUnknownEvents = `
select id from unnest($1::text[]) id where not exists (select from webhooks.deliveries d where d.event_id = id{ and d.venue = @venue}) order by id limit 1`

// PlanReplay returns what StartReplay would do, one plan for each endpoint concerned. An endpoint that was removed, or that is disabled
// or unusable, has a plan that is Refused. It is an error when all are, and when an event is not known.
func (v view) PlanReplay(ctx context.Context, r ReplayRequest) (plans []ReplayPlan, err error) {
	err = v.look(ctx, "plan a replay", func(q narrowed) error {
		if len(r.EventIDs) == 0 {
			plan := ReplayPlan{EndpointID: r.EndpointID, Statuses: r.Statuses, Since: r.Since, Until: r.Until}
			plans = []ReplayPlan{plan}
			return q.QueryRow(ctx, countReplay, r.EndpointID, texts(r.Statuses), r.Since, r.Until, MaxReplayCount).Scan(&plans[0].Deliveries)
		}
		unknown, err := queryRows(ctx, q, selectUnknownEvents, pgx.RowTo[string], r.EventIDs)
		if err != nil {
			return err
		}
		if len(unknown) > 0 {
			return &Problem{Thing: fmt.Sprintf("event %q", unknown[0]), Reason: "the delivery log does not have it",
				Remedy: "webhook-agent deliveries show " + unknown[0] + " says why"}
		}
		plans, err = queryRows(ctx, q, selectReplayEvents, func(row pgx.CollectableRow) (p ReplayPlan, err error) {
			p.Statuses = r.Statuses
			err = row.Scan(&p.EndpointID, &p.EventIDs)
			p.Deliveries = int64(len(p.EventIDs))
			return p, err
		}, r.EventIDs, r.EndpointID, texts(r.Statuses), MaxReplayCount)
		return err
	})
	if err != nil {
		return nil, err
	}
	var refusals []error
	for i, plan := range plans {
		refusal, err := v.refuseReplay(ctx, plan.EndpointID)
		if err != nil {
			return nil, err
		}
		if refusal != nil {
			plans[i].Refused = refusal.Error()
			refusals = append(refusals, refusal)
		}
	}
	if len(plans) > 0 && len(refusals) == len(plans) {
		return nil, errors.Join(refusals...)
	}
	return plans, nil
}

// refuseReplay says why nothing can be sent to an endpoint, or returns nil.
func (v view) refuseReplay(ctx context.Context, endpointID string) (*Problem, error) {
	found, err := v.Endpoints(ctx, EndpointFilter{ID: endpointID, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return noEndpoint(endpointID), nil
	}
	thing := fmt.Sprintf("endpoint %q", endpointID)
	switch e := found[0]; e.State {
	case StateDisabled:
		return &Problem{Thing: thing, Reason: "it is disabled, so nothing is sent to it",
			Remedy: "run webhook-agent endpoints enable " + endpointID + ", then replay"}, nil
	case StateUnusable:
		return &Problem{Thing: thing, Reason: "it is unusable, so nothing is sent to it: " + e.Unusable,
			Remedy: "correct its row in webhooks.endpoints, then replay"}, nil
	}
	return nil, nil
}

const replayColumns = `id, endpoint_id, state, coalesce(total, 0), done, unsent, coalesce(error, ''), created, finished`

const insertReplay = `
insert into webhooks.replays (endpoint_id, event_ids, since, until, statuses)
select $1::text, $2::text[], $3::timestamptz, $4::timestamptz, $5::text[]{
where exists (select from webhooks.endpoints where id = $1::text and venue = @venue)}
returning ` + replayColumns

// StartReplay hands a plan to the agent, through its stream, and returns the replay. What is missed or failed when the agent
// gets to it is sent, which may be more or less than the plan counted.
func (v view) StartReplay(ctx context.Context, p ReplayPlan) (ReplayInfo, error) {
	q, err := v.do()
	if err != nil {
		return ReplayInfo{}, err
	}
	started, err := queryRows(ctx, q, insertReplay, scanReplayInfo, p.EndpointID, p.EventIDs, p.Since, p.Until, texts(p.Statuses))
	if err != nil {
		return ReplayInfo{}, v.db.cfg.explain("start a replay", err)
	}
	if len(started) == 0 { // the endpoint is another venue's
		return ReplayInfo{}, noEndpoint(p.EndpointID)
	}
	return started[0], nil
}

const selectReplays = `
select ` + replayColumns + `
from webhooks.replays r where id = any($1){ and exists (
    select from webhooks.endpoints e where e.id = r.endpoint_id and e.venue = @venue)}
order by id`

// Replays returns how far the replays with these ids are, in the order of their ids.
func (v view) Replays(ctx context.Context, ids []string) (replays []ReplayInfo, err error) {
	err = v.look(ctx, "read replays", func(q narrowed) error {
		replays, err = queryRows(ctx, q, selectReplays, scanReplayInfo, ids)
		return err
	})
	return replays, err
}

func scanReplayInfo(row pgx.CollectableRow) (r ReplayInfo, err error) {
	err = row.Scan(&r.ID, &r.EndpointID, &r.State, &r.Total, &r.Done, &r.Unsent, &r.Error, &r.Created, &r.Finished)
	return r, err
}
