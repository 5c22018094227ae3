package outbox

import "time"

// watermark tracks which batches are recorded completely. Batches are tracked in commit order; the low watermark is
// the end of the last transaction before which, itself included, nothing is open. It is not safe for concurrent use:
// the Ledger's goroutine owns it.
//
// A batch may leave deliveries for later, which come in pieces behind other batches (Hold). The low watermark stands
// before it until all of them have come and are recorded; the batches behind it are recorded meanwhile.
type watermark struct {
	entries []*entry // in the order they came; the head is the oldest that is open
	low     LSN
	// busy tells that low has moved over a transaction with changes, not over idle positions only.
	busy bool
	// compacted is how many entries compact has left.
	compacted int
}

// entry is one batch.
type entry struct {
	end        LSN // zero when the transaction goes on in the next entry
	idle       bool
	read       time.Time
	open       int         // deliveries without a row
	deliveries []*Delivery // nil once none is open, since what is held back may take long
	// kept counts what keeps the entry open beside its deliveries: the hold that it opens, and the
	// pieces of that which are open. of is the entry that this one is a piece of.
	kept int
	of   *entry
}

func (e *entry) complete() bool { return e.open == 0 && e.kept == 0 }

// Hold keeps the watermark before a transaction some of whose deliveries come later. It is made by who tracks the
// batch that opens it; its content belongs to the Ledger.
type Hold struct{ entry *entry }

// track adds a batch with its deliveries. Some may be recorded already: records do not wait for the batch that they
// belong to.
func (w *watermark) track(b *Tracked) {
	e := &entry{end: b.End, idle: b.Idle, read: b.Read, deliveries: b.Deliveries}
	if b.Opens != nil {
		b.Opens.entry, e.kept = e, 1
	}
	if b.Piece != nil {
		e.of = b.Piece.entry
		e.of.kept++
	}
	for _, d := range b.Deliveries {
		if !d.recorded {
			d.entry = e
			e.open++
		}
	}
	if b.Last {
		b.Piece.entry.kept--
	}
	w.settle(e)
	w.entries = append(w.entries, e)
	w.advance()
	w.compact()
}

// compactAt is how many entries are worth a look for those that can be joined.
const compactAt = 16

// compact joins neighbors that are complete and only wait for earlier ones, so that what comes behind a hold takes no
// room.
func (w *watermark) compact() {
	if len(w.entries) < max(compactAt, 2*w.compacted) {
		return
	}
	n := 0
	for _, e := range w.entries {
		if n > 0 && e.complete() && w.entries[n-1].complete() {
			before := w.entries[n-1]
			before.end, before.idle = max(before.end, e.end), before.idle && e.idle
			continue
		}
		w.entries[n] = e
		n++
	}
	clear(w.entries[n:])
	w.entries, w.compacted = w.entries[:n], n
}

// settle lets go of an entry's deliveries when none of them is open, and tells the entry that it is a piece of.
func (w *watermark) settle(e *entry) {
	if e.open > 0 {
		return
	}
	e.deliveries = nil
	if e.of != nil {
		e.of.kept--
		e.of = nil
	}
}

// recorded notes that d has, or in the group being built gets, its first row. Further calls for d change nothing.
func (w *watermark) recorded(d *Delivery) {
	if d.recorded {
		return
	}
	d.recorded = true
	if e := d.entry; e != nil {
		d.entry = nil
		e.open--
		w.settle(e)
	}
}

// advance moves the low watermark over what is complete.
func (w *watermark) advance() {
	n := 0
	for _, e := range w.entries {
		if !e.complete() {
			break
		}
		if e.end > w.low {
			w.low = e.end
		}
		if !e.idle {
			w.busy = true
		}
		w.entries[n] = nil
		n++
	}
	if w.entries = w.entries[n:]; len(w.entries) == 0 {
		w.entries, w.compacted = nil, 0 // frees the array that the slice has walked along
	}
}

// overdue calls park for the oldest deliveries that are not recorded and were read at or before the deadline, at most
// limit of them. park must call recorded.
func (w *watermark) overdue(deadline time.Time, limit int, park func(*Delivery)) {
	for _, e := range w.entries {
		if e.read.After(deadline) {
			return
		}
		for _, d := range e.deliveries {
			if d.recorded {
				continue
			}
			if limit == 0 {
				return
			}
			limit--
			park(d)
		}
	}
}

// oldest returns when the oldest open batch was read, and false when none is open.
func (w *watermark) oldest() (read time.Time, ok bool) {
	if len(w.entries) == 0 {
		return time.Time{}, false
	}
	return w.entries[0].read, true
}

// oldestUnrecorded returns when the oldest batch with a delivery that has no row was read, and false when there is
// none.
func (w *watermark) oldestUnrecorded() (read time.Time, ok bool) {
	for _, e := range w.entries {
		if e.open > 0 {
			return e.read, true
		}
	}
	return time.Time{}, false
}
