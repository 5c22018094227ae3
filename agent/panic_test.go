package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// counted returns the value of a counter, the sum of all its labels.
func counted(t *testing.T, m *metrics, name string) (sum float64) {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == namespace+"_"+name {
			for _, metric := range family.GetMetric() {
				sum += metric.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// panickyLog panics in the goroutine that logs one of its messages, as often as the number says.
// The value of the panic must not be shown anywhere.
type panickyLog struct {
	slog.Handler
	mu    sync.Mutex
	times map[string]int
}

// Handle implements slog.Handler.
func (h *panickyLog) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.times[r.Message] > 0 {
		h.times[r.Message]--
		panic("sentinel")
	}
	return h.Handler.Handle(ctx, r)
}

// await waits until at most n panics are still to come, and calls do meanwhile to cause them.
func (h *panickyLog) await(s *outage, n int, do func()) {
	s.t.Helper()
	s.eventually(func() error {
		do()
		h.mu.Lock()
		defer h.mu.Unlock()
		left := 0
		for _, times := range h.times {
			left += times
		}
		if left > n {
			return fmt.Errorf("panics still to come: %v", h.times)
		}
		return nil
	})
}

// startPanicking starts an agent that panics where it logs these messages.
func startPanicking(t *testing.T, cfg *config.Config, times map[string]int) (*agenttest.Agent, *panickyLog) {
	t.Helper()
	h := &panickyLog{times: times}
	return agenttest.Start(t, cfg, func(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
		h.Handler = log.Handler()
		return Run(ctx, testOptions(cfg, slog.New(h)))
	}), h
}

// bareAgent makes an agent without sink and admin listener, and its log.
func bareAgent(t *testing.T, cfg *config.Config) (*agent, *agenttest.Buffer) {
	t.Helper()
	log := &agenttest.Buffer{}
	a := &agent{cfg: cfg, log: slog.New(slog.NewTextHandler(log, nil)), holder: "test", tune: func(int) {}, vitals: testVitals}
	a.metrics = newMetrics("test", &a.counts)
	db := cfg.OutboxConfig()
	db.Watchful, db.Caught = true, a.caught
	var err error
	if a.db, err = outbox.Open(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.db.Close)
	return a, log
}

func TestPanic_EndsTheTermAndNotTheProcess(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, testenv.NewDB(t))
	var faults *panickyLog
	s.agent, faults = startPanicking(t, s.cfg, map[string]int{
		"leading":                        1, // the router, before the first batch
		"recovery is complete":           1, // a helper beside the stream
		"the stream broke; reconnecting": 1, // the stream
		"an event cannot be sent":        1, // a worker, with the mutex of the lanes
	})
	s.wait(s.event(), s.event())
	s.ready()
	unsendable := testenv.QueryOne[string](t, s.env, `insert into webhooks.outbox (id, type, venue, data) values ('evt é', 'lead.created', 'venue_1', '{}') returning id`)
	agenttest.WaitStatus(t, s.env, unsendable, s.endpoint, "failed, attempts 1")
	s.wait(s.event())
	faults.await(s, 1, func() {})
	faults.await(s, 0, func() { // until it hits the connection of an agent that leads
		if _, body := get(t, s.agent.AdminURL()+"/readyz"); body == "leading\n" {
			s.super(`select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '` + s.env.Slot + `'`)
		}
	})
	s.wait(s.event())
	s.ready()
	if got := s.metric("webhook_agent_panics_total"); got != "4" {
		t.Errorf("the metric counts %s panics, want 4", got)
	}
	if log := s.agent.Log.String(); strings.Contains(log, "sentinel") || strings.Count(log, "a fault of the agent itself; please report it") != 1 ||
		!strings.Contains(log, "place=agent/panic_test.go:") {
		t.Errorf("want the place once, and no value; log:\n%s", log)
	}
	s.eachOnce()
}

func TestPanic_SetsADeliveryAsideThatCausesItAgainAndAgain(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, testenv.NewDB(t))
	s.agent, _ = startPanicking(t, s.cfg, map[string]int{"an event cannot be sent": 1000})
	s.wait(s.event())
	cursed := testenv.QueryOne[string](t, s.env, `insert into webhooks.outbox (id, type, venue, data) values ('evt é', 'lead.created', 'venue_1', '{}') returning id`)
	agenttest.WaitStatus(t, s.env, cursed, s.endpoint, "failed, attempts 0, the agent failed over this event again and again")
	if got := s.metric("webhook_agent_panics_total"); got != fmt.Sprint(setAsideAfter) {
		t.Errorf("the metric counts %s panics, want %d", got, setAsideAfter)
	}
	s.eachOnce()
}

// Making a target panics in this agent, for every endpoint.
func TestPanic_ShowsAnEndpointAsUnusableThatCausesItAgainAndAgain(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	cfg := agenttest.Config(env)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", "http://hook.example", "*")
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", "{}")
	a, log := bareAgent(t, cfg)
	c := newCandidate(a, a.db.Slot(cfg.Outbox.Slot))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.lead(ctx) }() // a.webhook is nil, which http:// is looked up in
	agenttest.WaitStatus(t, env, event, endpoint, "missed, attempts 0, the endpoint cannot be sent to: "+asideEndpoint)
	testenv.Eventually(t, agenttest.Patience, func() error {
		shown := testenv.QueryOne[string](t, env, `select coalesce((select unusable from webhooks.endpoint_health where endpoint_id = $1), '')`, endpoint)
		if shown != asideEndpoint {
			return fmt.Errorf("the endpoint is shown as unusable because %q", shown)
		}
		return nil
	})
	if status, err := c.ready(); status != "leading" || err != nil {
		t.Errorf("the agent is %q, %v", status, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := counted(t, a.metrics, "panics_total"); n != setAsideAfter {
		t.Errorf("%v panics were counted, want %d; log:\n%s", n, setAsideAfter, log)
	}
}

// panicking routes a batch and returns the panic that it causes.
func (rt *routerTest) panicking(b *outbox.Batch) *panics.Error {
	rt.t.Helper()
	err := panics.Catch(func() error { return rt.route(rt.t.Context(), rt.t.Context(), b) })
	p, ok := errors.AsType[*panics.Error](err)
	if !ok {
		rt.t.Fatalf("routing returned %v, want a panic", err)
	}
	return p
}

// suspect makes the router believe that a subject has caused so many panics.
func (rt *routerTest) suspect(x any, times int) {
	rt.t.Helper()
	if rt.suspects == nil {
		rt.suspects = &suspects{}
	}
	for range times {
		rt.suspects.add(x.(outbox.Subject))
	}
}

func TestRouter_SetsAnEventAsideThatItPanicsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.log = slog.New(slog.DiscardHandler)
		rt.loadState(state(row("a"), row("b")))
		rosterOf(&rt.subs.venues["venue_1"].byType, "lead.cursed").members = []member{{}} // a fault of the subscriptions
		cursed := event("e2")
		cursed.Event.Type, cursed.Index = "lead.cursed", 2
		b := transaction(event("e1"), cursed, event("e3"))
		p := rt.panicking(b)
		if want := (outbox.Subject{Commit: b.Commit, Index: 2}); p.Subject != want {
			t.Errorf("the panic is about %+v, want %+v", p.Subject, want)
		}
		rt.suspect(p.Subject, setAsideAfter-1)
		_ = rt.panicking(b)
		rt.suspect(p.Subject, 1)
		got := rt.take(b)
		if len(got) != 1 || !strings.HasPrefix(got[0], "end 310: e1>a e1>b e2>") || strings.Count(got[0], " failed") != 2 || !strings.HasSuffix(got[0], " e3>a e3>b") {
			t.Errorf("the ledger was told %q, want the second event failed", got)
		}
		rt.suspect(p.Subject, passOverAfter)
		rt.want(rt.take(b), "end 310: e1>a e1>b e3>a e3>b")
		if n := counted(t, rt.metrics, "set_aside_total"); n != 3 {
			t.Errorf("%v are counted as set aside, want two deliveries and an event", n)
		}
	})
}

func TestRouter_SetsAnEndpointAsideThatItPanicsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.log = slog.New(slog.DiscardHandler)
		target := rt.target
		rt.target = func(e *outbox.Endpoint) (*sink.Target, error) {
			if e.ID == "cursed" {
				panic("sentinel")
			}
			return target(e)
		}
		subject := outbox.Subject{EndpointID: "cursed"}
		b := transaction(changed(row("cursed")), changed(row("good")), event("e1"), removed("cursed"), event("e2"))
		if p := rt.panicking(b); p.Subject != subject {
			t.Errorf("the panic is about %+v, want %+v", p.Subject, subject)
		}
		if err := panics.Catch(func() error { return rt.load(t.Context(), state(row("cursed"))) }); err == nil {
			t.Error("loading it did not panic")
		} else if p, _ := errors.AsType[*panics.Error](err); p.Subject != subject {
			t.Errorf("the panic is about %+v, want %+v", p.Subject, subject)
		}
		for _, times := range []int{setAsideAfter, passOverAfter} {
			rt.suspect(subject, times)
			rt.loadState(state(row("cursed")))
			shown := slices.Contains(rt.router.lanes.Endpoints(), "cursed")
			if why := rt.unusable["cursed"]; shown && why != asideEndpoint || shown != (times == setAsideAfter) {
				t.Errorf("after %d panics it is shown: %t, as unusable for %q", times, shown, why)
			}
			rt.want(rt.take(b), "end 0: e1>good", "end 310: e2>good")
		}
	})
}

func TestRouter_ATruncateEndsTheLaneOfAnEndpointThatIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.suspect(outbox.Subject{EndpointID: "cursed"}, setAsideAfter)
		rt.loadState(state(row("cursed"), row("good")))
		rt.take(transaction(truncated))
		if left := rt.router.lanes.Endpoints(); len(left) != 0 {
			t.Errorf("lanes are left of %q", left)
		}
	})
}

// newPanicTest makes the parts of a term that the tests of panics need.
func newPanicTest(t *testing.T) *term {
	t.Helper()
	a := &agent{log: slog.New(slog.DiscardHandler), metrics: newMetrics("test", &outbox.Counts{})}
	life := newLifetime(t.Context(), time.Hour, a.caught)
	t.Cleanup(func() { life.kill(nil) })
	return &term{agent: a, life: life}
}

func TestLifetime_APanicEndsTheTerm(t *testing.T) {
	fault := func() error { panic("sentinel") }
	life := newPanicTest(t).life
	err := life.guarded(fault)()
	if p, ok := errors.AsType[*panics.Error](err); !ok || !errors.Is(context.Cause(life.take), p) || life.alive.Err() != nil {
		t.Errorf("guarded returned %v; no new work because of %v, everything ended because of %v", err, context.Cause(life.take), context.Cause(life.alive))
	}
	life = newPanicTest(t).life
	err = life.vital(fault)()
	if p, ok := errors.AsType[*panics.Error](err); !ok || !errors.Is(context.Cause(life.take), p) || !errors.Is(context.Cause(life.alive), p) {
		t.Errorf("vital returned %v; no new work because of %v, everything ended because of %v", err, context.Cause(life.take), context.Cause(life.alive))
	}
}

func TestTerm_LeavesOutAHelperThatPanicsAgainAndAgain(t *testing.T) {
	held := newPanicTest(t)
	calls := 0
	for range setAsideAfter + 2 {
		_ = held.dispensable("seal", func() { calls++; panic("sentinel") })()
	}
	if calls != setAsideAfter {
		t.Errorf("the helper ran %d times, want %d", calls, setAsideAfter)
	}
	called := false
	if err := held.dispensable("prune", func() { called = true })(); err != nil || !called {
		t.Errorf("another helper: called %t, %v", called, err)
	}
}

func TestSuspects_AreBounded(t *testing.T) {
	var s suspects
	for i := range 3 * maxSuspects {
		s.add(outbox.Subject{EventID: fmt.Sprint(i)})
	}
	if n := len(*s.counts.Load()); n > maxSuspects {
		t.Errorf("%d suspects are kept", n)
	}
}

func TestMetrics_APanicAsTheyAreReadIsCounted(t *testing.T) {
	log := &agenttest.Buffer{}
	a := &agent{log: slog.New(slog.NewTextHandler(log, nil))}
	a.metrics = newMetrics("test", &a.counts)
	c := newCandidate(a, nil)
	a.metrics.registry.MustRegister(newCollector(c))
	c.term.Store(&term{agent: a}) // without a ledger and lanes, so that the metrics that ask for them panic
	counted(t, a.metrics, "panics_total")
	if n := counted(t, a.metrics, "panics_total"); n < 1 {
		t.Errorf("%v panics were counted, want those of the metrics", n)
	}
}
