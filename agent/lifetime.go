package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/quintago/webhook-agent/panics"
)

// lifetime is the time of a term, in two levels. When take ends, nothing new is taken in, and
// attempts under way may end and be recorded. When alive ends, everything ends at once, and the
// next leader repeats what is not recorded.
type lifetime struct {
	take, alive context.Context         //nolint:containedctx // a lifetime is two contexts
	stop        context.CancelCauseFunc // ends take
	kill        context.CancelCauseFunc // ends both
	note        func(*panics.Error)     // counts and logs a panic
}

// newLifetime begins a lifetime. take ends with ctx. alive ends the duration drain after take. note
// is called with each panic.
func newLifetime(ctx context.Context, drain time.Duration, note func(*panics.Error)) *lifetime {
	l := &lifetime{note: note}
	l.take, l.stop = context.WithCancelCause(ctx)
	var end context.CancelCauseFunc
	l.alive, end = context.WithCancelCause(context.WithoutCancel(ctx))
	l.kill = func(cause error) {
		l.stop(cause)
		end(cause)
	}
	// A database that is away must not keep the process alive for ever.
	context.AfterFunc(l.take, panics.GuardFunc(note, func() { // ends with alive
		timer := time.NewTimer(drain)
		defer timer.Stop()
		select {
		case <-timer.C:
			l.kill(fmt.Errorf("delivery.shutdown_timeout (%s) has passed", drain))
		case <-l.alive.Done():
		}
	}))
	return l
}

// caught reports a panic and ends take.
func (l *lifetime) caught(p *panics.Error) {
	l.note(p)
	l.stop(p)
}

// guarded wraps the function of a goroutine: a panic in it ends take.
func (l *lifetime) guarded(f func() error) func() error { return panics.Guard(l.caught, f) }

// vital is guarded for a goroutine without which the term cannot go on: an error of it ends
// everything at once.
func (l *lifetime) vital(f func() error) func() error {
	return func() error {
		err := l.guarded(f)()
		if err != nil {
			l.kill(err)
		}
		return err
	}
}
