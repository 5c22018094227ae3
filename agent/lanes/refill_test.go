package lanes

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// fetched plays a refill of the lane ep and calls meanwhile during the query. It returns how many
// records the refill has made.
func fetched(lt *laneTest, r *outbox.Refill, meanwhile func()) int {
	lt.t.Helper()
	now := time.Now()
	lt.Scheduler.mu.Lock()
	lt.dueLocked(lt.byID["ep"], now)
	lt.Scheduler.mu.Unlock()
	wants, _, _ := lt.nextWants(now)
	if len(wants) != 1 {
		lt.t.Fatalf("%d lanes want a refill", len(wants))
	}
	meanwhile()
	return len(lt.feed(wants, map[string]*outbox.Refill{"ep": r}, now))
}

// The event of a fetched delivery is gone, so the delivery is failed. It is not failed when its
// result was recorded during the query, and not a second time while the first record is on its way.
func TestRefill_ALostEventIsRecordedOnceAndNotOverAResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("ep", always(ok(time.Millisecond)))
		agenttest.Pass(time.Minute)
		lost := func() *outbox.Refill {
			return &outbox.Refill{Lost: []outbox.Lost{{Delivery: &outbox.Delivery{EventID: "e1", EndpointID: "ep"}}}}
		}
		n := fetched(lt, lost(), func() {
			lt.Committed([]*outbox.Record{{Delivery: &outbox.Delivery{EventID: "e1", EndpointID: "ep"}, Status: outbox.Succeeded}})
		})
		if n != 0 {
			t.Errorf("%d records of an event whose result came in meanwhile", n)
		}
		if n := fetched(lt, lost(), func() {}); n != 1 {
			t.Errorf("%d records of an event that is lost, want 1", n)
		}
		if !lt.Holds(l, "e1") {
			t.Error("the next refill would record it again")
		}
	})
}

func TestLanes_WhatAReplayRequeuesForAnEndpointThatIsOffBecomesMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		lt.endpoint("ep", always(ok(time.Millisecond)))
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1, Disabled: true}, "")
		agenttest.Pass(time.Minute)
		row := lt.book.addPending("ep", "e1")
		lt.Requeued("ep")
		agenttest.Pass(time.Minute)
		if row.status != outbox.Missed || row.reason != offDisabled {
			t.Errorf("the row is %+v, want missed", *row)
		}
	})
}

func TestLanes_KeepTheEarliestTimeAtWhichSomethingIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("ep", always(ok(time.Millisecond)))
		agenttest.Pass(time.Minute)
		now := time.Now()
		lt.Scheduler.mu.Lock()
		defer lt.Scheduler.mu.Unlock()
		for _, after := range []time.Duration{2 * time.Hour, time.Hour, 3 * time.Hour} {
			lt.dueLocked(l, now.Add(after))
		}
		if !l.due.Equal(now.Add(time.Hour)) {
			t.Errorf("due after %s, want an hour", l.due.Sub(now))
		}
	})
}

// An endpoint moves to another venue while deliveries of the former one wait in memory and in the
// database.
func TestLanes_NothingOfAFormerVenueIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		lt.endpoint("ep", always(ok(time.Millisecond)))
		l := lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1, Venue: "venue_a"}, "")
		agenttest.Pass(time.Minute)
		lt.Stall(true) // so that they wait
		offerOf := func(venue string) []*outbox.Record {
			return lt.Offer([]Offer{{l, &outbox.Delivery{EventID: "of " + venue, EndpointID: "ep", Venue: venue, Body: []byte("{}")}}})
		}
		offerOf("venue_a")
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1, Venue: "venue_b"}, "")
		offerOf("venue_b")
		late := offerOf("venue_a") // it waited in the backlog
		if len(late) != 1 || late[0].Status != outbox.Missed || late[0].Error != otherVenue {
			t.Errorf("what comes late for the former venue is %+v, want missed", late)
		}
		agenttest.Pass(time.Second)
		if row := lt.book.rows[deliveryKey{"ep", "of venue_a"}]; row == nil || row.status != outbox.Missed || row.reason != otherVenue {
			t.Errorf("what waited for the former venue is %+v, want missed", row)
		}
		lt.Stall(false)
		agenttest.Pass(time.Minute)
		r := &outbox.Refill{Deliveries: []*outbox.Delivery{
			{EventID: "e1", EndpointID: "ep", Venue: "venue_a", Body: []byte("{}")},
			{EventID: "e2", EndpointID: "ep", Venue: "venue_b", Body: []byte("{}")},
		}}
		if n := fetched(lt, r, func() {}); n != 1 {
			t.Errorf("%d records of what was fetched for the former venue, want 1", n)
		}
		agenttest.Pass(time.Minute)
		for event, want := range map[string]int{"of venue_a": 0, "of venue_b": 1, "e1": 0, "e2": 1} {
			if n := len(lt.seen("ep").times[event]); n != want {
				t.Errorf("%s: %d attempts, want %d", event, n, want)
			}
		}
	})
}

func TestLanes_LoadDisablesWhatALeaderThatDiedHadNotDisabledYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		for _, test := range []struct {
			failures int
			off      string
			disabled int
		}{{lt.cfg.DisableAfter - 1, "", 0}, {lt.cfg.DisableAfter, offDisabled, 1}} {
			e := outbox.EndpointState{Endpoint: &outbox.Endpoint{ID: fmt.Sprint(test.failures), Generation: 1}, Failures: test.failures}
			l, records := lt.Load(e, lt.target(e.ID), "", time.Time{})
			lt.tellAll(records)
			agenttest.Pass(time.Minute)
			if n := len(lt.book.disabled); l.off != test.off || n != test.disabled {
				t.Errorf("with %d failures it is off %q, %d are disabled", test.failures, l.off, n)
			}
		}
	})
}
