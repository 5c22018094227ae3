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
	// pacedFrom is the number of consecutive failures from which on a lane is paced: attempts are
	// made one at a time, delivery.failing_interval apart. Before that, the wait doubles with each
	// failure, up to that interval.
	pacedFrom = 10
	// keepFor is the longest hold during which a lane keeps its deliveries in memory. A lane that
	// is held for longer leaves them to the database.
	keepFor = 2 * time.Second
	// longestHold limits every hold. A recorded hold may seem longer, because clocks jump.
	longestHold = time.Hour
	// restrainedRows is how many rows a refill brings a lane whose last attempt failed. It cannot
	// send more for some time.
	restrainedRows = 8
	// The gap is the time between two attempts to a server that limits its rate. It begins with
	// firstGap. A gap below leastGap is not worth a wait, so it ends. It never exceeds mostGap: if
	// a server takes even less, failures in a row pace it.
	firstGap, leastGap, mostGap = 50 * time.Millisecond, 5 * time.Millisecond, time.Second
	// localFirst and LocalMost limit the wait after an attempt that could not be made because of a
	// fault of this host.
	localFirst, LocalMost = 100 * time.Millisecond, 5 * time.Second
	// firstPatience and mostPatience limit how many successes a lane waits for before it tries more
	// attempts at a time than its server last took.
	firstPatience, mostPatience = 8, 512
)

// trouble is what a lane knows about an endpoint that has failed lately. A lane without failures
// has none.
//
// Four things hold a lane, and no attempt starts before the last of them is over:
//
//   - Failures in a row pace it (paced). They disable the endpoint in the end, so they are spent
//     slowly: an outage of a quarter of an hour disables no endpoint.
//   - A Retry-After holds it (asked).
//   - A server that takes some events and refuses others for their number gets a gap between two
//     attempts (spaced). The gap doubles with each refusal and shrinks with each success, as TCP
//     finds the rate of a path.
//   - An attempt could not be made, for example because of too few file descriptors (local). That
//     is no fault of the endpoint, and is tried again soon.
type trouble struct {
	paced  time.Time // end of the wait after failures in a row; a success ends it
	asked  time.Time // end of the wait that a Retry-After asked for
	spaced time.Time // earliest time of the next attempt by gap
	// End of the wait after an attempt that could not be made; localWait is its length.
	local     time.Time
	since     time.Time // when the failures in a row reached pacedFrom; zero before
	gap       time.Duration
	localWait time.Duration
	// ceiling is the number of attempts at a time that the server last took; zero when none is
	// known. It is set when attempts fail soon after the window has grown; other failures say
	// nothing about how much a server takes. Up to ceiling the window grows with each success,
	// beyond it after patience successes.
	ceiling, patience int
	successes         int // successes since the window has grown
	// alarm is a timer that dispatches the lane when its hold ends, at alarmAt. It is nil while no
	// delivery waits for that.
	alarm   *time.Timer
	alarmAt time.Time
}

// heldUntil returns when the next attempt may start. It is zero when nothing holds the lane.
func (l *Lane) heldUntil() time.Time {
	t := l.trouble
	if t == nil {
		return time.Time{}
	}
	return latest(latest(t.paced, t.local), latest(t.asked, t.spaced))
}

// lengthen is the default of Config.Lengthen.
func lengthen(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// heldFor returns how much longer the lane is held, and zero when it is not.
func (l *Lane) heldFor(now time.Time) time.Duration {
	if l.trouble == nil {
		return 0
	}
	return max(0, l.heldUntil().Sub(now))
}

// isPaced reports whether attempts are made one at a time because of failures in a row.
func (l *Lane) isPaced(cfg *Config) bool {
	return cfg.FailingInterval > 0 && l.failures >= cfg.pacedFrom()
}

// isBlocked reports whether the last attempt could not be made because of a fault of this host.
func (l *Lane) isBlocked() bool { return l.trouble != nil && l.trouble.localWait > 0 }

// refillAt returns when the lane is to be refilled.
func (l *Lane) refillAt() time.Time { return latest(l.due, l.heldUntil()) }

// standing returns the lane's failure counter and its hold, to be recorded.
func (l *Lane) standing(version int64, now time.Time) *outbox.Health {
	h := &outbox.Health{
		EndpointID: l.id, Generation: l.endpoint.Generation, Version: version,
		Failures: l.failures, FirstFailure: l.firstFailure, Unusable: l.unusable, Notices: l.notices,
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

// resumeHold continues a hold that an earlier term has recorded.
func (l *Lane) resumeHold(e outbox.EndpointState, now time.Time) {
	until := e.HeldUntil
	if limit := now.Add(longestHold); until.After(limit) {
		until = limit
	}
	if !until.After(now) {
		return
	}
	// It is not known when the failures reached pacedFrom. The next failure counts as that time, so
	// the failures that are left take longer, never shorter.
	l.trouble = &trouble{}
	if e.HeldBy == outbox.HeldByRetryAfter {
		l.trouble.asked = until
	} else {
		l.trouble.paced = until
	}
}

// failedLocked holds the lane after a failure that counts. l.failures contains the failure already.
// window is what l.window was when the attempt was made.
func (s *Scheduler) failedLocked(l *Lane, result sink.Result, window int, now time.Time) {
	if s.cfg.FailingInterval <= 0 && result.RetryAfter <= 0 {
		return
	}
	if l.trouble == nil {
		l.trouble = &trouble{}
		if window == s.cfg.EndpointConcurrency {
			l.trouble.successes = mostPatience // the window stopped growing long ago
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

// rest returns how long no attempt is made after the latest failure.
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
		return 0 // the endpoint is disabled
	}
	// Attempts that were under way together fail together. The failures that are left are spread
	// over the time that all of them would have taken one by one.
	spread := (time.Duration(s.cfg.DisableAfter-s.cfg.pacedFrom())*interval - now.Sub(t.since)) / time.Duration(left)
	return max(interval, spread)
}

// pacedFrom returns the number of consecutive failures from which on an endpoint is paced. At least
// half of the failures that disable an endpoint are left at that point.
func (cfg *Config) pacedFrom() int { return max(1, min(pacedFrom, cfg.DisableAfter/2)) }

// refused handles the first failure after a success. The reason may be too many attempts in a time,
// or too many at a time.
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

// succeededLocked handles a success: the window grows, the pace ends, and the gap shrinks.
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
		// The server takes so many.
		t.ceiling, t.patience = l.window, max(t.patience/2, firstPatience)
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

// madeLocked ends the wait after attempts that could not be made, because one was made now.
func (l *Lane) madeLocked() {
	if t := l.trouble; t != nil {
		t.local, t.localWait = time.Time{}, 0
	}
}

// putBack returns a delivery to the head of its lane's queue, because its attempt could not be
// made.
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

// spaceLocked starts the gap of an attempt that begins now.
func (s *Scheduler) spaceLocked(l *Lane) {
	if t := l.trouble; t != nil && t.gap > 0 {
		t.spaced = s.cfg.Now().Add(t.gap)
	}
}

// forgiveLocked ends the hold of a lane whose endpoint was enabled or has a new URL.
func (s *Scheduler) forgiveLocked(l *Lane) {
	l.quietLocked()
	l.trouble = nil
	s.scheduleLocked(l)
	s.listLocked(l)
}

// quietLocked stops the timer of a lane. The caller holds Scheduler.mu.
func (l *Lane) quietLocked() {
	if t := l.trouble; t != nil && t.alarm != nil {
		t.alarm.Stop()
		t.alarm = nil
	}
}

// awaitLocked sets a timer that looks at a held lane again when its hold ends.
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
			return // another timer has replaced this one
		}
		t.alarm = nil
		s.listLocked(l)
		s.dispatchLocked()
	}))
	t.alarm = alarm
}

// giveBackLocked leaves the deliveries of a lane that is held for long to the database. Those that
// a refill has brought have their rows already; the others get a pending row.
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
