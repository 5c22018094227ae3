package lanes

import (
	"container/heap"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
)

// Why a delivery is missed (deliveries.last_error).
const (
	offDisabled = "the endpoint is disabled"
	offRemoved  = "the endpoint was removed"
	offUnusable = "the endpoint cannot be sent to: "
	otherVenue  = "the endpoint belongs to another venue now"
)

// asideEvent is why a delivery failed that is set aside. A restart tries it again.
const asideEvent = "the agent failed over this event again and again by a fault of its own; its log names the place. Replay it with a version that mends that"

// FailedAside is the result of a delivery that is set aside.
func FailedAside(d *outbox.Delivery, now time.Time) *outbox.Result {
	d.Body = nil
	return &outbox.Result{Delivery: d, Status: outbox.Failed, Error: asideEvent, Finished: now}
}

// Config bounds the lanes and connects them with their surroundings.
type Config struct {
	Concurrency         int
	EndpointConcurrency int
	DisableAfter        int
	Retries             []time.Duration
	FailingInterval     time.Duration // delivery.failing_interval; zero paces nobody
	// Lengthen makes a wait longer by up to a tenth, so that endpoints that failed together do not come back together. When it is nil, it
	// does so by chance.
	Lengthen   func(time.Duration) time.Duration
	QueueBytes int
	// Attempt makes one attempt. It is called by many goroutines.
	Attempt func(context.Context, sink.Request) sink.Result
	// Leads reports whether an attempt may start: this agent is sure that no other has taken over.
	Leads func() bool
	// Now is the database's clock, by which deliveries are due.
	Now func() time.Time
	// Write is Ledger.Write, which may wait for the database: Scheduler.mu must be free.
	Write func(context.Context, ...outbox.Entry) error
	Meter Meter
	Log   *slog.Logger
	// Caught is told of a panic, after which the lanes are of no use any more.
	Caught func(*panics.Error)
	// Aside reports whether a delivery is set aside, since the agent panics over it again and again.
	Aside func(outbox.Subject) bool
}

// Meter counts what comes of attempts.
type Meter interface {
	// Attempted is told of an attempt that ended now, by the database's clock.
	Attempted(d *outbox.Delivery, r sink.Result, now time.Time)
	// NotMade is told of one that could not be made.
	NotMade(fault sink.Fault)
	// EndpointDisabled is told why an endpoint was disabled.
	EndpointDisabled(reason string)
}

// Scheduler schedules the attempts of all endpoints.
//
// An attempt has a goroutine only while it is under way: a worker is started when a lane is ready and the global
// limit allows one, takes one delivery after another, in turn from all venues that are ready and within each from its
// lanes, and ends when there is none. Lanes that have not been quick lately share three quarters of the limit, so that
// endpoints that hang never take the last places.
type Scheduler struct {
	cfg Config

	mu   sync.Mutex
	byID map[string]*Lane
	// removed are the lanes of endpoints that are gone, while they hold deliveries: an endpoint may come back under its
	// id.
	removed  map[string]*Lane
	inFlight int               // attempts under way, until their results are handed to the ledger
	unproven int               // those of lanes that are not proven
	bytes    int               // of the deliveries in all lanes
	venues   map[string]*venue // by name
	// ready are the venues that can start an attempt, by the class of their lanes, each list in turn; turn says which
	// list is asked first.
	ready [classes][]*venue
	turn  laneClass
	due   dueHeap
	// late are endpoints with rows that became pending after what was pending was made missed: their results were on
	// the way to the ledger when the lane was turned off.
	late    map[string]struct{}
	healths int64 // how many states of counters were handed to the ledger; numbers them
	offs    int   // how often a lane stopped being sent to; numbers what the ledger is told about that
	stalled bool  // the ledger is slow: no new attempts
	stopped bool  // no new attempts any more

	workers sync.WaitGroup
	// wake tells refill that a lane may be due earlier or late; sent without waiting, so one place is enough.
	wake chan struct{}
	// work is the context of all attempts; canceling it ends them. It lives as long as the session.
	work       context.Context
	cancelWork context.CancelFunc
}

// New makes lanes without endpoints. Attempts end when work does.
func New(work context.Context, cfg Config) *Scheduler {
	if cfg.Lengthen == nil {
		cfg.Lengthen = lengthen
	}
	s := &Scheduler{cfg: cfg, byID: map[string]*Lane{}, removed: map[string]*Lane{}, venues: map[string]*venue{}, late: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	s.work, s.cancelWork = context.WithCancel(work)
	return s
}

// Now is the time by the database's clock.
func (s *Scheduler) Now() time.Time { return s.cfg.Now() }

// Offer is a delivery with the lane it belongs to.
type Offer struct {
	Lane     *Lane
	Delivery *outbox.Delivery
}

// Offer takes new deliveries in. It returns the results of those that it does not take: left to the database, because
// they do not fit, or missed, because they cannot be sent.
func (s *Scheduler) Offer(offers []Offer) (results []*outbox.Result) {
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
			results = append(results, Missed(d, l.off, now))
		case d.Venue != l.endpoint.Venue: // it has moved since the event was matched
			results = append(results, Missed(d, otherVenue, now))
		case d.Unfit != "":
			results = append(results, &outbox.Result{Delivery: d, Status: outbox.Failed, Error: d.Unfit, Finished: now})
		case s.heldLocked(l, d):
			results = append(results, outbox.IDTaken(d, now))
		case s.fits(l, d, now):
			s.pushLocked(l, d)
			continue
		default:
			l.backlog = true
			l.left++
			results = append(results, &outbox.Result{Delivery: d, Status: outbox.Pending, NextAttempt: now})
		}
		d.Body = nil
	}
	s.dispatchLocked()
	return results
}

// heldLocked reports whether memory has a delivery of another event with the same id.
func (s *Scheduler) heldLocked(l *Lane, d *outbox.Delivery) bool {
	if _, held := l.held[d.EventID]; !held {
		return false
	}
	return !slices.ContainsFunc(l.queue, func(other *outbox.Delivery) bool {
		return other.EventID == d.EventID && other.Venue == d.Venue && other.Type == d.Type && other.Created.Equal(d.Created)
	})
}

func Missed(d *outbox.Delivery, reason string, now time.Time) *outbox.Result {
	return &outbox.Result{Delivery: d, Status: outbox.Missed, Error: reason, Finished: now}
}

// fits reports whether a new delivery may wait in memory. A lane with a backlog in the database sends its new ones
// there as well, which keeps them roughly in order and no old one waiting for ever. So does one that is held for long.
func (s *Scheduler) fits(l *Lane, d *outbox.Delivery, now time.Time) bool {
	return !l.backlog && len(l.queue) < laneLength && l.heldFor(now) <= keepFor && s.hasRoom(l, d)
}

// hasRoom reports whether there is memory for a delivery. A lane may always hold one.
func (s *Scheduler) hasRoom(l *Lane, d *outbox.Delivery) bool {
	size := d.Size()
	return l.bytes == 0 || l.bytes+size <= s.cfg.QueueBytes/laneShare && l.venue.bytes+size <= venueShare*(s.cfg.QueueBytes-s.bytes-size)
}

func (s *Scheduler) pushLocked(l *Lane, d *outbox.Delivery) {
	l.queue = append(l.queue, d)
	l.held.add(d.EventID)
	s.holdLocked(l, d.Size())
	s.listLocked(l)
}

// freeLocked lets go of a delivery's body, and of the room that the delivery took.
func (s *Scheduler) freeLocked(l *Lane, d *outbox.Delivery) {
	s.holdLocked(l, -d.Size())
	d.Body = nil
}

// holdLocked accounts for bytes that a lane begins to hold, or for fewer.
func (s *Scheduler) holdLocked(l *Lane, bytes int) {
	l.bytes += bytes
	l.venue.bytes += bytes
	s.bytes += bytes
}

// finish draws the conclusions of an attempt for its delivery and its endpoint.
func (s *Scheduler) finish(l *Lane, d *outbox.Delivery, result sink.Result) []outbox.Entry {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proveLocked(l, result.Latency < slowAfter)
	l.madeLocked()
	if result.Outcome == sink.Succeeded {
		s.succeededLocked(l, now)
		r := &outbox.Result{Delivery: d, Status: outbox.Succeeded, Finished: now, Code: result.Code, Latency: result.Latency}
		if l.failures > 0 && l.off != offRemoved {
			l.failures, l.firstFailure = 0, time.Time{}
			r.Health = s.healthLocked(l, now)
			r.Health.LastSuccess = now
		}
		return []outbox.Entry{r}
	}

	if result.Class == sink.ClassInvalidEventID {
		return s.unsendable(d, result, now)
	}
	window := l.window
	l.window = max(1, window/2)
	r := &outbox.Result{
		Delivery: d, Finished: now,
		Attempt: &outbox.Attempt{
			Number: d.Attempts + 1, At: now, Code: result.Code, Class: string(result.Class), Error: result.Error,
			Latency: result.Latency, Response: result.Response,
		},
	}
	counts := result.Class != sink.ClassInternalError // which is our doing, and not the endpoint's
	if counts {
		if l.failures++; l.failures == 1 {
			l.firstFailure = now
		}
		s.failedLocked(l, result, window, now)
		if l.off != offRemoved { // its health went with it
			r.Health = s.healthLocked(l, now)
			r.Health.LastFailure, r.Health.LastError = now, result.Error
		}
	}
	// An unusable endpoint is disabled as well: it would be mended with no failures left and stand still.
	if counts && l.off != offDisabled && l.off != offRemoved {
		switch {
		case result.Outcome == sink.Gone:
			r.Disable = outbox.ReasonGone
		case l.failures >= s.cfg.DisableAfter:
			r.Disable = outbox.ReasonFailures
		default:
			s.warnLocked(l)
		}
	}
	entries := []outbox.Entry{r}
	if r.Disable != "" {
		s.cfg.Meter.EndpointDisabled(r.Disable)
		s.cfg.Log.Warn("endpoint disabled", "endpoint", l.id, "venue", l.endpoint.Venue, "reason", r.Disable,
			"consecutive_failures", l.failures, "failing_since", l.firstFailure, "last_error", result.Error)
		entries = append(entries, s.turnOffLocked(l, offDisabled, d.EventID)...)
	}
	entries = append(entries, s.giveBackLocked(l, now)...)
	wait, again := nextWait(s.cfg.Retries, r.Attempt.Number, result.RetryAfter)
	switch {
	case !again:
		r.Status = outbox.Failed
	case l.off != "":
		r.Status, r.Error = outbox.Missed, l.off
	default:
		r.Status, r.NextAttempt = outbox.Pending, now.Add(s.cfg.Lengthen(wait))
	}
	return entries
}

// unsendable ends a delivery that no attempt can make: the producer's doing, which is not counted against the endpoint.
func (s *Scheduler) unsendable(d *outbox.Delivery, result sink.Result, now time.Time) []outbox.Entry {
	s.cfg.Log.Warn("an event cannot be sent", "error", result.Error, "venue", d.Venue)
	return []outbox.Entry{&outbox.Result{
		Delivery: d, Status: outbox.Failed, Finished: now,
		Attempt: &outbox.Attempt{Number: d.Attempts + 1, At: now, Class: string(result.Class), Error: result.Error},
	}}
}

// healthLocked returns the lane's failure counter and what holds it, to be recorded. The numbers are those of all lanes
// together, so that an endpoint that comes back under its id goes on counting up.
func (s *Scheduler) healthLocked(l *Lane, now time.Time) *outbox.Health {
	s.healths++
	return l.standing(s.healths, now)
}

// nextWait returns how long to wait after the attempt of this number, counted from one; again is false after the
// last. What the server asked for may lengthen the wait, never shorten it.
func nextWait(retries []time.Duration, attempt int, retryAfter time.Duration) (wait time.Duration, again bool) {
	if attempt > len(retries) {
		return 0, false
	}
	return max(retries[attempt-1], retryAfter), true
}

// warnLocked warns when half, 70 % and 90 % of the failures that disable an endpoint are reached.
func (s *Scheduler) warnLocked(l *Lane) {
	for _, percent := range [...]int{50, 70, 90} {
		if l.failures == (s.cfg.DisableAfter*percent+99)/100 {
			s.cfg.Log.Warn("endpoint keeps failing and will be disabled", "endpoint", l.id, "venue", l.endpoint.Venue,
				"consecutive_failures", l.failures, "disabled_at", s.cfg.DisableAfter, "failing_since", l.firstFailure)
			return
		}
	}
}

// turnOffLocked stops sending to a lane: what waits becomes missed, in memory at once, in the database in steps. The
// attempts under way go on; except is one whose result is at hand.
func (s *Scheduler) turnOffLocked(l *Lane, reason, except string) []outbox.Entry {
	now := s.cfg.Now()
	l.off = reason
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

// missRowsLocked makes the pending rows of a lane that is off missed, but for those of attempts under way. An attempt whose
// result is committed is over, although its worker may not have come to say so.
func (s *Scheduler) missRowsLocked(l *Lane, except string) outbox.Entry {
	keep := slices.DeleteFunc(slices.Collect(maps.Keys(l.inFlight)), func(id string) bool {
		_, held := l.held[id]
		return id == except || !held
	})
	return s.missPendingLocked(outbox.Missing{EndpointID: l.id, Reason: l.off, Keep: keep, Removed: l.off == offRemoved})
}

func (s *Scheduler) missPendingLocked(m outbox.Missing) outbox.Entry {
	s.offs++
	m.Version = s.offs
	return m
}

// stopMissingLocked takes back all missPendingLocked so far for an endpoint.
func (s *Scheduler) stopMissingLocked(endpointID string) outbox.Entry {
	return outbox.StopMissing{EndpointID: endpointID, Version: s.offs}
}

// turnOnLocked begins to send to a lane again.
func (s *Scheduler) turnOnLocked(l *Lane) []outbox.Entry {
	l.off = ""
	s.dueLocked(l, s.cfg.Now()) // rows that have not become missed yet
	return []outbox.Entry{s.stopMissingLocked(l.id)}
}

// Committed takes note of what is recorded: it leaves memory, and what is to be attempted again comes back when it is
// due. The ledger's goroutine calls it.
func (s *Scheduler) Committed(results []*outbox.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range results {
		if r.Parked || r.Taken && r.Attempt != nil {
			continue // memory still holds the delivery, or that of another event with the same id
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

// releaseLocked has a lane let go of a delivery that is recorded.
func (s *Scheduler) releaseLocked(l *Lane, r *outbox.Result) {
	id := r.Delivery.EventID
	left := r.Status == outbox.Pending && r.Attempt == nil
	_, leaving := l.leaving[id]
	l.leaving.remove(id)
	if !left || leaving { // held is that of a refill, if it is
		l.held.remove(id)
	}
	if l.fetching {
		l.released.add(id)
	}
	if r.Status != outbox.Pending {
		return
	}
	if left {
		l.left = max(0, l.left-1) // a former lane of the same id may have left it
	}
	s.dueLocked(l, r.NextAttempt)
}

// forgetLocked takes note that a delivery of an endpoint that is gone is recorded.
func (s *Scheduler) forgetLocked(d *outbox.Delivery) {
	if l := s.removed[d.EndpointID]; l != nil {
		if l.held.remove(d.EventID) {
			delete(s.removed, d.EndpointID)
			// A result that was on its way when the endpoint was removed may have brought its counter back.
			s.late[d.EndpointID] = struct{}{}
			s.wakeRefill()
		}
	}
}

// Requeued takes note that the database has deliveries of an endpoint that are due at once. The ledger's goroutine
// calls it.
func (s *Scheduler) Requeued(endpointID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch l := s.byID[endpointID]; {
	case l == nil: // its row is on the way to us, and the lane will look when it is made
	case l.off != "":
		s.late[endpointID] = struct{}{}
		s.wakeRefill()
	default:
		s.dueLocked(l, s.cfg.Now())
	}
}

// Resume starts what can start now, after leads has become true again.
func (s *Scheduler) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dispatchLocked()
}

// Stall holds new attempts back while the ledger cannot commit, so that few are lost with the process. The ledger
// calls it.
func (s *Scheduler) Stall(stalled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = stalled
	s.dispatchLocked()
}

// Stop starts no attempt any more, waits for those under way until ctx ends, and then cancels them.
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

// dueLocked notes that the database has a delivery due at t that memory does not hold.
func (s *Scheduler) dueLocked(l *Lane, t time.Time) {
	if l.due.IsZero() || t.Before(l.due) {
		l.due = t
	}
	s.scheduleLocked(l)
}

// scheduleLocked puts the lane where it belongs in the heap of those to be refilled.
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

// Stats is a view of the lanes for metrics.
type Stats struct{ InFlight, Queued, Bytes, Active, Off, Held int }

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
