package lanes

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The test plays random schedules. A few endpoints succeed, fail, hang and are gone. There is so
// little memory that most deliveries are left to the database. Meanwhile endpoints are disabled,
// enabled, broken, repaired and removed, and the ledger stalls. Everything that uses the database
// takes time, so that refills, results, parking and missing overlap in every way.
//
// laneTest checks each attempt: never two of a delivery at once, none after a success, six at most,
// and no limit is exceeded. In every other schedule failing endpoints are paced.
func TestLanes_EveryDeliveryEndsOnceWhateverTheSchedule(t *testing.T) {
	t.Parallel()
	schedules := uint64(2000)
	if testing.Short() {
		schedules /= 4
	}
	for seed := range schedules {
		synctest.Test(t, func(t *testing.T) { playSchedule(t, seed) })
	}
	// Lanes took room from each other by turns, and none got a delivery.
	synctest.Test(t, func(t *testing.T) { playSchedule(t, 7148) })
}

func playSchedule(t *testing.T, seed uint64) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	random := rand.New(rand.NewPCG(seed, 2))
	lt := newLaneTest(t, func(c *Config) {
		c.Concurrency, c.EndpointConcurrency, c.DisableAfter = 1+random.IntN(5), 1+random.IntN(3), 5+random.IntN(20)
		if seed%2 == 1 {
			c.FailingInterval, c.Lengthen = time.Duration(random.IntN(8000))*time.Millisecond, lengthen
		}
		c.QueueBytes = (10 + outbox.DeliveryBytes) * laneShare * (1 + random.IntN(4)) // one to four deliveries for each lane
		if random.IntN(3) == 0 {
			c.Large, c.QueueBytes = 1, (10+outbox.DeliveryBytes)*(2+random.IntN(3)) // two to four of all lanes together
		}
	})
	// Several goroutines use the same random source, so the seed does not fix the schedule
	// completely. Some delays are long in comparison with the attempts, so that a result is
	// committed in the middle of a refill.
	draw := func(n int) int {
		lt.mu.Lock()
		defer lt.mu.Unlock()
		return random.IntN(n)
	}
	lt.delays = func() time.Duration {
		return []time.Duration{0, time.Millisecond, time.Second, 7 * time.Second}[draw(4)]
	}
	failuresIn := random.IntN(4)         // of four attempts
	behave := func(string, int) answer { // laneTest holds its mutex
		after := []time.Duration{0, time.Millisecond, 500 * time.Millisecond, 900 * time.Millisecond}[random.IntN(4)]
		// Attempts longer than slowAfter are rare: the timer of each starts a goroutine, and there
		// the race detector of Go 1.26 crashes inside a bubble about once in 100,000 times.
		if random.IntN(64) == 0 {
			after = 3 * time.Second
		}
		switch {
		case random.IntN(60) == 0:
			return answer{after, sink.Result{Outcome: sink.Gone, Code: 410}}
		case random.IntN(20) == 0:
			return answer{after, sink.Result{Outcome: sink.NotMade, Class: sink.ClassLocalFault, Fault: sink.FaultDescriptors}}
		case random.IntN(12) == 0:
			return tooMany(time.Duration(random.IntN(3)*random.IntN(5000)) * time.Millisecond)
		case random.IntN(4) < failuresIn:
			return failing(after)
		}
		return ok(after)
	}
	rows := make([]outbox.Endpoint, 1+random.IntN(3))
	lanes := make([]*Lane, len(rows))
	for i := range rows {
		rows[i] = outbox.Endpoint{ID: fmt.Sprint("ep", i), Venue: fmt.Sprint("venue_", i%2), Generation: 1}
		lanes[i] = lt.endpointOf(rows[i].Venue, rows[i].ID, behave)
	}
	gone := make([]bool, len(rows))
	for range 10 + draw(20) {
		i := draw(len(rows))
		e := &rows[i]
		switch draw(13) {
		case 0:
			if gone[i] {
				continue
			}
			e.Disabled = true
			lt.changeTo(*e, "")
		case 1:
			e.Disabled = false
			e.Generation++
			lt.book.enable(e.ID)
			gone[i] = false
			lanes[i] = lt.changeTo(*e, "")
		case 2:
			if gone[i] {
				continue
			}
			lt.changeTo(*e, "bad URL")
			if draw(2) == 0 {
				lt.changeTo(*e, "")
			}
		case 3:
			lt.Stall(draw(2) == 0)
		case 4:
			if draw(8) == 0 {
				lt.tellAll(lt.Remove(e.ID))
				gone[i] = true
			}
		case 5:
			lt.Stall(false)
			var kept []outbox.Endpoint
			for i := range rows {
				if !gone[i] {
					kept = append(kept, rows[i])
				}
			}
			lt.crash(kept)
			for i := range rows {
				lanes[i] = lt.byID[rows[i].ID] // none for an endpoint that is gone
			}
		default:
			if lanes[i] != nil { // the router still offers what it has matched before an endpoint was removed
				lt.send(lanes[i], 1+draw(4), 10)
			}
		}
		agenttest.Pass(time.Duration(draw(3000)) * time.Millisecond)
	}
	lt.Stall(false)
	agenttest.Pass(6 * time.Hour)

	lt.quiet()
	for key, row := range lt.book.rows {
		e := lt.endpoints[key.endpointID]
		made, succeeded := len(e.times[key.eventID]), e.ended[key.eventID]
		switch {
		case succeeded != (row.status == outbox.Succeeded):
		case row.status == outbox.Failed && made != 1+len(lt.cfg.Retries):
		case row.status != outbox.Succeeded && row.status != outbox.Failed && row.status != outbox.Missed:
		default:
			continue
		}
		t.Errorf("%s to %s is %q after %d attempts, succeeded %v", key.eventID, key.endpointID, row.status, made, succeeded)
	}
}
