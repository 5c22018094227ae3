package outbox

import (
	"context"
	"slices"
	"time"
)

// Entry is one thing that Write hands to the Ledger: a *Record, a *Health, a ForgetHealth, a
// Missing, a StopMissing, a Disabling or a Replay.
type Entry interface{ entry() }

// Missing asks the Ledger to turn the pending rows of an endpoint into missed ones, in steps.
type Missing struct {
	EndpointID string
	Reason     string
	// Keep are the events whose attempts are under way. Their own records will say what came of
	// them.
	Keep []string
	// Removed reports that the endpoint is gone. Its health is removed as well.
	Removed bool
	// Version increases with each Missing, whichever endpoint it is for. It is needed because a
	// Missing and a StopMissing may overtake each other.
	Version int
}

// StopMissing ends what Missing has begun for an endpoint, because deliveries can be sent to it
// again. It ends versions up to this one.
type StopMissing struct {
	EndpointID string
	Version    int
}

// ForgetHealth asks the Ledger to delete the recorded health of an endpoint, before it writes any
// other that follows.
type ForgetHealth struct{ EndpointID string }

// jobEntry is a job that this package itself has made.
type jobEntry struct{ job }

func (*Record) entry()      {}
func (*Health) entry()      {}
func (ForgetHealth) entry() {}
func (Missing) entry()      {}
func (StopMissing) entry()  {}
func (Disabling) entry()    {} // outside a record, it disables the endpoint
func (Replay) entry()       {} // may be written again while it is under way
func (jobEntry) entry()     {}

// writeLength bounds the entries that the Ledger takes at a time. A group is full at groupRows, and
// may exceed that by so many.
const writeLength = 512

// Write hands entries to the Ledger, in this order. It waits while the Ledger's queue is full.
func (l *Ledger) Write(ctx context.Context, entries ...Entry) error {
	for part := range slices.Chunk(entries, writeLength) {
		select {
		case l.entries <- part:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// take adds what Write has sent to the group, or to the jobs.
func (l *Ledger) take(g *group, entries []Entry) {
	for _, e := range entries {
		switch e := e.(type) {
		case *Record:
			g.add(e)
			l.mark.recorded(e.Delivery)
			l.takeHealth(g, e.Health)
		case *Health:
			l.takeHealth(g, e)
		case ForgetHealth:
			g.forgetHealth(e.EndpointID)
		case Missing:
			l.miss(e)
		case StopMissing:
			if l.missing.stop(e.EndpointID, e.Version) {
				// The endpoint that has this id now begins with no failures.
				g.forgetHealth(e.EndpointID)
			}
			l.stopped.Add(e.EndpointID, e.Version, time.Now())
		case Disabling:
			l.jobs = append(l.jobs, &disableJob{Disabling: e, announcer: l.announcer})
		case Replay:
			l.replay(e)
		case jobEntry:
			l.jobs = append(l.jobs, e.job)
		}
	}
}
