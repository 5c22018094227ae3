package backoff

import (
	"time"

	"github.com/sethvargo/go-retry"
)

// New returns the waits between tries for everything that waits for PostgreSQL. They begin at 0.1
// s, double, have a jitter of 20 %, and are at most 5 s. The result is stateful: use a new one for
// each trouble.
func New() retry.Backoff { return capped(5 * time.Second) }

// NewSlow returns the waits for what does not get well by waiting. They begin as those of New and
// go up to 15 s.
func NewSlow() retry.Backoff { return capped(15 * time.Second) }

// capped applies the limit after the jitter. Otherwise the jitter could exceed the limit.
func capped(longest time.Duration) retry.Backoff {
	return retry.WithCappedDuration(longest, retry.WithJitterPercent(20, retry.NewExponential(100*time.Millisecond)))
}
