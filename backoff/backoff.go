package backoff

import (
	"time"

	"github.com/sethvargo/go-retry"
)

// New is the schedule for whatever waits for PostgreSQL: exponential from a tenth of a second, with jitter, at most five seconds.
func New() retry.Backoff { return capped(5 * time.Second) }

// NewSlow is the schedule for what does not mend by waiting. It begins as New does and goes on to fifteen seconds.
func NewSlow() retry.Backoff { return capped(15 * time.Second) }

// capped has the cap stand outside the jitter, which could exceed it otherwise.
func capped(longest time.Duration) retry.Backoff {
	return retry.WithCappedDuration(longest, retry.WithJitterPercent(20, retry.NewExponential(100*time.Millisecond)))
}
