package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/quintago/webhook-agent/panics"
)

// lifetime is how long a term lasts, in two levels. When take ends, nothing new is taken in, and what is under way may end and be recorded.
// When alive ends, everything ends at once, and what is not recorded is repeated by whoever leads next.
type lifetime struct {
	take, alive context.Context
	stop        context.CancelCauseFunc // ends take
	kill        context.CancelCauseFunc // ends both
	note        func(*panics.Error)     // takes note of a panic
}

// newLifetime begins a lifetime. The end of ctx ends take; drain after take alive ends as well.
func newLifetime(ctx context.Context, drain time.Duration, note func(*panics.Error)) *lifetime {
	l := &lifetime{note: note}
	l.take, l.stop = context.WithCancelCause(ctx)
	var end context.CancelCauseFunc
	l.alive, end = context.WithCancelCause(context.WithoutCancel(ctx))
	l.kill = func(cause error) {
		l.stop(cause)
		end(cause)
	}
	// A database that is away may not keep the process for ever.
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

// caught takes note of a panic and ends take.
func (l *lifetime) caught(p *panics.Error) {
	l.note(p)
	l.stop(p)
}

// guarded wraps the function of a goroutine: a panic of it ends take.
func (l *lifetime) guarded(f func() error) func() error { return panics.Guard(l.caught, f) }

// vital is guarded for a goroutine without which nothing can go on: an error of it ends everything at once.
func (l *lifetime) vital(f func() error) func() error {
	return func() error {
		err := l.guarded(f)()
		if err != nil {
			l.kill(err)
		}
		return err
	}
}
