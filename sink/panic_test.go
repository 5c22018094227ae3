package sink

import (
	"context"
	"fmt"
	"testing"
)

// panickyDial is a context that panics during the dial, where net asks it for a trace.
type panickyDial struct{ context.Context }

func (c panickyDial) Value(key any) any {
	if fmt.Sprintf("%T", key) == "nettrace.TraceKey" {
		panic("sentinel")
	}
	return c.Context.Value(key)
}

func TestAttempt_TurnsAPanicOfTheDialIntoAFailureOfItsOwn(t *testing.T) {
	w := newTestWebhook(t, nil)
	got := w.Attempt(panickyDial{t.Context()}, requestTo("http://127.0.0.1:1").of(w))
	checkClass(t, got, ClassInternalError, 0, "a fault of the agent itself")
	checkNoSentinel(t, got)
	if got.Panic == nil {
		t.Error("the result tells of no panic")
	}
}

func TestGuard_TurnsAPanicOfItsOwnIntoARefusal(t *testing.T) {
	var broken *guard // judging with it panics
	if err := broken.control(t.Context(), "tcp", "203.0.113.1:443", nil); err == nil {
		t.Error("the address was not refused")
	}
}
