package outbox

import "time"

// watermark tracks which batches are recorded completely. It tracks them in commit order. The low
// watermark is the end of the last transaction for which this holds: it and all earlier
// transactions are recorded. A watermark is not safe for concurrent use: the Ledger's goroutine
// owns it.
//
// A batch may leave some deliveries for later. They come in pieces, after other batches (Hold). The
// low watermark stays before the batch until all pieces have come and are recorded. Later batches
// are recorded meanwhile.
type watermark struct {
	entries []*entry // in the order in which they came; the first is the oldest open one
	low     LSN
	// busy reports that low has moved over a transaction with changes, and not only over idle
	// positions.
	busy bool
	// compacted is the number of entries that compact has left.
	compacted int
}

// entry is one batch.
type entry struct {
	end        LSN // zero if the transaction continues in the next entry
	idle       bool
	read       time.Time
	open       int         // deliveries without a row
	deliveries []*Delivery // nil when none is open, to free memory while the entry still waits
	// kept counts what keeps the entry open besides its deliveries: the hold that it opens, and the
	// open pieces of that hold. of is the entry of which this one is a piece.
	kept int
	of   *entry
}

func (e *entry) complete() bool { return e.open == 0 && e.kept == 0 }

// Hold keeps the watermark before a transaction because some of its deliveries come later. The code
// that tracks the first batch makes it. Its content belongs to the Ledger.
type Hold struct{ entry *entry }

// track adds a batch with its deliveries. Some may be recorded already, because records do not wait
// for their batch.
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

// compactAt is the least number of entries that compact works on.
const compactAt = 16

// compact joins neighboring entries that are complete and only wait for earlier ones. So the
// entries behind a hold do not fill memory.
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

// settle releases an entry's deliveries if none of them is open. If the entry is a piece of another
// one, that one no longer waits for it.
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

// recorded notes that d has its first row, or gets it in the group that is being built. Further
// calls for d change nothing.
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

// advance moves the low watermark over the entries that are complete.
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
		w.entries, w.compacted = nil, 0 // frees the array behind the slice
	}
}

// overdue calls park for the oldest deliveries that are not recorded and that were read at or
// before the deadline. It does so at most limit times. park must call recorded.
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

// oldest returns when the oldest open batch was read. It returns false if none is open.
func (w *watermark) oldest() (read time.Time, ok bool) {
	if len(w.entries) == 0 {
		return time.Time{}, false
	}
	return w.entries[0].read, true
}

// oldestUnrecorded returns when the oldest batch with a delivery that has no row was read. It
// returns false if there is none.
func (w *watermark) oldestUnrecorded() (read time.Time, ok bool) {
	for _, e := range w.entries {
		if e.open > 0 {
			return e.read, true
		}
	}
	return time.Time{}, false
}
