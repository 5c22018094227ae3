package lanes

import (
	"maps"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// Load puts an endpoint as it was when the term began into its lane. due is when its first pending delivery is due,
// zero when it has none.
func (s *Scheduler) Load(e outbox.EndpointState, to *sink.Target, unusable string, due time.Time) (*Lane, []outbox.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := newLane(e.ID)
	s.byID[e.ID] = l
	l.endpoint, l.target, l.unusable = &e.Endpoint, to, unusable
	s.joinLocked(l)
	now := s.cfg.Now()
	l.failures, l.firstFailure = e.Failures, e.FirstFailure
	l.resumeHold(e, now)
	var entries []outbox.Entry
	if unusable != e.Unusable {
		entries = append(entries, s.healthLocked(l, now))
	}
	l.off = OffReason(l.endpoint, unusable)
	if l.failures >= s.cfg.DisableAfter && !e.Disabled {
		// The last leader died between the last failure and disabling, or the limit was lowered.
		l.off = offDisabled
		entries = append(entries, outbox.Disabling{EndpointID: e.ID, Reason: outbox.ReasonFailures, Generation: e.Generation})
	}
	if l.off == "" {
		if !due.IsZero() {
			s.dueLocked(l, due)
		}
		return l, entries
	}
	if !due.IsZero() {
		entries = append(entries, s.missPendingLocked(outbox.Missing{EndpointID: l.id, Reason: l.off}))
	}
	return l, entries
}

// Orphaned ends what is pending for an endpoint that is gone.
func (s *Scheduler) Orphaned(endpointID string) outbox.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.orphanedLocked(endpointID)
}

func (s *Scheduler) orphanedLocked(endpointID string) outbox.Entry {
	return s.missPendingLocked(outbox.Missing{EndpointID: endpointID, Reason: offRemoved, Removed: true})
}

func OffReason(e *outbox.Endpoint, unusable string) string {
	switch {
	case e.Disabled:
		return offDisabled
	case unusable != "":
		return offUnusable + unusable
	}
	return ""
}

// Change puts an endpoint's new row into its lane, which it makes when there is none.
func (s *Scheduler) Change(e *outbox.Endpoint, to *sink.Target, unusable string) (*Lane, []outbox.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.byID[e.ID]
	if l == nil {
		l = newLane(e.ID)
		s.byID[e.ID] = l
		l.endpoint, l.target, l.unusable = e, to, unusable
		s.joinLocked(l)
		// An endpoint of the same id may have been removed.
		if former := s.removed[e.ID]; former != nil {
			l.held, l.leaving = former.held, former.leaving // what it still sends is not fetched and sent by this lane too
			delete(s.removed, e.ID)
		}
		entries := []outbox.Entry{s.stopMissingLocked(e.ID)}
		if unusable != "" {
			entries = append(entries, s.healthLocked(l, s.cfg.Now()))
		}
		// That one may have left pending rows, which are this lane's now.
		if l.off = OffReason(e, unusable); l.off == "" {
			s.dueLocked(l, s.cfg.Now())
		} else {
			entries = append(entries, s.missRowsLocked(l, ""))
		}
		return l, entries
	}

	before := l.endpoint
	if !e.Disabled && before.Generation == e.Generation && l.off == offDisabled {
		// This row was written before the agent disabled the endpoint: enabling always begins a generation.
		stale := *e
		stale.Disabled = true
		e = &stale
	}
	l.endpoint, l.target = e, to
	s.joinLocked(l)
	var entries []outbox.Entry
	if e.Venue != before.Venue {
		entries = append(entries, s.dropOtherVenueLocked(l)...)
	}
	if e.Generation > before.Generation {
		l.failures, l.firstFailure = 0, time.Time{}
	}
	// Its secrets change when they are sealed as well.
	forgiven := e.Generation > before.Generation || l.trouble != nil && !e.URL.Equal(before.URL)
	if forgiven {
		s.forgiveLocked(l)
	}
	if forgiven || unusable != l.unusable {
		l.unusable = unusable
		entries = append(entries, s.healthLocked(l, s.cfg.Now()))
	}
	switch off := OffReason(e, unusable); {
	case off == "" && l.off != "":
		entries = append(entries, s.turnOnLocked(l)...)
	case off != "" && l.off == "":
		entries = append(entries, s.turnOffLocked(l, off, "")...)
	default:
		l.off = off
	}
	s.dispatchLocked()
	return l, entries
}

// Endpoints returns the ids of all endpoints that have a lane.
func (s *Scheduler) Endpoints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.byID))
}

// Remove ends an endpoint's lane.
func (s *Scheduler) Remove(id string) []outbox.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.byID[id]
	if l == nil {
		return nil
	}
	entries := s.turnOffLocked(l, offRemoved, "")
	l.quietLocked()
	delete(s.byID, id)
	s.leaveLocked(l.venue)
	if len(l.held) > 0 {
		s.removed[id] = l
	}
	return entries
}

// dropOtherVenueLocked ends what waits in a lane for the venue that its endpoint belonged to before.
func (s *Scheduler) dropOtherVenueLocked(l *Lane) []outbox.Entry {
	now := s.cfg.Now()
	var entries []outbox.Entry
	l.queue = slices.DeleteFunc(l.queue, func(d *outbox.Delivery) bool {
		if d.Venue == l.endpoint.Venue {
			return false
		}
		s.freeLocked(l, d)
		entries = append(entries, Missed(d, otherVenue, now))
		return true
	})
	l.full = false
	s.scheduleLocked(l)
	return entries
}
