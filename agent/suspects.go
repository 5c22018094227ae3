package agent

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/quintago/webhook-agent/outbox"
)

// A panic is a fault of the agent that nobody has foreseen. Memory may be wrong after it. So the
// term ends, and the next one builds everything again from the database, which solves most panics.
// A subject over which the agent panics in one term after the other is set aside, so that the rest
// goes on. A panic in an attempt (sink.ClassInternalError) harms nothing in memory: only that
// attempt fails.
const (
	// setAsideAfter is how many panics a subject may cause before it is set aside: an event is
	// recorded as failed, an endpoint is shown as unusable.
	setAsideAfter = 3
	// passOverAfter is how many panics it may cause before it is skipped, because setting it aside
	// panics as well.
	passOverAfter = 6
	// maxSuspects limits the subjects that are remembered.
	maxSuspects = 1000
)

// asideEndpoint is the reason why an endpoint that is set aside is unusable. A restart tries the
// endpoint again.
const asideEndpoint = "the agent failed over this endpoint again and again by a fault of its own; its log names the place. It is tried again when the agent is restarted"

// suspects counts the panics of the process by their subject: what was being handled. A nil
// *suspects has none.
type suspects struct {
	mu     sync.Mutex // held while counts is replaced; readers need no lock
	counts atomic.Pointer[map[outbox.Subject]int]
}

// add counts a panic over x. When maxSuspects subjects are known, it forgets them all.
func (s *suspects) add(x outbox.Subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[outbox.Subject]int{}
	if before := s.counts.Load(); before != nil && len(*before) < maxSuspects {
		counts = maps.Clone(*before)
	}
	counts[x]++
	s.counts.Store(&counts)
}

// count returns how many panics x has caused.
func (s *suspects) count(x outbox.Subject) int {
	if s == nil {
		return 0
	}
	counts := s.counts.Load()
	if counts == nil {
		return 0
	}
	return (*counts)[x]
}

// aside reports whether x is set aside.
func (s *suspects) aside(x outbox.Subject) bool { return s.count(x) >= setAsideAfter }
