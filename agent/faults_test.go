package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file put each fault of the proxy once between the agent and PostgreSQL, and
// between the agent and a customer's server, while events are written, and take it away again.

// fault is something that happens to a network, and how long it stays.
type fault struct {
	name string
	hit  func(*testenv.Proxy)
	stay time.Duration
}

func lasting(name string, f testenv.Fault, stay time.Duration) fault {
	return fault{name, func(p *testenv.Proxy) { p.SetFault(f) }, stay}
}

// longStall is longer than wal_sender_timeout (10 s), so that the server gives the slot up as well.
const longStall = 12 * time.Second

var faults = []fault{
	{"cut", (*testenv.Proxy).Cut, 0},
	{"reset", (*testenv.Proxy).Reset, 0},
	{"half-close", (*testenv.Proxy).HalfClose, time.Second},
	lasting("refuse", testenv.Refuse, 2*time.Second),
	lasting("half-open", testenv.HalfOpen, 3*time.Second),
	lasting("a byte a second", testenv.Drip, 3*time.Second),
	lasting("stall", testenv.Stall, 3*time.Second),
	lasting("long stall", testenv.Stall, longStall),
}

// disturbance writes events to two endpoints before, during and after the fault, and returns them.
func disturbance(t *testing.T, env *testenv.DB, p *testenv.Proxy, f fault, arrived func(eventID string) error) (events []string) {
	t.Helper()
	write := func(n int) {
		for range n {
			events = append(events, agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`))
		}
	}
	write(20)
	testenv.Eventually(t, agenttest.Patience, func() error { return arrived(events[19]) })
	write(20) // some of these are on the way when it happens
	f.hit(p)
	write(20)
	pace := time.NewTicker(200 * time.Millisecond)
	defer pace.Stop()
	for end := time.Now().Add(f.stay); time.Now().Before(end); <-pace.C {
		write(1)
	}
	p.SetFault(testenv.Pass)
	write(20)
	return events
}

func TestFaults_OfTheDatabasesNetworkLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			r := testenv.StartReceiver(t, agenttest.Secret)
			agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/a", "*")
			agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/b", "lead.*")
			p := testenv.StartProxy(t, agenttest.HostOf(t, env.URL))
			cfg := agenttest.Config(env)
			cfg.Database.URL = secret.New(p.Via(env.LeastURL))
			a := start(t, cfg)
			a.WaitLog("leading")
			events := disturbance(t, env, p, f, func(id string) error {
				if testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where event_id = $1 and status = 'succeeded'`, id) != 2 {
					return fmt.Errorf("%s has not arrived", id)
				}
				return nil
			})
			testenv.Eventually(t, 2*agenttest.Patience, func() error {
				if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != 2*len(events) {
					return fmt.Errorf("%d of %d deliveries succeeded", n, 2*len(events))
				}
				return nil
			})
			// The agent has lived on with its results, so nothing is repeated, whatever became of
			// its connections.
			seen := map[string]int{}
			for _, got := range r.Received() {
				if seen[got.Path+got.ID]++; seen[got.Path+got.ID] == 2 {
					t.Errorf("%s arrived twice at %s", got.ID, got.Path)
				}
			}
			testenv.Eventually(t, agenttest.Patience, func() error {
				if status, body := get(t, a.AdminURL()+"/readyz"); status != 200 {
					return fmt.Errorf("/readyz says %d %s", status, body)
				}
				return nil
			})
		})
	}
}

func TestFaults_OfACustomersNetworkAreRetriedAndHoldUpNoOther(t *testing.T) {
	t.Parallel()
	for _, f := range faults[:len(faults)-1] { // to the customer's server, a long stall is a short one
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			r := testenv.StartReceiver(t, agenttest.Secret)
			p := testenv.StartProxy(t, agenttest.HostOf(t, r.URL))
			broken := agenttest.AddEndpoint(t, env, "venue_1", p.Via(r.URL)+"/broken", "*")
			sound := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sound", "*")
			cfg := agenttest.Config(env)
			cfg.Delivery.Timeout = time.Second
			cfg.Delivery.DisableAfter = 10_000
			cfg.Delivery.Retries = nil
			for range 30 {
				cfg.Delivery.Retries = append(cfg.Delivery.Retries, 300*time.Millisecond)
			}
			start(t, cfg).WaitLog("leading")
			events := disturbance(t, env, p, f, func(id string) error {
				if testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where event_id = $1 and status = 'succeeded'`, id) != 2 {
					return fmt.Errorf("%s has not arrived", id)
				}
				return nil
			})
			for _, e := range []string{sound, broken} {
				testenv.Eventually(t, 2*agenttest.Patience, func() error {
					if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded' and endpoint_id = $1`, e); n != len(events) {
						return fmt.Errorf("%d of %d deliveries succeeded", n, len(events))
					}
					return nil
				})
			}
			if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts where endpoint_id = $1`, sound); n != 0 {
				t.Errorf("%d attempts to the endpoint without a fault failed", n)
			}
			// What arrived again had failed before, as far as the agent could know, or had come on
			// a connection that was kept and then ended before a byte of an answer: that is sent
			// once more within the same attempt.
			requests, recorded := 0, testenv.QueryOne[int](t, env, `select sum(attempts)::int from webhooks.deliveries where endpoint_id = $1`, broken)
			for _, got := range r.Received() {
				if got.Path == "/broken" {
					requests++
				}
			}
			if again := requests - recorded; again > cfg.Delivery.EndpointConcurrency*2 {
				t.Errorf("%d requests arrived, %d attempts are recorded", requests, recorded)
			}
		})
	}
}
