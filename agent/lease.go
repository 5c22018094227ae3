package agent

import (
	"context"
	"errors"
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

// leads tells whether an attempt may start. It is called by many goroutines.
func (s *session) leads() bool {
	return !s.broken.Load() && time.Since(*s.lease.Load()) < leaseTime
}

// keepLease renews the lease until ctx ends, or returns ErrFenced when another agent has taken over.
func (s *session) keepLease(ctx context.Context) error {
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
		if late || time.Since(s.tailer.Heard()) > leaseHeard {
			switch err := s.askLeader(ctx); {
			case errors.Is(err, outbox.ErrFenced):
				return err
			case err != nil:
				continue // it shows elsewhere; the lease runs out
			}
		}
		s.lease.Store(&looked)
		s.lanes.Resume() // what did not start while the lease had run out
	}
}

// askLeader returns ErrFenced when another agent has taken over.
func (s *session) askLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseQuery)
	defer cancel()
	return s.slot.CheckEpoch(ctx, s.term)
}
