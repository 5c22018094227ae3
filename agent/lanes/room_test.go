package lanes

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// Many endpoints hang, each with an event that is large. Together they hold no more than the memory
// for deliveries. All are attempted in turn, and neither small events nor endpoints that have proven
// themselves wait for them.
func TestRoom_LargeDeliveriesToEndpointsThatHangShareTheMemory(t *testing.T) {
	const (
		queueBytes = 1 << 20
		large      = 100 << 10
		timeout    = 15 * time.Second
	)
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.QueueBytes = queueBytes })
		proven := lt.endpoint("proven", always(ok(20*time.Millisecond)))
		lt.send(proven, 1, 10)
		agenttest.Pass(time.Second)
		hanging := lt.many("hangs", 200, func(_ string, n int) answer {
			if n == 1 {
				return failing(timeout)
			}
			return ok(100 * time.Millisecond)
		})
		for _, l := range hanging {
			lt.send(l, 1, large)
		}
		small := lt.endpoint("small", always(ok(20*time.Millisecond)))
		for range 80 { // the hanging ones take 200 / 5 rounds of 15 s
			now := time.Since(lt.began)
			for l, size := range map[*Lane]int{small: 1000, proven: large} {
				event := lt.send(l, 1, size)[0]
				agenttest.Pass(time.Second)
				if at := lt.timesOf(l.id, event); len(at) != 1 || at[0]-now > 1100*time.Millisecond {
					t.Errorf("%s, sent at %v, is attempted at %v", l.id, now, at)
				}
			}
			if held := lt.Stats().Bytes; held > queueBytes+2*large {
				t.Errorf("%d bytes are held, want %d at most", held, queueBytes)
			}
			agenttest.Pass(5 * time.Second)
		}
		agenttest.Pass(6 * time.Hour)
		for _, l := range hanging {
			if n := lt.book.count(l.id, outbox.Succeeded); n != 1 {
				t.Errorf("%s: %d of 1 succeeded", l.id, n)
			}
		}
		if reads := lt.book.bodiesRead(); reads > 4*len(hanging) {
			t.Errorf("%d bodies were read for %d deliveries", reads, len(hanging))
		}
		lt.Scheduler.mu.Lock()
		for _, r := range lt.rooms {
			if r.bytes != 0 || len(r.waiting) != 0 {
				t.Errorf("at the end %d bytes are taken up, and there wait %v", r.bytes, r.waiting)
			}
		}
		lt.Scheduler.mu.Unlock()
		lt.quiet()
	})
}

// A lane that was promised room is turned off before its refill. The next one gets the room.
func TestRoom_APromiseThatIsNotTakenGoesToTheNext(t *testing.T) {
	const large = 700 << 10
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.QueueBytes = 1 << 20 })
		lt.send(lt.endpoint("first", always(failing(15*time.Second))), 1, large)
		agenttest.Pass(time.Second)
		second, third := lt.endpoint("second", always(ok(time.Second))), lt.endpoint("third", always(ok(time.Second)))
		for _, l := range []*Lane{second, third} {
			lt.send(l, 1, large)
			agenttest.Pass(2 * time.Second) // its row is there, and it waits
		}
		lt.Stall(true) // nothing is refilled
		agenttest.Pass(15 * time.Second)
		lt.Scheduler.mu.Lock()
		if second.taken == 0 || !third.waits {
			t.Errorf("the second lane has a promise of %d bytes, the third one waits: %t", second.taken, third.waits)
		}
		lt.Scheduler.mu.Unlock()
		off := *second.endpoint
		off.Disabled = true
		lt.changeTo(off, "")
		lt.Stall(false)
		agenttest.Pass(5 * time.Second)
		if n := lt.book.count("third", outbox.Succeeded); n != 1 {
			t.Errorf("%d of 1 delivery of the third lane succeeded", n)
		}
	})
}

// Endpoints that are known to fail leave room to one that is slow.
func TestRoom_ASlowEndpointDoesNotWaitForThoseThatFail(t *testing.T) {
	const large = 100 << 10
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.QueueBytes = 1 << 20 })
		for _, l := range lt.many("dead", 40, always(failing(15*time.Second))) {
			lt.send(l, 5, large)
		}
		agenttest.Pass(3 * time.Minute) // each has failed
		slow := lt.endpoint("slow", always(ok(2*time.Second)))
		for range 60 {
			now := time.Since(lt.began)
			event := lt.send(slow, 1, large)[0]
			agenttest.Pass(10 * time.Second)
			if at := lt.timesOf("slow", event); len(at) != 1 || at[0]-now > time.Second {
				t.Errorf("the event of %v is attempted at %v", now, at)
			}
		}
	})
}
