package outbox

import (
	"context"
	"sync/atomic"
	"time"
)

// Clock is the database's clock, carried on between two looks at it by this host's monotonic one. Due times are written and
// compared by it, so that a host's clock that is wrong or jumps moves no retry, and agents on two hosts agree. Its methods are
// safe for concurrent use.
type Clock struct{ last atomic.Pointer[reading] }

// reading is what the database's clock showed at a moment of this host's.
type reading struct{ there, here time.Time }

// Now returns the time by the database's clock, and by this host's before the first look.
func (c *Clock) Now() time.Time {
	r := c.last.Load()
	if r == nil {
		return time.Now()
	}
	return r.there.Add(time.Since(r.here))
}

// set takes in what the database's clock showed between sent and now. As long as what is known already lies within that, it
// stays: each round trip would move the clock a little to and fro.
func (c *Clock) set(there, sent time.Time) (ahead time.Duration) {
	uncertain := time.Since(sent) / 2
	here := sent.Add(uncertain)
	if r := c.last.Load(); r == nil || there.Sub(r.there.Add(here.Sub(r.here))).Abs() > uncertain {
		c.last.Store(&reading{there, here})
	}
	return there.Sub(here)
}

// Clock returns the database's clock. TakeOver and Vitals look at it.
func (db *DB) Clock() *Clock { return &db.clock }

// readClock looks at the clock and returns how far it is ahead of this host's, taking what it shows for the middle of the round
// trip.
func (db *DB) readClock(ctx context.Context, q querier) (ahead time.Duration, err error) {
	var there time.Time
	sent := time.Now()
	if err := q.QueryRow(ctx, selectClock).Scan(&there); err != nil {
		return 0, err
	}
	return db.clock.set(there, sent), nil
}
