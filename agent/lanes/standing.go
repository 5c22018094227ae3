package lanes

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
)

const (
	// pacedFrom is the number of failures in a row from which on attempts are made one at a time,
	// delivery.failing_interval apart. Before it the wait doubles with each failure, up to that
	// interval.
	pacedFrom = 10
	// keepFor is how long a lane that is held keeps what waits in memory. One that is held for
	// longer leaves it to the database.
	keepFor = 2 * time.Second
	// longestHold is for how long anything holds an endpoint at most. A hold that was recorded may
	// seem longer, since clocks jump.
	longestHold = time.Hour
	// restrainedRows is what a refill brings a lane whose last attempt failed: there is little use
	// for more.
	restrainedRows = 8
	// firstGap is what a server that limits its rate is given first between two attempts, leastGap
	// the one that is worth a wait, and mostGap the longest: a server that takes less is found by
	// its failures in a row.
	firstGap, leastGap, mostGap = 50 * time.Millisecond, 5 * time.Millisecond, time.Second
	// localFirst and localMost bound the wait after an attempt that could not be made, for a fault
	// on this side of the wire.
	localFirst, LocalMost = 100 * time.Millisecond, 5 * time.Second
	// firstPatience and mostPatience bound how many successes a lane waits for before it tries one
	// attempt more at a time than its server took last.
	firstPatience, mostPatience = 8, 512
)

// trouble is what a lane keeps of an endpoint that has failed lately. A sound one has none.
//
// Four things hold a lane, and no attempt starts before the last of them is over. Failures in a row
// pace it, which spends the failures that disable an endpoint slowly: an outage of a quarter of an
// hour disables nobody. A Retry-After holds it because the server asked for that. And a server that
// now takes events and now refuses them for their number is given a gap between two attempts, which
// doubles each time it refuses again and shrinks with each success, as TCP finds the rate of a
// path. The fourth is no fault of the endpoint's: an attempt that could not be made, for want of
// descriptors, say, is tried again soon.
type trouble struct {
	paced     time.Time // the end of the wait after failures in a row; a success ends it
	asked     time.Time // the end of the wait that a Retry-After asked for
	spaced    time.Time // the earliest time of the next attempt by gap
	local     time.Time // the end of the wait after an attempt that could not be made; localWait is how long it was
	since     time.Time // when the failures in a row became pacedFrom; zero before
	gap       time.Duration
	localWait time.Duration
	// ceiling is the number of attempts at a time that the server took before it failed soon after
	// the window had grown, zero where none is known. Up to it the window grows with each success,
	// beyond it with each patience of them. Failures that do not follow on growth say nothing of
	// how much a server takes.
	ceiling, patience int
	successes         int // since the window has grown
	// alarm looks at the lane again when it is held no longer, at alarmAt; nil while nothing waits
	// for that.
	alarm   *time.Timer
	alarmAt time.Time
}

// heldUntil returns when the next attempt may start, zero where nothing holds the lane.
func (l *Lane) heldUntil() time.Time {
	t := l.trouble
	if t == nil {
		return time.Time{}
	}
	return latest(latest(t.paced, t.local), latest(t.asked, t.spaced))
}

// lengthen is Config.lengthen.
func lengthen(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// heldFor returns for how long a lane is held from now on.
func (l *Lane) heldFor(now time.Time) time.Duration {
	if l.trouble == nil {
		return 0
	}
	return max(0, l.heldUntil().Sub(now))
}

// isPaced reports whether attempts are made one at a time.
func (l *Lane) isPaced(cfg *Config) bool {
	return cfg.FailingInterval > 0 && l.failures >= cfg.pacedFrom()
}

// isBlocked reports whether the last attempt could not be made, for a fault on this side of the
// wire.
func (l *Lane) isBlocked() bool { return l.trouble != nil && l.trouble.localWait > 0 }

// refillAt returns when the lane is to be refilled.
func (l *Lane) refillAt() time.Time { return latest(l.due, l.heldUntil()) }

// standing returns the lane's failure counter and what holds it, as they are to be recorded.
func (l *Lane) standing(version int64, now time.Time) *outbox.Health {
	h := &outbox.Health{
		EndpointID: l.id, Generation: l.endpoint.Generation, Version: version,
		Failures: l.failures, FirstFailure: l.firstFailure, Unusable: l.unusable,
	}
	if t := l.trouble; t != nil {
		if h.HeldUntil, h.HeldBy = t.paced, outbox.HeldByFailures; !t.asked.Before(t.paced) {
			h.HeldUntil, h.HeldBy = t.asked, outbox.HeldByRetryAfter
		}
		if !h.HeldUntil.After(now) {
			h.HeldUntil, h.HeldBy = time.Time{}, ""
		}
	}
	return h
}

// resumeHold takes up what held an endpoint when an earlier term ended.
func (l *Lane) resumeHold(e outbox.EndpointState, now time.Time) {
	until := e.HeldUntil
	if limit := now.Add(longestHold); until.After(limit) {
		until = limit
	}
	if !until.After(now) {
		return
	}
	// When the failures became pacedFrom is not known. Since the next one counts as that, what is
	// left takes longer rather than shorter.
	l.trouble = &trouble{}
	if e.HeldBy == outbox.HeldByRetryAfter {
		l.trouble.asked = until
	} else {
		l.trouble.paced = until
	}
}

// failedLocked takes note of a failure that counts, which is part of l.failures already, and holds
// the lane. window is what it was when the attempt was made.
func (s *Scheduler) failedLocked(l *Lane, result sink.Result, window int, now time.Time) {
	if s.cfg.FailingInterval <= 0 && result.RetryAfter <= 0 {
		return
	}
	if l.trouble == nil {
		l.trouble = &trouble{}
		if window == s.cfg.EndpointConcurrency {
			l.trouble.successes = mostPatience // it has long stopped growing
		}
	}
	t := l.trouble
	if result.RetryAfter > 0 {
		t.asked = latest(t.asked, now.Add(min(s.cfg.Lengthen(result.RetryAfter), longestHold)))
	}
	if s.cfg.FailingInterval > 0 {
		t.paced = latest(t.paced, now.Add(min(s.cfg.Lengthen(s.rest(l, now)), longestHold)))
		if l.failures == 1 {
			t.refused(result, window)
		}
	}
	s.scheduleLocked(l)
}

// rest returns how long an endpoint is left alone after its latest failure.
func (s *Scheduler) rest(l *Lane, now time.Time) time.Duration {
	interval := s.cfg.FailingInterval
	if from := s.cfg.pacedFrom(); l.failures < from {
		return interval >> (from - l.failures)
	}
	t := l.trouble
	if t.since.IsZero() {
		t.since = now
	}
	left := s.cfg.DisableAfter - l.failures
	if left <= 0 {
		return 0 // it is disabled
	}
	// Attempts that were in flight together fail together. What is left is spread over the time
	// that all would have taken.
	spread := (time.Duration(s.cfg.DisableAfter-s.cfg.pacedFrom())*interval - now.Sub(t.since)) / time.Duration(left)
	return max(interval, spread)
}

// pacedFrom is the number of failures in a row from which on an endpoint is paced. Half of them are
// kept for it in any case.
func (cfg *Config) pacedFrom() int { return max(1, min(pacedFrom, cfg.DisableAfter/2)) }

// refused takes note of the first failure after a success: too many attempts, or too many at a
// time, may be the reason.
func (t *trouble) refused(result sink.Result, window int) {
	limits := result.Code == http.StatusTooManyRequests || result.Code == http.StatusServiceUnavailable
	if limits {
		t.gap = min(max(2*t.gap, firstGap), mostGap)
	}
	switch result.Class {
	case sink.ClassConnectRefused, sink.ClassConnectionReset, sink.ClassConnectTimeout, sink.ClassTimeout:
	default:
		if !limits {
			return
		}
	}
	if t.successes < 2*window {
		t.ceiling = max(1, window-1)
		t.patience = min(max(2*t.patience, firstPatience), mostPatience)
	}
	t.successes = 0
}

// succeededLocked takes note of a success: the window grows, the pace ends, and the gap shrinks.
func (s *Scheduler) succeededLocked(l *Lane, now time.Time) {
	most := s.cfg.EndpointConcurrency
	t := l.trouble
	if t == nil {
		l.window = min(l.window+1, most)
		return
	}
	t.paced, t.since = time.Time{}, time.Time{}
	if t.gap -= t.gap/10 + time.Millisecond; t.gap < leastGap {
		t.gap, t.spaced = 0, time.Time{}
	}
	t.successes++
	if t.ceiling > 0 && l.window > t.ceiling && t.successes == 2*l.window {
		t.ceiling, t.patience = l.window, max(t.patience/2, firstPatience) // it takes so many
	}
	if beyond := t.ceiling > 0 && l.window >= t.ceiling; l.window < most && (!beyond || t.successes >= t.patience) {
		l.window, t.successes = l.window+1, 0
	}
	if l.window >= most && t.successes >= 2*most {
		t.ceiling, t.patience = 0, 0
		if t.gap == 0 && t.localWait == 0 && !t.asked.After(now) && t.alarm == nil {
			l.trouble = nil
		}
	}
	s.scheduleLocked(l)
}

// madeLocked takes note of an attempt that could be made.
func (l *Lane) madeLocked() {
	if t := l.trouble; t != nil {
		t.local, t.localWait = time.Time{}, 0
	}
}

// putBack returns a delivery to its lane, for an attempt that could not be made.
func (s *Scheduler) putBack(l *Lane, d *outbox.Delivery) []outbox.Entry {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if reason := l.off; reason != "" || d.Venue != l.endpoint.Venue {
		if reason == "" {
			reason = otherVenue
		}
		s.freeLocked(l, d)
		return []outbox.Entry{Missed(d, reason, now)}
	}
	if l.trouble == nil {
		l.trouble = &trouble{}
	}
	t := l.trouble
	t.localWait = min(max(2*t.localWait, localFirst), LocalMost)
	t.local = latest(t.local, now.Add(s.cfg.Lengthen(t.localWait)))
	l.queue = slices.Insert(l.queue, 0, d)
	s.scheduleLocked(l)
	return s.giveBackLocked(l, now)
}

// spaceLocked takes note of an attempt that starts.
func (s *Scheduler) spaceLocked(l *Lane) {
	if t := l.trouble; t != nil && t.gap > 0 {
		t.spaced = s.cfg.Now().Add(t.gap)
	}
}

// forgiveLocked ends what holds a lane, for an endpoint that somebody has enabled or given another
// URL.
func (s *Scheduler) forgiveLocked(l *Lane) {
	l.quietLocked()
	l.trouble = nil
	s.scheduleLocked(l)
	s.listLocked(l)
}

// quietLocked stops the timer of a lane.
func (l *Lane) quietLocked() {
	if t := l.trouble; t != nil && t.alarm != nil {
		t.alarm.Stop()
		t.alarm = nil
	}
}

// awaitLocked has a lane that is held looked at again when it is held no longer.
func (s *Scheduler) awaitLocked(l *Lane) {
	t := l.trouble
	if t == nil || s.stopped || l.off != "" || len(l.queue) == 0 {
		return
	}
	wait, until := l.heldFor(s.cfg.Now()), l.heldUntil()
	if wait == 0 || t.alarm != nil && !until.Before(t.alarmAt) {
		return
	}
	l.quietLocked()
	t.alarmAt = until
	var alarm *time.Timer
	alarm = time.AfterFunc(wait, panics.GuardFunc(s.cfg.Caught, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.alarm != alarm {
			return // another one came in its place
		}
		t.alarm = nil
		s.listLocked(l)
		s.dispatchLocked()
	}))
	t.alarm = alarm
}

// giveBackLocked leaves what waits in a lane that is held for long to the database. Deliveries that
// came from there have their rows already.
func (s *Scheduler) giveBackLocked(l *Lane, now time.Time) (entries []outbox.Entry) {
	if len(l.queue) == 0 || l.heldFor(now) <= keepFor {
		return nil
	}
	for _, d := range l.queue {
		s.freeLocked(l, d)
		if d.Refilled {
			l.held.remove(d.EventID)
			continue
		}
		l.left++
		l.leaving.add(d.EventID)
		entries = append(entries, &outbox.Record{Delivery: d, Status: outbox.Pending, NextAttempt: now})
	}
	l.queue, l.refilled, l.full, l.backlog = nil, false, false, true
	s.dueLocked(l, now)
	return entries
}
