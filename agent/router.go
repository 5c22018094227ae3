package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// router takes the batches of the stream in commit order, keeps the subscriptions in step with it, and hands each
// event to the lanes that want it. It belongs to one goroutine.
type router struct {
	subs     *subscriptions
	lanes    *lanes.Scheduler
	track    func(context.Context, *outbox.Tracked) error                                       // Ledger.Track
	write    func(context.Context, ...outbox.Entry) error                                       // Ledger.Write
	markLate func(ctx context.Context, events []*outbox.Event) error                            // DB.MarkLate
	lookup   func(ctx context.Context, eventIDs, endpointIDs []string) (outbox.Recorded, error) // DB.Lookup
	target   func(*outbox.Endpoint) (*sink.Target, error)                                       // the error is why nothing can be sent there
	seal     func(*outbox.Endpoint)                                                             // has the secrets sealed if they are to be
	removed  func(endpointID string)                                                            // there is nothing to seal any more
	metrics  *metrics
	log      *slog.Logger
	suspects *suspects
	term     outbox.Term
	snapshot outbox.Snapshot // what the state that was loaded contains already
	backlog  backlog
	made     int // deliveries of the open transaction so far, but for those in the backlog
	tune     func(endpoints int)
	tuned    int // the number of endpoints that tune was told last
}

// load makes lanes for the endpoints of the state, takes up the open replays, and ends what is pending for endpoints
// that are gone.
func (r *router) load(ctx context.Context, state outbox.State) error {
	r.snapshot = state.Snapshot
	var entries []outbox.Entry
	for _, e := range state.Endpoints {
		due := state.Due[e.ID]
		delete(state.Due, e.ID)
		entries = append(entries, r.loadEndpoint(e, due)...)
	}
	for id := range state.Due {
		entries = append(entries, r.lanes.Orphaned(id))
	}
	return r.write(ctx, append(entries, replays(state)...)...)
}

func (r *router) loadEndpoint(e outbox.EndpointState, due time.Time) []outbox.Entry {
	at := outbox.Subject{EndpointID: e.ID}
	defer at.Blame()
	if r.passesOver(at) {
		return nil
	}
	sub, unusable := r.examine(&e.Endpoint, nil)
	l, entries := r.lanes.Load(e, sub.target, unusable, due)
	sub.lane = l
	r.subscribe(sub)
	return entries
}

// subscribe has the endpoint match events, unless it is set aside: its lane alone shows it then.
func (r *router) subscribe(sub *subscription) {
	if !r.suspects.aside(outbox.Subject{EndpointID: sub.endpoint.ID}) {
		r.subs.set(sub)
	}
}

// passesOver reports whether nothing can be done with an event or an endpoint, and tells of it.
func (r *router) passesOver(x outbox.Subject) bool {
	if r.suspects.count(x) < passOverAfter {
		return false
	}
	r.metrics.setAside.WithLabelValues("passed over").Inc()
	r.log.Error("a change is passed over: the agent failed over it again and again by a fault of its own; a comparison or a restart tries it again",
		"commit", x.Commit.String(), "change", x.Index, "endpoint", x.EndpointID)
	return true
}

// reload takes over a state that was loaded because the stream does not tell of all changes.
func (r *router) reload(ctx context.Context, state outbox.State) error {
	r.snapshot = state.Snapshot
	gone := map[string]bool{}
	for _, id := range r.lanes.Endpoints() {
		gone[id] = true
	}
	for _, e := range state.Endpoints {
		before := r.subs.byID[e.ID]
		if replaced := before != nil && !before.endpoint.Created.Equal(e.Created); !replaced { // removed, and registered anew under its id
			delete(gone, e.ID)
		}
	}
	var entries []outbox.Entry
	for id := range gone {
		entries = append(entries, r.change(&outbox.EndpointChange{ID: id, Removed: true})...)
	}
	for _, e := range state.Endpoints {
		entries = append(entries, r.change(&outbox.EndpointChange{ID: e.ID, Endpoint: &e.Endpoint})...)
	}
	return r.write(ctx, append(entries, replays(state)...)...)
}

// replays are those that the ledger is to go on with.
func replays(state outbox.State) (entries []outbox.Entry) {
	for _, replay := range state.Replays {
		entries = append(entries, replay)
	}
	return entries
}

// examine makes the subscription of an endpoint, without its lane, and returns why it cannot be sent to, "" when it can.
// before is its last one, nil when there is none.
func (r *router) examine(e *outbox.Endpoint, before *subscription) (sub *subscription, unusable string) {
	sub = &subscription{endpoint: e}
	if r.suspects.aside(outbox.Subject{EndpointID: e.ID}) {
		r.metrics.setAside.WithLabelValues("endpoint").Inc()
		sub.off = lanes.OffReason(e, asideEndpoint)
		return sub, asideEndpoint
	}
	r.seal(e)
	if before != nil && before.target != nil && before.endpoint.SameTarget(e) {
		sub.target, sub.unfit = before.target, before.unfit // an app may change all endpoints of a venue at once
	} else {
		sub.target, sub.unfit = r.target(e)
		if before != nil && before.target != nil {
			sub.target.Follow(before.target)
		}
	}
	var err error
	if sub.patterns, err = outbox.ParsePatterns(e.Events); err == nil {
		err = sub.unfit
	}
	if err != nil {
		unusable = err.Error()
	}
	sub.off = lanes.OffReason(e, unusable)
	return sub, unusable
}

// route handles one batch. It waits for the database while take lasts, and for the ledger while ctx does.
func (r *router) route(take, ctx context.Context, b *outbox.Batch) error {
	read := time.Now()
	if b.Idle() {
		return r.track(ctx, &outbox.Tracked{End: b.End, Idle: true, Read: read})
	}
	at := outbox.Subject{Commit: b.Commit}
	defer at.Blame()
	if err := r.markSuspects(take, b); err != nil {
		return err
	}
	p := passage{router: r, batch: b, read: read, loaded: r.snapshot.Sees(b.XID)}
	for _, c := range b.Changes {
		at.Index = c.Index
		if err := p.add(take, ctx, c, at); err != nil {
			return err
		}
	}
	if p.hold != nil {
		r.backlog.queue[len(r.backlog.queue)-1].last = true
	}
	if b.End != 0 {
		r.made = 0
	}
	r.retune()
	return p.handOver(take, ctx, b.End, p.hold)
}

// passage is a batch on its way through the router.
type passage struct {
	*router
	batch *outbox.Batch
	read  time.Time // when it was read
	// loaded reports that the loaded state contains the batch. Its changes are not applied once more: an old row would undo a newer one,
	// and a counter would be cleared twice.
	loaded bool

	subs     []*subscription // of the event at hand
	pairings []pairing       // that are not handed over yet
	entries  []outbox.Entry  // of changes before the pairings, that are not written yet
	hold     *outbox.Hold    // of events that go to the backlog
}

// add takes in a change of the batch, which is at.
func (p *passage) add(take, ctx context.Context, c outbox.Change, at outbox.Subject) error {
	switch {
	case c.Event != nil:
		return p.addEvent(take, ctx, c.Event, at)
	case p.loaded:
	case c.Endpoint != nil:
		// A change of an endpoint takes effect between the events before and after it.
		if err := p.flush(take, ctx); err != nil {
			return err
		}
		p.entries = append(p.entries, p.change(c.Endpoint)...)
	case c.Replay != nil:
		p.entries = append(p.entries, outbox.Replay{ID: c.Replay.ID, XID: p.batch.XID})
	}
	return nil
}

// addEvent finds the endpoints that want an event. What very many want goes to the backlog.
func (p *passage) addEvent(take, ctx context.Context, e *outbox.Event, at outbox.Subject) error {
	p.metrics.events.Inc()
	if p.batch.Commit < p.term.LSN || p.passesOver(at) {
		return nil // recorded before this term, or hopeless
	}
	if p.term.Repeats && p.backlog.holds(e) {
		return nil // its row has moved to another partition while it waits
	}
	m := &matched{event: e, at: at, committed: p.batch.Committed, loaded: p.loaded}
	p.subs = p.match(p.subs[:0], at, e)
	if isWide(len(p.subs), p.made) {
		if p.hold == nil {
			p.hold = &outbox.Hold{}
		}
		p.backlog.add(m, p.subs, p.hold)
		return nil
	}
	p.made += len(p.subs)
	for _, sub := range p.subs {
		if p.pairings = append(p.pairings, pairing{m, sub}); len(p.pairings) >= pieceLength {
			if err := p.flush(take, ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush hands over what has been matched so far.
func (p *passage) flush(take, ctx context.Context) error {
	if len(p.pairings) == 0 {
		return nil
	}
	return p.handOver(take, ctx, 0, nil)
}

// handOver writes the entries, and then hands over what has been matched since. End is that of the batch, zero before its last piece.
func (p *passage) handOver(take, ctx context.Context, end outbox.LSN, opens *outbox.Hold) error {
	if err := p.write(ctx, p.entries...); err != nil {
		return err
	}
	p.entries = nil // the ledger keeps the slice
	tracked, err := p.hand(take, p.pairings)
	if err != nil {
		return err
	}
	p.pairings = p.pairings[:0]
	tracked.End, tracked.Read, tracked.Opens = end, p.read, opens
	return p.track(ctx, tracked)
}

// expand hands over a piece of the backlog. Matching was done when the event was committed; an endpoint that was
// disabled then does not get it although it may be enabled now. What has become of the others the lanes know.
func (r *router) expand(take, ctx context.Context) error {
	began := time.Now()
	pairings, hold, last := r.backlog.piece()
	tracked, err := r.hand(take, pairings)
	if err != nil {
		return err
	}
	tracked.Read, tracked.Piece, tracked.Last = began, hold, last
	err = r.track(ctx, tracked)
	r.backlog.pieceEnded = time.Now()
	r.backlog.pieceTook = r.backlog.pieceEnded.Sub(began)
	return err
}

// tuneStep is how many endpoints more or fewer are not worth telling of.
const tuneStep = 4096

// retune tells tune when the number of endpoints has changed much: an app may register a hundred thousand in one transaction.
func (r *router) retune() {
	if n := len(r.subs.byID); n > r.tuned+r.tuned/4+tuneStep || n < r.tuned/2-tuneStep {
		r.tuned = n
		r.tune(n)
	}
}

// hand makes deliveries of pairings that have no row yet, and offers them to their lanes.
func (r *router) hand(take context.Context, pairings []pairing) (*outbox.Tracked, error) {
	var (
		t      = &outbox.Tracked{}
		offers []lanes.Offer
		at     outbox.Subject
	)
	defer at.Blame()
	recorded, err := r.lookUp(take, pairings)
	if err != nil {
		return nil, err
	}
	now := r.lanes.Now()
	for _, p := range pairings {
		at = p.at
		e, endpoint := p.event, p.sub.endpoint
		if e.Late && endpoint.Since().After(e.Created) {
			r.metrics.late.Inc()
			continue // an old event that was written once more goes to those only who have wanted it all the time
		}
		if p.loaded && endpoint.Created.After(p.committed) {
			continue // registered after the event, although it was loaded before the stream has come here
		}
		if recorded.Has(e, endpoint.ID) || r.term.Repeats && r.underWay(p.sub, e.ID, t.Deliveries) {
			continue
		}
		d := e.Delivery(endpoint.ID, p.committed, nil)
		t.Deliveries = append(t.Deliveries, d)
		switch {
		case r.suspects.aside(p.at) || r.suspects.aside(d.Subject()):
			r.metrics.setAside.WithLabelValues("event").Inc()
			t.Records = append(t.Records, lanes.FailedAside(d, now))
		case p.deferred && p.sub.off != "": // it may have been enabled, or mended, since
			t.Records = append(t.Records, lanes.Missed(d, p.sub.off, now))
		default:
			if d.Unfit == "" {
				d.Body = p.body()
			}
			offers = append(offers, lanes.Offer{Lane: p.sub.lane, Delivery: d})
		}
	}
	t.Records = append(t.Records, r.lanes.Offer(offers)...)
	return t, nil
}

// match appends the subscriptions that want an event. For one that is set aside it goes the long way, by
// each endpoint's own patterns.
func (r *router) match(subs []*subscription, at outbox.Subject, e *outbox.Event) []*subscription {
	if !r.suspects.aside(at) {
		return r.subs.match(subs, e.Venue, e.Type)
	}
	for _, sub := range r.subs.byID {
		if sub.endpoint.Venue == e.Venue && sub.patterns.Match(e.Type) {
			subs = append(subs, sub)
		}
	}
	return subs
}

// underWay reports that the delivery waits, or is being sent, and has no row yet. It is asked only where events may come again.
func (r *router) underWay(sub *subscription, eventID string, deliveries []*outbox.Delivery) bool {
	return r.lanes.Holds(sub.lane, eventID) || slices.ContainsFunc(deliveries, func(d *outbox.Delivery) bool {
		return d.EventID == eventID && d.EndpointID == sub.endpoint.ID
	})
}

// lookUp finds out which of some pairings an earlier term has recorded. Beyond the position where this term began there
// are none, but for those of events that are written once more. It tries again while the database is away, until take ends.
func (r *router) lookUp(take context.Context, pairings []pairing) (recorded outbox.Recorded, err error) {
	var events, endpoints []string
	for _, p := range pairings {
		if p.at.Commit < r.term.LookupUntil || p.event.Late {
			events, endpoints = append(events, p.event.ID), append(endpoints, p.sub.endpoint.ID)
		}
	}
	if len(events) == 0 {
		return nil, nil
	}
	err = r.insist(take, func() error {
		recorded, err = r.lookup(take, events, endpoints)
		return err
	})
	return recorded, err
}

// markSuspects finds out which suspects of a batch the log has. Those of a transaction that an earlier term may have recorded a
// part of are no suspects.
func (r *router) markSuspects(take context.Context, b *outbox.Batch) error {
	var suspects []*outbox.Event
	for _, c := range b.Changes {
		if c.Event != nil && c.Event.Suspect && !c.Event.Late && b.Commit >= r.term.LookupUntil {
			suspects = append(suspects, c.Event)
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	return r.insist(take, func() error { return r.markLate(take, suspects) })
}

// insist asks the database until it answers, or until take ends.
func (r *router) insist(take context.Context, ask func() error) error {
	trouble := backoff.Trouble{Log: r.log, Level: slog.LevelError, Begins: "cannot look up deliveries; trying again", Ends: "looking up deliveries again"}
	return backoff.Retry(take, backoff.New(), &trouble, backoff.Never, func(context.Context) error { return ask() })
}

// change applies a change of the endpoints.
func (r *router) change(c *outbox.EndpointChange) []outbox.Entry {
	switch {
	case c.AllRemoved:
		var entries []outbox.Entry
		for _, id := range r.lanes.Endpoints() { // those that are set aside have no subscription
			entries = append(entries, r.remove(id)...)
		}
		return entries
	case c.Removed:
		return r.remove(c.ID)
	}
	e := c.Endpoint
	at := outbox.Subject{EndpointID: e.ID}
	defer at.Blame()
	if r.passesOver(at) {
		return nil
	}
	before := r.subs.byID[e.ID]
	if before != nil {
		c.Merge(before.endpoint)
		if e.Same(before.endpoint) {
			return nil // an app may write to columns that are its own, of all endpoints at once
		}
	}
	r.backlog.sharedIsCurrent = false
	sub, unusable := r.examine(e, before)
	l, entries := r.lanes.Change(e, sub.target, unusable)
	sub.lane = l
	r.subscribe(sub)
	return entries
}

// remove takes out an endpoint.
func (r *router) remove(id string) []outbox.Entry {
	at := outbox.Subject{EndpointID: id}
	defer at.Blame()
	if r.passesOver(at) {
		return nil
	}
	if !r.suspects.aside(at) {
		r.subs.remove(id)
	}
	r.removed(id)
	r.backlog.sharedIsCurrent = false
	return r.lanes.Remove(id)
}
