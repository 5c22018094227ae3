package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ReplayRequest asks to send deliveries again: those of EventIDs, to one endpoint or to all that
// have them, or else all of EndpointID whose event was created from Since on and before Until.
// Pending deliveries are never replayed.
type ReplayRequest struct {
	EndpointID   string
	EventIDs     []string
	Statuses     []Status
	Since, Until *time.Time
	// Enabling has PlanReplay plan for an endpoint that is enabled before the replay starts.
	Enabling bool
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
	// Refusal is the same as an error, nil when it can.
	Refusal *Problem `json:"-"`
}

// ReplayOptions are what a replay has beside its plan.
type ReplayOptions struct {
	// PerSecond is how many deliveries it sets back in a second at most; zero for as many as the
	// endpoint takes.
	PerSecond int
	Idempotency
}

// MaxPerSecond is the highest pace of a replay.
const MaxPerSecond = 10_000

// The states of a replay. It ends as done, failed or canceled.
const (
	ReplayPending  = "pending"
	ReplayRunning  = "running"
	ReplayPaused   = "paused"
	ReplayDone     = "done"
	ReplayFailed   = "failed"
	ReplayCanceled = "canceled"
)

// ErrReplayEnded reports that a replay has ended, so that it cannot be changed.
var ErrReplayEnded = errors.New("the replay has ended")

// MaxReplayCount is how far PlanReplay counts. Larger numbers take too long to count.
const MaxReplayCount = 100_000

// MaxReplayEvents is how many events one request may name.
const MaxReplayEvents = 1000

// ReplayInfo is how far a replay is.
type ReplayInfo struct {
	ID         string     `json:"id"`
	EndpointID string     `json:"endpoint_id"`
	Venue      string     `json:"venue"`
	Events     *int       `json:"events"` // how many it names; nil for a time range
	Statuses   []Status   `json:"statuses"`
	Since      *time.Time `json:"since"`
	Until      *time.Time `json:"until"`
	State      string     `json:"state"`
	Expected   *int64     `json:"expected"`   // by its plan; nil when unknown
	PerSecond  *int       `json:"per_second"` // nil when it is not paced
	PausedAt   *time.Time `json:"paused_at"`
	Total      int64      `json:"total"`  // grows while the replay looks for its deliveries
	Done       int64      `json:"done"`   // those that were attempted and have ended
	Unsent     int64      `json:"unsent"` // those that were not attempted; Error says why
	Error      string     `json:"error"`
	Created    time.Time  `json:"created"`
	Finished   *time.Time `json:"finished"`
}

// Ended reports whether the replay sends nothing more. One that was canceled may still be taken
// back; Finished says when that is over.
func (r ReplayInfo) Ended() bool {
	return r.State == ReplayDone || r.State == ReplayFailed || r.State == ReplayCanceled
}

var countReplay = `
select count(*) from (
    select from webhooks.deliveries
    where endpoint_id = $1 and status = any($2) and venue = coalesce((select venue from webhooks.endpoints where id = $1), venue)
      and ($3::timestamptz is null or created >= $3) and created < coalesce($4, now()){ and venue = @venue}` + ofRegistered + `
    limit $5
) found`

var selectReplayEvents = `
select endpoint_id, array_agg(event_id order by event_id)
from webhooks.deliveries
where event_id = any($1) and ($2 = '' or endpoint_id = $2) and status = any($3)
  and venue = coalesce((select venue from webhooks.endpoints where id = deliveries.endpoint_id), venue){ and venue = @venue}
  and ` + ofFormer("deliveries.endpoint_id") + ` is not true
group by endpoint_id order by endpoint_id limit $4`

const selectUnknownEvents = `
select id from unnest($1::text[]) id where not exists (select from webhooks.deliveries d where d.event_id = id{ and d.venue = @venue}) order by id limit 1`

// PlanReplay returns what StartReplay would do, one plan for each endpoint concerned. An endpoint
// that was removed, or that is disabled or unusable, has a plan that is Refused. It is an error
// when all are, and when an event is not known.
func (v view) PlanReplay(ctx context.Context, r ReplayRequest) (plans []ReplayPlan, err error) {
	err = v.look(ctx, "plan a replay", func(q narrowed) error {
		if len(r.EventIDs) == 0 {
			plan := ReplayPlan{EndpointID: r.EndpointID, Statuses: r.Statuses, Since: r.Since, Until: r.Until}
			plan.Deliveries, err = q.countReplay(ctx, r)
			plans = []ReplayPlan{plan}
			return err
		}
		unknown, err := queryRows(ctx, q, selectUnknownEvents, pgx.RowTo[string], r.EventIDs)
		if err != nil {
			return err
		}
		if len(unknown) > 0 {
			return &Problem{Thing: fmt.Sprintf("event %q", unknown[0]), Reason: "the delivery log does not have it",
				Remedy: "webhook-agent deliveries show " + unknown[0] + " says why", Err: ErrNotFound}
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
		refusal, err := v.refuseReplay(ctx, plan.EndpointID, r.Enabling)
		if err != nil {
			return nil, err
		}
		if refusal != nil {
			plans[i].Refused, plans[i].Refusal = refusal.Error(), refusal
			refusals = append(refusals, refusal)
		}
	}
	if len(plans) > 0 && len(refusals) == len(plans) {
		return nil, errors.Join(refusals...)
	}
	return plans, nil
}

// countReplay counts what a replay of a time range would send, up to MaxReplayCount.
func (n narrowed) countReplay(ctx context.Context, r ReplayRequest) (deliveries int64, err error) {
	err = n.QueryRow(ctx, countReplay, r.EndpointID, texts(r.Statuses), r.Since, r.Until, MaxReplayCount).Scan(&deliveries)
	return deliveries, err
}

// CountMissed counts what an endpoint missed, up to MaxReplayCount. A replay would send it once the
// endpoint is enabled.
func (v view) CountMissed(ctx context.Context, endpointID string) (deliveries int64, err error) {
	err = v.look(ctx, "count what an endpoint missed", func(q narrowed) error {
		deliveries, err = q.countReplay(ctx, ReplayRequest{EndpointID: endpointID, Statuses: []Status{Missed}})
		return err
	})
	return deliveries, err
}

// refuseReplay says why nothing can be sent to an endpoint, or returns nil. One that is about to be
// enabled may be disabled.
func (v view) refuseReplay(ctx context.Context, endpointID string, enabling bool) (*Problem, error) {
	found, err := v.Endpoints(ctx, EndpointFilter{ID: endpointID, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return noEndpoint(endpointID), nil
	}
	thing := fmt.Sprintf("endpoint %q", endpointID)
	e := found[0]
	switch {
	case e.State == StateDisabled && !enabling:
		return &Problem{Thing: thing, Reason: "it is disabled, so nothing is sent to it",
			Remedy: "run webhook-agent endpoints enable " + endpointID + ", then replay", Err: ErrRefused}, nil
	case e.Unusable != "":
		return &Problem{Thing: thing, Reason: "it is unusable, so nothing is sent to it: " + e.Unusable,
			Remedy: "correct it with webhook-agent endpoints update " + endpointID + ", then replay", Err: ErrRefused}, nil
	}
	return nil, nil
}

const replayColumns = `id, endpoint_id, coalesce(venue, ''), cardinality(event_ids), statuses, case when isfinite(since) then since end,
       case when isfinite(until) then until end, state, expected, per_second, paused_at, coalesce(total, 0), done, unsent,
       coalesce(error, ''), created, finished`

const insertReplay = `
insert into webhooks.replays (endpoint_id, event_ids, since, until, statuses, expected, per_second, idempotency_key, idempotency_hash)
select $1::text, $2::text[], $3::timestamptz, $4::timestamptz, $5::text[], $6::bigint, $7::int, $8::text, $9::bytea{
where exists (select from webhooks.endpoints where id = $1::text and venue = @venue)}
on conflict (venue, idempotency_key, endpoint_id) where idempotency_key is not null do nothing
returning ` + replayColumns

const selectRepeatedReplay = `
select idempotency_hash is not distinct from $3, ` + replayColumns + `
from webhooks.replays r where endpoint_id = $1 and idempotency_key = $2{ and venue = @venue}
  and venue = (select e.venue from webhooks.endpoints e where e.id = $1)`

// selectStartedReplays finds what a request has started before. A key is one venue's, so in the view
// of all ($5) it is looked for in the venues of what the request names.
const selectStartedReplays = `
select idempotency_hash is not distinct from $2, ` + replayColumns + `
from webhooks.replays r where idempotency_key = $1{ and venue = @venue}
  and (not $5 or $3 <> '' and (endpoint_id = $3 or venue = (select e.venue from webhooks.endpoints e where e.id = $3))
       or $3 = '' and venue in (select d.venue from webhooks.deliveries d where d.event_id = any($4)))
order by created, id`

// StartedReplays returns the replays that the same request has started before, by its key, and
// ErrIdempotency where another request has used it. There are none where the request is new, and
// where it had nothing to send. It is to be asked before a plan is made: what was sent is no longer
// part of one.
func (v view) StartedReplays(ctx context.Context, r ReplayRequest, once Idempotency) (started []ReplayInfo, err error) {
	others := false
	err = v.look(ctx, "look for a replay", func(q narrowed) error {
		started, err = queryRows(ctx, q, selectStartedReplays, func(row pgx.CollectableRow) (r ReplayInfo, err error) {
			same := false
			err = row.Scan(append([]any{&same}, r.columns()...)...)
			others = others || !same
			return r, err
		}, once.Key, once.Hash, r.EndpointID, r.EventIDs, v.all)
		return err
	})
	if err == nil && others {
		return nil, keyOfAnother
	}
	return started, err
}

// StartReplay is StartReplays for one plan.
func (v view) StartReplay(ctx context.Context, p ReplayPlan, o ReplayOptions) (started ReplayInfo, repeated bool, err error) {
	all, repeated, err := v.StartReplays(ctx, []ReplayPlan{p}, o)
	if err != nil {
		return ReplayInfo{}, false, err
	}
	return all[0], repeated, nil
}

// StartReplays hands plans to the agent, through its stream, and returns the replays: one for each
// plan, or none at all. What is missed or failed when the agent gets to it is sent, which may be more
// or less than a plan counted. A second call with the same key returns the replays of the first, and
// ErrIdempotency where the hash is another one. repeated reports that none is new.
func (v view) StartReplays(ctx context.Context, plans []ReplayPlan, o ReplayOptions) (started []ReplayInfo, repeated bool, err error) {
	if o.PerSecond != 0 {
		if err := CheckPace(o.PerSecond); err != nil {
			return nil, false, err
		}
	}
	if v.db == nil {
		return nil, false, errNoVenue
	}
	repeated = true
	err = pgx.BeginFunc(ctx, v.db.pool, func(tx pgx.Tx) error {
		q := v.on(withoutPreparing(tx))
		for _, p := range plans {
			replay, again, err := q.startReplay(ctx, p, o)
			if err != nil {
				return err
			}
			started, repeated = append(started, replay), repeated && again
		}
		return nil
	})
	if err != nil {
		return nil, false, v.db.cfg.explain("start a replay", err)
	}
	return started, repeated, nil
}

// startReplay starts one replay of a request.
func (n narrowed) startReplay(ctx context.Context, p ReplayPlan, o ReplayOptions) (started ReplayInfo, repeated bool, err error) {
	expected := &p.Deliveries
	if p.Deliveries >= MaxReplayCount { // nobody counted further
		expected = nil
	}
	found, err := queryRows(ctx, n, insertReplay, scanReplayInfo, p.EndpointID, p.EventIDs, p.Since, p.Until, texts(p.Statuses),
		expected, orNull(o.PerSecond), orNull(o.Key), o.Hash)
	switch {
	case err != nil:
		return ReplayInfo{}, false, err
	case len(found) > 0:
		return found[0], false, nil
	case o.Key == "": // the endpoint is another venue's
		return ReplayInfo{}, false, noEndpoint(p.EndpointID)
	}
	same := false
	found, err = queryRows(ctx, n, selectRepeatedReplay, func(row pgx.CollectableRow) (r ReplayInfo, err error) {
		err = row.Scan(append([]any{&same}, r.columns()...)...)
		return r, err
	}, p.EndpointID, o.Key, o.Hash)
	switch {
	case err != nil:
		return ReplayInfo{}, false, err
	case len(found) == 0:
		return ReplayInfo{}, false, noEndpoint(p.EndpointID)
	case !same:
		return ReplayInfo{}, false, keyOfAnother
	}
	return found[0], true, nil
}

// CheckPace returns a Problem for a pace that no replay can have.
func CheckPace(perSecond int) error {
	if perSecond < 1 || perSecond > MaxPerSecond {
		return &Problem{Thing: "the pace", Reason: fmt.Sprintf("it is %d a second", perSecond),
			Remedy: fmt.Sprintf("give a number from 1 to %d", MaxPerSecond)}
	}
	return nil
}

const selectReplays = `
select ` + replayColumns + `
from webhooks.replays r where id = any($1){ and venue = @venue}
order by id`

// Replays returns how far the replays with these ids are, in the order of their ids.
func (v view) Replays(ctx context.Context, ids []string) (replays []ReplayInfo, err error) {
	err = v.look(ctx, "read replays", func(q narrowed) error {
		replays, err = queryRows(ctx, q, selectReplays, scanReplayInfo, ids)
		return err
	})
	return replays, err
}

// Replay returns how far one replay is. Without one it is a Problem that wraps ErrNotFound.
func (v view) Replay(ctx context.Context, id string) (ReplayInfo, error) {
	found, err := v.Replays(ctx, []string{id})
	if err != nil {
		return ReplayInfo{}, err
	}
	if len(found) == 0 {
		return ReplayInfo{}, &Problem{Thing: fmt.Sprintf("replay %q", id), Reason: "there is none with this id",
			Remedy: "webhook-agent replays list shows them", Err: ErrNotFound}
	}
	return found[0], nil
}

// ReplayFilter narrows a list of replays. Empty fields do not narrow it.
type ReplayFilter struct {
	EndpointID string
	Venue      string
	States     []string
	Before     string // what the page before returned as next
	Limit      int
}

// selectReplayList is planned for its parameters each time, as selectDeliveries is.
const selectReplayList = `
select ` + replayColumns + `, created::text as place
from webhooks.replays r
where ($1 = '' or endpoint_id = $1) and (cardinality($2::text[]) = 0 or state = any($2))
  and ($3::text is null or (created, id) < ($3::text::timestamptz, $4)){ and venue = @venue} and ($6 = '' or venue = $6)
order by created desc, id desc limit $5`

// ListReplays lists replays, newest first. next is for the Before of the next page, empty where
// there is none.
func (v view) ListReplays(ctx context.Context, f ReplayFilter) (replays []ReplayInfo, next string, err error) {
	before := &cursor{} // of a replay, whose id stands in the place of an event's
	var at *string
	if f.Before != "" {
		if before, err = parseCursor(f.Before); err != nil {
			return nil, "", err
		}
		if before.EventID == "" || before.EndpointID != "" || before.Skip != 0 { // it is of the delivery log
			return nil, "", badCursor
		}
		at = &before.Created
	}
	var created []string
	err = v.look(ctx, "list replays", func(q narrowed) error {
		created = nil
		replays, err = queryRows(ctx, q, selectReplayList, func(row pgx.CollectableRow) (r ReplayInfo, err error) {
			var place string
			err = row.Scan(append(r.columns(), &place)...)
			created = append(created, place)
			return r, err
		}, f.EndpointID, append([]string{}, f.States...), at, before.EventID, f.Limit+1, f.Venue)
		return err
	})
	if f.Before != "" && strings.HasPrefix(SQLState(err), classDataException) {
		return nil, "", badCursor
	}
	if err == nil && len(replays) > f.Limit {
		replays = replays[:f.Limit]
		next = cursor{Created: created[f.Limit-1], EventID: replays[f.Limit-1].ID}.String()
	}
	return replays, next, err
}

const setReplayState = `
update webhooks.replays set state = $2 where id = $1 and state in ('pending', 'running', 'paused'){ and venue = @venue}
returning ` + replayColumns

const setReplayPace = `
update webhooks.replays set per_second = $2 where id = $1 and state in ('pending', 'running', 'paused'){ and venue = @venue}
returning ` + replayColumns

// PauseReplay pauses a replay: no further delivery becomes pending. What is pending already, which is
// less than 500 deliveries, is sent all the same. To pause a paused one changes nothing.
func (v view) PauseReplay(ctx context.Context, id string) (ReplayInfo, error) {
	return v.changeReplay(ctx, "pause a replay", setReplayState, id, ReplayPaused)
}

// ResumeReplay has a paused replay go on within two seconds. To resume one that runs changes
// nothing.
func (v view) ResumeReplay(ctx context.Context, id string) (ReplayInfo, error) {
	return v.changeReplay(ctx, "resume a replay", setReplayState, id, ReplayRunning)
}

// CancelReplay ends the replay. The agent makes what it has not sent yet what it was before;
// Finished says when it has.
func (v view) CancelReplay(ctx context.Context, id string) (ReplayInfo, error) {
	return v.changeReplay(ctx, "cancel a replay", setReplayState, id, ReplayCanceled)
}

// SetReplayPace changes how many deliveries the replay sets back in a second; zero takes the pace
// away.
func (v view) SetReplayPace(ctx context.Context, id string, perSecond int) (ReplayInfo, error) {
	if perSecond != 0 {
		if err := CheckPace(perSecond); err != nil {
			return ReplayInfo{}, err
		}
	}
	return v.changeReplay(ctx, "pace a replay", setReplayPace, id, orNull(perSecond))
}

// changeReplay changes a replay that has not ended.
func (v view) changeReplay(ctx context.Context, operation, sql, id string, to any) (ReplayInfo, error) {
	q, err := v.do()
	if err != nil {
		return ReplayInfo{}, err
	}
	changed, err := queryRows(ctx, q, sql, scanReplayInfo, id, to)
	if err != nil {
		return ReplayInfo{}, v.db.cfg.explain(operation, err)
	}
	if len(changed) > 0 {
		return changed[0], nil
	}
	r, err := v.Replay(ctx, id)
	if err != nil {
		return ReplayInfo{}, err
	}
	return r, &Problem{Thing: fmt.Sprintf("replay %q", id), Reason: "it has ended (" + r.State + ")",
		Remedy: "start another one by webhook-agent deliveries replay", Err: ErrReplayEnded}
}

// columns are where replayColumns go.
func (r *ReplayInfo) columns() []any {
	return []any{&r.ID, &r.EndpointID, &r.Venue, &r.Events, &r.Statuses, &r.Since, &r.Until, &r.State, &r.Expected, &r.PerSecond,
		&r.PausedAt, &r.Total, &r.Done, &r.Unsent, &r.Error, &r.Created, &r.Finished}
}

func scanReplayInfo(row pgx.CollectableRow) (r ReplayInfo, err error) {
	err = row.Scan(r.columns()...)
	return r, err
}
