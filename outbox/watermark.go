package outbox

import "time"

// watermark tracks which batches are recorded completely. Batches are tracked in commit order; the low watermark is
// the end of the last transaction before which, itself included, nothing is open. It is not safe for concurrent use:
// the Ledger's goroutine owns it.
type watermark struct {
	entries []*entry // in commit order; the head is the oldest that is open
	low     LSN
	// busy tells that low has moved over a transaction with changes, not over idle positions only.
	busy bool
}

// entry is one batch.
type entry struct {
	end        LSN // zero when the transaction goes on in the next entry
	idle       bool
	read       time.Time
	open       int // deliveries without a row
	deliveries []*Delivery
}

// track adds a batch with its deliveries. Some may be recorded already: results do not wait for the batch that they
// belong to.
func (w *watermark) track(b *Tracked) {
	e := &entry{end: b.End, idle: b.Idle, read: b.Read, deliveries: b.Deliveries}
	for _, d := range b.Deliveries {
		if !d.recorded {
			d.entry = e
			e.open++
		}
	}
	w.entries = append(w.entries, e)
	w.advance()
}

// recorded notes that d has, or in the group being built gets, its first row. Further calls for d change nothing.
func (w *watermark) recorded(d *Delivery) {
	if d.recorded {
		return
	}
	d.recorded = true
	if d.entry != nil {
		d.entry.open--
		d.entry = nil
	}
}

// advance moves the low watermark over what is complete.
func (w *watermark) advance() {
	n := 0
	for _, e := range w.entries {
		if e.open > 0 {
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
		w.entries = nil // frees the array that the slice has walked along
	}
}

// overdue calls park for each delivery that is not recorded and was read at or before the deadline. park must call
// recorded.
func (w *watermark) overdue(deadline time.Time, park func(*Delivery)) {
	for _, e := range w.entries {
		if e.read.After(deadline) {
			return
		}
		for _, d := range e.deliveries {
			if !d.recorded {
				park(d)
			}
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
