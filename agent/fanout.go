package agent

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// The stream is in commit order, and what an event fans out to has no bound: a venue may have thousands of endpoints,
// and a transaction thousands of events. Everything is therefore done in pieces, and an event that is wanted by many
// endpoints does not keep the next transaction waiting: the router puts it into the backlog with the endpoints that
// wanted it at that moment, goes on with the stream, and hands over a piece of the backlog now and then. The ledger
// holds the watermark before the transaction until the last piece is recorded (outbox.Hold), so an agent that dies
// meanwhile gets the transaction again, and passes over what has its row.

const (
	// pieceLength is how many deliveries are looked up, offered and tracked at a time.
	pieceLength = 1000
	// wideFanout is how many endpoints must want an event for it to be put into the backlog, once its transaction has
	// brought a piece of deliveries. One that has brought longTransaction puts every event there that more than one wants.
	wideFanout      = 32
	longTransaction = 5 * pieceLength
	// backlogShare is the part of the memory for events that the backlog may take. While it takes more, the stream
	// waits.
	backlogShare = 8
	// subscriptionBytes is what one place in a list of endpoints takes, and wideEventBytes an event beside its data.
	subscriptionBytes = 8
	wideEventBytes    = 512
)

// matched is an event on its way to the endpoints that want it.
type matched struct {
	event     *outbox.Event
	at        outbox.Subject
	committed time.Time
	loaded    bool // the state that was loaded contains its transaction
	deferred  bool // it was put into the backlog
	envelope  []byte
}

// body returns the envelope, which all deliveries share.
func (m *matched) body() []byte {
	if m.envelope == nil {
		m.envelope = m.event.Envelope()
	}
	return m.envelope
}

// pairing is an event with an endpoint that wants it.
type pairing struct {
	*matched
	sub *subscription
}

// wide is an event in the backlog.
type wide struct {
	*matched
	subs  []*subscription // those that wanted it when it was committed, shared by events of the same type
	next  int             // of subs
	hold  *outbox.Hold
	last  bool // no other event has the same hold after it
	bytes int
}

// backlog holds the events that many endpoints want, in commit order. It belongs to the router's goroutine.
type backlog struct {
	queue []*wide
	bytes int
	keys  map[eventKey]int // how often an event stands in queue

	// shared is the list of the latest event, for the next one of the same venue and type. It is good until a
	// subscription changes.
	shared          []*subscription
	venue, typ      string
	pieceTook       time.Duration
	pieceEnded      time.Time
	sharedIsCurrent bool
}

// eventKey is what tells an event from others.
type eventKey struct {
	id, venue, typ string
	created        int64
}

func keyOf(e *outbox.Event) eventKey { return eventKey{e.ID, e.Venue, e.Type, e.Created.UnixMicro()} }

// holds reports whether an event waits in the backlog.
func (b *backlog) holds(e *outbox.Event) bool { return b.keys[keyOf(e)] > 0 }

// add puts an event at the end.
func (b *backlog) add(m *matched, subs []*subscription, hold *outbox.Hold) {
	m.deferred = true
	w := &wide{matched: m, hold: hold, bytes: len(m.event.Data) + wideEventBytes}
	if !b.sharedIsCurrent || b.venue != m.event.Venue || b.typ != m.event.Type {
		b.shared = append([]*subscription(nil), subs...) // subs is used again for the next event
		b.venue, b.typ, b.sharedIsCurrent = m.event.Venue, m.event.Type, true
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

// piece takes the next deliveries of one hold out.
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
			b.queue, b.shared, b.sharedIsCurrent = nil, nil, false // frees what it has walked along
		}
	}
	return pairings, hold, last
}

// due reports whether the backlog has its turn while the stream has more: each gets half of the time.
func (b *backlog) due() bool {
	return len(b.queue) > 0 && time.Since(b.pieceEnded) >= b.pieceTook
}

// isWide reports whether an event for n endpoints is put into the backlog, given how many deliveries its transaction has
// brought before.
func isWide(n, before int) bool {
	return n >= wideFanout && before+n > pieceLength || n > 1 && before > longTransaction
}
