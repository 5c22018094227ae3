package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
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

// laneTest runs lanes in a synctest bubble against endpoints that answer as told and a book in place of the database.
type laneTest struct {
	*lanes
	t      *testing.T
	book   *book
	log    *syncBuffer
	began  time.Time
	delays func() time.Duration // of whatever waits for the database

	mu        sync.Mutex // guards what follows
	endpoints map[string]*attempts
	open      int // attempts under way
	peak      int
	sent      int
}

// newLaneTest begins a test with the product's own limits, which configure may change. Everything ends with the bubble.
func newLaneTest(t *testing.T, configure func(*lanesConfig)) *laneTest {
	lt := &laneTest{t: t, log: &syncBuffer{}, began: time.Now(), endpoints: map[string]*attempts{}}
	lt.delays = func() time.Duration { return 2 * time.Millisecond }
	lt.book = &book{lt: lt, rows: map[deliveryKey]*bookRow{}, stopped: map[string]int{}, wake: make(chan struct{}, 1)}
	d := DefaultConfig().Delivery
	cfg := lanesConfig{
		concurrency: d.Concurrency, endpointConcurrency: d.EndpointConcurrency, disableAfter: d.DisableAfter, retries: d.Retries,
		queueBytes: int(d.QueueMemory), attempt: lt.attempt, recorder: lt.book, metrics: newMetrics("test", source{}),
		log: slog.New(slog.NewTextHandler(lt.log, nil)),
	}
	if configure != nil {
		configure(&cfg)
	}
	lt.lanes = newLanes(t.Context(), cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	loops.Go(func() { lt.book.run(ctx) })
	loops.Go(func() { _ = lt.refill(ctx, lt.book.due) }) // refill ends without an error
	t.Cleanup(func() {
		lt.stop(t.Context())
		cancel()
		loops.Wait()
	})
	return lt
}

// pass lets virtual time go by, and then everything settle that is due at that very time.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// endpoint registers an enabled endpoint.
func (lt *laneTest) endpoint(id string, answer func(eventID string, n int) answer) *lane {
	lt.mu.Lock()
	lt.endpoints[id] = &attempts{answer: answer, times: map[string][]time.Duration{}, ended: map[string]bool{}, open: map[string]bool{}}
	lt.mu.Unlock()
	return lt.changeTo(outbox.Endpoint{ID: id, URL: id, Generation: 1}, "")
}

// changeTo puts an endpoint's new row into the lanes, as the router does.
func (lt *laneTest) changeTo(e outbox.Endpoint, unusable string) *lane {
	lt.t.Helper()
	l, records := lt.change(&e, unusable)
	lt.tellAll(records)
	return l
}

func (lt *laneTest) tellAll(records []record) {
	lt.t.Helper()
	if err := lt.tell(lt.t.Context(), records); err != nil {
		lt.t.Errorf("tell the recorder: %v", err)
	}
}

// send offers new deliveries, one event each, and returns the ids of the events.
func (lt *laneTest) send(l *lane, n, bodyBytes int) (eventIDs []string) {
	lt.t.Helper()
	var offers []offer
	var deliveries []*outbox.Delivery
	for range n {
		lt.mu.Lock()
		lt.sent++
		id := fmt.Sprintf("evt_%05d", lt.sent)
		lt.mu.Unlock()
		d := &outbox.Delivery{EventID: id, EndpointID: l.id, Body: make([]byte, bodyBytes)}
		eventIDs = append(eventIDs, id)
		deliveries = append(deliveries, d)
		offers = append(offers, offer{l, d})
	}
	lt.book.expect(deliveries, bodyBytes)
	results := lt.offer(offers)
	if err := lt.book.track(lt.t.Context(), deliveries, results); err != nil {
		lt.t.Errorf("track deliveries: %v", err)
	}
	return eventIDs
}

// attempt is lanesConfig.attempt. It watches what must hold for every attempt.
func (lt *laneTest) attempt(ctx context.Context, r sink.Request) sink.Result {
	lt.mu.Lock()
	e := lt.endpoints[r.URL]
	e.n++
	lt.open++
	lt.peak = max(lt.peak, lt.open)
	if lt.open > lt.cfg.concurrency {
		lt.t.Errorf("%d attempts under way, the limit is %d", lt.open, lt.cfg.concurrency)
	}
	if e.open[r.EventID] {
		lt.t.Errorf("two attempts of %s to %s at the same time", r.EventID, r.URL)
	}
	if e.ended[r.EventID] {
		lt.t.Errorf("%s is sent to %s again after a success", r.EventID, r.URL)
	}
	e.open[r.EventID] = true
	e.peak = max(e.peak, len(e.open))
	if len(e.open) > lt.cfg.endpointConcurrency {
		lt.t.Errorf("%d attempts to %s under way, the limit is %d", len(e.open), r.URL, lt.cfg.endpointConcurrency)
	}
	e.lastOpen = time.Since(lt.began)
	e.times[r.EventID] = append(e.times[r.EventID], e.lastOpen)
	if n := len(e.times[r.EventID]); n > 1+len(lt.cfg.retries) {
		lt.t.Errorf("attempt %d of %s to %s", n, r.EventID, r.URL)
	}
	a := e.answer(r.EventID, e.n)
	lt.mu.Unlock()

	begun := time.Now()
	if !sleep(ctx, a.after) {
		a.result = sink.Result{Outcome: sink.Canceled, Class: sink.ClassCanceled}
	}
	a.result.Latency = time.Since(begun)

	lt.mu.Lock()
	defer lt.mu.Unlock()
	lt.open--
	delete(e.open, r.EventID)
	e.ended[r.EventID] = a.result.Outcome == sink.Succeeded
	return a.result
}

// seen returns what came of one endpoint so far; the test reads it while nothing runs.
func (lt *laneTest) seen(id string) *attempts {
	lt.mu.Lock()
	defer lt.mu.Unlock()
	return lt.endpoints[id]
}

// quiet fails the test when the lanes still hold something: all their accounts must be back at zero.
func (lt *laneTest) quiet() {
	lt.t.Helper()
	lt.lanes.mu.Lock()
	defer lt.lanes.mu.Unlock()
	if lt.inFlight != 0 || lt.unproven != 0 || lt.bytes != 0 {
		lt.t.Errorf("at rest: %d attempts in flight, %d of them unproven, %d bytes", lt.inFlight, lt.unproven, lt.bytes)
	}
	for _, l := range lt.byID {
		if len(l.queue)+len(l.held)+len(l.inFlight)+l.bytes != 0 {
			lt.t.Errorf("at rest lane %s has %d queued, %d held, %d in flight, %d bytes", l.id, len(l.queue), len(l.held), len(l.inFlight), l.bytes)
		}
	}
}

type deliveryKey struct{ endpointID, eventID string }

// bookRow is a row of webhooks.deliveries.
type bookRow struct {
	status    outbox.Status
	attempts  int
	next      time.Time
	reason    string
	bodyBytes int
}

// trackedAt are deliveries with the time when the book learned of them.
type trackedAt struct {
	at         time.Time
	deliveries []*outbox.Delivery
}

// book stands for outbox.Ledger and the rows it writes: it commits what comes in after a delay, in groups, parks what is late, and makes
// pending rows missed in small steps between the groups. due reads it as DB.Due reads the database.
type book struct {
	lt   *laneTest
	wake chan struct{} // tells run that there is something to commit; one place is enough

	mu       sync.Mutex // guards what follows
	rows     map[deliveryKey]*bookRow
	waiting  []func() *outbox.Result
	tracked  []trackedAt // not looked at for parking yet, oldest first
	jobs     []outbox.Missing
	stopped  map[string]int
	healths  []*outbox.Health
	disabled []string // reasons, in order
	reads    int
	broken   error // what due answers
}

// enter takes something in to be committed. The wait before is what a sender sees while the ledger's queue is full.
func (b *book) enter(ctx context.Context, writes ...func() *outbox.Result) error {
	if !sleep(ctx, b.lt.delays()) {
		return context.Cause(ctx)
	}
	b.mu.Lock()
	b.waiting = append(b.waiting, writes...)
	b.mu.Unlock()
	b.signal()
	return nil
}

func (b *book) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Record implements recorder.
func (b *book) Record(ctx context.Context, r *outbox.Result) error { return b.enter(ctx, b.writing(r)) }

// writing returns what puts a result into its row.
func (b *book) writing(r *outbox.Result) func() *outbox.Result {
	return func() *outbox.Result {
		key := deliveryKey{r.Delivery.EndpointID, r.Delivery.EventID}
		row := b.rows[key]
		if row == nil { // not from send
			row = &bookRow{}
			b.rows[key] = row
		}
		if row.status == outbox.Succeeded || row.status == outbox.Failed {
			b.lt.t.Errorf("%s to %s becomes %s after it was %s", r.Delivery.EventID, r.Delivery.EndpointID, r.Status, row.status)
		}
		row.status, row.next, row.reason, row.attempts = r.Status, r.NextAttempt, r.Error, r.Delivery.Attempts
		if r.Attempt != nil {
			row.attempts = r.Attempt.Number
		}
		if r.Health != nil {
			b.healths = append(b.healths, r.Health)
		}
		if r.Disable != "" {
			b.disabled = append(b.disabled, r.Disable)
		}
		return r
	}
}

// SetHealth implements recorder.
func (b *book) SetHealth(ctx context.Context, h *outbox.Health) error {
	return b.enter(ctx, func() *outbox.Result {
		b.healths = append(b.healths, h)
		return nil
	})
}

// MissPending implements recorder.
func (b *book) MissPending(ctx context.Context, m outbox.Missing) error {
	return b.enter(ctx, func() *outbox.Result {
		if m.Version > b.stopped[m.EndpointID] {
			b.jobs = append(b.jobs, m)
		}
		return nil
	})
}

// StopMissing implements recorder.
func (b *book) StopMissing(ctx context.Context, endpointID string, version int) error {
	return b.enter(ctx, func() *outbox.Result {
		b.stopped[endpointID] = version
		b.jobs = slices.DeleteFunc(b.jobs, func(m outbox.Missing) bool { return m.EndpointID == endpointID && m.Version <= version })
		return nil
	})
}

// expect makes rows for new deliveries. They have no status: the database does not have them yet.
func (b *book) expect(deliveries []*outbox.Delivery, bodyBytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range deliveries {
		b.rows[deliveryKey{d.EndpointID, d.EventID}] = &bookRow{bodyBytes: bodyBytes}
	}
}

// track takes in new deliveries with the results that stand already, and parks those that have no result in time.
func (b *book) track(ctx context.Context, deliveries []*outbox.Delivery, results []*outbox.Result) error {
	var writes []func() *outbox.Result
	for _, r := range results {
		writes = append(writes, b.writing(r))
	}
	if err := b.enter(ctx, writes...); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tracked = append(b.tracked, trackedAt{time.Now(), deliveries})
	b.signal()
	return nil
}

// run commits until ctx ends.
func (b *book) run(ctx context.Context) {
	park := time.NewTimer(outbox.ParkAfter)
	defer park.Stop()
	for {
		park.Reset(b.untilPark())
		select {
		case <-b.wake:
		case <-park.C:
		case <-ctx.Done():
			return
		}
		b.mu.Lock()
		b.parkLocked(time.Now().Add(-outbox.ParkAfter))
		group := b.waiting
		b.waiting = nil
		b.mu.Unlock()
		if !sleep(ctx, b.lt.delays()) {
			return
		}
		b.mu.Lock()
		var results []*outbox.Result
		for _, write := range group {
			if r := write(); r != nil {
				results = append(results, r)
			}
		}
		b.stepLocked()
		if len(b.waiting)+len(b.jobs) > 0 {
			b.signal()
		}
		b.mu.Unlock()
		if len(results) > 0 {
			b.lt.committed(results)
		}
	}
}

// untilPark returns how long run may sleep.
func (b *book) untilPark() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.tracked) == 0 {
		return time.Hour
	}
	return time.Until(b.tracked[0].at.Add(outbox.ParkAfter))
}

// parkLocked has pending rows written for what was tracked up to the deadline and has no row.
func (b *book) parkLocked(deadline time.Time) {
	for len(b.tracked) > 0 && !b.tracked[0].at.After(deadline) {
		for _, d := range b.tracked[0].deliveries {
			b.waiting = append(b.waiting, func() *outbox.Result {
				row := b.rows[deliveryKey{d.EndpointID, d.EventID}]
				if row.status != "" {
					return nil
				}
				row.status, row.next = outbox.Pending, time.Now()
				return &outbox.Result{Delivery: d, Status: outbox.Pending, NextAttempt: row.next, Parked: true}
			})
		}
		b.tracked = b.tracked[1:]
	}
}

// stepLocked makes two pending rows of the first job missed.
func (b *book) stepLocked() {
	if len(b.jobs) == 0 {
		return
	}
	m, left := b.jobs[0], 2
	for key, row := range b.rows {
		if key.endpointID == m.EndpointID && row.status == outbox.Pending && !slices.Contains(m.Keep, key.eventID) {
			row.status, row.reason = outbox.Missed, m.Reason
			if left--; left == 0 {
				return
			}
		}
	}
	b.jobs = b.jobs[1:]
}

// due is a dueFunc over the rows. Like the real one it looks at the rows, asks Skip some time later, and answers later still.
func (b *book) due(ctx context.Context, wants []outbox.Want, now time.Time, maxBytes int) (map[string]*outbox.Refill, error) {
	sleep(ctx, b.lt.delays())
	refills := map[string]*outbox.Refill{}
	var found []*outbox.Delivery
	b.mu.Lock()
	b.reads++
	if b.broken != nil {
		defer b.mu.Unlock()
		return nil, b.broken
	}
	for _, w := range wants {
		r := &outbox.Refill{}
		refills[w.EndpointID] = r
		var rows []*outbox.Delivery
		for key, row := range b.rows {
			switch {
			case key.endpointID != w.EndpointID || row.status != outbox.Pending:
			case !row.next.After(now):
				rows = append(rows, &outbox.Delivery{EventID: key.eventID, EndpointID: key.endpointID, Attempts: row.attempts, Created: row.next})
			case r.Next.IsZero() || row.next.Before(r.Next):
				r.Next = row.next
			}
		}
		slices.SortFunc(rows, func(a, b *outbox.Delivery) int {
			return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.EventID, b.EventID))
		})
		r.More = len(rows) >= w.Limit
		found = append(found, rows[:min(len(rows), w.Limit)]...)
	}
	b.mu.Unlock()
	sleep(ctx, b.lt.delays())
	skip := map[string]func(string) bool{}
	for _, w := range wants {
		skip[w.EndpointID] = w.Skip
	}
	read := 0
	for _, d := range found {
		if skip[d.EndpointID](d.EventID) {
			continue
		}
		r := refills[d.EndpointID]
		b.mu.Lock()
		size := b.rows[deliveryKey{d.EndpointID, d.EventID}].bodyBytes
		b.mu.Unlock()
		if read > 0 && read+size > maxBytes {
			r.More = true
			continue
		}
		read += size
		d.Body = make([]byte, size)
		r.Deliveries = append(r.Deliveries, d)
	}
	sleep(ctx, b.lt.delays())
	return refills, nil
}

// breakReads has due answer with an error, or work again with nil. It returns how often due was called so far.
func (b *book) breakReads(err error) (reads int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = err
	return b.reads
}

// count returns how many deliveries of an endpoint have a status.
func (b *book) count(endpointID string, status outbox.Status) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, row := range b.rows {
		if key.endpointID == endpointID && row.status == status {
			n++
		}
	}
	return n
}
