package outbox

import (
	"time"

	"github.com/sethvargo/go-retry"
)

// NewBackoff is the schedule for whatever waits for PostgreSQL: exponential from a tenth of a second, with jitter, at most
// five seconds. The cap stands outside the jitter, which could exceed it otherwise.
func NewBackoff() retry.Backoff {
	return retry.WithCappedDuration(5*time.Second, retry.WithJitterPercent(20, retry.NewExponential(100*time.Millisecond)))
}
