package agent

import (
	"errors"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
)

// sameFor is how long an agent fails in the same way before it tries less often.
const sameFor = time.Minute

// pace says how long an agent that does not lead waits before it tries again. What waiting may mend is tried again
// within five seconds. What a person has to mend, and what has been the same for sameFor, ends in one try every
// fifteen seconds: each try costs the server connections and lines in its log.
type pace struct {
	quick, slow retry.Backoff
	text        string    // of the last error
	since       time.Time // when it came first
}

func newPace() *pace { return &pace{quick: backoff.New(), slow: backoff.NewSlow()} }

// next returns how long to wait after err.
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

// isFatal reports whether err is a Problem that waiting does not mend.
func isFatal(err error) bool {
	problem, isProblem := errors.AsType[*outbox.Problem](err)
	return isProblem && problem.Fatal
}
