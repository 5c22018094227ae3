package agent

import (
	"context"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// load puts an endpoint as it was when the term began into its lane. due is when its first pending delivery is due,
// zero when it has none.
func (s *lanes) load(e outbox.EndpointState, to *sink.Target, unusable string, due time.Time) (*lane, []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := newLane(e.ID)
	s.byID[e.ID] = l
	l.endpoint, l.target, l.unusable = &e.Endpoint, to, unusable
	s.joinLocked(l)
	l.failures, l.firstFailure = e.Failures, e.FirstFailure
	var records []record
	if unusable != e.Unusable {
		records = append(records, s.recordHealthLocked(l))
	}
	l.off = offReason(l.endpoint, unusable)
	if l.failures >= s.cfg.disableAfter && !e.Disabled {
		// The last leader died between the last failure and disabling, or the limit was lowered.
		l.off = offDisabled
		disabling := outbox.Disabling{EndpointID: e.ID, Reason: outbox.ReasonFailures, Generation: e.Generation}
		records = append(records, func(ctx context.Context, to recorder) error { return to.Disable(ctx, disabling) })
	}
	if l.off == "" {
		if !due.IsZero() {
			s.dueLocked(l, due)
		}
		return l, records
	}
	if !due.IsZero() {
		records = append(records, s.missPendingLocked(outbox.Missing{EndpointID: l.id, Reason: l.off}))
	}
	return l, records
}

// orphaned ends what is pending for an endpoint that is gone.
func (s *lanes) orphaned(endpointID string) record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.orphanedLocked(endpointID)
}

func (s *lanes) orphanedLocked(endpointID string) record {
	return s.missPendingLocked(outbox.Missing{EndpointID: endpointID, Reason: offRemoved, Removed: true})
}

// recordHealthLocked records the lane's counter and usability outside an attempt.
func (s *lanes) recordHealthLocked(l *lane) record {
	h := s.healthLocked(l)
	return func(ctx context.Context, to recorder) error { return to.SetHealth(ctx, h) }
}

func offReason(e *outbox.Endpoint, unusable string) string {
	switch {
	case e.Disabled:
		return offDisabled
	case unusable != "":
		return offUnusable + unusable
	}
	return ""
}

// change puts an endpoint's new row into its lane, which it makes when there is none.
func (s *lanes) change(e *outbox.Endpoint, to *sink.Target, unusable string) (*lane, []record) {
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
			l.held = former.held // what it still sends is not fetched and sent by this lane too
			delete(s.removed, e.ID)
		}
		records := []record{s.stopMissingLocked(e.ID)}
		if unusable != "" {
			records = append(records, s.recordHealthLocked(l))
		}
		// That one may have left pending rows, which are this lane's now.
		if l.off = offReason(e, unusable); l.off == "" {
			s.dueLocked(l, s.cfg.now())
		} else {
			records = append(records, s.missRowsLocked(l, ""))
		}
		return l, records
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
	var records []record
	if e.Venue != before.Venue {
		records = append(records, s.dropOtherVenueLocked(l)...)
	}
	if e.Generation > before.Generation {
		l.failures, l.firstFailure = 0, time.Time{}
	}
	if e.Generation > before.Generation || unusable != l.unusable {
		l.unusable = unusable
		records = append(records, s.recordHealthLocked(l))
	}
	switch off := offReason(e, unusable); {
	case off == "" && l.off != "":
		records = append(records, s.turnOnLocked(l)...)
	case off != "" && l.off == "":
		records = append(records, s.turnOffLocked(l, off, "")...)
	default:
		l.off = off
	}
	s.dispatchLocked()
	return l, records
}

// remove ends an endpoint's lane.
func (s *lanes) remove(id string) []record {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.byID[id]
	if l == nil {
		return nil
	}
	records := s.turnOffLocked(l, offRemoved, "")
	delete(s.byID, id)
	s.leaveLocked(l.venue)
	if len(l.held) > 0 {
		s.removed[id] = l
	}
	return records
}

// dropOtherVenueLocked ends what waits in a lane for the venue that its endpoint belonged to before.
func (s *lanes) dropOtherVenueLocked(l *lane) []record {
	now := s.cfg.now()
	var records []record
	l.queue = slices.DeleteFunc(l.queue, func(d *outbox.Delivery) bool {
		if d.Venue == l.endpoint.Venue {
			return false
		}
		s.freeLocked(l, d)
		records = append(records, recordResult(missed(d, otherVenue, now)))
		return true
	})
	return records
}
