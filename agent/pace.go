package agent

import (
	"errors"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
)

// sameFor is how long the same error must last before the agent tries less often.
const sameFor = time.Minute

// pace returns the waits between the tries of an agent that does not lead. An error that may pass
// by waiting is tried again within five seconds. An error that a person has to solve, or that has
// lasted for sameFor, is tried again every fifteen seconds in the end: each try costs the server
// connections and lines in its log.
type pace struct {
	quick, slow retry.Backoff
	text        string    // of the last error
	since       time.Time // when that error came first
}

func newPace() *pace { return &pace{quick: backoff.New(), slow: backoff.NewSlow()} }

// next returns the wait after err.
func (p *pace) next(err error, now time.Time) time.Duration {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != p.text || p.since.IsZero() {
		p.text, p.since, p.slow = text, now, backoff.NewSlow()
	}
	wait, _ := p.quick.Next()
	if isFatal(err) || now.Sub(p.since) >= sameFor {
		slower, _ := p.slow.Next()
		wait = max(wait, slower)
	}
	return wait
}

// isFatal reports whether err is a Problem that waiting does not solve.
func isFatal(err error) bool {
	problem, isProblem := errors.AsType[*outbox.Problem](err)
	return isProblem && problem.Fatal
}
