package lanes

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// gone is an answer of 410.
func gone(after time.Duration) answer {
	return answer{after, sink.Result{Outcome: sink.Gone, Code: 410, Class: sink.ClassHTTPStatus, Error: "the server answered 410"}}
}

// What is under way when a customer changes an endpoint was asked of the endpoint as it was.
func TestFinish_JudgesTheEndpointThatWasAsked(t *testing.T) {
	const underWay = 5 * time.Second
	moved := func(e *outbox.Endpoint) { e.URL = secret.New("https://new.example") }
	enabled := func(e *outbox.Endpoint) { e.Disabled, e.Generation = false, e.Generation+1 }
	disabled := func(e *outbox.Endpoint) { e.Disabled = true }
	for _, test := range []struct {
		name     string
		first    answer
		changes  []func(*outbox.Endpoint)
		failures int
		disabled []string
	}{
		{"410 of the same URL", gone(underWay), nil, 1, []string{outbox.ReasonGone}},
		{"410 of the former URL", gone(underWay), []func(*outbox.Endpoint){moved}, 1, nil},
		{"a failure of the former URL", failing(underWay), []func(*outbox.Endpoint){moved}, 1, nil},
		{"410 of the former generation", gone(underWay), []func(*outbox.Endpoint){disabled, enabled}, 0, nil},
		{"a failure of the former generation", failing(underWay), []func(*outbox.Endpoint){disabled, enabled}, 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lt := newLaneTest(t, nil)
				lt.endpoint("ep", always(test.first))
				e := outbox.Endpoint{ID: "ep", Generation: 1, URL: secret.New("https://old.example")}
				l := lt.changeTo(e, "")
				lt.send(l, 1, 10)
				agenttest.Pass(time.Second)
				for _, change := range test.changes {
					change(&e)
					lt.changeTo(e, "")
				}
				agenttest.Pass(underWay - time.Second + 100*time.Millisecond)
				lt.Scheduler.mu.Lock()
				defer lt.Scheduler.mu.Unlock()
				if l.failures != test.failures || !slices.Equal(lt.book.disabled, test.disabled) {
					t.Errorf("it has %d failures and was disabled for %v, want %d and %v", l.failures, lt.book.disabled, test.failures, test.disabled)
				}
			})
		})
	}
}

// A success of the former generation does not make the endpoint well either.
func TestFinish_ASuccessOfTheFormerGenerationForgivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		const quick = 4 // so that more than one attempt may be under way
		lt.endpoint("ep", func(_ string, n int) answer {
			switch {
			case n <= quick:
				return ok(time.Millisecond)
			case n == quick+1:
				return ok(5 * time.Second)
			}
			return failing(time.Millisecond)
		})
		e := outbox.Endpoint{ID: "ep", Generation: 1}
		l := lt.changeTo(e, "")
		lt.send(l, quick, 10)
		agenttest.Pass(time.Second)
		lt.send(l, 1, 10)
		agenttest.Pass(time.Second)
		e.Disabled = true
		lt.changeTo(e, "")
		e.Disabled, e.Generation = false, 2
		lt.changeTo(e, "")
		lt.send(l, 2, 10)
		agenttest.Pass(3 * time.Second)
		failures := func() int {
			lt.Scheduler.mu.Lock()
			defer lt.Scheduler.mu.Unlock()
			return l.failures
		}
		before := failures()
		agenttest.Pass(1100 * time.Millisecond)
		if after := failures(); before == 0 || after < before {
			t.Errorf("it had %d failures, and %d after a success of the former generation", before, after)
		}
	})
}
