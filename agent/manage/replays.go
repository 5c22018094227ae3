package manage

import (
	"context"
	"errors"
	"fmt"

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

// Start starts the replays of those plans that have something to send. repeated reports that all of
// them had been started by the same request before.
func (d *Desk) Start(ctx context.Context, plans []outbox.ReplayPlan, o outbox.ReplayOptions) (started []outbox.ReplayInfo, repeated bool, err error) {
	repeated = true
	for _, plan := range plans {
		if plan.Refused != "" || plan.Deliveries == 0 {
			continue
		}
		replay, again, err := d.View.StartReplay(ctx, plan, o)
		if err != nil {
			return started, false, err
		}
		started, repeated = append(started, replay), repeated && again
	}
	return started, repeated && len(started) > 0, nil
}
