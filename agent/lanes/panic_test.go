package lanes

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestLanes_APanicNamesItsDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []*panics.Error
		var mu sync.Mutex
		lt := newLaneTest(t, func(cfg *Config) {
			attempt := cfg.Attempt
			cfg.Caught = func(p *panics.Error) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, p)
			}
			cfg.Attempt = func(ctx context.Context, d *outbox.Delivery, r sink.Request) sink.Result {
				if r.EventID == "evt_00002" {
					panic("sentinel")
				}
				return attempt(ctx, d, r)
			}
		})
		lt.send(lt.endpoint("ep", always(ok(time.Millisecond))), 3, 10)
		agenttest.Pass(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(told) != 1 || told[0].Subject != (outbox.Subject{EventID: "evt_00002", EndpointID: "ep"}) {
			t.Errorf("told of %+v", told)
		}
	})
}

func TestLanes_AFaultOfTheAgentIsRetriedAndNotCountedAgainstTheEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(cfg *Config) { cfg.DisableAfter = 3 })
		internal := answer{time.Millisecond, sink.Result{Outcome: sink.Failed, Class: sink.ClassInternalError, Error: "a fault of the agent itself"}}
		l := lt.endpoint("ep", func(_ string, n int) answer {
			if n == 1 || n == 4 { // failures of the endpoint's own, which are counted
				return failing(time.Millisecond)
			}
			return internal
		})
		ids := lt.send(l, 1, 10)
		agenttest.Pass(24 * time.Hour)
		r := lt.book.rows[deliveryKey{"ep", ids[0]}]
		if r.status != outbox.Failed || r.attempts != 6 {
			t.Errorf("the delivery is %+v, want failed after six attempts", *r)
		}
		if l.failures != 2 || l.off != "" {
			t.Errorf("%d failures are counted, want 2; off: %q", l.failures, l.off)
		}
		lt.quiet()
	})
}

func TestRefill_SetsADeliveryAsideThatCausedPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cursedBy atomic.Pointer[outbox.Subject]
		cursedBy.Store(&outbox.Subject{})
		lt := newLaneTest(t, func(cfg *Config) { cfg.Aside = func(x outbox.Subject) bool { return x == *cursedBy.Load() } })
		ids := lt.send(lt.endpoint("ep", always(failing(time.Millisecond))), 2, 10)
		agenttest.Pass(time.Second)
		cursedBy.Store(&outbox.Subject{EventID: ids[0], EndpointID: "ep"})
		agenttest.Pass(24 * time.Hour)
		cursed, other := lt.book.rows[deliveryKey{"ep", ids[0]}], lt.book.rows[deliveryKey{"ep", ids[1]}]
		if cursed.status != outbox.Failed || cursed.reason != asideEvent || cursed.attempts != 1 {
			t.Errorf("the delivery is %+v, want failed because %s", *cursed, asideEvent)
		}
		if other.attempts != 6 {
			t.Errorf("the other delivery is %+v", *other)
		}
		lt.quiet()
	})
}
