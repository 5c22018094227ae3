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
	// One refill serves at most refillLanes lanes, which share refillRows rows. Each lane gets at
	// most refillLength rows and at least refillLeast, beside those that memory holds already. A
	// refill takes two statements, whatever the number of lanes: a hundred thousand may be due at
	// once, and the database may be far away. A lane is refilled when at most refillBelow
	// deliveries wait in it, because a refill also reads the rows that memory holds.
	refillLanes  = 4096
	refillFew    = 64 // the lanes of a refill when memory is full
	refillRows   = 32_768
	refillLength = 512
	refillLeast  = 8
	refillBelow  = 256
	leastRoom    = 64 // when memory is full, a refill may read this part of delivery.queue_memory
	// refillPause is the wait after a refill that failed.
	refillPause = time.Second
)

// dueFunc is Slot.Due.
type dueFunc func(ctx context.Context, wants []outbox.Want, now time.Time, maxBytes int) (map[string]*outbox.Refill, error)

// Refill brings due deliveries from the database back into the lanes until ctx ends. It sleeps
// until the earliest one is due. A failed query is logged and tried again. The error is always nil.
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
				// Otherwise the loop would spin: the lanes are due again at once.
				backoff.Sleep(ctx, refillPause)
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

// takeLate returns the entries that make the pending rows of the endpoints in late missed.
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

// nextWants takes the lanes that are due, at most refillLanes, and returns how many bytes of
// deliveries may be read for them. When no lane is due, it returns how long to wait.
func (s *Scheduler) nextWants(now time.Time) (wants []outbox.Want, room int, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = time.Hour
	if s.stopped || s.stalled {
		return nil, 0, refillPause
	}
	// When memory is nearly full, it is a waste to read rows that there is no room for.
	var limits []int
	most := min(refillLanes, max(refillFew, (s.cfg.QueueBytes-s.bytes)/outbox.DeliveryBytes))
	for len(s.due) > 0 && len(wants) < most {
		l := s.due[0]
		if at := l.refillAt(); at.After(now) {
			wait = at.Sub(now)
			break
		}
		heap.Pop(&s.due)
		// feedLaneLocked sets it again; what becomes due meanwhile is noted from here on.
		l.due = time.Time{}
		l.fetching = true
		room += max(0, s.cfg.QueueBytes/laneShare-l.bytes)
		want := outbox.Want{
			EndpointID: l.id,
			Limit:      len(l.held),
			Skip:       func(eventID string) bool { return s.Holds(l, eventID) },
		}
		if l.endpoint.Reused {
			want.Registered = l.endpoint.Created
		}
		wants = append(wants, want)
		limits = append(limits, l.refillLimit(&s.cfg))
	}
	for i := range wants {
		wants[i].Limit += min(max(refillRows/len(wants), refillLeast), limits[i])
	}
	// A lane may always hold one small delivery, so a refill must read something even when memory is
	// full.
	return wants, max(s.cfg.QueueBytes/leastRoom, min(room, s.cfg.QueueBytes-s.bytes)), wait
}

// Holds reports whether the lane holds a delivery of an event: queued, under way, or with a result
// that is not committed.
func (s *Scheduler) Holds(l *Lane, eventID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, held := l.held[eventID]
	return held
}

// feed puts the fetched deliveries into their lanes. refills is nil when the query failed; the
// lanes are then due again at once.
func (s *Scheduler) feed(wants []outbox.Want, refills map[string]*outbox.Refill, now time.Time) (entries []outbox.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at outbox.Subject
	defer at.Blame()
	for _, w := range wants {
		l := s.byID[w.EndpointID]
		if l == nil || !l.fetching {
			continue // the endpoint was removed meanwhile
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
	s.promiseLocked()
	s.dispatchLocked()
	return entries
}

// feedLaneLocked puts the fetched deliveries of one lane into it. released are the events that have
// left the lane since the query began. at is set to the delivery at hand, for the report of a
// panic.
func (s *Scheduler) feedLaneLocked(l *Lane, r *outbox.Refill, released eventSet, now time.Time, at *outbox.Subject) (entries []outbox.Entry) {
	if l.bytes == 0 && (len(r.Deliveries) > 0 || !r.More) {
		// What was promised is here, or not needed. A refill that had no room for its body is no reason
		// to end the promise: lanes would take it from each other in turn, and none would get a delivery.
		s.leaveRoomLocked(l)
	}
	// The lane may have been held since the query began, for example by a Retry-After.
	held := l.heldFor(s.cfg.Now()) > keepFor
	// The rows may be older than what became of their deliveries meanwhile.
	over := func(d *outbox.Delivery) bool {
		_, done := released[d.EventID]
		_, withdrawn := s.withdrawn.Get(d.ReplayID)
		return done || withdrawn
	}
	for _, d := range r.Deliveries {
		*at = d.Subject()
		_, known := l.held[d.EventID] // it may have come in after the rows were read
		switch {
		case known || over(d) || l.off != "":
		case s.cfg.Aside(*at):
			l.held.add(d.EventID)
			entries = append(entries, FailedAside(d, now))
		case d.Venue != l.endpoint.Venue:
			d.Body = nil
			l.held.add(d.EventID)
			entries = append(entries, Missed(d, otherVenue, now))
		case held:
			r.More = true
		case l.full:
			r.More = true
		case !s.hasRoom(l, d):
			l.full, r.More = true, true
			s.awaitRoomLocked(l, d)
		default:
			l.refilled = true
			s.pushLocked(l, d)
		}
	}
	for _, d := range r.Lost {
		if !over(d.Delivery) {
			l.held.add(d.EventID)
			entries = append(entries, &outbox.Record{Delivery: d.Delivery, Status: outbox.Failed, Finished: now, Error: d.Reason})
		}
	}
	for _, d := range r.Former {
		if !over(d) {
			l.held.add(d.EventID)
			entries = append(entries, Missed(d, offRemoved, now))
		}
	}
	// The query may bring no delivery although rows are due, because their events are not visible
	// yet. r.Next is then the time of the next try.
	nothing := len(r.Deliveries)+len(r.Lost)+len(r.Former) == 0
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
