package lanes

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

const (
	// laneLength bounds the deliveries that one lane holds in memory. The rest waits in the database. It is what a quick
	// endpoint takes in about a second, after which the ledger parks what waits: one that keeps up costs one row an event.
	laneLength = 8192
	// laneShare is the part of the memory for events that one lane may take: an eighth, so that a few slow endpoints
	// with large events leave room for the others.
	laneShare = 8
	// slowAfter is when an attempt counts as slow.
	slowAfter = time.Second
)

// Lane is one endpoint's way out: its bounded queue and its own limit of attempts in flight. All fields are guarded
// by Scheduler.mu, except id.
type Lane struct {
	id       string
	endpoint *outbox.Endpoint
	venue    *venue       // of endpoint, also once that is removed
	target   *sink.Target // of endpoint
	// off is why nothing is sent, "" while the endpoint is enabled and usable.
	off      string
	unusable string // why the endpoint cannot be sent to as registered; part of off

	queue    []*outbox.Delivery
	bytes    int      // of the deliveries in queue and in flight
	held     eventSet // events in queue, in flight, or whose result is not committed yet
	inFlight eventSet // events
	attempts int      // in flight: of an event that stands twice in a table without a unique id there may be two
	// window is the lane's own limit of attempts in flight. It grows by one with each success up to
	// delivery.endpoint_concurrency and halves with each failure, so that an endpoint that is down or new costs
	// little.
	window int
	// proven reports that the last attempt was quick. All other lanes together may use only a part of the global limit.
	proven bool
	listed [classes]bool // whether it stands among the ready ones of a venue
	// refilled reports that a refill has brought some of queue.
	refilled bool

	// failures is the number of consecutive failed attempts, firstFailure when the first of them ended.
	failures     int
	firstFailure time.Time
	trouble      *trouble // nil for an endpoint that has not failed lately

	// due is the earliest time at which the database has a delivery of this lane that memory does not hold; zero when
	// it has none.
	due      time.Time
	dueIndex int // in Scheduler.due, -1 when it is not there
	// backlog reports that more waits in the database than one refill brings, so that new deliveries queue up behind it
	// there.
	backlog bool
	// left counts the new deliveries that were left to the database and have no committed row yet: no refill can see
	// them.
	left int
	// leaving are the events that were given back to the database and have no committed row yet. They are held until then.
	leaving eventSet
	// full reports that a refill found more than there is memory for. The end of an attempt clears it: a lane that is
	// full holds something.
	full bool
	// fetching reports that a refill is under way; released are the events that left held meanwhile, whose rows it may
	// still see as pending.
	fetching bool
	released eventSet
}

// eventSet is a set of events by their ids. It is nil while it is empty: most lanes have nothing to do most of the time, and
// there may be a hundred thousand of them.
type eventSet map[string]struct{}

func (s *eventSet) add(id string) {
	if *s == nil {
		*s = eventSet{}
	}
	(*s)[id] = struct{}{}
}

// remove takes an id out, and reports whether none is left.
func (s *eventSet) remove(id string) (empty bool) {
	if delete(*s, id); len(*s) == 0 {
		*s = nil
	}
	return *s == nil
}

func newLane(id string) *Lane {
	return &Lane{id: id, window: 1, dueIndex: -1}
}

// limit is how many attempts may be in flight now: never more than failures are left before the endpoint is disabled.
func (l *Lane) limit(cfg *Config) int {
	if l.isPaced(cfg) || l.isBlocked() {
		return 1
	}
	left := cfg.DisableAfter - l.failures
	if cfg.FailingInterval > 0 {
		left = max(1, left/2) // what is in flight together fails together, and the rest is to last
	}
	return min(l.window, cfg.EndpointConcurrency, left)
}

// canStart reports whether the lane has an attempt to make.
func (l *Lane) canStart(cfg *Config) bool {
	return l.off == "" && len(l.queue) > 0 && l.attempts < l.limit(cfg) && (l.trouble == nil || l.heldFor(cfg.Now()) == 0)
}

// wantsRefill reports whether the lane is to be refilled once it is due.
func (l *Lane) wantsRefill() bool {
	if l.off != "" || l.due.IsZero() || l.fetching || l.full {
		return false
	}
	if l.failures > 0 || l.isBlocked() {
		return len(l.queue)+l.attempts == 0 // what it holds may be all that it can use for long
	}
	return len(l.queue) <= refillBelow
}

// refillLimit is how many rows a refill brings a lane at most, beside those that it holds.
func (l *Lane) refillLimit(cfg *Config) int {
	switch {
	case l.isPaced(cfg):
		return 1
	case l.failures > 0, l.isBlocked():
		return restrainedRows
	}
	return refillLength
}

// dueHeap orders the lanes that want a refill by the time of it. It implements heap.Interface.
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
