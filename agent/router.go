package agent

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// tracker is what the router needs of outbox.Ledger.
type tracker interface {
	Track(context.Context, *outbox.Tracked) error
	Replay(context.Context, outbox.Replay) error
}

// router takes the batches of the stream in commit order, keeps the subscriptions in step with it, and hands each
// event to the lanes that want it. It belongs to one goroutine.
type router struct {
	subs     *subscriptions
	lanes    *lanes
	ledger   tracker
	lookup   func(ctx context.Context, eventIDs []string) (outbox.Recorded, error) // DB.Lookup
	target   func(*outbox.Endpoint) (*sink.Target, error)                          // the error is why nothing can be sent there
	seal     func(*outbox.Endpoint)                                                // has the secrets sealed if they are to be
	metrics  *metrics
	term     outbox.Term
	snapshot outbox.Snapshot // what the state that was loaded contains already
}

// load makes lanes for the endpoints of the state, takes up the open replays, and ends what is pending for endpoints
// that are gone.
func (r *router) load(ctx context.Context, state outbox.State) error {
	r.snapshot = state.Snapshot
	for _, e := range state.Endpoints {
		due := state.Due[e.ID]
		delete(state.Due, e.ID)
		patterns, target, unusable := r.examine(&e.Endpoint)
		l, records := r.lanes.load(e, target, unusable, due)
		r.subs.set(&subscription{l, &e.Endpoint, patterns})
		if err := r.lanes.tell(ctx, records); err != nil {
			return err
		}
	}
	for id := range state.Due {
		if err := r.lanes.tell(ctx, []record{r.lanes.orphaned(id)}); err != nil {
			return err
		}
	}
	return r.takeUp(ctx, state.Replays)
}

// reload takes over a state that was loaded because the stream does not tell of all changes.
func (r *router) reload(ctx context.Context, state outbox.State) error {
	r.snapshot = state.Snapshot
	gone := maps.Clone(r.subs.byID)
	for _, e := range state.Endpoints {
		delete(gone, e.ID)
		if err := r.change(ctx, &outbox.EndpointChange{ID: e.ID, Endpoint: &e.Endpoint}); err != nil {
			return err
		}
	}
	for id := range gone {
		if err := r.change(ctx, &outbox.EndpointChange{ID: id, Removed: true}); err != nil {
			return err
		}
	}
	return r.takeUp(ctx, state.Replays)
}

// takeUp has the ledger go on with replays.
func (r *router) takeUp(ctx context.Context, replays []outbox.Replay) error {
	for _, replay := range replays {
		if err := r.ledger.Replay(ctx, replay); err != nil {
			return err
		}
	}
	return nil
}

// examine returns what an endpoint wants, where it is, and why it cannot be sent to, "" when it can.
func (r *router) examine(e *outbox.Endpoint) (p outbox.Patterns, target *sink.Target, unusable string) {
	r.seal(e)
	target, unfit := r.target(e)
	p, err := outbox.ParsePatterns(e.Events)
	if err == nil {
		err = unfit
	}
	if err != nil {
		unusable = err.Error()
	}
	return p, target, unusable
}

// route handles one batch. recorded is what recorded has found for it.
func (r *router) route(ctx context.Context, b *outbox.Batch, recorded outbox.Recorded) error {
	read := time.Now()
	if b.Idle() {
		return r.ledger.Track(ctx, &outbox.Tracked{End: b.End, Idle: true, Read: read})
	}
	// What the loaded state contains is not applied once more: an old row would undo a newer one, and a counter would
	// be cleared twice.
	loaded := r.snapshot.Sees(b.XID)
	var (
		deliveries []*outbox.Delivery
		offers     []offer
		matched    []*subscription
	)
	// flush hands over what has been matched so far. A change of an endpoint takes effect between the events before
	// and after it.
	flush := func(end outbox.LSN) error {
		results := r.lanes.offer(offers)
		err := r.ledger.Track(ctx, &outbox.Tracked{End: end, Read: read, Deliveries: deliveries, Results: results})
		deliveries, offers = nil, nil
		return err
	}
	for _, c := range b.Changes {
		switch {
		case c.Event != nil:
			r.metrics.events.Inc()
			if b.Commit < r.term.LSN {
				continue // recorded before this term
			}
			var body []byte
			matched = r.subs.match(matched[:0], c.Event.Venue, c.Event.Type)
			for _, sub := range matched {
				if loaded && sub.endpoint.Created.After(b.Committed) {
					continue // registered after the event, although it was loaded before the stream has come here
				}
				if recorded.Has(c.Event, sub.endpoint.ID) || r.term.Repeats && r.underWay(sub, c.Event.ID, deliveries) {
					continue
				}
				if body == nil {
					body = c.Event.Envelope()
				}
				d := c.Event.Delivery(sub.endpoint.ID, b.Committed, body)
				deliveries = append(deliveries, d)
				offers = append(offers, offer{sub.lane, d})
			}
		case c.Endpoint != nil && !loaded:
			if err := flush(0); err != nil {
				return err
			}
			if err := r.change(ctx, c.Endpoint); err != nil {
				return err
			}
		case c.Replay != nil && !loaded:
			if err := r.ledger.Replay(ctx, outbox.Replay{ID: c.Replay.ID, XID: b.XID}); err != nil {
				return err
			}
		}
	}
	return flush(b.End)
}

// underWay tells that the delivery waits, or is being sent, and has no row yet. It is asked only where events may come again.
func (r *router) underWay(sub *subscription, eventID string, deliveries []*outbox.Delivery) bool {
	return r.lanes.holds(sub.lane, eventID) || slices.ContainsFunc(deliveries, func(d *outbox.Delivery) bool {
		return d.EventID == eventID && d.EndpointID == sub.endpoint.ID
	})
}

// recorded looks up which deliveries of the batch an earlier term has recorded. Beyond the position where this term
// began there are none.
func (r *router) recorded(ctx context.Context, b *outbox.Batch) (outbox.Recorded, error) {
	if b.Commit >= r.term.LookupUntil || b.Commit < r.term.LSN {
		return nil, nil
	}
	var ids []string
	for _, c := range b.Changes {
		if c.Event != nil {
			ids = append(ids, c.Event.ID)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	return r.lookup(ctx, ids)
}

// change applies a change of the endpoints.
func (r *router) change(ctx context.Context, c *outbox.EndpointChange) error {
	if c.Removed || c.AllRemoved {
		ids := []string{c.ID}
		if c.AllRemoved {
			ids = slices.Collect(maps.Keys(r.subs.byID))
		}
		for _, id := range ids {
			r.subs.remove(id)
			if err := r.lanes.tell(ctx, r.lanes.remove(id)); err != nil {
				return err
			}
		}
		return nil
	}
	e := c.Endpoint
	if before := r.subs.byID[e.ID]; before != nil {
		c.Merge(before.endpoint)
	}
	patterns, target, unusable := r.examine(e)
	l, records := r.lanes.change(e, target, unusable)
	r.subs.set(&subscription{l, e, patterns})
	return r.lanes.tell(ctx, records)
}
