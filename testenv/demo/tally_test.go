package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

// twoEndpoints is a venue whose second endpoint wants payments only.
func twoEndpoints() *venue {
	return &venue{name: "Quinta", endpoints: []*endpoint{
		{path: "/all", events: []string{"*"}},
		{path: "/payments", events: []string{"payment.received"}},
	}}
}

// request returns the request that a correct agent sends.
func request(id, path string, attempt int, data string) testenv.Received {
	return testenv.Received{ID: id, Path: path, Attempt: attempt, At: time.Now(), Body: []byte(`{"id":"` + id + `","data":` + data + `}`)}
}

func TestTally_CountsEachDeliveryOnceItIsAccepted(t *testing.T) {
	tally := newTally()
	v := twoEndpoints()
	tally.committing("evt_paid", &event{venue: v, eventType: "payment.received", data: "1"})
	tally.committing("evt_lead", &event{venue: v, eventType: "lead.created", data: "2"})
	tally.committing("evt_unwanted", &event{venue: &venue{}, eventType: "lead.created", data: "3"})
	tally.rollingBack("evt_gone", &event{venue: v, eventType: "lead.created", data: "4"})

	tally.arrived(request("evt_paid", "/all", 1, "1"), 0)
	tally.arrived(request("evt_paid", "/payments", 1, "1"), 500)
	tally.arrived(request("evt_paid", "/payments", 2, "1"), 200)
	tally.arrived(request("evt_paid", "/payments", 3, "1"), 200) // a duplicate, which at least once allows
	want := counts{committed: 3, matched: 2, expected: 3, arrived: 4, accepted: 2, retried: 1, rolledBack: 1}
	if diff := cmp.Diff(want, tally.summary().counts, cmp.AllowUnexported(counts{})); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if tally.summary().sound() {
		t.Error("sound while a delivery is missing")
	}
	tally.arrived(request("evt_lead", "/all", 1, "2"), 204)
	if !tally.summary().sound() {
		t.Errorf("not sound although everything has arrived: %+v", tally.summary())
	}
}

func TestTally_FindsWhatShouldNotHaveBeenSent(t *testing.T) {
	for name, c := range map[string]struct {
		received testenv.Received
		fault    string
	}{
		"rolled back":        {request("evt_gone", "/all", 1, "1"), "rolled back"},
		"unknown":            {request("evt_other", "/all", 1, "1"), "no event evt_other"},
		"not subscribed":     {request("evt_lead", "/payments", 1, "1"), "did not subscribe"},
		"of another venue":   {request("evt_lead", "/elsewhere", 1, "1"), "did not subscribe"},
		"changed bytes":      {request("evt_lead", "/all", 1, "1.0"), "not as the app wrote"},
		"invalid signatures": {testenv.Received{ID: "evt_lead", Path: "/all", SignatureErr: errors.New("does not match")}, "does not match"},
	} {
		t.Run(name, func(t *testing.T) {
			tally := newTally()
			tally.rollingBack("evt_gone", &event{venue: twoEndpoints(), eventType: "lead.created", data: "1"})
			tally.committing("evt_lead", &event{venue: twoEndpoints(), eventType: "lead.created", data: "1"})
			tally.arrived(request("evt_lead", "/all", 1, "1"), 0)
			if !tally.summary().sound() {
				t.Fatal("not sound before the fault")
			}
			if a := tally.arrived(c.received, 0); !strings.Contains(a.fault, c.fault) {
				t.Errorf("the fault is %q, want one that says %q", a.fault, c.fault)
			}
			if tally.summary().sound() {
				t.Error("sound in spite of the fault")
			}
			if got, want := tally.summary().phantoms, map[bool]int{true: 1}[name == "rolled back"]; got != want {
				t.Errorf("%d phantoms, want %d", got, want)
			}
		})
	}
}

func TestTally_AwaitEndsWithoutTheLastDelivery(t *testing.T) {
	tally := newTally()
	tally.committing("evt_lead", &event{venue: twoEndpoints(), eventType: "lead.created", data: "1"})
	if err := tally.awaitAll(t.Context(), time.Millisecond); err != nil || tally.summary().sound() {
		t.Errorf("after the timeout: %v, want no error and an unsound summary", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tally.awaitAll(canceled, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
}

func TestTally_AwaitReturnsAtTheArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tally := newTally()
		tally.committing("evt_lead", &event{venue: twoEndpoints(), eventType: "lead.created", data: "1"})
		begun := time.Now()
		done := make(chan error, 1) // sent to once, by the goroutine below
		go func() { done <- tally.awaitAll(t.Context(), time.Hour) }()
		synctest.Wait()
		tally.arrived(request("evt_lead", "/all", 1, "1"), 0)
		if err := <-done; err != nil || time.Since(begun) > 0 {
			t.Errorf("returned %v after %s, want nil at once", err, time.Since(begun))
		}
	})
}

func TestPercentile_IsTheNearestRank(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	for _, c := range []struct {
		values []time.Duration
		p      int
		want   time.Duration
	}{
		{nil, 50, 0},
		{hundred[:1], 50, 100},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred[:10], 99, 100},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile %d of %d values is %d, want %d", c.p, len(c.values), got, c.want)
		}
	}
}
