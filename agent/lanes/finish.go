package lanes

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// This file judges the result of an attempt: what it means for the delivery, and for the endpoint.

// finish decides what the result of an attempt means for its delivery and its endpoint. It returns
// the entries to write. If the endpoint was enabled since the attempt began, the result counts
// neither for it nor against it, as it would belong to the generation before.
func (s *Scheduler) finish(j *job, result sink.Result) []outbox.Entry {
	l, d, now := j.lane, j.delivery, s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	current := j.endpoint.Generation == l.endpoint.Generation
	s.proveLocked(l, result.Latency < slowAfter)
	l.madeLocked()
	if result.Outcome == sink.Succeeded {
		s.succeededLocked(l, now)
		r := &outbox.Record{Delivery: d, Status: outbox.Succeeded, Finished: now, Code: result.Code, Latency: result.Latency}
		if current && l.off != offRemoved && (l.failures > 0 || l.isWellAgain()) {
			s.announceRecoveryLocked(l)
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
	r := &outbox.Record{
		Delivery: d, Finished: now,
		Attempt: &outbox.Attempt{
			Number: d.Attempts + 1, At: now, Code: result.Code, Class: string(result.Class), Error: result.Error,
			Latency: result.Latency, Response: result.Response,
		},
	}
	counts := current && result.Class != sink.ClassInternalError // that class is the agent's own fault
	if counts {
		if l.failures++; l.failures == 1 {
			l.firstFailure = now
		}
		s.failedLocked(l, result, window, now)
		if l.off != offRemoved { // a removed endpoint has no health any more
			s.announceFailuresLocked(l, result)
			r.Health = s.healthLocked(l, now)
			r.Health.LastFailure, r.Health.LastError = now, result.Error
		}
	}
	// An unusable endpoint is disabled as well. Otherwise it would be repaired with no failures
	// left, and would stand still.
	if counts && l.off != offDisabled && l.off != offRemoved {
		switch {
		case result.Outcome == sink.Gone && j.endpoint.URL.Equal(l.endpoint.URL): // a former URL may be gone
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

// unsendable ends a delivery that no attempt can make, because the event's id cannot be sent. That
// is a fault of the producer, so it is not counted against the endpoint.
func (s *Scheduler) unsendable(d *outbox.Delivery, result sink.Result, now time.Time) []outbox.Entry {
	s.cfg.Log.Warn("an event cannot be sent", "error", result.Error, "venue", d.Venue)
	return []outbox.Entry{&outbox.Record{
		Delivery: d, Status: outbox.Failed, Finished: now,
		Attempt: &outbox.Attempt{Number: d.Attempts + 1, At: now, Class: string(result.Class), Error: result.Error},
	}}
}

// healthLocked returns the lane's failure counter and its hold, to be recorded. All lanes share one
// version counter. So the versions of an endpoint that comes back under its id go on rising.
func (s *Scheduler) healthLocked(l *Lane, now time.Time) *outbox.Health {
	s.healthVersion++
	return l.standing(s.healthVersion, now)
}

// nextWait returns the wait after an attempt. Attempts are counted from one. again is false after
// the last attempt. A Retry-After may lengthen the wait but never shortens it.
func nextWait(retries []time.Duration, attempt int, retryAfter time.Duration) (wait time.Duration, again bool) {
	if attempt > len(retries) {
		return 0, false
	}
	return max(retries[attempt-1], retryAfter), true
}

// warnLocked logs a warning when the lane reaches 50, 70 and 90 % of the failures that disable an
// endpoint.
func (s *Scheduler) warnLocked(l *Lane) {
	for _, percent := range warnPercent {
		if l.failures == s.cfg.failuresAt(percent) {
			s.cfg.Log.Warn("endpoint keeps failing and will be disabled", "endpoint", l.id, "venue", l.endpoint.Venue,
				"consecutive_failures", l.failures, "disabled_at", s.cfg.DisableAfter, "failing_since", l.firstFailure)
			return
		}
	}
}
