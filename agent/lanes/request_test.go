package lanes

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The secret is rotated and the URL changes between the attempts of one event. Receivers refuse a
// signature whose time is minutes old, and a secret that is not valid any more.
func TestLanes_EachAttemptGoesByTheTimeAndTheEndpointOfThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type seen struct {
			at     time.Time
			made   time.Time
			target *sink.Target
			body   string
		}
		var requests []seen
		lt := newLaneTest(t, func(cfg *Config) {
			attempt := cfg.Attempt
			cfg.Attempt = func(ctx context.Context, d *outbox.Delivery, r sink.Request) sink.Result {
				requests = append(requests, seen{r.At, time.Now(), r.Target, string(r.Body)})
				return attempt(ctx, d, r)
			}
		})
		lt.endpoint("ep", always(failing(time.Millisecond)))
		e := outbox.Endpoint{ID: "ep", Generation: 1, PreviousUntil: time.Now().Add(10 * time.Second)}
		l := lt.changeTo(e, "")
		first := l.target
		lt.send(l, 1, 10)
		agenttest.Pass(time.Minute) // attempts at once, after 5 s and after 30 s
		if n := len(requests); n != 3 {
			t.Fatalf("%d attempts, want 3", n)
		}
		e.PreviousUntil = time.Now().Add(time.Hour)
		second := lt.changeTo(e, "").target
		agenttest.Pass(time.Hour) // three more, the last one 12 minutes after the change
		for i, r := range requests {
			want := first
			if i >= 3 {
				want = second
			}
			if !r.at.Equal(r.made) || r.target != want || r.body != requests[0].body || len(r.body) != 10 {
				t.Errorf("attempt %d is signed for %s after it was made, to the right target %t, body %q",
					i+1, r.at.Sub(r.made), r.target == want, r.body)
			}
		}
		if n := len(requests); n != 6 {
			t.Errorf("%d attempts, want 6", n)
		}
	})
}
