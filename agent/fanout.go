package agent

import (
	"slices"
	"time"

	"github.com/quintago/webhook-agent/agent/tracing"
	"github.com/quintago/webhook-agent/outbox"
)

// The stream is in commit order, and the fan-out of an event has no limit: a venue may have
// thousands of endpoints, and a transaction thousands of events. So everything is done in pieces.
//
// An event that many endpoints want must not delay the next transaction. The router puts it into
// the backlog, together with the endpoints that want it at that moment. It goes on with the stream,
// and hands over a piece of the backlog now and then. The ledger keeps the position before the
// transaction until the last piece is recorded (outbox.Hold). So an agent that dies meanwhile gets
// the transaction again, and skips the deliveries that have a row.

const (
	// pieceLength is how many deliveries are looked up, offered and tracked at a time.
	pieceLength = 1000
	// wideFanout is how many endpoints must want an event for it to go to the backlog, once its
	// transaction has brought pieceLength deliveries. When a transaction has brought
	// longTransaction deliveries, each further event goes to the backlog that more than one
	// endpoint wants.
	wideFanout      = 32
	longTransaction = 5 * pieceLength
	// backlogShare is the part of delivery.queue_memory that the backlog may use: an eighth. The
	// stream waits while the backlog uses more.
	backlogShare = 8
	// subscriptionBytes is the memory of one element in a list of subscriptions. wideEventBytes is
	// that of an event without its data.
	subscriptionBytes = 8
	wideEventBytes    = 512
)

// matched is an event on its way to the endpoints that want it.
type matched struct {
	event     *outbox.Event
	at        outbox.Subject
	committed time.Time
	loaded    bool           // the loaded state contains its transaction
	deferred  bool           // it went to the backlog
	trace     *tracing.Event // nil if it is not traced
	envelope  []byte
}

// body returns the envelope. All deliveries of the event share it.
func (m *matched) body() []byte {
	if m.envelope == nil {
		m.envelope = m.event.Envelope()
	}
	return m.envelope
}

// pairing is an event and one endpoint that wants it.
type pairing struct {
	*matched
	sub *subscription
}

// wide is an event in the backlog.
type wide struct {
	*matched
	// Those that wanted it when it was committed; events with the same ones share the list.
	subs  []*subscription
	next  int // index of the next one in subs
	hold  *outbox.Hold
	last  bool // it is the last event with this hold
	bytes int
}

// backlog has the events that many endpoints want, in commit order. It belongs to the router's
// goroutine.
type backlog struct {
	queue []*wide
	bytes int
	keys  map[eventKey]int // how often each event is in queue

	// shared is the list of subscriptions of the latest event. The next event uses it too if it has
	// the same, as most events of one venue and type have.
	shared     []*subscription
	pieceTook  time.Duration
	pieceEnded time.Time
}

// eventKey identifies an event.
type eventKey struct {
	id, venue, typ string
	created        int64
}

func keyOf(e *outbox.Event) eventKey { return eventKey{e.ID, e.Venue, e.Type, e.Created.UnixMicro()} }

// holds reports whether an event is in the backlog.
func (b *backlog) holds(e *outbox.Event) bool { return b.keys[keyOf(e)] > 0 }

// add appends an event.
func (b *backlog) add(m *matched, subs []*subscription, hold *outbox.Hold) {
	m.deferred = true
	w := &wide{matched: m, hold: hold, bytes: len(m.event.Data) + wideEventBytes}
	if !slices.Equal(b.shared, subs) {
		b.shared = slices.Clone(subs) // the caller reuses subs for the next event
		w.bytes += subscriptionBytes * len(subs)
	}
	w.subs = b.shared
	b.bytes += w.bytes
	if b.keys == nil {
		b.keys = map[eventKey]int{}
	}
	b.keys[keyOf(m.event)]++
	b.queue = append(b.queue, w)
}

// piece takes up to pieceLength deliveries of one hold out of the backlog. last reports that the
// hold has no further ones.
func (b *backlog) piece() (pairings []pairing, hold *outbox.Hold, last bool) {
	hold = b.queue[0].hold
	for len(b.queue) > 0 && len(pairings) < pieceLength && !last {
		w := b.queue[0]
		n := min(pieceLength-len(pairings), len(w.subs)-w.next)
		for _, sub := range w.subs[w.next : w.next+n] {
			pairings = append(pairings, pairing{w.matched, sub})
		}
		if w.next += n; w.next < len(w.subs) {
			break
		}
		last = w.last
		b.bytes -= w.bytes
		key := keyOf(w.event)
		if b.keys[key]--; b.keys[key] == 0 {
			delete(b.keys, key)
		}
		b.queue[0] = nil
		if b.queue = b.queue[1:]; len(b.queue) == 0 {
			b.queue, b.shared = nil, nil // frees the underlying array
		}
	}
	return pairings, hold, last
}

// due reports whether it is the backlog's turn although the stream has more. Each gets half of the
// time.
func (b *backlog) due() bool {
	return len(b.queue) > 0 && time.Since(b.pieceEnded) >= b.pieceTook
}

// isWide reports whether an event that n endpoints want goes to the backlog. before is how many
// deliveries its transaction has brought so far.
func isWide(n, before int) bool {
	return n >= wideFanout && before+n > pieceLength || n > 1 && before > longTransaction
}
