package lanes

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// An attempt that cannot be made is tried again soon, and less often while that goes on. The next
// time it begins with the short wait again.
func TestLanes_AnAttemptThatCouldNotBeMadeIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		notMade := answer{0, sink.Result{Outcome: sink.NotMade, Class: sink.ClassLocalFault, Fault: sink.FaultRoute}}
		var blocked atomic.Bool
		blocked.Store(true)
		var tries atomic.Int64
		l := lt.endpoint("ep", func(string, int) answer {
			if tries.Add(1); blocked.Load() {
				return notMade
			}
			return ok(time.Millisecond)
		})
		lt.send(l, 3, 10)
		agenttest.Pass(time.Minute)
		if n := tries.Load(); n < 10 || n > 20 {
			t.Errorf("%d tries in a minute", n)
		}
		blocked.Store(false)
		agenttest.Pass(LocalMost + LocalMost/5)
		blocked.Store(true)
		tries.Store(0)
		lt.send(l, 1, 10)
		agenttest.Pass(4 * localFirst)
		if n := tries.Load(); n < 3 {
			t.Errorf("%d tries at once, after those of before could be made", n)
		}

		// Its endpoint goes to another venue meanwhile.
		lt.changeTo(outbox.Endpoint{ID: "ep", Venue: "another", Generation: 1}, "")
		agenttest.Pass(time.Minute)
		if states := lt.book.states(); states[outbox.Missed] != 1 || states[outbox.Succeeded] != 3 {
			t.Errorf("in the end %v", states)
		}
		if h := lt.book.healthOfEP(); h.Failures != 0 {
			t.Errorf("%d failures are counted", h.Failures)
		}
		lt.quiet()
	})
}

// The endpoint moves while the attempt is under way.
func TestLanes_AnAttemptThatCouldNotBeMadeForAnotherVenueIsMissed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		var tries atomic.Int64
		l := lt.endpoint("ep", func(string, int) answer {
			tries.Add(1)
			return answer{time.Second, sink.Result{Outcome: sink.NotMade, Class: sink.ClassLocalFault}}
		})
		lt.send(l, 1, 10)
		agenttest.Pass(500 * time.Millisecond)
		lt.changeTo(outbox.Endpoint{ID: "ep", Venue: "another", Generation: 1}, "")
		agenttest.Pass(time.Minute)
		if states := lt.book.states(); states[outbox.Missed] != 1 {
			t.Errorf("in the end %v", states)
		}
		if n := tries.Load(); n > 1 {
			t.Errorf("%d tries with what another venue's endpoint has become", n)
		}
		lt.quiet()
	})
}
