package feed

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

const (
	// tailRows is how many of the newest rows are kept for the pages of a venue, and mostRows how many
	// of them a page gets at a time: nobody reads more of them in a few seconds.
	tailRows, mostRows = 256, 40
	// tailIdle is how long they are kept after the last page has asked. Pages ask more often.
	tailIdle = 30 * time.Second
	// maxTails bounds the venues whose rows are kept.
	maxTails = 1000
)

// tail has the newest rows of a venue. The Feed's mutex guards it.
type tail struct {
	rows  [tailRows]outbox.DeliveryInfo
	added int64 // rows so far: row n is at n % tailRows
	asked time.Time
}

func (t *tail) add(d outbox.DeliveryInfo) {
	t.rows[t.added%tailRows] = d
	t.added++
}

// Tail is what a page gets that follows the delivery log.
type Tail struct {
	Rows []outbox.DeliveryInfo // oldest first, without their Cursor
	// Position is where the next call goes on.
	Position int64
	// LeftOut is how many rows were too many: those that were not kept, before the filter, and those
	// that fit.
	LeftOut int64
}

// Tail returns what fits the filter and was recorded after a position, that of the call before. A
// negative position stands for now. The error is about the filter's type.
func (f *Feed) Tail(filter outbox.DeliveryFilter, position int64) (Tail, error) {
	match, err := newMatcher(filter)
	if err != nil {
		return Tail{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tails[filter.Venue]
	if t == nil {
		f.dropIdle()
		if len(f.tails) >= maxTails {
			return Tail{Position: -1}, nil
		}
		t = &tail{}
		f.tails[filter.Venue] = t
		f.lookLocked()
	}
	t.asked = f.now()
	out := Tail{Position: t.added}
	if position < 0 || position > t.added { // a page that just opened, or one of a former list
		return out, nil
	}
	first := max(position, t.added-tailRows)
	out.LeftOut = first - position
	for n := first; n < t.added; n++ {
		d := t.rows[n%tailRows]
		if match.fits(d.Venue, d.EndpointID, d.EventID, d.Type, d.Status) {
			out.Rows = append(out.Rows, d)
		}
	}
	if more := len(out.Rows) - mostRows; more > 0 {
		out.Rows = out.Rows[more:]
		out.LeftOut += int64(more)
	}
	return out, nil
}

// Seen adds rows that another agent has recorded, as the database has them.
func (f *Feed) Seen(rows []outbox.DeliveryInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range rows {
		for _, venue := range []string{"", d.Venue} {
			if t := f.tails[venue]; t != nil {
				t.add(d)
			}
		}
	}
}

// dropIdle forgets the tails of pages that are closed.
func (f *Feed) dropIdle() {
	now := f.now()
	for venue, t := range f.tails {
		if now.Sub(t.asked) > tailIdle {
			delete(f.tails, venue)
		}
	}
	f.lookLocked()
}
