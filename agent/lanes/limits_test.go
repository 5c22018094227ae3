package lanes

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// lastAttempts returns when the last attempt to any of these endpoints began.
func (lt *laneTest) lastAttempts(lanes []*Lane) (last time.Duration) {
	for _, l := range lanes {
		last = max(last, lt.seen(l.id).lastOpen)
	}
	return last
}

// many registers n endpoints.
func (lt *laneTest) many(prefix string, n int, answer func(string, int) answer) []*Lane {
	lanes := make([]*Lane, n)
	for i := range lanes {
		lanes[i] = lt.endpoint(fmt.Sprint(prefix, i), answer)
	}
	return lanes
}

// deliveredAll fails the test when not all deliveries to these endpoints have succeeded, each in
// one attempt.
func (lt *laneTest) deliveredAll(lanes []*Lane, each int) {
	lt.t.Helper()
	for _, l := range lanes {
		if n, s := lt.seen(l.id).n, lt.book.count(l.id, outbox.Succeeded); n != each || s != each {
			lt.t.Errorf("%s: %d attempts, %d succeeded, want %d", l.id, n, s, each)
		}
	}
}

// P9: twenty lanes are served in turn with a lane that came first and has many more deliveries.
func TestLanes_NoLaneWaitsForALongerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.Concurrency = 16 })
		big := lt.many("big", 1, always(ok(100*time.Millisecond)))
		small := lt.many("small", 20, always(ok(100*time.Millisecond)))
		lt.send(big[0], 1000, 10)
		for _, l := range small {
			lt.send(l, 10, 10)
		}
		agenttest.Pass(time.Minute)
		// The 200 of the small lanes, and at most as many of the large one; 16 at a time, fewer in
		// the beginning.
		if last := lt.lastAttempts(small); last > 4*time.Second {
			t.Errorf("the small lanes were done after %v: they waited for the big one", last)
		}
		if last := lt.lastAttempts(big); last < 6*time.Second {
			t.Errorf("the big lane was done after %v: it did not compete with the small ones", last)
		}
		lt.deliveredAll(small, 10)
		lt.deliveredAll(big, 1000)
		if lt.peak != 16 {
			t.Errorf("at most %d attempts at a time, want the global limit of 16 used", lt.peak)
		}
		lt.quiet()
	})
}

// One venue has two thousand endpoints with many due deliveries each, another one has a single
// endpoint.
func TestLanes_NoVenueWaitsForALargerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.Concurrency, c.QueueBytes = 16, 1<<20 })
		small := lt.endpointOf("small", "small", always(ok(10*time.Millisecond)))
		lt.send(small, 1, 10)
		agenttest.Pass(time.Second)
		for i := range 2000 {
			lt.send(lt.endpointOf("large", fmt.Sprint("large", i), always(ok(20*time.Millisecond))), 8, 10)
		}
		lt.Scheduler.mu.Lock()
		held := lt.venues["large"].bytes
		lt.Scheduler.mu.Unlock()
		if held < 1<<20*3/4 {
			t.Errorf("the large venue holds %d bytes, which does not fill its share", held)
		}
		for range 100 {
			now := time.Since(lt.began)
			for _, event := range lt.send(small, 3, 10) {
				agenttest.Pass(30 * time.Millisecond)
				if times := lt.timesOf("small", event); len(times) != 1 || times[0]-now > 100*time.Millisecond {
					t.Fatalf("%s, sent at %v, is attempted at %v", event, now, times)
				}
			}
		}
		if lt.book.count("large1999", outbox.Succeeded) == 8 {
			t.Error("the large venue was done before it could be in the way")
		}
		agenttest.Pass(time.Hour)
		lt.quiet()
	})
}

// When an agent starts, each of very many venues has one due delivery, and no endpoint was tried
// before. Meanwhile another venue has new events.
func TestLanes_NewEventsDoNotWaitForWhatWasDueBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.Concurrency = 16 })
		var rows []outbox.Endpoint
		lt.Stall(true)
		for i := range 3000 {
			id := fmt.Sprint("due", i)
			l := lt.endpointOf(id, id, always(ok(100*time.Millisecond)))
			lt.send(l, 1, 10)
			rows = append(rows, *l.endpoint)
		}
		agenttest.Pass(2 * time.Second) // they are parked
		lt.crash(rows)
		small := lt.endpointOf("small", "small", always(ok(10*time.Millisecond)))
		agenttest.Pass(50 * time.Millisecond)
		now := time.Since(lt.began)
		event := lt.send(small, 1, 10)[0]
		agenttest.Pass(time.Second)
		if times := lt.timesOf("small", event); len(times) != 1 || times[0]-now > 200*time.Millisecond {
			t.Errorf("an event that was sent at %v is attempted at %v", now, times)
		}
		if n := lt.book.count("due2999", outbox.Succeeded); n != 0 {
			t.Error("all that was due was delivered before it could be in the way")
		}
		agenttest.Pass(time.Hour)
		lt.quiet()
	})
}

// P9, with more hung endpoints than the global limit has places.
func TestLanes_HungEndpointsSlowNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.Concurrency = 16 })
		healthy := lt.many("healthy", 5, always(ok(10*time.Millisecond)))
		for _, l := range healthy { // each has been quick before
			lt.send(l, 1, 10)
		}
		agenttest.Pass(time.Second)
		hung := lt.many("hung", 40, always(failing(15*time.Second)))
		for _, l := range hung {
			lt.send(l, 100, 10)
		}
		offered := map[string]time.Duration{} // when each event was
		for range 60 {                        // a minute of calm traffic
			for _, l := range healthy {
				now := time.Since(lt.began)
				offered[lt.send(l, 1, 10)[0]] = now
			}
			agenttest.Pass(time.Second)
			if n := lt.Scheduler.Stats().InFlight; n > 12 {
				t.Fatalf("hung endpoints hold %d of 16 places, want 12 at most", n)
			}
		}
		lt.deliveredAll(healthy, 61)
		for _, l := range healthy {
			for event, times := range lt.seen(l.id).times {
				if at, calm := offered[event]; calm && times[0]-at > slack {
					t.Errorf("%s reaches %s %v late", event, l.id, times[0]-at)
				}
			}
		}
	})
}

// A lane is in the list of unproven lanes and becomes proven while their share of the limit is
// taken.
func TestLanes_ALaneThatIsQuickAgainDoesNotWaitAmongTheSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.Concurrency, c.EndpointConcurrency = 8, 2 })
		l := lt.endpoint("recovering", func(_ string, n int) answer {
			switch n {
			case 2:
				return ok(1500 * time.Millisecond)
			case 3:
				return ok(700 * time.Millisecond)
			}
			return ok(0)
		})
		lt.send(l, 1, 10)
		// Six are all the places that unproven lanes may take.
		for _, hung := range lt.many("hung", 6, always(failing(15*time.Second))) {
			lt.send(hung, 1, 10)
		}
		lt.send(l, 1, 10) // the slow one, which makes the lane unproven after a second
		agenttest.Pass(900 * time.Millisecond)
		lt.send(l, 21, 10) // one more begins; the slow one's end lists the lane, then this one's shows that it is quick
		agenttest.Pass(time.Second)
		lt.deliveredAll([]*Lane{l}, 23)
	})
}

// A lane waits as a proven one, and is not proven any more when a place is free.
func TestLanes_ALaneThatBecomesSlowWhileItWaitsKeepsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.Concurrency = 4 })
		slow := lt.endpoint("slow", func(_ string, n int) answer {
			if n == 3 {
				return ok(15 * time.Second)
			}
			return ok(0)
		})
		other := lt.endpoint("other", func(_ string, n int) answer {
			if n > 5 {
				return ok(1500 * time.Millisecond)
			}
			return ok(0)
		})
		lt.send(slow, 2, 10)
		lt.send(other, 5, 10) // both are proven, and may have some attempts in flight
		lt.send(slow, 1, 10)
		lt.send(other, 3, 10)
		lt.send(slow, 1, 10) // waits for one of the four places
		agenttest.Pass(2 * time.Second)
		lt.deliveredAll([]*Lane{other}, 8)
		if n := lt.seen("slow").n; n != 4 {
			t.Errorf("%d attempts to the slow endpoint after a place was free, want 4", n)
		}
	})
}

func TestLanes_OpenALaneByOneAttemptForEachSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("ep", func(_ string, n int) answer {
			if n <= 31 {
				return ok(time.Second / 2)
			}
			return failing(time.Second / 2)
		})
		lt.send(l, 100, 10)
		var open []int
		for range 7 {
			agenttest.Pass(time.Second / 4)
			open = append(open, lt.Stats().InFlight)
			agenttest.Pass(time.Second/4 + 5*time.Millisecond)
		}
		want := []int{1, 2, 4, 8, 16, 16, 1} // 16 failures at once, after 31 successes, halve the window to one
		if fmt.Sprint(open) != fmt.Sprint(want) {
			t.Errorf("attempts in flight, round by round: %v, want %v", open, want)
		}
	})
}

func TestLanes_LeaveWhatDoesNotFitToTheDatabaseAndFetchItLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("ep", always(ok(10*time.Millisecond)))
		const all = laneLength + 2000
		lt.send(l, all, 10)
		if n := lt.Stats().Queued; n >= laneLength+1 {
			t.Errorf("%d deliveries queue in memory, the limit is %d", n, laneLength)
		}
		agenttest.Pass(100 * time.Millisecond)
		if n := lt.book.count("ep", outbox.Pending); n < all-laneLength-100 {
			t.Errorf("%d deliveries recorded as pending, want those beyond %d", n, laneLength)
		}
		agenttest.Pass(time.Minute)
		lt.deliveredAll([]*Lane{l}, all)
		lt.send(l, 10, 10)
		if n := lt.Stats().Queued + lt.Stats().InFlight; n != 10 {
			t.Errorf("%d of 10 deliveries are in memory once the backlog is gone", n)
		}
		agenttest.Pass(time.Second)
		lt.quiet()
	})
}

// A refill finds nothing while deliveries are on their way to the database.
func TestLanes_ARefillDoesNotOverlookABacklogThatIsNotRecordedYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.EndpointConcurrency = 1 })
		var slowNext atomic.Bool
		lt.delays = func() time.Duration {
			if slowNext.CompareAndSwap(true, false) {
				return time.Second
			}
			return 2 * time.Millisecond
		}
		l := lt.endpoint("ep", always(ok(10*time.Millisecond)))
		agenttest.Pass(time.Second)
		lt.Requeued("ep")
		agenttest.Pass(time.Millisecond) // the refill is under way
		slowNext.Store(true)             // for the next that waits for the book: the batch below
		lt.send(l, laneLength+10, 10)
		late := lt.send(l, 1, 10)[0]
		agenttest.Pass(2 * time.Minute)
		seen := lt.seen("ep")
		if seen.n != laneLength+11 || seen.times[late][0] < seen.lastOpen {
			t.Errorf("the last delivery begins at %v, another one at %v", seen.times[late], seen.lastOpen)
		}
	})
}

func TestLanes_NewDeliveriesQueueUpBehindABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.EndpointConcurrency = 1 })
		l := lt.endpoint("ep", always(ok(10*time.Millisecond)))
		lt.send(l, 2*laneLength, 10)
		agenttest.Pass(85 * time.Second) // there is room in the queue again, and older deliveries in the database
		late := lt.send(l, 1, 10)[0]
		agenttest.Pass(3 * time.Minute)
		seen := lt.seen("ep")
		if seen.n != 2*laneLength+1 || seen.times[late][0] < seen.lastOpen {
			t.Errorf("the last delivery begins at %v, another one at %v", seen.times[late], seen.lastOpen)
		}
	})
}

// Hung endpoints have large events. Memory holds as much as the limit allows, or one delivery for
// each lane.
func TestLanes_MemoryStaysWithinQueueBytes(t *testing.T) {
	const body = 300
	const each = body + outbox.DeliveryBytes
	const queueBytes = 27 * each
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.QueueBytes, c.Concurrency = queueBytes, 8 })
		lanes := lt.many("ep", 20, func(_ string, n int) answer {
			if n <= 2 {
				return failing(15 * time.Second)
			}
			return ok(100 * time.Millisecond)
		})
		for _, l := range lanes {
			lt.send(l, 40, body)
		}
		large := lt.endpoint("large", always(ok(15*time.Second)))
		lt.send(large, 3, 3*queueBytes-outbox.DeliveryBytes)
		peak := 0
		for range 600 {
			for _, l := range lanes {
				lt.Scheduler.mu.Lock()
				if l.bytes > queueBytes/laneShare && l.bytes > each {
					t.Errorf("lane %s holds %d bytes, want %d at most", l.id, l.bytes, queueBytes/laneShare)
				}
				lt.Scheduler.mu.Unlock()
			}
			peak = max(peak, lt.Stats().Bytes-3*queueBytes)
			agenttest.Pass(time.Second / 4)
		}
		if limit := queueBytes + len(lanes)*each; peak > limit {
			t.Errorf("up to %d bytes in memory, want %d at most", peak, limit)
		}
		if reads := lt.book.reads; reads > 4000 {
			t.Errorf("%d queries for due deliveries in 150 s: the lanes that are full are asked for again and again", reads)
		}
		agenttest.Pass(time.Hour)
		for _, l := range lanes {
			if n := lt.book.count(l.id, outbox.Succeeded); n != 40 {
				t.Errorf("%s: %d succeeded, want 40", l.id, n)
			}
		}
		lt.deliveredAll([]*Lane{large}, 3)
		lt.quiet()
	})
}

// One lane has large events, and there is much memory, but not for this lane alone.
func TestRefill_FetchesLittleMoreThanALaneMayHold(t *testing.T) {
	const body = 300
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.QueueBytes = 4 * (body + outbox.DeliveryBytes) * laneShare })
		l := lt.endpoint("ep", always(ok(10*time.Millisecond)))
		lt.send(l, 200, body)
		agenttest.Pass(time.Minute)
		lt.deliveredAll([]*Lane{l}, 200)
		if n := lt.book.bodies; n > 400 { // at most two for each, because the order of the goroutines is not fixed
			t.Errorf("%d bodies fetched for 200 deliveries: the others were thrown away", n)
		}
	})
}

// A lane that is full, with no attempt under way, moves to another venue.
func TestLanes_ALaneThatMovesToAnotherVenueIsServedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.QueueBytes = laneShare * 3 * outbox.DeliveryBytes })
		l := lt.endpointOf("before", "ep", always(ok(10*time.Millisecond)))
		lt.Stall(true)
		lt.send(l, 20, 10)
		agenttest.Pass(2 * time.Second) // they are parked
		lt.Scheduler.mu.Lock()
		l.full = true // as after a refill that found no room
		lt.Scheduler.mu.Unlock()
		lt.changeTo(outbox.Endpoint{ID: "ep", Venue: "after", Generation: 1}, "")
		lt.send(l, 5, 10)
		lt.Stall(false)
		agenttest.Pass(time.Minute)
		if n := lt.book.count("ep", outbox.Succeeded); n != 5 {
			t.Errorf("%d of 5 deliveries of the new venue succeeded", n)
		}
		lt.quiet()
	})
}

// A lane has the same event twice, which a table without a unique id allows.
func TestLanes_AnEventThatStandsTwiceDisturbsNoAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) {
			// laneTest and its book fail on two attempts or two results of one delivery, which are
			// right in this test.
			c.Write = func(context.Context, ...outbox.Entry) error { return nil }
			c.Attempt = func(ctx context.Context, _ *outbox.Delivery, _ sink.Request) sink.Result {
				backoff.Sleep(ctx, 10*time.Millisecond)
				return sink.Result{Code: 200}
			}
		})
		l := lt.endpoint("ep", nil)
		lt.Stall(true)
		lt.Scheduler.mu.Lock()
		l.window = 2
		lt.Scheduler.mu.Unlock()
		twin := func() *outbox.Delivery {
			return &outbox.Delivery{EventID: "twin", EndpointID: "ep", Body: []byte("{}")}
		}
		lt.Offer([]Offer{{l, twin()}, {l, twin()}})
		if n := lt.Stats().Queued; n != 2 {
			t.Errorf("%d are queued, want 2", n)
		}
		lt.Stall(false)
		agenttest.Pass(time.Minute)
		lt.Scheduler.mu.Lock()
		defer lt.Scheduler.mu.Unlock()
		if lt.unproven != 0 || lt.inFlight != 0 || l.attempts != 0 {
			t.Errorf("at rest: %d unproven, %d and %d in flight", lt.unproven, lt.inFlight, l.attempts)
		}
	})
}
