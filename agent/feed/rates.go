package feed

import (
	"sync"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// RateMinutes is how many minutes Rates covers.
const RateMinutes = 60

// Minute counts what was recorded in a minute.
type Minute struct {
	Succeeded, Failed, Missed int64
	// Retried are attempts that have failed and are made again.
	Retried int64
}

// rates counts what this agent records by minute. All methods are safe for concurrent use.
type rates struct {
	mu      sync.Mutex
	minutes [RateMinutes]Minute
	last    int64 // the minute that was counted last, since 1970
}

// count counts records.
func (r *rates) count(now time.Time, records []*outbox.Record) {
	var m Minute
	for _, record := range records {
		switch record.Status {
		case outbox.Succeeded:
			m.Succeeded++
		case outbox.Failed:
			m.Failed++
		case outbox.Missed:
			m.Missed++
		case outbox.Pending:
			if record.Attempt != nil {
				m.Retried++
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	slot := r.advance(now)
	slot.Succeeded += m.Succeeded
	slot.Failed += m.Failed
	slot.Missed += m.Missed
	slot.Retried += m.Retried
}

// advance returns the count of the minute that runs, and clears those that have passed without one.
func (r *rates) advance(now time.Time) *Minute {
	minute := now.Unix() / 60
	for n := max(r.last+1, minute-RateMinutes+1); n <= minute; n++ {
		r.minutes[n%RateMinutes] = Minute{}
	}
	r.last = max(r.last, minute)
	return &r.minutes[minute%RateMinutes]
}

// Rates returns what this agent has recorded in each of the last RateMinutes minutes, oldest first.
// The last one is that which runs.
func (f *Feed) Rates() []Minute {
	r := &f.rates
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(f.now())
	out := make([]Minute, RateMinutes)
	for i := range out {
		out[i] = r.minutes[(r.last+1+int64(i))%RateMinutes]
	}
	return out
}
