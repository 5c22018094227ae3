package agent

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file run two agents on one slot, as an operator would, and take the leader away
// in every way.

// Limits on how long the standby may take, from the fault on.
const (
	afterKill   = 10 * time.Second
	afterFreeze = 20 * time.Second
	afterUpdate = 2 * time.Second
)

// pair is a leader and a standby with an endpoint that both may send to. The leader reaches the
// database by a proxy.
type pair struct {
	env             *testenv.DB
	receiver        *testenv.Receiver
	endpoint        string
	network         *testenv.Proxy // to the database
	front           *testenv.Proxy // to the receiver
	leader, standby *process
}

func startPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{env: testenv.NewDB(t), receiver: testenv.StartReceiver(t, agenttest.Secret)}
	p.front = testenv.StartProxy(t, agenttest.HostOf(t, p.receiver.URL))
	p.endpoint = agenttest.AddEndpoint(t, p.env, "venue_1", p.front.Via(p.receiver.URL), "*")
	p.network = testenv.StartProxy(t, agenttest.HostOf(t, p.env.URL))
	p.leader = launch{binary: binary, url: p.network.Via(p.env.LeastURL)}.start(t, p.env)
	p.leader.awaitReady(t, "leading\n")
	p.standby = launch{binary: binary}.start(t, p.env)
	p.standby.awaitReady(t, "standing by\n")
	agenttest.WaitStatus(t, p.env, agenttest.AddEvent(t, p.env, "venue_1", "lead.created", `"first"`), p.endpoint, "succeeded")
	return p
}

// takeOver waits until an event that is written now arrives, and fails the test when that takes too
// long.
func (p *pair) takeOver(t *testing.T, limit time.Duration) {
	t.Helper()
	began := time.Now()
	event := agenttest.AddEvent(t, p.env, "venue_1", "lead.created", `"after the fault"`)
	testenv.Eventually(t, limit, func() error {
		for _, got := range p.receiver.Received() {
			if got.ID == event {
				return nil
			}
		}
		return fmt.Errorf("the event has not arrived; log of the standby:\n%s", p.standby.stderr)
	})
	t.Logf("the standby delivered after %s", time.Since(began).Round(10*time.Millisecond))
}

// eachOnce fails the test when an event arrived twice, or one of the outbox did not.
func (p *pair) eachOnce(t *testing.T) {
	t.Helper()
	seen := map[string]int{}
	for _, got := range p.receiver.Received() {
		if seen[got.ID]++; seen[got.ID] == 2 {
			t.Errorf("%s arrived twice; log of the first leader:\n%s", got.ID, p.leader.stderr)
		}
	}
	for _, id := range testenv.QueryAll[string](t, p.env, `select id from webhooks.outbox`) {
		if seen[id] == 0 {
			t.Errorf("%s did not arrive", id)
		}
	}
}

func TestLeadership_AKilledLeaderIsReplacedWithinTenSeconds(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	p.leader.kill(t)
	p.takeOver(t, afterKill)
	p.eachOnce(t)
}

func TestLeadership_ARollingUpgradeLosesTwoSecondsAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	stop := make(chan struct{})
	inserted := make(chan error, 1)
	conn := connect(t, p.env)
	go func() { // ends with stop
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				inserted <- nil
				return
			case <-pace.C:
			}
			if _, err := conn.Exec(context.Background(), `insert into webhooks.outbox (type, venue, data) values ('lead.created', 'venue_1', '{}')`); err != nil {
				inserted <- err
				return
			}
		}
	}()
	for range 3 {
		p.receiver.Wait(t, p.receiver.Count()+50, agenttest.Patience)
		began := time.Now()
		if err := p.leader.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := p.leader.Wait(); err != nil {
			t.Fatalf("after SIGTERM: %v\n%s", err, p.leader.stderr)
		}
		p.receiver.Wait(t, p.receiver.Count()+1, agenttest.Patience)
		if took := time.Since(began); took > afterUpdate {
			t.Errorf("%s without a delivery, want %s at most", took, afterUpdate)
		}
		p.leader = p.standby
		p.leader.awaitReady(t, "leading\n")
		p.standby = launch{binary: binary}.start(t, p.env)
		p.standby.awaitReady(t, "standing by\n")
	}
	close(stop)
	if err := <-inserted; err != nil {
		t.Fatal(err)
	}
	events := testenv.QueryOne[int](t, p.env, `select count(*) from webhooks.outbox`)
	p.receiver.Wait(t, events, agenttest.Patience)
	p.eachOnce(t)
}

// A frozen host wakes up with deliveries in memory that the new leader has sent meanwhile.
func TestLeadership_AFrozenLeaderIsReplacedAndSendsNothingWhenItThaws(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	// The answers take so long that nearly all attempts wait for one when it freezes, and most
	// deliveries are still in memory.
	p.receiver.SetAnswer("", testenv.Script(testenv.Answer{Delay: 300 * time.Millisecond}))
	p.env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(i) from generate_series(1, 150) i`)
	p.receiver.Wait(t, 20, agenttest.Patience)
	frozen := time.Now()
	if err := p.leader.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	p.takeOver(t, afterFreeze)
	p.standby.awaitReady(t, "leading\n")
	testenv.Eventually(t, 3*agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, p.env, `select count(*) from webhooks.deliveries where status <> 'succeeded'`); n > 0 {
			return fmt.Errorf("%d deliveries have not succeeded", n)
		}
		return nil
	})
	before := p.receiver.Count()
	epoch := testenv.QueryOne[int](t, p.env, `select epoch from webhooks.checkpoint`)
	if err := p.leader.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.leader.awaitReady(t, "standing by\n")
	// An attempt may have begun and not have written its request when the process froze.
	const begun = 8 // of 16 that a leader without a lease would send
	if got := p.receiver.Count() - before; got > begun {
		t.Errorf("the thawed leader sent %d requests", got)
	}
	if now := testenv.QueryOne[int](t, p.env, `select epoch from webhooks.checkpoint`); now != epoch {
		t.Errorf("the epoch went from %d to %d when the former leader thawed", epoch, now)
	}
	if log := p.leader.stderr.String(); !strings.Contains(log, "another agent has taken over") {
		t.Errorf("the former leader does not say that it was replaced:\n%s", log)
	}
	// What was on the way when it froze may have arrived twice, nothing else.
	seen, early := map[string]int{}, map[string]bool{}
	for _, got := range p.receiver.Received() {
		seen[got.ID]++
		if age := frozen.Sub(got.At); age > -100*time.Millisecond && age < 1500*time.Millisecond {
			early[got.ID] = true
		}
	}
	duplicates, late := 0, 0
	for id, n := range seen {
		if n > 1 {
			duplicates++
		}
		if n > 1 && !early[id] {
			late++
		}
	}
	if late > begun {
		t.Errorf("%d events arrived twice that had not arrived just before the freeze", late)
	}
	t.Logf("%d duplicates", duplicates)
}

func TestLeadership_ALeaderThatIsCutOffIsReplacedAndSendsNothingAfter(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	p.network.SetFault(testenv.Stall)
	cut := time.Now()
	p.takeOver(t, afterFreeze)
	p.standby.awaitReady(t, "leading\n")
	p.network.SetFault(testenv.Pass)
	p.leader.awaitReady(t, "standing by\n")
	agenttest.WaitStatus(t, p.env, agenttest.AddEvent(t, p.env, "venue_1", "lead.created", `"last"`), p.endpoint, "succeeded")
	// A leader keeps connections to customers for a minute, a standby none.
	testenv.Eventually(t, 20*time.Second, func() error {
		if n := p.front.Connections(); n != 1 {
			return fmt.Errorf("%d connections to the receiver are open, want that of the leader", n)
		}
		return nil
	})
	p.eachOnce(t)
	t.Logf("cut off for %s", time.Since(cut).Round(time.Second))
}

// The new leader sends again what the former one has in memory, so the former one must stop before
// a new one leads.
func TestLeadership_ALeaderThatIsCutOffStopsSendingWithinAboutASecond(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("", testenv.Script(testenv.Answer{Delay: 30 * time.Millisecond}))
	agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	network := testenv.StartProxy(t, agenttest.HostOf(t, env.URL))
	cfg := agenttest.Config(env)
	cfg.Database.URL = secret.New(network.Via(env.LeastURL))
	cfg.Delivery.EndpointConcurrency = 1
	start(t, cfg).WaitLog("leading")
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(i) from generate_series(1, 250) i`)
	r.Wait(t, 20, agenttest.Patience)
	network.SetFault(testenv.Stall)
	cut := time.Now()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if passed := time.Since(cut); passed < 5*time.Second {
			return fmt.Errorf("%s passed", passed)
		}
		return nil
	})
	for _, got := range r.Received() {
		if after := got.At.Sub(cut); after > 2*time.Second {
			t.Fatalf("a request was sent %s after the network was cut", after)
		}
	}
	network.SetFault(testenv.Pass)
	r.Wait(t, 250, 2*agenttest.Patience) // and it goes on
}
