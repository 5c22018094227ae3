package lanes

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

const (
	// laneLength limits the deliveries that one lane holds in memory. The rest waits in the
	// database. A quick endpoint takes about this many in a second. After a second the ledger parks
	// what waits, so a lane that keeps up costs one row for each event.
	laneLength = 8192
	// laneShare is the part of delivery.queue_memory that one lane may use: an eighth. So a few
	// slow endpoints with large events leave room for the others.
	laneShare = 8
	// slowAfter is the duration from which on an attempt counts as slow.
	slowAfter = time.Second
)

// Lane is the bounded queue of one endpoint, with its own limit of attempts under way. All fields
// except id are guarded by Scheduler.mu.
type Lane struct {
	id       string
	endpoint *outbox.Endpoint
	venue    *venue       // the endpoint's; kept when the endpoint is removed
	target   *sink.Target // the endpoint's
	// off is the reason why nothing is sent. It is "" while the endpoint is enabled and usable.
	off      string
	unusable string // the reason why the endpoint cannot be sent to, which off contains

	queue    []*outbox.Delivery
	bytes    int      // of the deliveries in queue and under way
	held     eventSet // events that are queued, under way, or whose result is not committed yet
	inFlight eventSet // events of the attempts under way
	// attempts is the number of attempts under way. A table without a unique id may hold an event
	// twice, so it may be higher than the number of events in inFlight.
	attempts int
	// window is the lane's own limit of attempts under way. It grows by one with each success, up
	// to delivery.endpoint_concurrency, and halves with each failure. So an endpoint that is new or
	// down takes few places.
	window int
	// proven reports that the last attempt was quick. The lanes that are not proven share a part of
	// the global limit.
	proven bool
	listed [classes]bool // whether the lane is in the ready list of a venue, for each class
	// refilled reports that a refill has brought some of the deliveries in queue.
	refilled bool

	// failures is the number of consecutive failed attempts. firstFailure is the end of the first
	// of them.
	failures     int
	firstFailure time.Time
	// announced is the level of the endpoint's last notice (outbox.Notice). notices are those of
	// which nobody knows yet that they are committed.
	announced int
	notices   []outbox.Notice
	trouble   *trouble // nil for an endpoint that has not failed lately

	// due is the earliest time at which the database has a delivery of this lane that memory does
	// not hold. It is zero when there is none.
	due      time.Time
	dueIndex int // index in Scheduler.due; -1 when the lane is not in it
	// backlog reports that deliveries which are due wait in the database. New deliveries go there
	// as well then, behind them.
	backlog bool
	// left counts the new deliveries that were left to the database and have no committed row yet.
	// A refill cannot see them.
	left int
	// leaving are the events that were given back to the database and have no committed row yet.
	// They stay in held until then, so that they are not sent twice.
	leaving eventSet
	// full reports that the last refill hit the memory limit. It is cleared when an attempt ends
	// and the lane holds no more than half of its share. A full lane holds something, so an attempt
	// of it will end. Or it waits for room.
	full bool
	// wants is the size of the large delivery for which the lane waits while waits is true. It is then
	// in room.waiting.
	wants int
	waits bool
	// room is what the lane has taken up for the first delivery that it holds, or for one that a
	// refill is to bring; nil if nothing. taken is how many bytes.
	room  *room
	taken int
	// fetching reports that a refill is under way. released are the events that have left held
	// since it began. The refill may have read their rows as pending, so it must not bring them
	// again.
	fetching bool
	released eventSet
}

// eventSet is a set of event ids. It is nil while it is empty. There may be a hundred thousand
// lanes, and most of them hold nothing most of the time.
type eventSet map[string]struct{}

func (s *eventSet) add(id string) {
	if *s == nil {
		*s = eventSet{}
	}
	(*s)[id] = struct{}{}
}

// remove removes an id and reports whether the set is empty now.
func (s *eventSet) remove(id string) (empty bool) {
	if delete(*s, id); len(*s) == 0 {
		*s = nil
	}
	return *s == nil
}

func newLane(id string) *Lane {
	return &Lane{id: id, window: 1, dueIndex: -1}
}

// limit returns how many attempts may be under way now. It is never more than the failures that are
// left before the endpoint is disabled.
func (l *Lane) limit(cfg *Config) int {
	if l.isPaced(cfg) || l.isBlocked() {
		return 1
	}
	left := cfg.DisableAfter - l.failures
	if cfg.FailingInterval > 0 {
		// Attempts that are under way together fail together; keep half of the failures for later.
		left = max(1, left/2)
	}
	return min(l.window, cfg.EndpointConcurrency, left)
}

// canStart reports whether the lane may start an attempt now.
func (l *Lane) canStart(cfg *Config) bool {
	return l.off == "" && len(l.queue) > 0 && l.attempts < l.limit(cfg) && (l.trouble == nil || l.heldFor(cfg.Now()) == 0)
}

// wantsRefill reports whether the lane is to be refilled when it is due.
func (l *Lane) wantsRefill() bool {
	if l.off != "" || l.due.IsZero() || l.fetching || l.full {
		return false
	}
	if l.failures > 0 || l.isBlocked() {
		// One delivery may be all that it can send for a long time.
		return len(l.queue)+l.attempts == 0
	}
	return len(l.queue) <= refillBelow
}

// refillLimit returns how many new rows a refill may bring this lane.
func (l *Lane) refillLimit(cfg *Config) int {
	switch {
	case l.isPaced(cfg):
		return 1
	case l.failures > 0, l.isBlocked():
		return restrainedRows
	}
	return refillLength
}

// dueHeap orders the lanes that want a refill by its time. It implements heap.Interface.
type dueHeap []*Lane

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].refillAt().Before(h[j].refillAt()) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].dueIndex, h[j].dueIndex = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) {
	l := x.(*Lane)
	l.dueIndex = len(*h)
	*h = append(*h, l)
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.dueIndex = -1
	return l
}
