package feed

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// queue is how many rows may wait for a slow reader. More are left out and counted.
const queue = 256

// Feed passes on what the agent records. All methods are safe for concurrent use.
type Feed struct {
	rates   rates
	looking atomic.Bool // somebody looks: there are subs or tails

	mu    sync.Mutex
	subs  map[*Subscription]bool
	tails map[string]*tail // by venue; "" is that of all venues
	now   func() time.Time // tests set another
}

// New returns a Feed without readers.
func New() *Feed {
	return &Feed{subs: map[*Subscription]bool{}, tails: map[string]*tail{}, now: time.Now}
}

// SetClock sets what the feed takes for the present. Tests set it before anybody uses the feed.
func (f *Feed) SetClock(now func() time.Time) { f.now = now }

// Recorded passes on records that are durable now. It does not wait.
func (f *Feed) Recorded(records []*outbox.Record) {
	f.rates.count(f.now(), records)
	if !f.looking.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range records {
		if r.Taken { // which has no row of its own
			continue
		}
		for s := range f.subs {
			s.offer(r)
		}
		all, venue := f.tails[""], f.tails[r.Delivery.Venue]
		if all == nil && venue == nil {
			continue
		}
		info := r.Info()
		for _, t := range []*tail{all, venue} {
			if t != nil {
				t.add(info)
			}
		}
	}
	f.dropIdle()
}

// lookLocked remembers whether somebody looks.
func (f *Feed) lookLocked() { f.looking.Store(len(f.subs)+len(f.tails) > 0) }

// Subscription is a reader of a Feed with a queue of its own.
type Subscription struct {
	// Rows has the rows in the order in which they were recorded. It is never closed.
	Rows   <-chan outbox.DeliveryInfo
	feed   *Feed
	match  matcher
	rows   chan outbox.DeliveryInfo
	missed atomic.Int64
}

// Subscribe returns a reader of what fits a filter. The caller closes it. The error is about the
// filter's type.
func (f *Feed) Subscribe(filter outbox.DeliveryFilter) (*Subscription, error) {
	match, err := newMatcher(filter)
	if err != nil {
		return nil, err
	}
	rows := make(chan outbox.DeliveryInfo, queue)
	s := &Subscription{Rows: rows, feed: f, match: match, rows: rows}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[s] = true
	f.lookLocked()
	return s, nil
}

// Close ends a subscription.
func (s *Subscription) Close() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	delete(s.feed.subs, s)
	s.feed.lookLocked()
}

// offer passes a record on if it fits and there is room. Nobody else writes into the queue, since the
// Feed's mutex is held.
func (s *Subscription) offer(r *outbox.Record) {
	d := r.Delivery
	if !s.match.fits(d.Venue, d.EndpointID, d.EventID, d.Type, r.Status) {
		return
	}
	if len(s.rows) == cap(s.rows) {
		s.missed.Add(1)
		return
	}
	info := r.Info()
	info.Cursor = r.Cursor()
	s.rows <- info
}

// LeftOut returns how many rows were left out since the last call.
func (s *Subscription) LeftOut() int64 { return s.missed.Swap(0) }

// matcher is a filter of the delivery log for rows in memory.
type matcher struct {
	filter outbox.DeliveryFilter
	types  outbox.Patterns
}

// newMatcher returns an error for a type that is no pattern.
func newMatcher(f outbox.DeliveryFilter) (m matcher, err error) {
	m.filter = f
	if f.Type != "" {
		m.types, err = outbox.ParsePatterns([]string{f.Type})
	}
	return m, err
}

// fits reports whether the filter lets a row through.
func (m *matcher) fits(venue, endpointID, eventID, eventType string, status outbox.Status) bool {
	f := &m.filter
	return (f.Venue == "" || venue == f.Venue) && (f.EndpointID == "" || endpointID == f.EndpointID) &&
		(f.EventID == "" || eventID == f.EventID) && (len(f.Statuses) == 0 || slices.Contains(f.Statuses, status)) &&
		(f.Type == "" || m.types.Match(eventType))
}
