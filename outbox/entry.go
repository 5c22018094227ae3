package outbox

import (
	"context"
	"slices"
	"time"
)

// Entry is one thing that the Ledger takes in with Write: a *Record, a *Health, a Missing, a StopMissing, a Disabling or a
// Replay.
type Entry interface{ entry() }

// Missing asks for the pending rows of an endpoint to become missed, in steps.
type Missing struct {
	EndpointID string
	Reason     string
	// Keep are events whose attempts are under way: their records say what came of them.
	Keep []string
	// Removed reports that the endpoint is gone, and its health with it.
	Removed bool
	// Version counts up with each Missing, whatever the endpoint. Missing and StopMissing may overtake each other.
	Version int
}

// StopMissing ends what Missing has begun for an endpoint, for versions up to this one, because it can be sent to again.
type StopMissing struct {
	EndpointID string
	Version    int
}

// jobEntry is a job of the package's own.
type jobEntry struct{ job }

func (*Record) entry()     {}
func (*Health) entry()     {}
func (Missing) entry()     {}
func (StopMissing) entry() {}
func (Disabling) entry()   {} // the endpoint, outside a record
func (Replay) entry()      {} // may be written again for one that is under way
func (jobEntry) entry()    {}

// writeLength bounds the entries that the Ledger takes in at once. A group is full at groupRows, and may be beyond that by so
// many.
const writeLength = 512

// Write takes entries in, in this order. It waits while the Ledger's queue is full.
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

// take takes in what Write has sent.
func (l *Ledger) take(g *group, entries []Entry) {
	for _, e := range entries {
		switch e := e.(type) {
		case *Record:
			g.add(e)
			l.mark.recorded(e.Delivery)
			l.takeHealth(g, e.Health)
		case *Health:
			l.takeHealth(g, e)
		case Missing:
			l.miss(e)
		case StopMissing:
			if l.missing.stop(e.EndpointID, e.Version) {
				g.forgetHealth(e.EndpointID) // the endpoint that has its id now begins with no failures
			}
			l.stopped.add(e, time.Now())
		case Disabling:
			l.jobs = append(l.jobs, &disableJob{Disabling: e})
		case Replay:
			l.jobs = append(l.jobs, &replayJob{Replay: e})
		case jobEntry:
			l.jobs = append(l.jobs, e.job)
		}
	}
}
