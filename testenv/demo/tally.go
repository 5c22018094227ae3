package main

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// event is an event that the app has written, and what has become of it.
type event struct {
	venue      *venue
	eventType  string
	data       string    // as the app wrote it
	sent       time.Time // when COMMIT was sent
	rolledBack bool
	open       []*endpoint // the endpoints that have not accepted it yet
}

// counts are the numbers of the summary.
type counts struct {
	committed  int // events
	matched    int // committed events that an endpoint wants
	expected   int // deliveries of matched events
	arrived    int // requests
	accepted   int // deliveries that were verified and answered with success
	retried    int // accepted deliveries that took more than one attempt
	rolledBack int // events that were rolled back
	phantoms   int // requests for events that were rolled back
	faults     int // requests that were wrong, including phantoms
}

// tally compares the events that the app committed with the requests that arrive. It is the demo's
// own judgment and asks the agent nothing.
type tally struct {
	mu      sync.Mutex // guards all below
	n       counts
	events  map[string]*event // by id
	firsts  []time.Duration   // from COMMIT to arrival, of first attempts
	changed chan struct{}     // closed and replaced when a delivery is accepted
}

func newTally() *tally { return &tally{events: map[string]*event{}, changed: make(chan struct{})} }

// committing records an event before its COMMIT is sent, because the event may arrive before COMMIT
// has returned.
func (t *tally) committing(id string, e *event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, endpoint := range e.venue.endpoints {
		if endpoint.wants(e.eventType) {
			e.open = append(e.open, endpoint)
		}
	}
	t.events[id] = e
	t.n.committed++
	t.n.expected += len(e.open)
	if len(e.open) > 0 {
		t.n.matched++
	}
	e.sent = time.Now()
}

// rollingBack records an event that must never arrive.
func (t *tally) rollingBack(id string, e *event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.rolledBack = true
	t.events[id] = e
	t.n.rolledBack++
}

// arrival is one request, as it is printed.
type arrival struct {
	venue     string
	eventType string
	path      string // "" if the venue has only one
	attempt   int
	latency   time.Duration // from COMMIT to arrival
	status    int           // of the answer
	fault     string        // "" when the request is as promised
}

// arrived judges a request that will be answered with status. A status of 0 means 200.
func (t *tally) arrived(r testenv.Received, status int) arrival {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n.arrived++
	if status == 0 {
		status = 200
	}
	a := arrival{attempt: r.Attempt, status: status}
	e := t.events[r.ID]
	if e != nil {
		a.venue, a.eventType = e.venue.name, e.eventType
		if len(e.venue.endpoints) > 1 {
			a.path = r.Path
		}
		if !e.rolledBack {
			a.latency = r.At.Sub(e.sent)
		}
	}
	if a.fault = faultOf(r, e); a.fault != "" {
		t.n.faults++
		if e != nil && e.rolledBack {
			t.n.phantoms++
		}
		return a
	}
	if r.Attempt == 1 {
		t.firsts = append(t.firsts, a.latency)
	}
	i := slices.IndexFunc(e.open, func(endpoint *endpoint) bool { return endpoint.path == r.Path })
	if i < 0 || status >= 300 {
		// It is a duplicate, which at least once allows, or will come again after a failure.
		return a
	}
	e.open = slices.Delete(e.open, i, i+1)
	t.n.accepted++
	if r.Attempt > 1 {
		t.n.retried++
	}
	close(t.changed)
	t.changed = make(chan struct{})
	return a
}

// faultOf returns what is wrong with a request for e, or "" if nothing is. e is nil if the event is
// unknown.
func faultOf(r testenv.Received, e *event) string {
	switch {
	case r.SignatureErr != nil:
		return r.SignatureErr.Error()
	case e == nil:
		return "the app wrote no event " + r.ID
	case e.rolledBack:
		return "its transaction was rolled back"
	case !slices.ContainsFunc(e.venue.endpoints, func(endpoint *endpoint) bool {
		return endpoint.path == r.Path && endpoint.wants(e.eventType)
	}):
		return r.Path + " did not subscribe to it"
	case !bytes.HasSuffix(r.Body, []byte(`"data":`+e.data+`}`)):
		return "the data are not as the app wrote them"
	}
	return ""
}

// awaitAll returns when every delivery was accepted, or after the timeout. The summary shows which.
// It returns an error only if ctx ends.
func (t *tally) awaitAll(ctx context.Context, timeout time.Duration) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		t.mu.Lock()
		accepted, expected, changed := t.n.accepted, t.n.expected, t.changed
		t.mu.Unlock()
		if accepted == expected {
			return nil
		}
		select {
		case <-changed:
		case <-deadline.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// summary is the state of the tally at one moment.
type summary struct {
	counts
	p50, p99 time.Duration // from COMMIT to arrival, of first attempts
}

func (t *tally) summary() summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	return summary{t.n, percentile(t.firsts, 50), percentile(t.firsts, 99)}
}

// sound reports whether everything arrived that should have, and nothing else.
func (s summary) sound() bool { return s.accepted == s.expected && s.faults == 0 }

// percentile returns the smallest value that at least p percent of the values do not exceed
// (nearest rank), or 0 if there are none.
func percentile(values []time.Duration, p int) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*p+99)/100-1]
}
