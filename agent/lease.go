package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// An agent leads as long as the server regards the slot as its own, which it cannot see by itself: while the agent's host
// hangs, or the network is cut, another agent takes over, and the former leader goes on with what it has in memory until
// its next commit is refused. The epoch keeps it from recording anything; the lease keeps it from sending.
//
// The server gives up a connection wal_sender_timeout (10 s) after it last heard from it. An agent tells it something every two
// seconds and asks for an answer, so from the last answer on it has led for eight more seconds at least. No attempt starts
// leaseTime after the last look at the lease that found an answer not older than leaseHeard, which is six seconds at most. None
// starts either while the stream is broken: the slot is free then, and a standby may have it at any moment.
const (
	leaseTick = 500 * time.Millisecond
	leaseTime = 3 * time.Second
	// leaseHeard is how old the server's last word may be. When it is older the database is asked who leads.
	leaseHeard = 3 * time.Second
	// leaseQuery bounds that question.
	leaseQuery = 2 * time.Second
)

// lease is how long this agent may be sure that it leads.
type lease struct {
	renewed atomic.Pointer[time.Time]
	broken  atomic.Bool // the stream is down and being reconnected
}

// newLease makes one that is fresh.
func newLease() *lease {
	l := &lease{}
	l.renew(time.Now())
	return l
}

func (l *lease) renew(at time.Time) { l.renewed.Store(&at) }

// holds reports whether an attempt may start. It is called by many goroutines.
func (l *lease) holds() bool { return !l.broken.Load() && time.Since(*l.renewed.Load()) < leaseTime }

// keep renews the lease until ctx ends. Heard returns when the server was heard last. Ask asks the database whether this agent still leads
// and returns ErrFenced when another one has taken over, which ends keep. Renewed is called after each renewal.
func (l *lease) keep(ctx context.Context, heard func() time.Time, ask func(context.Context) error, renewed func()) error {
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		looked := time.Now()
		// A look that comes late was held up with the whole process, and what is in the socket may be from before that.
		late := looked.Sub(last) > leaseTime
		last = looked
		if late || time.Since(heard()) > leaseHeard {
			switch err := soon(ctx, ask); {
			case errors.Is(err, outbox.ErrFenced):
				return err
			case err != nil:
				continue // it shows elsewhere; the lease runs out
			}
		}
		l.renew(looked)
		renewed()
	}
}

// soon asks within leaseQuery.
func soon(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, leaseQuery)
	defer cancel()
	return ask(ctx)
}
