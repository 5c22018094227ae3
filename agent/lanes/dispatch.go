package lanes

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
)

// venueShare bounds what the lanes of one venue may hold in memory: at most this many times what is free. One venue alone
// takes four fifths of delivery.queue_memory, and leaves room for the events of the others however much is due to it. The rule
// is that of Choudhury and Hahne for buffers that are shared by queues (Dynamic Queue Length Thresholds, IEEE/ACM Transactions on
// Networking 6(2), 1998).
const venueShare = 4

// venue is what the lanes of one venue share: their turn, and their part of the memory. A venue with thousands of endpoints
// takes no more turns than one with a single endpoint, whose events would otherwise wait for an attempt to each of the
// thousands. All fields are guarded by Scheduler.mu, except name.
type venue struct {
	name   string
	lanes  int              // of endpoints that exist
	bytes  int              // of the deliveries in its lanes
	ready  [classes][]*Lane // those that can start an attempt, in turn
	listed [classes]bool    // whether it stands in Scheduler.ready
}

// joinLocked has a lane belong to the venue of its endpoint.
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

// leaveLocked takes note that a venue has a lane less. The lane's place among the ready ones stays until it is its turn.
func (s *Scheduler) leaveLocked(v *venue) {
	if v.lanes--; v.lanes == 0 {
		delete(s.venues, v.name)
	}
}

// laneClass is a place in Scheduler.ready. The classes take turns.
type laneClass int

const (
	quick   laneClass = iota // lanes that are proven
	fresh                    // the others whose deliveries came by the stream
	again                    // the others that a refill has brought deliveries: a hundred thousand may be due when an agent starts
	classes                  // how many there are
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

// listLocked puts a lane that can start an attempt among the ready ones of its venue, and the venue among the ready ones.
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

// takeReadyLocked takes the lane whose turn it is out of the lists of a class, nil when there is none. Lists may have
// lanes that cannot start any more, or belong elsewhere now.
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

// pop takes the first element out of a list.
func pop[T any](list *[]*T) *T {
	first := (*list)[0]
	(*list)[0] = nil
	if *list = (*list)[1:]; len(*list) == 0 {
		*list = nil // frees the array that the slice has walked along
	}
	return first
}

// dispatchLocked starts workers while there is something to do and the global limit allows.
func (s *Scheduler) dispatchLocked() {
	for {
		next := s.nextLocked()
		if next == nil {
			return
		}
		s.workers.Go(panics.GuardFunc(s.cfg.Caught, func() { s.workOn(next) }))
	}
}

// job is a delivery that was taken out of its lane, with the request to make. What its endpoint was at that moment
// decides: by the time of the attempt it may belong to another venue, with that one's URL and secret.
type job struct {
	lane     *Lane
	delivery *outbox.Delivery
	request  sink.Request
}

// nextLocked takes the next delivery from the venues in turn and accounts for its attempt; nil when none may start.
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
		return &job{l, d, s.requestLocked(l, d)}
	}
	return nil
}

// workOn makes one attempt and then whatever comes next, until nothing may start.
func (s *Scheduler) workOn(next *job) {
	for next != nil {
		next = s.attempt(next)
	}
}

// attempt makes one attempt, hands its result to the ledger, and returns the worker's next job. The place
// under the global limit is kept until the ledger has the result, so that a slow database slows attempts down
// instead of piling up results.
func (s *Scheduler) attempt(j *job) *job {
	l, d := j.lane, j.delivery
	at := d.Subject()
	defer at.Blame()
	slow := time.AfterFunc(slowAfter, panics.GuardFunc(s.cfg.Caught, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.proveLocked(l, false)
	}))
	result := s.cfg.Attempt(s.work, j.request)
	slow.Stop()
	var entries []outbox.Entry
	switch result.Outcome {
	case sink.Canceled:
	case sink.NotMade:
		s.cfg.Meter.NotMade(result.Fault)
		entries = s.putBack(l, d)
	default:
		s.cfg.Meter.Attempted(d, result, s.cfg.Now())
		entries = s.finish(l, d, result)
	}
	// An error means that the session is over; what was not recorded is sent again in the next one.
	_ = s.cfg.Write(s.work, entries...)
	s.mu.Lock()
	defer s.mu.Unlock()
	l.inFlight.remove(d.EventID)
	l.attempts--
	if result.Outcome != sink.NotMade { // it waits again, or is given back
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
	// Another worker may be wanted: the attempt's end can have made room for more than one.
	defer s.dispatchLocked()
	return s.nextLocked()
}

func (s *Scheduler) requestLocked(l *Lane, d *outbox.Delivery) sink.Request {
	return sink.Request{Target: l.target, EventID: d.EventID, Body: d.Body, At: s.cfg.Now()}
}

// proveLocked moves a lane between the proven and the other ones, and the places that it holds with it.
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
	s.listLocked(l) // in its new class too: the other one may have to wait
}
