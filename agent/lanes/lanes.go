package lanes

import (
	"cmp"
	"container/heap"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/recent"
	"github.com/quintago/webhook-agent/sink"
)

// The reasons why a delivery is missed. They are stored in deliveries.last_error.
const (
	offDisabled = "the endpoint is disabled"
	offRemoved  = outbox.EndpointRemoved
	offUnusable = "the endpoint cannot be sent to: "
	otherVenue  = "the endpoint belongs to another venue now"
)

// asideEvent is the error of a delivery that is set aside. A restart of the agent tries its event
// again.
const asideEvent = "the agent failed over this event again and again by a fault of its own; its log names the place. Replay it with a version that mends that"

// FailedAside returns the record of a delivery that is set aside: it has failed, and the error says
// why. It frees the body of d.
func FailedAside(d *outbox.Delivery, now time.Time) *outbox.Record {
	d.Body = nil
	return &outbox.Record{Delivery: d, Status: outbox.Failed, Error: asideEvent, Finished: now}
}

// Config sets the limits of a Scheduler and connects it with the rest of the term.
type Config struct {
	Concurrency         int             // delivery.concurrency: attempts under way, all lanes together
	EndpointConcurrency int             // delivery.endpoint_concurrency: attempts under way of one lane
	DisableAfter        int             // delivery.disable_after: consecutive failures
	Retries             []time.Duration // delivery.retries: the wait after each failed attempt
	FailingInterval     time.Duration   // delivery.failing_interval; zero: failures hold no lane
	// Lengthen makes a wait up to a tenth longer. Endpoints that failed together are then not tried
	// again together. When it is nil, the wait is lengthened at random.
	Lengthen func(time.Duration) time.Duration
	// QueueBytes is delivery.queue_memory: the memory for the deliveries of all lanes.
	QueueBytes int
	// Large is the size in bytes from which on a delivery counts as large; largeDelivery if zero.
	Large int
	// Attempt makes one attempt of a delivery. Many goroutines call it.
	Attempt func(context.Context, *outbox.Delivery, sink.Request) sink.Result
	// Leads reports whether an attempt may start: this agent is sure that no other agent has taken
	// over. It is called while Scheduler.mu is held, so it must not wait.
	Leads func() bool
	// Now returns the time by the database's clock. NextAttempt is by that clock too.
	Now func() time.Time
	// Write is Ledger.Write. It may wait for the database, so it must not be called while
	// Scheduler.mu is held.
	Write func(context.Context, ...outbox.Entry) error
	Meter Meter
	Log   *slog.Logger
	// Caught is called with a panic. The Scheduler must not be used after that, because its state
	// may be wrong.
	Caught func(*panics.Error)
	// Aside reports whether a subject is set aside because the agent panics over it again and
	// again.
	Aside func(outbox.Subject) bool
}

// Meter counts the results of attempts. Many goroutines call it.
type Meter interface {
	// Attempted is called when an attempt has ended. now is that time by the database's clock.
	Attempted(d *outbox.Delivery, r sink.Result, now time.Time)
	// NotMade is called when an attempt could not be made because of a fault of this host.
	NotMade(fault sink.Fault)
	// EndpointDisabled is called when the agent disables an endpoint.
	EndpointDisabled(reason string)
}

// Scheduler schedules the attempts of all endpoints. Its exported methods may be called by many
// goroutines.
//
// A worker is a goroutine that makes one attempt after the other. It is started when a lane can
// start an attempt and the global limit allows one more. It takes the next delivery from the venues
// in turn, and from the lanes of a venue in turn. It ends when no attempt may start.
//
// Lanes whose last attempt was slow, or that have made none yet, share three quarters of the global
// limit. So endpoints that hang never take all places.
type Scheduler struct {
	cfg Config

	mu   sync.Mutex       // guards the fields down to stopped
	byID map[string]*Lane // the lanes of all endpoints that exist
	// removed are the lanes of endpoints that are gone, as long as they hold deliveries. An
	// endpoint may come back under its id, and must not get such a delivery twice.
	removed  map[string]*Lane
	inFlight int               // attempts under way; one ends here when the ledger has its result
	unproven int               // those of them whose lane is not proven
	bytes    int               // of the deliveries in all lanes
	rooms    [2]room           // for large deliveries; the second is that of lanes that have failed
	venues   map[string]*venue // by name
	// ready are the venues that can start an attempt, by the class of their lanes. The venues of a
	// class take turns. turn is the class that was asked first last time.
	ready [classes][]*venue
	turn  laneClass
	due   dueHeap
	// late are endpoints whose pending rows must be made missed once more. A result was on its way
	// to the ledger when the lane was turned off, and its row became pending after the others had
	// become missed.
	late map[string]struct{}
	// withdrawn are the replays that were canceled lately. A refill may have read their rows before
	// those were taken back.
	withdrawn     recent.Map[struct{}]
	healthVersion int64 // version counter of Health
	noticeNumber  int64 // of the last outbox.Notice
	missVersion   int   // version counter of Missing and StopMissing
	stalled       bool  // a commit of the ledger takes long: no new attempts
	stopped       bool  // Stop was called: no new attempts

	workers sync.WaitGroup
	// wake wakes Refill, because a lane may be due earlier, or late may have an endpoint. The
	// sender does not wait, so one place is enough.
	wake chan struct{}
	// work is the context of all attempts. Canceling it ends them. It ends with the term at the
	// latest.
	work       context.Context //nolint:containedctx // an attempt begins in the call of another goroutine and outlives that call
	cancelWork context.CancelFunc
}

// New returns a Scheduler without endpoints. It starts no goroutine. When work ends, all attempts
// are canceled.
func New(work context.Context, cfg Config) *Scheduler {
	if cfg.Lengthen == nil {
		cfg.Lengthen = lengthen
	}
	cfg.Large = cmp.Or(cfg.Large, largeDelivery)
	s := &Scheduler{cfg: cfg, byID: map[string]*Lane{}, removed: map[string]*Lane{}, venues: map[string]*venue{}, late: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	s.work, s.cancelWork = context.WithCancel(work)
	return s
}

// Now returns the time by the database's clock.
func (s *Scheduler) Now() time.Time { return s.cfg.Now() }

// Offer is a delivery with the lane it belongs to.
type Offer struct {
	Lane     *Lane
	Delivery *outbox.Delivery
}

// Offer takes new deliveries in. It returns the records of those that it does not take. A delivery
// that does not fit is left to the database, as a pending row. One that cannot be sent is missed or
// has failed.
func (s *Scheduler) Offer(offers []Offer) (records []*outbox.Record) {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var at outbox.Subject
	defer at.Blame()
	for _, o := range offers {
		l, d := o.Lane, o.Delivery
		at = d.Subject()
		switch {
		case l.off != "":
			records = append(records, Missed(d, l.off, now))
		case d.Venue != l.endpoint.Venue: // the endpoint has moved since the event was matched
			records = append(records, Missed(d, otherVenue, now))
		case d.Unfit != "":
			records = append(records, &outbox.Record{Delivery: d, Status: outbox.Failed, Error: d.Unfit, Finished: now})
		case s.heldLocked(l, d):
			records = append(records, outbox.IDTaken(d, now))
		case s.fits(l, d, now):
			s.pushLocked(l, d)
			continue
		default:
			l.backlog = true
			l.left++
			records = append(records, &outbox.Record{Delivery: d, Status: outbox.Pending, NextAttempt: now})
		}
		d.Body = nil
	}
	s.dispatchLocked()
	return records
}

// heldLocked reports whether the lane holds a delivery of another event with the same id.
func (s *Scheduler) heldLocked(l *Lane, d *outbox.Delivery) bool {
	if _, held := l.held[d.EventID]; !held {
		return false
	}
	return !slices.ContainsFunc(l.queue, func(other *outbox.Delivery) bool {
		return other.EventID == d.EventID && other.Venue == d.Venue && other.Type == d.Type && other.Created.Equal(d.Created)
	})
}

// Missed returns the record of a delivery that is never sent. reason is stored as its error.
func Missed(d *outbox.Delivery, reason string, now time.Time) *outbox.Record {
	return &outbox.Record{Delivery: d, Status: outbox.Missed, Error: reason, Finished: now}
}

// fits reports whether a new delivery may wait in memory. When older deliveries of the lane wait in
// the database, new ones go there too. That keeps them roughly in order, and no old one waits for
// ever. A lane that is held for long keeps nothing in memory.
func (s *Scheduler) fits(l *Lane, d *outbox.Delivery, now time.Time) bool {
	return !l.backlog && len(l.queue) < laneLength && l.heldFor(now) <= keepFor && s.hasRoom(l, d)
}

// pushLocked queues a delivery in memory.
func (s *Scheduler) pushLocked(l *Lane, d *outbox.Delivery) {
	l.queue = append(l.queue, d)
	l.held.add(d.EventID)
	s.holdLocked(l, d.Size())
	s.listLocked(l)
}

// turnOffLocked stops sending to a lane. Its deliveries become missed: those in memory at once,
// those in the database in steps. Attempts under way go on. except is the event whose attempt has
// just ended; its record is written by the caller.
func (s *Scheduler) turnOffLocked(l *Lane, reason, except string) []outbox.Entry {
	now := s.cfg.Now()
	l.off = reason
	if l.bytes == 0 { // it may have a promise
		s.yieldRoomLocked(l)
	}
	var entries []outbox.Entry
	for _, d := range l.queue {
		s.freeLocked(l, d)
		entries = append(entries, Missed(d, reason, now))
	}
	l.queue = nil
	l.full = false
	s.scheduleLocked(l)
	return append(entries, s.missRowsLocked(l, except))
}

// missRowsLocked makes the pending rows of a lane that is off missed, except those of attempts
// under way. An attempt whose result is committed is over, even if its worker has not taken it out
// of inFlight yet.
func (s *Scheduler) missRowsLocked(l *Lane, except string) outbox.Entry {
	keep := slices.DeleteFunc(slices.Collect(maps.Keys(l.inFlight)), func(id string) bool {
		_, held := l.held[id]
		return id == except || !held
	})
	return s.missPendingLocked(outbox.Missing{EndpointID: l.id, Reason: l.off, Keep: keep, Removed: l.off == offRemoved})
}

// missPendingLocked numbers a Missing, so that a later StopMissing can cancel it.
func (s *Scheduler) missPendingLocked(m outbox.Missing) outbox.Entry {
	s.missVersion++
	m.Version = s.missVersion
	return m
}

// stopMissingLocked cancels every Missing that was made so far for an endpoint.
func (s *Scheduler) stopMissingLocked(endpointID string) outbox.Entry {
	return outbox.StopMissing{EndpointID: endpointID, Version: s.missVersion}
}

// turnOnLocked starts sending to a lane again.
func (s *Scheduler) turnOnLocked(l *Lane) []outbox.Entry {
	l.off = ""
	s.dueLocked(l, s.cfg.Now()) // some rows may still be pending
	return []outbox.Entry{s.stopMissingLocked(l.id)}
}

// Committed is called by the ledger's goroutine with the records of a committed transaction. Their
// deliveries leave memory. One that is attempted again comes back with a refill when it is due.
func (s *Scheduler) Committed(records []*outbox.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		s.announcedLocked(r)
		if r.Parked || r.Taken && r.Attempt != nil {
			continue // memory still holds this delivery, or one of another event with the same id
		}
		l := s.byID[r.Delivery.EndpointID]
		if r.Status == outbox.Pending && (l == nil || l.off != "") {
			s.late[r.Delivery.EndpointID] = struct{}{}
			s.wakeRefill()
		}
		if l == nil {
			s.forgetLocked(r.Delivery)
		} else {
			s.releaseLocked(l, r)
		}
	}
}

// releaseLocked removes a recorded delivery from what its lane holds.
func (s *Scheduler) releaseLocked(l *Lane, r *outbox.Record) {
	id := r.Delivery.EventID
	left := r.Status == outbox.Pending && r.Attempt == nil
	_, leaving := l.leaving[id]
	l.leaving.remove(id)
	// Otherwise held may come from a refill that has brought the delivery back.
	if !left || leaving {
		l.held.remove(id)
	}
	if l.fetching {
		l.released.add(id)
	}
	if r.Status != outbox.Pending {
		return
	}
	if left {
		l.left = max(0, l.left-1) // the record may be of an earlier lane with the same id
	}
	s.dueLocked(l, r.NextAttempt)
}

// forgetLocked removes a recorded delivery from the lane of an endpoint that is gone.
func (s *Scheduler) forgetLocked(d *outbox.Delivery) {
	if l := s.removed[d.EndpointID]; l != nil {
		if l.held.remove(d.EventID) {
			delete(s.removed, d.EndpointID)
			// A result that was on its way when the endpoint was removed may have created its
			// health row again. A further Missing deletes it.
			s.late[d.EndpointID] = struct{}{}
			s.wakeRefill()
		}
	}
}

// Requeued is called by the ledger's goroutine when the database has deliveries of an endpoint that
// are due at once.
func (s *Scheduler) Requeued(endpointID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch l := s.byID[endpointID]; {
	case l == nil: // the stream has not brought the endpoint yet; its new lane will query the database
	case l.off != "":
		s.late[endpointID] = struct{}{}
		s.wakeRefill()
	default:
		s.dueLocked(l, s.cfg.Now())
	}
}

// Withdraw is called by the ledger's goroutine for a replay that was canceled, again and again until
// all of it is taken back. Nothing more of it is sent. It returns the events of the endpoint that the
// Scheduler still holds: their attempts are under way, or their results are not committed.
func (s *Scheduler) Withdraw(endpointID, replayID string) (kept []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withdrawn.Add(replayID, struct{}{}, time.Now())
	if l := s.removed[endpointID]; l != nil {
		kept = slices.Collect(maps.Keys(l.held))
	}
	l := s.byID[endpointID]
	if l == nil {
		return kept
	}
	waiting := len(l.queue)
	l.queue = slices.DeleteFunc(l.queue, func(d *outbox.Delivery) bool {
		if d.ReplayID != replayID {
			return false
		}
		s.freeLocked(l, d)
		l.held.remove(d.EventID)
		return true
	})
	if len(l.queue) < waiting {
		l.full = false
		s.dueLocked(l, s.cfg.Now()) // others may have waited for the room
	}
	return slices.AppendSeq(kept, maps.Keys(l.held))
}

// Resume starts the attempts that may start after Config.Leads has become true again.
func (s *Scheduler) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dispatchLocked()
}

// Stall stops new attempts while the ledger cannot commit. So few results are lost if the process
// dies. The ledger calls it.
func (s *Scheduler) Stall(stalled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = stalled
	s.dispatchLocked()
}

// Stop stops new attempts and waits for those under way. When ctx ends first, it cancels them.
func (s *Scheduler) Stop(ctx context.Context) {
	s.mu.Lock()
	s.stopped = true
	for _, l := range s.byID {
		l.quietLocked()
	}
	s.mu.Unlock()
	unregister := context.AfterFunc(ctx, s.cancelWork)
	defer unregister()
	s.workers.Wait()
	s.cancelWork()
}

// dueLocked notes that the database has a delivery which memory does not hold and which is due at
// t.
func (s *Scheduler) dueLocked(l *Lane, t time.Time) {
	if l.due.IsZero() || t.Before(l.due) {
		l.due = t
	}
	s.scheduleLocked(l)
}

// scheduleLocked adds the lane to the heap of lanes to refill, moves it there, or removes it.
func (s *Scheduler) scheduleLocked(l *Lane) {
	switch wants := l.wantsRefill(); {
	case wants && l.dueIndex < 0:
		heap.Push(&s.due, l)
	case wants:
		heap.Fix(&s.due, l.dueIndex)
	case l.dueIndex >= 0:
		heap.Remove(&s.due, l.dueIndex)
	default:
		return
	}
	if l.dueIndex == 0 {
		s.wakeRefill()
	}
}

func (s *Scheduler) wakeRefill() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Stats are counts over all lanes, for metrics. InFlight are the attempts under way, Queued the
// deliveries that wait in memory, Bytes the memory of both. Active lanes hold deliveries. Off lanes
// are disabled or unusable. Held lanes are held for longer than keepFor.
type Stats struct{ InFlight, Queued, Bytes, Active, Off, Held int }

// Stats counts over all lanes, which takes time in proportion to their number and holds the mutex.
func (s *Scheduler) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{InFlight: s.inFlight, Bytes: s.bytes}
	now := s.cfg.Now()
	for _, l := range s.byID {
		st.Queued += len(l.queue)
		if len(l.held) > 0 {
			st.Active++
		}
		if l.off != "" {
			st.Off++
		} else if l.heldFor(now) > keepFor {
			st.Held++
		}
	}
	return st
}
