package lanes

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// answer is what an endpoint of a test says to an attempt, and after how long.
type answer struct {
	after  time.Duration
	result sink.Result
}

// ok is a success, failing a failure.
func ok(after time.Duration) answer { return answer{after, sink.Result{Code: 200}} }

func failing(after time.Duration) answer {
	return answer{after, sink.Result{Outcome: sink.Failed, Code: 500, Class: sink.ClassHTTPStatus, Error: "the server answered 500"}}
}

// always is an endpoint that gives every attempt the same answer.
func always(a answer) func(string, int) answer { return func(string, int) answer { return a } }

// attempts is what a test has seen of one endpoint.
type attempts struct {
	answer   func(eventID string, n int) answer // n counts the endpoint's attempts from one
	times    map[string][]time.Duration         // by event, since the bubble began
	ended    map[string]bool                    // events that had a success
	open     map[string]bool                    // events with an attempt under way
	n, peak  int
	lastOpen time.Duration // when the last attempt began
}

// laneTest runs lanes in a synctest bubble, with endpoints that give the answers of the test, and a
// book in place of the database.
type laneTest struct {
	*Scheduler
	t      *testing.T
	book   *book
	log    *agenttest.Buffer
	began  time.Time
	delays func() time.Duration // the delays of everything that waits for the database
	kill   func()               // ends the agent's goroutines at once

	mu        sync.Mutex // guards what follows
	endpoints map[string]*attempts
	targets   map[*sink.Target]string // endpoints
	open      int                     // attempts under way
	peak      int
	sent      int
}

// noMeter counts nothing.
type noMeter struct{}

func (noMeter) Attempted(*outbox.Delivery, sink.Result, time.Time) {}
func (noMeter) NotMade(sink.Fault)                                 {}
func (noMeter) EndpointDisabled(string)                            {}

// asLong is Config.Lengthen of tests that depend on exact waits.
func asLong(d time.Duration) time.Duration { return d }

// newLaneTest begins a test with the product's own limits, which configure may change. Failing
// endpoints are not paced unless configure sets that, because most tests need many failures soon.
// Everything ends with the bubble.
func newLaneTest(t *testing.T, configure func(*Config)) *laneTest {
	lt := &laneTest{t: t, log: &agenttest.Buffer{}, began: time.Now(), endpoints: map[string]*attempts{}, targets: map[*sink.Target]string{}}
	lt.delays = func() time.Duration { return 2 * time.Millisecond }
	lt.book = &book{lt: lt, rows: map[deliveryKey]*bookRow{}, pending: map[string]map[string]*bookRow{}, counts: map[outbox.Status]int{}, stopped: map[string]int{}, health: map[string]*outbox.Health{}, off: map[string]bool{},
		wake: make(chan struct{}, 1)}
	d := config.Default().Delivery
	cfg := Config{
		Concurrency: d.Concurrency, EndpointConcurrency: d.EndpointConcurrency, DisableAfter: d.DisableAfter, Retries: d.Retries,
		Lengthen: asLong, QueueBytes: int(d.QueueMemory), Attempt: lt.attempt, Leads: func() bool { return true }, Now: time.Now, Write: lt.book.write, Meter: noMeter{}, Aside: func(outbox.Subject) bool { return false },
		Log: slog.New(slog.NewTextHandler(lt.log, nil)),
	}
	if configure != nil {
		configure(&cfg)
	}
	lt.begin(cfg)
	t.Cleanup(func() {
		lt.Stop(t.Context())
		lt.kill()
	})
	return lt
}

// begin starts an agent.
func (lt *laneTest) begin(cfg Config) {
	ctx, cancel := context.WithCancel(lt.t.Context())
	lanes := New(ctx, cfg)
	lt.Scheduler = lanes
	var loops sync.WaitGroup
	loops.Go(func() { lt.book.run(ctx) })
	loops.Go(func() { _ = lanes.Refill(ctx, lt.book.due) }) // Refill never returns an error
	lt.kill = func() {
		lanes.mu.Lock()
		lanes.stopped = true // no attempt starts after this moment
		lanes.mu.Unlock()
		cancel()
		lanes.workers.Wait()
		loops.Wait()
	}
}

// crash ends the agent at once and starts another one, as a new term does: with the endpoints and
// pending rows of the database, and the stream from the checkpoint on. What was not committed is
// lost. rows are the endpoints of the database.
func (lt *laneTest) crash(rows []outbox.Endpoint) {
	lt.t.Helper()
	lt.kill()
	unrecorded, due := lt.book.crash()
	lt.mu.Lock()
	for id, e := range lt.endpoints {
		for event, times := range e.times {
			row := lt.book.rows[deliveryKey{id, event}]
			if row == nil {
				continue // its endpoint was gone at an earlier crash
			}
			e.ended[event] = row.status == outbox.Succeeded // an attempt that nobody knows of is made again
			e.times[event] = times[:min(len(times), row.attempts)]
		}
	}
	lt.mu.Unlock()
	var states []outbox.EndpointState
	for _, row := range rows {
		states = append(states, lt.book.state(row))
	}
	lt.begin(lt.cfg)
	loaded := map[string]*Lane{}
	for _, state := range states {
		l, records := lt.Load(state, lt.target(state.ID), "", due[state.ID])
		loaded[state.ID] = l
		delete(due, state.ID)
		lt.tellAll(records)
	}
	for id := range due {
		lt.tellAll([]outbox.Entry{lt.Orphaned(id)})
	}
	// The stream brings again what has no row, but not for endpoints that are gone.
	for _, d := range unrecorded {
		l := loaded[d.EndpointID]
		if l == nil {
			lt.book.forget(d)
			continue
		}
		if err := lt.book.track(lt.t.Context(), []*outbox.Delivery{d}, lt.Offer([]Offer{{l, d}})); err != nil {
			lt.t.Errorf("track deliveries: %v", err)
		}
	}
}

// endpoint registers an enabled endpoint.
func (lt *laneTest) endpoint(id string, answer func(eventID string, n int) answer) *Lane {
	return lt.endpointOf("", id, answer)
}

// endpointOf registers an endpoint of a venue.
func (lt *laneTest) endpointOf(venue, id string, answer func(eventID string, n int) answer) *Lane {
	lt.mu.Lock()
	lt.endpoints[id] = &attempts{answer: answer, times: map[string][]time.Duration{}, ended: map[string]bool{}, open: map[string]bool{}}
	lt.mu.Unlock()
	return lt.changeTo(outbox.Endpoint{ID: id, Venue: venue, Generation: 1}, "")
}

// changeTo puts an endpoint's new row into the lanes, as the router does.
func (lt *laneTest) changeTo(e outbox.Endpoint, unusable string) *Lane {
	lt.t.Helper()
	l, entries := lt.Change(&e, lt.target(e.ID), unusable)
	lt.tellAll(entries)
	return l
}

// target returns a target by which attempt finds the endpoint.
func (lt *laneTest) target(endpointID string) *sink.Target {
	lt.mu.Lock()
	defer lt.mu.Unlock()
	target := new(sink.Target)
	lt.targets[target] = endpointID
	return target
}

func (lt *laneTest) tellAll(entries []outbox.Entry) {
	lt.t.Helper()
	if err := lt.cfg.Write(lt.t.Context(), entries...); err != nil {
		lt.t.Errorf("write entries: %v", err)
	}
}

// send offers new deliveries, one event each, and returns the ids of the events.
func (lt *laneTest) send(l *Lane, n, bodyBytes int) (eventIDs []string) {
	lt.t.Helper()
	var offers []Offer
	var deliveries []*outbox.Delivery
	for range n {
		lt.mu.Lock()
		lt.sent++
		id := fmt.Sprintf("evt_%05d", lt.sent)
		lt.mu.Unlock()
		d := &outbox.Delivery{EventID: id, EndpointID: l.id, Venue: l.endpoint.Venue, Body: make([]byte, bodyBytes)}
		eventIDs = append(eventIDs, id)
		deliveries = append(deliveries, d)
		offers = append(offers, Offer{l, d})
	}
	lt.book.expect(deliveries, bodyBytes)
	results := lt.Offer(offers)
	if err := lt.book.track(lt.t.Context(), deliveries, results); err != nil {
		lt.t.Errorf("track deliveries: %v", err)
	}
	return eventIDs
}

// attempt is Config.Attempt. It checks what must hold for every attempt.
func (lt *laneTest) attempt(ctx context.Context, _ *outbox.Delivery, r sink.Request) sink.Result {
	lt.mu.Lock()
	id := lt.targets[r.Target]
	e := lt.endpoints[id]
	e.n++
	lt.open++
	lt.peak = max(lt.peak, lt.open)
	if lt.open > lt.cfg.Concurrency {
		lt.t.Errorf("%d attempts under way, the limit is %d", lt.open, lt.cfg.Concurrency)
	}
	if e.open[r.EventID] {
		lt.t.Errorf("two attempts of %s to %s at the same time", r.EventID, id)
	}
	if e.ended[r.EventID] {
		lt.t.Errorf("%s is sent to %s again after a success", r.EventID, id)
	}
	e.open[r.EventID] = true
	e.peak = max(e.peak, len(e.open))
	if len(e.open) > lt.cfg.EndpointConcurrency {
		lt.t.Errorf("%d attempts to %s under way, the limit is %d", len(e.open), id, lt.cfg.EndpointConcurrency)
	}
	e.lastOpen = time.Since(lt.began)
	e.times[r.EventID] = append(e.times[r.EventID], e.lastOpen)
	if n := len(e.times[r.EventID]); n > 1+len(lt.cfg.Retries) {
		lt.t.Errorf("attempt %d of %s to %s", n, r.EventID, id)
	}
	a := e.answer(r.EventID, e.n)
	lt.mu.Unlock()

	begun := time.Now()
	if !backoff.Sleep(ctx, a.after) {
		a.result = sink.Result{Outcome: sink.Canceled, Class: sink.ClassCanceled}
	}
	a.result.Latency = time.Since(begun)

	lt.mu.Lock()
	defer lt.mu.Unlock()
	lt.open--
	delete(e.open, r.EventID)
	if a.result.Outcome == sink.NotMade { // which counts as no attempt
		times := e.times[r.EventID]
		e.times[r.EventID] = times[:len(times)-1]
	}
	e.ended[r.EventID] = a.result.Outcome == sink.Succeeded
	return a.result
}

// seen returns what one endpoint has seen so far. The test reads it while no goroutine runs.
func (lt *laneTest) seen(id string) *attempts {
	lt.mu.Lock()
	defer lt.mu.Unlock()
	return lt.endpoints[id]
}

// timesOf returns when the attempts of an event to an endpoint began, also while others run.
func (lt *laneTest) timesOf(id, eventID string) []time.Duration {
	lt.mu.Lock()
	defer lt.mu.Unlock()
	return slices.Clone(lt.endpoints[id].times[eventID])
}

// made returns how many attempts an endpoint has seen so far.
func (lt *laneTest) made(id string) int {
	lt.mu.Lock()
	defer lt.mu.Unlock()
	return lt.endpoints[id].n
}

// quiet fails the test when the lanes still hold something: all counters must be zero again.
func (lt *laneTest) quiet() {
	lt.t.Helper()
	lt.Scheduler.mu.Lock()
	defer lt.Scheduler.mu.Unlock()
	if lt.inFlight != 0 || lt.unproven != 0 || lt.bytes != 0 {
		lt.t.Errorf("at rest: %d attempts in flight, %d of them unproven, %d bytes", lt.inFlight, lt.unproven, lt.bytes)
	}
	endpoints := map[*venue]int{}
	for _, l := range lt.byID {
		if endpoints[l.venue]++; l.venue != lt.venues[l.endpoint.Venue] {
			lt.t.Errorf("at rest lane %s of %q takes its turn with %q", l.id, l.endpoint.Venue, l.venue.name)
		}
		if len(l.queue)+len(l.held)+len(l.inFlight)+l.bytes != 0 {
			lt.t.Errorf("at rest lane %s has %d queued, %d held, %d in flight, %d bytes", l.id, len(l.queue), len(l.held), len(l.inFlight), l.bytes)
		}
	}
	for name, v := range lt.venues {
		if v.bytes != 0 || v.lanes != endpoints[v] || v.lanes == 0 {
			lt.t.Errorf("at rest venue %q has %d bytes and %d lanes, want none and %d", name, v.bytes, v.lanes, endpoints[v])
		}
	}
}
