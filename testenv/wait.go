package testenv

import (
	"testing"
	"time"
)

// pollInterval is the time between two looks at a cluster that starts or stops.
const pollInterval = 10 * time.Millisecond

// Eventually looks at something that gives no signal when it changes. The time between two looks
// grows from pollFirst to pollMost, because a look is a query or a request: tests that run side by
// side would need a whole processor for a hundred looks a second.
const (
	pollFirst = 5 * time.Millisecond
	pollMost  = 60 * time.Millisecond
)

// Eventually calls cond again and again until it returns nil. If that does not happen within
// timeout, it fails the test with the last error. Only the goroutine of the test may call it.
func Eventually(t testing.TB, timeout time.Duration, cond func() error) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	wait := pollFirst
	tick := time.NewTimer(wait)
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
			wait = min(wait*5/4+time.Millisecond, pollMost)
			tick.Reset(wait)
		}
	}
}

// OneGoroutine leaves the test out under -short, with which make race runs the tests. It is for a
// test whose work is done by PostgreSQL or by one goroutine: the race detector would find nothing
// there, and makes it slow. make test runs it, and continuous integration runs both.
func OneGoroutine(t testing.TB) {
	t.Helper()
	leaveOut(t, "it has one goroutine")
}

// OtherProcess leaves the test out under -short, as OneGoroutine does. It is for a test that runs
// the agent's binary: the binary is built without the race detector, which would find nothing.
func OtherProcess(t testing.TB) {
	t.Helper()
	leaveOut(t, "its agent is a process of its own, built without the race detector")
}

func leaveOut(t testing.TB, reason string) {
	t.Helper()
	if testing.Short() {
		t.Skip(reason + "; make test runs it") //nolint:forbidigo // it lacks nothing
	}
}
