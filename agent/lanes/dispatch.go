package lanes

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
)

// venueShare limits the memory of one venue: its lanes together hold at most four times what is
// free. A venue alone can use four fifths of delivery.queue_memory. So there is always room for the
// events of other venues, however much is due to one.
//
// The rule is the dynamic threshold of Choudhury and Hahne for queues that share a buffer (Dynamic
// Queue Length Thresholds for Shared-Memory Packet Switches, IEEE/ACM Transactions on Networking
// 6(2), 1998).
const venueShare = 4

// venue is what the lanes of one venue share: their turn and their memory. A venue with thousands
// of endpoints gets no more turns than a venue with one. Otherwise the events of that one would
// wait for an attempt to each of the thousands. All fields except name are guarded by Scheduler.mu.
type venue struct {
	name   string
	lanes  int              // lanes of endpoints that exist
	bytes  int              // of the deliveries in its lanes
	ready  [classes][]*Lane // lanes that can start an attempt, in turn
	listed [classes]bool    // whether the venue is in Scheduler.ready, for each class
}

// joinLocked moves a lane to the venue of its endpoint.
func (s *Scheduler) joinLocked(l *Lane) {
	name, former := l.endpoint.Venue, l.venue
	if former != nil && former.name == name {
		return
	}
	v := s.venues[name]
	if v == nil {
		v = &venue{name: name}
		s.venues[name] = v
	}
	v.lanes++
	v.bytes += l.bytes
	l.venue = v
	if former != nil {
		former.bytes -= l.bytes
		s.leaveLocked(former)
	}
}

// leaveLocked counts one lane less for a venue. The lane may still be in a ready list;
// takeReadyLocked skips it there.
func (s *Scheduler) leaveLocked(v *venue) {
	if v.lanes--; v.lanes == 0 {
		delete(s.venues, v.name)
	}
}

// laneClass is an index of Scheduler.ready. The classes take turns.
type laneClass int

const (
	quick laneClass = iota // proven lanes
	// fresh are the other lanes with deliveries from the stream only.
	fresh
	// again are the other lanes with deliveries from a refill. A hundred thousand of them may be
	// due when an agent starts, and they must not delay the fresh ones.
	again
	classes // the number of classes
)

func (l *Lane) class() laneClass {
	switch {
	case l.proven:
		return quick
	case l.refilled:
		return again
	}
	return fresh
}

// listLocked adds a lane to the ready list of its venue, and the venue to the ready list of the
// Scheduler, if the lane can start an attempt. If it cannot, a timer looks again when its hold is
// over.
func (s *Scheduler) listLocked(l *Lane) {
	class := l.class()
	if l.listed[class] {
		return
	}
	if !l.canStart(&s.cfg) {
		s.awaitLocked(l)
		return
	}
	l.listed[class] = true
	v := l.venue
	v.ready[class] = append(v.ready[class], l)
	s.listVenueLocked(v, class)
}

func (s *Scheduler) listVenueLocked(v *venue, class laneClass) {
	if !v.listed[class] && len(v.ready[class]) > 0 {
		v.listed[class] = true
		s.ready[class] = append(s.ready[class], v)
	}
}

// takeReadyLocked removes and returns the next lane of a class that can start an attempt, or nil.
// The lists may hold lanes that cannot start any more, or that have moved to another class or
// venue.
func (s *Scheduler) takeReadyLocked(class laneClass) *Lane {
	for len(s.ready[class]) > 0 {
		v := pop(&s.ready[class])
		v.listed[class] = false
		for len(v.ready[class]) > 0 {
			l := pop(&v.ready[class])
			l.listed[class] = false
			if l.venue == v && l.class() == class && l.canStart(&s.cfg) {
				s.listVenueLocked(v, class)
				return l
			}
			s.listLocked(l)
		}
	}
	return nil
}

// pop removes and returns the first element of a list.
func pop[T any](list *[]*T) *T {
	first := (*list)[0]
	(*list)[0] = nil
	if *list = (*list)[1:]; len(*list) == 0 {
		*list = nil // frees the underlying array
	}
	return first
}

// dispatchLocked starts workers while attempts may start.
func (s *Scheduler) dispatchLocked() {
	for {
		next := s.nextLocked()
		if next == nil {
			return
		}
		s.workers.Go(panics.GuardFunc(s.cfg.Caught, func() { s.workOn(next) }))
	}
}

// job is a delivery that was taken out of its lane, with the request to make. The request is built
// at that moment: the endpoint may belong to another venue by the time of the attempt, and its URL
// and secret must not be used then. endpoint is what it was at that moment.
type job struct {
	lane     *Lane
	endpoint *outbox.Endpoint
	delivery *outbox.Delivery
	request  sink.Request
}

// nextLocked takes the next delivery from the venues in turn and counts its attempt as under way.
// It returns nil when no attempt may start.
func (s *Scheduler) nextLocked() *job {
	if s.stopped || s.stalled || s.inFlight >= s.cfg.Concurrency || !s.cfg.Leads() {
		return nil
	}
	s.turn = (s.turn + 1) % classes
	for i := range classes {
		class := (s.turn + i) % classes
		if class != quick && s.unproven >= max(1, s.cfg.Concurrency*3/4) {
			continue
		}
		l := s.takeReadyLocked(class)
		if l == nil {
			continue
		}
		d := pop(&l.queue)
		if len(l.queue) == 0 {
			l.refilled = false
		}
		s.spaceLocked(l)
		l.inFlight.add(d.EventID)
		l.attempts++
		s.inFlight++
		if !l.proven {
			s.unproven++
		}
		s.listLocked(l)
		s.scheduleLocked(l)
		return &job{l, l.endpoint, d, s.requestLocked(l, d)}
	}
	return nil
}

// workOn makes attempts, beginning with next, until no further one may start.
func (s *Scheduler) workOn(next *job) {
	for next != nil {
		next = s.attempt(next)
	}
}

// attempt makes one attempt, writes its result to the ledger, and returns the worker's next job.
// The attempt keeps its place under the global limit until the ledger has the result. So a slow
// database slows the attempts down, and results do not pile up in memory.
func (s *Scheduler) attempt(j *job) *job {
	l, d := j.lane, j.delivery
	at := d.Subject()
	defer at.Blame()
	slow := time.AfterFunc(slowAfter, panics.GuardFunc(s.cfg.Caught, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.proveLocked(l, false)
	}))
	result := s.cfg.Attempt(s.work, d, j.request)
	slow.Stop()
	var entries []outbox.Entry
	switch result.Outcome {
	case sink.Canceled:
	case sink.NotMade:
		s.cfg.Meter.NotMade(result.Fault)
		entries = s.putBack(l, d)
	default:
		s.cfg.Meter.Attempted(d, result, s.cfg.Now())
		entries = s.finish(j, result)
	}
	// An error means that the term is over. The next leader makes again what was not recorded.
	_ = s.cfg.Write(s.work, entries...)
	s.mu.Lock()
	defer s.mu.Unlock()
	l.inFlight.remove(d.EventID)
	l.attempts--
	if result.Outcome != sink.NotMade { // otherwise putBack has queued it again or freed it
		s.freeLocked(l, d)
	}
	s.inFlight--
	if !l.proven {
		s.unproven--
	}
	s.listLocked(l)
	if l.bytes <= s.cfg.QueueBytes/laneShare/2 {
		l.full = false
		s.scheduleLocked(l)
	}
	// The end of an attempt can make room for more than one new attempt.
	defer s.dispatchLocked()
	return s.nextLocked()
}

func (s *Scheduler) requestLocked(l *Lane, d *outbox.Delivery) sink.Request {
	return sink.Request{Target: l.target, EventID: d.EventID, Body: d.Body, Traceparent: string(d.Traceparent), At: s.cfg.Now()}
}

// proveLocked marks a lane as proven or not, and counts its attempts under way accordingly.
func (s *Scheduler) proveLocked(l *Lane, proven bool) {
	if l.proven == proven {
		return
	}
	l.proven = proven
	if proven {
		s.unproven -= l.attempts
	} else {
		s.unproven += l.attempts
	}
	s.listLocked(l) // the lists of its new class must have it too
}
