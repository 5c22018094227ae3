package lanes

import (
	"maps"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// Load makes the lane of an endpoint as it was when the term began. due is when its first pending
// delivery is due, and zero when it has none. unusable is the reason why the endpoint cannot be
// sent to, or "". The caller writes the entries.
func (s *Scheduler) Load(e outbox.EndpointState, to *sink.Target, unusable string, due time.Time) (*Lane, []outbox.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := newLane(e.ID)
	s.byID[e.ID] = l
	l.endpoint, l.target, l.unusable = e.Endpoint, to, unusable
	s.joinLocked(l)
	now := s.cfg.Now()
	l.failures, l.firstFailure, l.announced = e.Failures, e.FirstFailure, e.Announced
	l.resumeHold(e, now)
	var entries []outbox.Entry
	if e.FormerHealth {
		entries = append(entries, outbox.ForgetHealth{EndpointID: e.ID})
	}
	if unusable != e.Unusable {
		entries = append(entries, s.healthLocked(l, now))
	}
	l.off = OffReason(l.endpoint, unusable)
	if l.failures >= s.cfg.DisableAfter && !e.Disabled {
		// The last leader died after the last failure and before it disabled the endpoint, or
		// delivery.disable_after was lowered.
		l.off, l.announced = offDisabled, outbox.NoticeDisabled
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

// Orphaned returns the entry that makes the pending rows of an endpoint missed which is gone.
func (s *Scheduler) Orphaned(endpointID string) outbox.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.orphanedLocked(endpointID)
}

func (s *Scheduler) orphanedLocked(endpointID string) outbox.Entry {
	return s.missPendingLocked(outbox.Missing{EndpointID: endpointID, Reason: offRemoved, Removed: true})
}

// OffReason returns why nothing is sent to an endpoint, and "" when something is. unusable is the
// reason why it cannot be sent to, or "".
func OffReason(e *outbox.Endpoint, unusable string) string {
	switch {
	case e.Disabled:
		return offDisabled
	case unusable != "":
		return offUnusable + unusable
	}
	return ""
}

// Change applies an endpoint's new row to its lane. It makes the lane when there is none. unusable
// is the reason why the endpoint cannot be sent to, or "". The caller writes the entries.
func (s *Scheduler) Change(e *outbox.Endpoint, to *sink.Target, unusable string) (*Lane, []outbox.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.byID[e.ID]
	if l == nil {
		l = newLane(e.ID)
		s.byID[e.ID] = l
		l.endpoint, l.target, l.unusable = e, to, unusable
		s.joinLocked(l)
		// An endpoint with the same id may have been removed.
		if former := s.removed[e.ID]; former != nil {
			// The new lane must not send again what that one has under way.
			l.held, l.leaving = former.held, former.leaving
			delete(s.removed, e.ID)
		}
		entries := []outbox.Entry{s.stopMissingLocked(e.ID)}
		if unusable != "" {
			entries = append(entries, s.healthLocked(l, s.cfg.Now()))
		}
		// The removed endpoint may have left pending rows. This lane's refills bring them, and have
		// them missed (Refill.Former).
		if l.off = OffReason(e, unusable); l.off == "" {
			s.dueLocked(l, s.cfg.Now())
		} else {
			entries = append(entries, s.missRowsLocked(l, ""))
		}
		return l, entries
	}

	before := l.endpoint
	if !e.Disabled && before.Generation == e.Generation && l.off == offDisabled {
		// This row was written before the agent disabled the endpoint. Enabling an endpoint always
		// raises its generation.
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
		l.announced = min(l.announced, outbox.NoticeFormer)
	}
	// Only a new URL ends a hold, not any new target: the secrets also change when the agent seals
	// them.
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

// Endpoints returns the ids of all endpoints that have a lane, in no order.
func (s *Scheduler) Endpoints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.byID))
}

// Remove ends the lane of an endpoint that is gone. The caller writes the entries.
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

// dropOtherVenueLocked makes the queued deliveries missed that are for the former venue of the
// endpoint.
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
