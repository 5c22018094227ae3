package lanes

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
)

type deliveryKey struct{ endpointID, eventID string }

// bookRow is a row of webhooks.deliveries.
type bookRow struct {
	status    outbox.Status
	attempts  int
	next      time.Time
	reason    string
	bodyBytes int
	venue     string
}

// trackedAt are deliveries with the time at which track was called.
type trackedAt struct {
	at         time.Time
	deliveries []*outbox.Delivery
}

// book replaces outbox.Ledger and its rows. It commits after a delay, in groups. It parks what has
// no result in time, and makes pending rows missed in small steps between the groups. due reads its
// rows as Slot.Due reads the database.
type book struct {
	lt   *laneTest
	wake chan struct{} // wakes run, because there is something to commit; one place is enough

	mu       sync.Mutex // guards what follows
	rows     map[deliveryKey]*bookRow
	pending  map[string]map[string]*bookRow // of rows, by endpoint and event, as an index has them
	counts   map[outbox.Status]int          // of rows
	waiting  []func() *outbox.Record
	tracked  []trackedAt // not looked at for parking yet, oldest first
	jobs     []outbox.Missing
	stopped  map[string]int
	healths  []*outbox.Health
	health   map[string]*outbox.Health // the latest of each endpoint
	disabled []string                  // reasons, in order
	off      map[string]bool           // endpoints that the agent has disabled, by id
	reads    int
	bodies   int   // that due has returned
	broken   error // what due answers
}

// becomeLocked changes the status of a row. It also keeps the index and the counts that due and
// states read, because tests call these at every tick of a bubble.
func (b *book) becomeLocked(key deliveryKey, row *bookRow, status outbox.Status) {
	b.counts[row.status]--
	b.counts[status]++
	row.status = status
	if status != outbox.Pending {
		delete(b.pending[key.endpointID], key.eventID)
		return
	}
	if b.pending[key.endpointID] == nil {
		b.pending[key.endpointID] = map[string]*bookRow{}
	}
	b.pending[key.endpointID][key.eventID] = row
}

// addLocked adds a row without a status.
func (b *book) addLocked(key deliveryKey, row *bookRow) {
	b.rows[key] = row
	b.counts[row.status]++
}

// addPending adds a row that an earlier agent has left.
func (b *book) addPending(endpointID, eventID string) *bookRow {
	b.mu.Lock()
	defer b.mu.Unlock()
	key, row := deliveryKey{endpointID, eventID}, &bookRow{next: time.Now()}
	b.addLocked(key, row)
	b.becomeLocked(key, row, outbox.Pending)
	return row
}

// enter queues something to be committed. It waits first, as Ledger.Write does while its queue is
// full.
func (b *book) enter(ctx context.Context, writes ...func() *outbox.Record) error {
	if !backoff.Sleep(ctx, b.lt.delays()) {
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

// write replaces Ledger.Write.
func (b *book) write(ctx context.Context, entries ...outbox.Entry) error {
	var writes []func() *outbox.Record
	for _, e := range entries {
		writes = append(writes, b.entering(e))
	}
	if len(writes) == 0 {
		return nil
	}
	return b.enter(ctx, writes...)
}

// entering returns the function that takes an entry in.
func (b *book) entering(e outbox.Entry) func() *outbox.Record {
	if r, isResult := e.(*outbox.Record); isResult {
		return b.writing(r)
	}
	return func() *outbox.Record {
		switch e := e.(type) {
		case *outbox.Health:
			b.healthLocked(e)
		case outbox.Missing:
			if e.Version > b.stopped[e.EndpointID] {
				b.jobs = append(b.jobs, e)
			}
		case outbox.StopMissing:
			b.stopped[e.EndpointID] = e.Version
			b.jobs = slices.DeleteFunc(b.jobs, func(m outbox.Missing) bool { return m.EndpointID == e.EndpointID && m.Version <= e.Version })
		case outbox.Disabling:
			b.disabled = append(b.disabled, e.Reason)
			b.off[e.EndpointID] = true
		}
		return nil
	}
}

// writing returns the function that puts a result into its row.
func (b *book) writing(r *outbox.Record) func() *outbox.Record {
	return func() *outbox.Record {
		key := deliveryKey{r.Delivery.EndpointID, r.Delivery.EventID}
		row := b.rows[key]
		if row == nil { // not from send
			row = &bookRow{}
			b.addLocked(key, row)
		}
		if row.status == outbox.Succeeded || row.status == outbox.Failed {
			b.lt.t.Errorf("%s to %s becomes %s after it was %s", r.Delivery.EventID, r.Delivery.EndpointID, r.Status, row.status)
		}
		b.becomeLocked(key, row, r.Status)
		row.next, row.reason, row.attempts = r.NextAttempt, r.Error, r.Delivery.Attempts
		if r.Attempt != nil {
			row.attempts = r.Attempt.Number
		}
		if r.Health != nil {
			b.healthLocked(r.Health)
		}
		if r.Disable != "" {
			b.disabled = append(b.disabled, r.Disable)
			b.off[r.Delivery.EndpointID] = true
		}
		return r
	}
}

func (b *book) healthLocked(h *outbox.Health) {
	if h.Failures > b.lt.cfg.DisableAfter {
		b.lt.t.Errorf("%s has %d failures in a row, the limit is %d", h.EndpointID, h.Failures, b.lt.cfg.DisableAfter)
	}
	b.healths = append(b.healths, h)
	if last := b.health[h.EndpointID]; last == nil || h.Version > last.Version {
		b.health[h.EndpointID] = h
	}
}

// crash drops what is not committed. It returns, by event, the deliveries that have no row, and, by
// endpoint, when the first pending delivery is due.
func (b *book) crash() (unrecorded []*outbox.Delivery, due map[string]time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting, b.tracked, b.jobs, b.stopped = nil, nil, nil, map[string]int{}
	due = map[string]time.Time{}
	for _, h := range b.health {
		h.Version = 0 // the next agent counts from one
	}
	for key, row := range b.rows {
		switch row.status {
		case "":
			unrecorded = append(unrecorded, &outbox.Delivery{EventID: key.eventID, EndpointID: key.endpointID, Venue: row.venue, Body: make([]byte, row.bodyBytes)})
		case outbox.Pending:
			if at, known := due[key.endpointID]; !known || row.next.Before(at) {
				due[key.endpointID] = row.next
			}
		}
	}
	slices.SortFunc(unrecorded, func(a, b *outbox.Delivery) int { return cmp.Compare(a.EventID, b.EventID) })
	return unrecorded, due
}

// state returns an endpoint as an agent loads it, given its row.
func (b *book) state(row outbox.Endpoint) outbox.EndpointState {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := outbox.EndpointState{Endpoint: &row}
	s.Disabled = row.Disabled || b.off[row.ID]
	s.Announced = b.announcedLocked(row)
	if h := b.health[row.ID]; h != nil && h.Generation == row.Generation {
		s.Failures, s.FirstFailure, s.Unusable = h.Failures, h.FirstFailure, h.Unusable
		s.HeldUntil, s.HeldBy = h.HeldUntil, h.HeldBy
	}
	return s
}

// healthOfEP returns the last recorded health of the endpoint ep.
func (b *book) healthOfEP() outbox.Health {
	const id = "ep"
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.health[id]; h != nil {
		return *h
	}
	return outbox.Health{}
}

// states returns how many deliveries are in each state; "" counts those that have no row yet.
func (b *book) states() map[outbox.Status]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.counts)
}

// hasDisabled reports whether the agent has disabled an endpoint.
func (b *book) hasDisabled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.disabled) > 0
}

// bodiesRead returns how many bodies due has returned so far.
func (b *book) bodiesRead() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bodies
}

// forget drops a delivery that the test does not look at any more.
func (b *book) forget(d *outbox.Delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := deliveryKey{d.EndpointID, d.EventID}
	if row := b.rows[key]; row != nil {
		b.becomeLocked(key, row, "")
		b.counts[""]--
		delete(b.rows, key)
	}
}

// expect makes rows for new deliveries. They have no status: the database does not have them yet.
func (b *book) expect(deliveries []*outbox.Delivery, bodyBytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range deliveries {
		b.addLocked(deliveryKey{d.EndpointID, d.EventID}, &bookRow{bodyBytes: bodyBytes, venue: d.Venue})
	}
}

// track takes in new deliveries, with the records that are known already, and parks those that have
// no result in time.
func (b *book) track(ctx context.Context, deliveries []*outbox.Delivery, results []*outbox.Record) error {
	var writes []func() *outbox.Record
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
		if !backoff.Sleep(ctx, b.lt.delays()) {
			return
		}
		b.mu.Lock()
		var results []*outbox.Record
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
			b.lt.Committed(results)
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
			b.waiting = append(b.waiting, func() *outbox.Record {
				key := deliveryKey{d.EndpointID, d.EventID}
				row := b.rows[key]
				if row.status != "" {
					return nil
				}
				b.becomeLocked(key, row, outbox.Pending)
				row.next = time.Now()
				return &outbox.Record{Delivery: d, Status: outbox.Pending, NextAttempt: row.next, Parked: true}
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
	for eventID, row := range b.pending[m.EndpointID] {
		if !slices.Contains(m.Keep, eventID) {
			b.becomeLocked(deliveryKey{m.EndpointID, eventID}, row, outbox.Missed)
			row.reason = m.Reason
			if left--; left == 0 {
				return
			}
		}
	}
	b.jobs = b.jobs[1:]
}

// due is a dueFunc over the rows. Like Slot.Due, it looks at the rows, calls Skip later, and
// returns later still.
func (b *book) due(ctx context.Context, wants []outbox.Want, now time.Time, maxBytes int) (map[string]*outbox.Refill, error) {
	backoff.Sleep(ctx, b.lt.delays())
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
		// Keep the first due rows, in order. Most rows of a backlog come after them and cost one
		// comparison only.
		first, many := []*outbox.Delivery{}, 0
		for eventID, row := range b.pending[w.EndpointID] {
			if row.next.After(now) {
				if r.Next.IsZero() || row.next.Before(r.Next) {
					r.Next = row.next
				}
				continue
			}
			many++
			after := func(d *outbox.Delivery) bool {
				return cmp.Or(d.Created.Compare(row.next), cmp.Compare(d.EventID, eventID)) > 0
			}
			if len(first) == w.Limit {
				if w.Limit == 0 || !after(first[w.Limit-1]) {
					continue
				}
				first = first[:w.Limit-1]
			}
			at := sort.Search(len(first), func(i int) bool { return after(first[i]) })
			first = slices.Insert(first, at, &outbox.Delivery{EventID: eventID, EndpointID: w.EndpointID, Venue: row.venue, Attempts: row.attempts, Created: row.next, Refilled: true})
		}
		r.More = many >= w.Limit
		found = append(found, first...)
	}
	b.mu.Unlock()
	backoff.Sleep(ctx, b.lt.delays())
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
		if read > 0 && read+size+outbox.DeliveryBytes > maxBytes {
			r.More = true
			continue
		}
		read += size + outbox.DeliveryBytes
		b.mu.Lock()
		b.bodies++
		b.mu.Unlock()
		d.Body = make([]byte, size)
		r.Deliveries = append(r.Deliveries, d)
	}
	backoff.Sleep(ctx, b.lt.delays())
	return refills, nil
}

// breakReads makes due return an error, and nil makes it work again. It returns how often due was
// called so far.
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

// enable enables an endpoint that the agent has disabled.
func (b *book) enable(endpointID string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.off, endpointID)
}
