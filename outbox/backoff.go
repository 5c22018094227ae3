package outbox

import (
	"time"

	"github.com/sethvargo/go-retry"
)

// NewBackoff is the schedule for whatever waits for PostgreSQL: exponential from a tenth of a second, with jitter, at most
// five seconds.
func NewBackoff() retry.Backoff { return newBackoff(5 * time.Second) }

// NewSlowBackoff is the schedule for what does not mend by waiting. It begins as NewBackoff does and goes on to fifteen seconds.
func NewSlowBackoff() retry.Backoff { return newBackoff(15 * time.Second) }

// newBackoff has the cap stand outside the jitter, which could exceed it otherwise.
func newBackoff(longest time.Duration) retry.Backoff {
	return retry.WithCappedDuration(longest, retry.WithJitterPercent(20, retry.NewExponential(100*time.Millisecond)))
}
