package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/quintago/webhook-agent/outbox"
)

var (
	// ReplayStatuses are those that a replay may ask for.
	ReplayStatuses = []outbox.Status{outbox.Missed, outbox.Failed, outbox.Succeeded}
	// rangeStatuses are those that a replay of a time range has where none is given.
	rangeStatuses = []outbox.Status{outbox.Missed, outbox.Failed}
)

var errEmpty = errors.New("is empty; leave it out, or name what is meant")

// Plan says what a replay would do: one plan for each endpoint concerned, with the number of
// deliveries. It fills in the statuses where they are nil. An empty list is an error, and does not
// stand for everything.
func (d *Desk) Plan(ctx context.Context, r outbox.ReplayRequest) ([]outbox.ReplayPlan, error) {
	single := r.EventIDs != nil
	switch {
	case single && len(r.EventIDs) == 0: // where they were searched for, and none was found
		return nil, &FieldError{Field: "event_ids", Err: errEmpty}
	case r.Statuses != nil && len(r.Statuses) == 0:
		return nil, &FieldError{Field: "statuses", Err: errEmpty}
	case !single && r.EndpointID == "":
		return nil, &FieldError{Field: "endpoint_id", Err: errors.New("is missing; name an endpoint, or events by event_ids")}
	case single && (r.Since != nil || r.Until != nil):
		return nil, &FieldError{Field: "since", Err: errors.New("and until are for a whole endpoint, not for single events")}
	case len(r.EventIDs) > outbox.MaxReplayEvents:
		return nil, &FieldError{Field: "event_ids", Err: fmt.Errorf("has %d events, at most %d; name an endpoint with since and until", len(r.EventIDs), outbox.MaxReplayEvents)}
	}
	if r.Statuses == nil {
		r.Statuses = rangeStatuses
		if single {
			r.Statuses = ReplayStatuses
		}
	}
	return d.View.PlanReplay(ctx, r)
}

// Replay starts what a request asks for: a replay for each endpoint that has something to be sent, or
// none at all. A request that was made before, by its key, starts nothing: repeated reports it, and
// started are the replays of the first.
func (d *Desk) Replay(ctx context.Context, r outbox.ReplayRequest, o outbox.ReplayOptions) (started []outbox.ReplayInfo, repeated bool, err error) {
	if o.Key != "" {
		started, err = d.View.StartedReplays(ctx, r, o.Idempotency)
		if err != nil || len(started) > 0 {
			return started, err == nil, err
		}
	}
	plans, err := d.Plan(ctx, r)
	if err != nil {
		return nil, false, err
	}
	return d.Start(ctx, plans, o)
}

// Start starts the replays of those plans that have something to send, or none at all. repeated
// reports that all of them had been started by the same request before.
func (d *Desk) Start(ctx context.Context, plans []outbox.ReplayPlan, o outbox.ReplayOptions) (started []outbox.ReplayInfo, repeated bool, err error) {
	sent := slices.DeleteFunc(slices.Clone(plans), func(p outbox.ReplayPlan) bool { return p.Refused != "" || p.Deliveries == 0 })
	if len(sent) == 0 {
		return nil, false, nil
	}
	return d.View.StartReplays(ctx, sent, o)
}
