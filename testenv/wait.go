package testenv

import (
	"testing"
	"time"
)

// pollInterval is the time between two looks at something that gives no signal when it changes.
const pollInterval = 10 * time.Millisecond

// Eventually calls cond again and again until it returns nil, and fails the test with its last error when that does not
// happen within timeout. It must be called from the goroutine of the test.
func Eventually(t testing.TB, timeout time.Duration, cond func() error) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %v", timeout, err)
		case <-tick.C:
		}
	}
}
