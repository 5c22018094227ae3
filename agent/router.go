package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/agent/tracing"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// router routes the batches of the stream, in commit order. It keeps the subscriptions in step with
// the stream, and offers each event to the lanes of the endpoints that want it. It belongs to one
// goroutine.
type router struct {
	subs  *subscriptions
	lanes *lanes.Scheduler
	// Ledger.Track.
	track func(context.Context, *outbox.Tracked) error
	// Ledger.Write.
	write func(context.Context, ...outbox.Entry) error
	// Slot.MarkLate.
	markLate func(ctx context.Context, events []*outbox.Event) error
	// Slot.Lookup.
	lookup func(ctx context.Context, eventIDs, endpointIDs []string) (outbox.Recorded, error)
	// The error says why nothing can be sent there.
	target func(*outbox.Endpoint) (*sink.Target, error)
	// Queues the endpoint for sealing if its secrets are not sealed.
	seal func(*outbox.Endpoint)
	// The endpoint is gone, with its secrets.
	removed  func(endpointID string)
	metrics  *metrics
	tracer   *tracing.Tracer // nil unless traces are sent
	log      *slog.Logger
	suspects *suspects
	term     outbox.Term
	// Of the loaded state: it reports whether the state contains a transaction.
	snapshot     outbox.Snapshot
	backlog      backlog
	made         int // deliveries of the transaction at hand so far, without those in the backlog
	tune         func(endpoints int)
	tuned        int  // number of endpoints in the last call of tune
	lateTold     bool // tellLate has warned in this term
	unusableTold int  // number of calls of tellUnusable
}

// load makes lanes for the endpoints of the state, starts the open replays, and makes the pending
// rows of endpoints missed that are gone.
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
	sub, unusable := r.examine(e.Endpoint, nil)
	if unusable != "" && !e.Disabled {
		r.tellUnusable(e.Endpoint, unusable)
	}
	l, entries := r.lanes.Load(e, sub.target, unusable, due)
	sub.lane = l
	r.subscribe(sub)
	return entries
}

// mostUnusable is how many unusable endpoints are named in the log when a term begins.
const mostUnusable = 20

// tellUnusable logs that nothing is sent to an endpoint that was loaded.
func (r *router) tellUnusable(e *outbox.Endpoint, why string) {
	switch r.unusableTold++; {
	case r.unusableTold <= mostUnusable:
		r.log.Warn("an endpoint cannot be sent to; its events are kept as missed", "endpoint", e.ID, "venue", e.Venue, "reason", why)
	case r.unusableTold == mostUnusable+1:
		r.log.Warn("further endpoints cannot be sent to; `webhook-agent endpoints list --state unusable` names them")
	}
}

// subscribe matches events against the endpoint from now on. An endpoint that is set aside gets
// none; only its lane shows why.
func (r *router) subscribe(sub *subscription) {
	if !r.suspects.aside(outbox.Subject{EndpointID: sub.endpoint.ID}) {
		r.subs.set(sub)
	}
}

// passesOver reports whether a change or an endpoint is skipped because the agent panics over it
// even when it is set aside. It logs and counts what is skipped.
func (r *router) passesOver(x outbox.Subject) bool {
	if r.suspects.count(x) < passOverAfter {
		return false
	}
	r.metrics.setAside.WithLabelValues("passed over").Inc()
	r.log.Error("a change is passed over: the agent failed over it again and again by a fault of its own; a comparison or a restart tries it again",
		"commit", x.Commit.String(), "change", x.Index, "endpoint", x.EndpointID)
	return true
}

// reload applies a state that was loaded because the stream does not bring all changes.
func (r *router) reload(ctx context.Context, state outbox.State) error {
	r.snapshot = state.Snapshot
	gone := map[string]bool{}
	for _, id := range r.lanes.Endpoints() {
		gone[id] = true
	}
	for _, e := range state.Endpoints {
		before := r.subs.byID[e.ID]
		// Otherwise it was removed, and registered again under its id.
		if replaced := before != nil && !before.endpoint.Created.Equal(e.Created); !replaced {
			delete(gone, e.ID)
		}
	}
	var entries []outbox.Entry
	for id := range gone {
		entries = append(entries, r.change(&outbox.EndpointChange{ID: id, Removed: true})...)
	}
	for _, e := range state.Endpoints {
		entries = append(entries, r.change(&outbox.EndpointChange{ID: e.ID, Endpoint: e.Endpoint})...)
	}
	return r.write(ctx, append(entries, replays(state)...)...)
}

// replays returns the open replays of a state, for the ledger.
func replays(state outbox.State) (entries []outbox.Entry) {
	for _, replay := range state.Replays {
		entries = append(entries, replay)
	}
	return entries
}

// examine makes the subscription of an endpoint, without its lane. unusable is the reason why the
// endpoint cannot be sent to, and "" when it can. before is its former subscription, or nil.
func (r *router) examine(e *outbox.Endpoint, before *subscription) (sub *subscription, unusable string) {
	sub = &subscription{endpoint: e}
	if r.suspects.aside(outbox.Subject{EndpointID: e.ID}) {
		r.metrics.setAside.WithLabelValues("endpoint").Inc()
		sub.off = lanes.OffReason(e, asideEndpoint)
		return sub, asideEndpoint
	}
	r.seal(e)
	if before != nil && before.target != nil && before.endpoint.SameTarget(e) {
		// An app may change all endpoints of a venue at once, and a target costs time and memory.
		sub.target, sub.unfit = before.target, before.unfit
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

// route handles one batch. It waits for the database until take ends, and for the ledger until ctx
// ends.
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
	if r.tracer != nil {
		p.readAt = r.lanes.Now()
	}
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
	read  time.Time // when the batch was read
	// The same by the database's clock; zero if nothing is traced.
	readAt time.Time
	// loaded reports that the loaded state contains the batch. The changes of its endpoints are not
	// applied again: an old row would replace a newer one, and a failure counter would be cleared
	// twice.
	loaded bool

	subs     []*subscription // those that want the event at hand
	pairings []pairing       // not handed over yet
	entries  []outbox.Entry  // entries of changes before the pairings, not written yet
	// The hold of the events that go to the backlog; nil when there are none.
	hold *outbox.Hold
}

// add handles one change of the batch. at is its place in the stream, for the report of a panic.
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

// addEvent finds the endpoints that want an event. An event that very many want goes to the
// backlog.
func (p *passage) addEvent(take, ctx context.Context, e *outbox.Event, at outbox.Subject) error {
	p.metrics.events.Inc()
	if p.batch.Commit < p.term.LSN || p.passesOver(at) {
		return nil // it was recorded before this term, or it is skipped
	}
	if p.term.Repeats && p.backlog.holds(e) {
		return nil // the same event came again, because its row has moved to another partition
	}
	m := &matched{event: e, at: at, committed: p.batch.Committed, loaded: p.loaded}
	p.subs = p.match(p.subs[:0], at, e)
	if p.tracer != nil {
		m.trace = p.tracer.Event(e, m.committed, p.readAt, len(p.subs))
	}
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

// flush hands over what was matched so far.
func (p *passage) flush(take, ctx context.Context) error {
	if len(p.pairings) == 0 {
		return nil
	}
	return p.handOver(take, ctx, 0, nil)
}

// handOver writes the entries, and then hands over the pairings. end is that of the batch, and zero
// before its last piece. opens is the hold that the batch opens, or nil.
func (p *passage) handOver(take, ctx context.Context, end outbox.LSN, opens *outbox.Hold) error {
	if err := p.write(ctx, p.entries...); err != nil {
		return err
	}
	p.entries = nil // the ledger owns the slice now
	tracked, err := p.hand(take, p.pairings)
	if err != nil {
		return err
	}
	p.pairings = p.pairings[:0]
	tracked.End, tracked.Read, tracked.Opens = end, p.read, opens
	return p.track(ctx, tracked)
}

// expand hands over a piece of the backlog. The event was matched when it was committed: an
// endpoint that was disabled then does not get it, although it may be enabled now. The lanes decide
// what happens if an endpoint was changed or removed since.
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

// tuneStep is the change in the number of endpoints below which tune is not called again.
const tuneStep = 4096

// retune calls tune when the number of endpoints has changed much. An app may register a hundred
// thousand in one transaction.
func (r *router) retune() {
	if n := len(r.subs.byID); n > r.tuned+r.tuned/4+tuneStep || n < r.tuned/2-tuneStep {
		r.tuned = n
		r.tune(n)
	}
}

// hand makes a delivery of each pairing that has no row yet, and offers them to their lanes.
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
		if r.skips(p, recorded, t.Deliveries) {
			p.trace.Skip()
			continue
		}
		d := p.event.Delivery(p.sub.endpoint.ID, p.committed, nil)
		p.trace.Follow(d)
		t.Deliveries = append(t.Deliveries, d)
		switch {
		case r.suspects.aside(p.at) || r.suspects.aside(d.Subject()):
			r.metrics.setAside.WithLabelValues("event").Inc()
			t.Records = append(t.Records, lanes.FailedAside(d, now))
		case p.deferred && p.sub.off != "": // the endpoint was off when the event was committed, even if it is not any more
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

// skips reports whether a pairing gets no delivery. deliveries are those of the pairings before it.
func (r *router) skips(p pairing, recorded outbox.Recorded, deliveries []*outbox.Delivery) bool {
	e, endpoint := p.event, p.sub.endpoint
	switch {
	case e.Late && endpoint.Since().After(e.Created):
		// An old event that was written again is only for endpoints that have wanted it since
		// before it was created.
		r.metrics.late.Inc()
		r.tellLate(e, endpoint)
		return true
	case p.loaded && endpoint.Created.After(p.committed):
		// The endpoint was registered after the event; it is here because the state was loaded
		// before the stream came to the event.
		return true
	}
	return recorded.Has(e, endpoint.ID) || r.term.Repeats && r.underWay(p.sub, e.ID, deliveries)
}

// tellLate warns of the first event of a term that is left out for its created. If the event is new,
// its created is read wrongly, as of the wrong time zone.
func (r *router) tellLate(e *outbox.Event, endpoint *outbox.Endpoint) {
	if r.lateTold {
		return
	}
	r.lateTold = true
	r.log.Warn("an old event was written once more, and endpoints that have wanted it only since later do not get it; further ones are counted only",
		"event", e.ID, "created", e.Created, "endpoint", endpoint.ID, "wanted_since", endpoint.Since(), "metric", "webhook_agent_late_deliveries_total",
		"remedy", "none if the event is old; if it is new, correct its created, or outbox.time_zone if that column has no time zone")
}

// match appends the subscriptions that want an event to subs. When the event is set aside, it does
// not use the index, which may be what panics, but the patterns of each endpoint.
//
// A notice about an endpoint is not for that endpoint.
func (r *router) match(subs []*subscription, at outbox.Subject, e *outbox.Event) []*subscription {
	if !r.suspects.aside(at) {
		subs = r.subs.match(subs, e.Venue, e.Type)
	} else {
		for _, sub := range r.subs.byID {
			if sub.endpoint.Venue == e.Venue && sub.patterns.Match(e.Type) {
				subs = append(subs, sub)
			}
		}
	}
	if e.IsNotice() {
		subs = slices.DeleteFunc(subs, func(sub *subscription) bool { return e.Concerns(sub.endpoint.ID) })
	}
	return subs
}

// underWay reports whether a delivery is in memory and may have no row yet. It is only needed where
// events may come again within a term.
func (r *router) underWay(sub *subscription, eventID string, deliveries []*outbox.Delivery) bool {
	return r.lanes.Holds(sub.lane, eventID) || slices.ContainsFunc(deliveries, func(d *outbox.Delivery) bool {
		return d.EventID == eventID && d.EndpointID == sub.endpoint.ID
	})
}

// lookUp returns which of the pairings an earlier term has recorded. Events from LookupUntil on
// have no rows, except events that are written again. It repeats the query while the database is
// away, until take ends.
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

// markSuspects marks the suspects of a batch as late that the delivery log has already. It does not
// ask for a transaction that an earlier term may have recorded a part of: its own rows would be
// found.
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

// insist repeats a query until the database answers or take ends.
func (r *router) insist(take context.Context, ask func() error) error {
	trouble := backoff.Trouble{Log: r.log, Level: slog.LevelError, Begins: "cannot look up deliveries; trying again", Ends: "looking up deliveries again"}
	return backoff.Retry(take, backoff.New(), &trouble, backoff.Never, func(context.Context) error { return ask() })
}

// change applies a change of an endpoint, and returns the entries to write.
func (r *router) change(c *outbox.EndpointChange) []outbox.Entry {
	switch {
	case c.AllRemoved:
		var entries []outbox.Entry
		// Endpoints that are set aside have a lane but no subscription.
		for _, id := range r.lanes.Endpoints() {
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
			// Only columns of the app's own have changed; an app may write to them in all rows at
			// once.
			return nil
		}
	}
	sub, unusable := r.examine(e, before)
	l, entries := r.lanes.Change(e, sub.target, unusable)
	sub.lane = l
	r.subscribe(sub)
	return entries
}

// remove removes an endpoint, and returns the entries to write.
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
	return r.lanes.Remove(id)
}
