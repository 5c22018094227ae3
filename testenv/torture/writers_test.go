package main

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestWriters_MixTransactionsOfAllSorts(t *testing.T) {
	w := &writers{venues: []string{"venue_1", "venue_2"}, clock: stopwatch{time.Now()}}
	random := rand.New(rand.NewPCG(1, 1))
	const n = 5000
	var rolled, afterSavepoint, undone, large, events, most int
	ids := map[string]bool{}
	for range n {
		tx := w.newTransaction(random, "t")
		events += len(tx.Events)
		most = max(most, len(tx.Events))
		if len(tx.Events[0].Data) > largeEvent && tx.rollBack {
			large++
		}
		if tx.rollBack {
			rolled++
			if tx.savepoint >= 0 {
				afterSavepoint++
			}
		}
		for _, e := range tx.Events {
			if ids[e.ID] {
				t.Fatalf("%s was made twice", e.ID)
			}
			ids[e.ID] = true
			if e.Undone {
				undone++
				if tx.rollBack || tx.savepoint < 0 {
					t.Errorf("%+v has an event that is undone without a savepoint", tx)
				}
			}
		}
		if tx.Events[0].Undone {
			t.Error("a transaction has nothing but what is undone")
		}
	}
	if rolled < n/12 || rolled > n/7 {
		t.Errorf("%d of %d transactions are rolled back, want about one in ten", rolled, n)
	}
	if afterSavepoint == 0 || undone == 0 || large == 0 || most != maxSize {
		t.Errorf("%d rolled back after a savepoint, %d events undone, %d large ones rolled back, at most %d events", afterSavepoint, undone, large, most)
	}
}

func TestEndpoints_WantWhatTheirPatternsSay(t *testing.T) {
	for _, test := range []struct {
		pattern, eventType string
		want               bool
	}{
		{"*", "lead.created", true},
		{"lead.*", "lead.created", true},
		{"lead.*", "lead", false},
		{"lead.*", "leads.created", false},
		{"lead", "lead.created", false},
		{"lead.created", "lead.created", true},
		{"invoice.*", "invoice.line.added", true},
	} {
		if e := (endpointInfo{Events: []string{"other", test.pattern}}); e.wants(test.eventType) != test.want {
			t.Errorf("%q wants %q: %v", test.pattern, test.eventType, !test.want)
		}
	}
}

func TestEndpoints_AreOfAllBehaviorsAndSpreadOverTheVenues(t *testing.T) {
	endpoints, venues := makeEndpoints(1, "127.0.0.1:1", "127.0.0.1:2")
	perVenue, perBehavior := map[string]int{}, map[behavior]int{}
	for _, e := range endpoints {
		perVenue[e.Venue]++
		perBehavior[e.Behavior]++
	}
	if len(endpoints) != 50 || len(perVenue) != venueCount || len(venues) != venueCount+1 || perVenue[silentVenue] != 0 {
		t.Errorf("%d endpoints of %d venues out of %d", len(endpoints), len(perVenue), len(venues))
	}
	for venue, n := range perVenue {
		if n != 5 {
			t.Errorf("%s has %d endpoints", venue, n)
		}
	}
	if perBehavior[healthy] != 30 || perBehavior[dead] != 3 || perBehavior[hung] != 2 || perBehavior[resetting] != 5 {
		t.Errorf("behaviors: %v", perBehavior)
	}
}
