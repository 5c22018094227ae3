package lanes

import (
	"container/heap"
	"context"
	"log/slog"
	"time"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
)

const (
	// refillLanes and refillRows bound one refill: so many lanes, which share so many rows, each at most refillLength and at
	// least refillLeast beside those that memory holds. It takes two statements however many lanes there are, since a hundred
	// thousand may be due at once and a database may be far away. A lane is refilled when no more than refillBelow wait: a
	// refill reads those that memory holds as well.
	refillLanes  = 4096
	refillFew    = 64 // the lanes of a refill when memory is full
	refillRows   = 32_768
	refillLength = 512
	refillLeast  = 8
	refillBelow  = 256
	leastRoom    = 64 // the part of the memory for events that a refill may read when it is full
	// refillPause is the wait after a refill that failed.
	refillPause = time.Second
)

// dueFunc is DB.Due.
type dueFunc func(ctx context.Context, wants []outbox.Want, now time.Time, maxBytes int) (map[string]*outbox.Refill, error)

// Refill brings due deliveries from the database back into the lanes until ctx ends. It sleeps until the earliest one
// is due.
func (s *Scheduler) Refill(ctx context.Context, due dueFunc) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	trouble := backoff.Trouble{Log: s.cfg.Log, Level: slog.LevelError, Begins: "cannot fetch due deliveries; trying again", Ends: "fetching due deliveries again"}
	for {
		if err := s.cfg.Write(ctx, s.takeLate()...); err != nil {
			return nil
		}
		wants, room, wait := s.nextWants(s.cfg.Now())
		if len(wants) > 0 {
			now := s.cfg.Now()
			refills, err := due(ctx, wants, now, room)
			entries := s.feed(wants, refills, now)
			if terr := s.cfg.Write(ctx, entries...); terr != nil {
				return nil
			}
			if ctx.Err() != nil {
				return nil
			}
			trouble.Note(err)
			if err != nil {
				backoff.Sleep(ctx, refillPause) // the lanes are due at once and have woken this loop
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-s.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// takeLate makes missed what has become pending at endpoints that are off or gone.
func (s *Scheduler) takeLate() (entries []outbox.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.late {
		switch l := s.byID[id]; {
		case l == nil:
			entries = append(entries, s.orphanedLocked(id))
		case l.off != "":
			entries = append(entries, s.missRowsLocked(l, ""))
		}
	}
	clear(s.late)
	return entries
}

// nextWants takes the lanes that are due, at most refillLanes, and how many bytes there is room for; or how long to
// wait for the next one.
func (s *Scheduler) nextWants(now time.Time) (wants []outbox.Want, room int, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = time.Hour
	if s.stopped || s.stalled {
		return nil, 0, refillPause
	}
	// Where memory is nearly full, rows that there is no room for are not worth reading.
	var limits []int
	most := min(refillLanes, max(refillFew, (s.cfg.QueueBytes-s.bytes)/outbox.DeliveryBytes))
	for len(s.due) > 0 && len(wants) < most {
		l := s.due[0]
		if at := l.refillAt(); at.After(now) {
			wait = at.Sub(now)
			break
		}
		heap.Pop(&s.due)
		l.due = time.Time{} // the refill will tell; what comes in meanwhile counts from here
		l.fetching = true
		room += max(0, s.cfg.QueueBytes/laneShare-l.bytes)
		wants = append(wants, outbox.Want{
			EndpointID: l.id,
			Limit:      len(l.held),
			Skip:       func(eventID string) bool { return s.Holds(l, eventID) },
		})
		limits = append(limits, l.refillLimit(&s.cfg))
	}
	for i := range wants {
		wants[i].Limit += min(max(refillRows/len(wants), refillLeast), limits[i])
	}
	// A lane may always hold one, so something is worth reading also when memory is full.
	return wants, max(s.cfg.QueueBytes/leastRoom, min(room, s.cfg.QueueBytes-s.bytes)), wait
}

func (s *Scheduler) Holds(l *Lane, eventID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, held := l.held[eventID]
	return held
}

// feed puts what was fetched into the lanes. Without refills, after a failure, the lanes are due again at once.
func (s *Scheduler) feed(wants []outbox.Want, refills map[string]*outbox.Refill, now time.Time) (entries []outbox.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at outbox.Subject
	defer at.Blame()
	for _, w := range wants {
		l := s.byID[w.EndpointID]
		if l == nil || !l.fetching {
			continue // removed meanwhile
		}
		l.fetching = false
		released := l.released
		l.released = nil
		if r := refills[w.EndpointID]; r != nil {
			entries = append(entries, s.feedLaneLocked(l, r, released, now, &at)...)
		} else {
			s.dueLocked(l, now)
		}
	}
	s.dispatchLocked()
	return entries
}

// feedLaneLocked puts what was fetched for a lane into it. Released are the events whose results were recorded since the rows were read. At
// becomes the delivery at hand.
func (s *Scheduler) feedLaneLocked(l *Lane, r *outbox.Refill, released eventSet, now time.Time, at *outbox.Subject) (entries []outbox.Entry) {
	// It may have been held since the rows were read, as an endpoint that is asked too much is.
	held := l.heldFor(s.cfg.Now()) > keepFor
	for _, d := range r.Deliveries {
		*at = d.Subject()
		_, done := released[d.EventID]
		_, known := l.held[d.EventID] // since the rows were read
		switch {
		case done || known || l.off != "":
		case s.cfg.Aside(*at):
			l.held.add(d.EventID)
			entries = append(entries, FailedAside(d, now))
		case d.Venue != l.endpoint.Venue:
			d.Body = nil
			l.held.add(d.EventID)
			entries = append(entries, Missed(d, otherVenue, now))
		case held:
			r.More = true
		case l.full || !s.hasRoom(l, d):
			l.full, r.More = true, true
		default:
			l.refilled = true
			s.pushLocked(l, d)
		}
	}
	for _, d := range r.Lost {
		if _, done := released[d.EventID]; !done {
			l.held.add(d.EventID)
			entries = append(entries, &outbox.Result{Delivery: d.Delivery, Status: outbox.Failed, Finished: now, Error: d.Reason})
		}
	}
	// The event of a row may not be visible yet; then there is a time to look again.
	nothing := len(r.Deliveries)+len(r.Lost) == 0
	switch {
	case r.More && (!nothing || r.Next.IsZero()):
		s.dueLocked(l, now)
	case !r.Next.IsZero():
		s.dueLocked(l, r.Next)
	default:
		s.scheduleLocked(l)
	}
	l.backlog = l.left > 0 || !l.due.IsZero() && !l.due.After(s.cfg.Now())
	return entries
}
