package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// An agent leads as long as the server counts the slot as its own, which the agent cannot see by
// itself. While its host hangs, or the network is cut, another agent can take over. The former
// leader then goes on with the deliveries in its memory until its next commit is refused. The epoch
// keeps it from recording; the lease keeps it from sending.
//
// The server closes a connection when it has heard nothing on it for wal_sender_timeout (10 s). An
// agent sends a message every two seconds and asks for an answer. So it leads for at least eight
// seconds after the latest answer. No attempt starts later than leaseTime after a look at the lease
// that found an answer not older than leaseHeard, which makes six seconds at most. No attempt
// starts while the stream is broken: the slot is free then, and a standby may take it at any
// moment.
const (
	leaseTick = 500 * time.Millisecond
	leaseTime = 3 * time.Second
	// leaseHeard is the greatest age of the server's latest answer. When it is older, the agent
	// asks the database who leads.
	leaseHeard = 3 * time.Second
	// leaseQuery limits the time for that question.
	leaseQuery = 2 * time.Second
)

// lease says whether this agent can be sure that it leads.
type lease struct {
	renewed atomic.Pointer[time.Time]
	broken  atomic.Bool // the stream is broken and being reconnected
}

// newLease returns a lease that was renewed now.
func newLease() *lease {
	l := &lease{}
	l.renew(time.Now())
	return l
}

func (l *lease) renew(at time.Time) { l.renewed.Store(&at) }

// holds reports whether an attempt may start. Many goroutines call it.
func (l *lease) holds() bool { return !l.broken.Load() && time.Since(*l.renewed.Load()) < leaseTime }

// keep renews the lease until ctx ends. heard returns when the server last answered. ask asks the
// database whether this agent still leads; it returns ErrFenced when another one has taken over,
// which ends keep. renewed is called after each renewal.
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
		// A late look means that the whole process was held up. Answers in the socket may be from
		// before that, so they prove nothing.
		late := looked.Sub(last) > leaseTime
		last = looked
		if late || time.Since(heard()) > leaseHeard {
			switch err := soon(ctx, ask); {
			case errors.Is(err, outbox.ErrFenced):
				return err
			case err != nil:
				continue // the ledger and the stream report the error, and the lease runs out
			}
		}
		l.renew(looked)
		renewed()
	}
}

// soon calls ask with at most leaseQuery of time.
func soon(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, leaseQuery)
	defer cancel()
	return ask(ctx)
}
