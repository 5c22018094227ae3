package outbox

import (
	"context"
	"sync/atomic"
	"time"
)

// Clock is the database's clock. Between two readings of it, the monotonic clock of this host
// carries it on. Due times are written and compared by this clock. So a host's clock that is wrong
// or jumps moves no retry, and agents on two hosts agree. Its methods are safe for concurrent use.
type Clock struct{ last atomic.Pointer[reading] }

// reading pairs a time of the database's clock with a time of this host's clock.
type reading struct{ there, here time.Time }

// Now returns the time by the database's clock. Before the first reading it returns the time by
// this host's clock.
func (c *Clock) Now() time.Time {
	r := c.last.Load()
	if r == nil {
		return time.Now()
	}
	return r.there.Add(time.Since(r.here))
}

// set records that the database's clock showed there at some moment between sent and now. It keeps
// the former reading if that agrees within half a round trip. Otherwise each reading would move the
// clock a little.
func (c *Clock) set(there, sent time.Time) (ahead time.Duration) {
	uncertain := time.Since(sent) / 2
	here := sent.Add(uncertain)
	if r := c.last.Load(); r == nil || there.Sub(r.there.Add(here.Sub(r.here))).Abs() > uncertain {
		c.last.Store(&reading{there, here})
	}
	return there.Sub(here)
}

// Clock returns the database's clock. TakeOver and Vitals read it.
func (db *DB) Clock() *Clock { return &db.clock }

// readClock reads the database's clock and returns how far it is ahead of this host's. It assumes
// that the database read its clock in the middle of the round trip.
func (db *DB) readClock(ctx context.Context, q querier) (ahead time.Duration, err error) {
	var there time.Time
	sent := time.Now()
	if err := q.QueryRow(ctx, selectClock).Scan(&there); err != nil {
		return 0, err
	}
	return db.clock.set(there, sent), nil
}
