package api

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/quintago/webhook-agent/outbox"
)

// feedQueue is how many rows may wait for a slow reader. More are left out and counted: the data path
// waits for nobody.
const feedQueue = 256

// Feed passes on what the agent records, to those who look at the delivery log at that moment. It
// costs next to nothing while nobody does. All methods are safe for concurrent use.
type Feed struct {
	readers atomic.Int32

	mu   sync.Mutex
	subs map[*subscription]bool
}

// NewFeed returns a Feed without readers.
func NewFeed() *Feed { return &Feed{subs: map[*subscription]bool{}} }

// Recorded passes on records that are durable now. It does not wait.
func (f *Feed) Recorded(records []*outbox.Record) {
	if f.readers.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range records {
		for s := range f.subs {
			if !s.match.fits(r) {
				continue
			}
			select {
			case s.rows <- r.Info():
			default:
				s.missed.Add(1)
			}
		}
	}
}

// subscription is a reader of a Feed.
type subscription struct {
	feed   *Feed
	match  matcher
	rows   chan outbox.DeliveryInfo
	missed atomic.Int64
}

func (f *Feed) subscribe(match matcher) *subscription {
	s := &subscription{feed: f, match: match, rows: make(chan outbox.DeliveryInfo, feedQueue)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[s] = true
	f.readers.Store(int32(len(f.subs)))
	return s
}

func (s *subscription) close() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	delete(s.feed.subs, s)
	s.feed.readers.Store(int32(len(s.feed.subs)))
}

// leftOut returns how many rows were left out since the last call.
func (s *subscription) leftOut() int64 { return s.missed.Swap(0) }

// matcher is a filter of the delivery log for records in memory.
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

// fits reports whether the filter lets a record through.
func (m *matcher) fits(r *outbox.Record) bool {
	f, d := &m.filter, r.Delivery
	return (f.Venue == "" || d.Venue == f.Venue) && (f.EndpointID == "" || d.EndpointID == f.EndpointID) &&
		(f.EventID == "" || d.EventID == f.EventID) && (len(f.Statuses) == 0 || slices.Contains(f.Statuses, r.Status)) &&
		(f.Type == "" || m.types.Match(d.Type)) && !r.Taken
}
