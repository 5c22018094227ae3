package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// crash is one visit of a crash point.
type crash struct {
	at string // point, or point:pass
	// rows gives each event its rows before the agent reads it.
	rows bool
	// before prepares what the agent dies in; may be nil.
	before func(*scene)
	// provoke starts the agent that is to die and plays what leads it to the point.
	provoke func(*scene, launch) *process
	// after acts on the agent that goes on; may be nil.
	after func(*scene)
	// So many attempts are without a record when it dies, and are made again.
	least, most int
}

// name returns the name of the test.
func (c crash) name() string {
	if c.rows {
		return c.at + " where the rows exist"
	}
	return c.at
}

// crashes visits every point. Unless it says otherwise the agent delivers one event after the
// other, each to three endpoints, when it dies: nothing but the attempts at one event can be
// unrecorded.
var crashes = []crash{
	{at: "after-read:2", provoke: (*scene).trickle},
	{at: fmt.Sprintf("before-dial:%d", attemptsPerLead+1), provoke: (*scene).trickle},
	{at: fmt.Sprintf("after-request-written:%d", attemptsPerLead+1), provoke: (*scene).trickle, least: 1, most: 3},
	{at: fmt.Sprintf("after-response:%d", attemptsPerLead+3), provoke: (*scene).trickle, least: 1, most: 3},
	{at: "before-ledger-commit:6", provoke: (*scene).trickle, most: 3},
	{at: "in-ledger-commit:6", provoke: (*scene).trickle, most: 3},
	{at: "after-ledger-commit:6", provoke: (*scene).trickle, most: 3},
	{at: "before-ledger-commit:6", rows: true, provoke: (*scene).trickle, most: 3},
	{at: "in-refusal:3", rows: true, provoke: (*scene).trickle, most: 3},
	{at: "in-ledger-commit:6", rows: true, provoke: (*scene).trickle, most: 3},
	{at: "after-ledger-commit:6", rows: true, provoke: (*scene).trickle, most: 3},
	{at: "before-confirm:2", provoke: (*scene).trickle, most: 3},
	{at: "in-migration", before: (*scene).dropSchema, provoke: (*scene).migrate},
	{at: "in-replay", before: (*scene).missBulk, provoke: (*scene).replayBulk},
	// 500 are requeued by the first step and under way.
	{at: "in-replay:2", before: (*scene).missBulk, provoke: (*scene).replayBulk, most: 500},
	{at: "in-cancel", before: (*scene).missBulk, provoke: (*scene).cancelBulk, after: (*scene).replayCanceled, most: 3},
	{at: "in-slot-recovery", before: (*scene).loseSlot, provoke: (*scene).justRun},
	{at: "in-sweep", before: (*scene).loseSlot, provoke: (*scene).justRun},
}

// attemptsPerLead are made at an event of the type lead.created: one to /steady, two to /flaky, two
// to /dead.
const attemptsPerLead = 5

// bulk is the number of events of the type payment.received: more than one step of a replay or of
// the sweep takes.
const bulk = 520

func TestCrash_EveryPointIsVisited(t *testing.T) {
	visited := map[crashpoint.Point]bool{crashpoint.InNotice: true} // TestNotices_AKillBeforeTheCommitLeavesOne
	for _, c := range crashes {
		name, _, _ := strings.Cut(c.at, ":")
		visited[crashpoint.Point(name)] = true
	}
	for _, p := range crashpoint.Points() {
		if !visited[p] {
			t.Errorf("no test kills the agent at %s", p)
		}
	}
}

func TestP1P3_AKillAtEveryPointLosesNothingAndRepeatsOnlyWhatWasNotRecorded(t *testing.T) {
	t.Parallel()
	for _, c := range crashes {
		t.Run(c.name(), func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			if c.rows {
				s.haveRows()
			}
			if c.before != nil {
				c.before(s)
			}
			p := c.provoke(s, s.launch(crashpoint.Variable+"="+c.at))
			s.wantKilled(p)
			unrecorded := s.unrecorded()

			s.addLeads(3)
			if name, _, _ := strings.Cut(c.at, ":"); crashpoint.Point(name) == crashpoint.InMigration {
				again := s.launch()
				again.command = "migrate"
				if p := again.start(t, s.env); p.Wait() != nil {
					t.Fatalf("the second migration failed:\n%s", p.stderr)
				}
			}
			p = s.launch().start(t, s.env)
			p.awaitLeading(t)
			if c.after != nil {
				c.after(s)
			}
			s.addLeads(2)
			s.awaitSettled(p)
			p.terminate(t)
			s.check(unrecorded, c)
			t.Logf("%d attempts were not recorded when the agent died", unrecorded)
		})
	}
}

// scene is a database with three endpoints, and the receiver that plays their servers. The
// connections to it pass a proxy, which knows when those of a dead agent are gone.
type scene struct {
	t        *testing.T
	env      *testenv.DB
	receiver *testenv.Receiver
	front    *testenv.Proxy
}

// requestKey is what a scene counts requests by.
type requestKey struct{ path, eventID string }

func newScene(t *testing.T) *scene {
	s := &scene{t: t, env: testenv.NewDB(t), receiver: testenv.StartReceiver(t, agenttest.Secret)}
	s.front = testenv.StartProxy(t, strings.TrimPrefix(s.receiver.URL, "http://"))
	s.receiver.SetAnswer("/flaky", func(got testenv.Received) testenv.Answer {
		if got.Attempt == 1 {
			return testenv.Answer{Status: 503}
		}
		return testenv.Answer{}
	})
	s.receiver.SetAnswer("/dead", testenv.Statuses(500))
	s.addEndpoints()
	return s
}

func (s *scene) addEndpoints() {
	agenttest.AddEndpoint(s.t, s.env, "venue_1", s.front.Via(s.receiver.URL+"/steady"), "*")
	agenttest.AddEndpoint(s.t, s.env, "venue_1", s.front.Via(s.receiver.URL+"/flaky"), "lead.*")
	agenttest.AddEndpoint(s.t, s.env, "venue_1", s.front.Via(s.receiver.URL+"/dead"), "lead.*")
}

// launch returns how to start the agent that has crash points.
func (s *scene) launch(variables ...string) launch {
	return launch{binary: crashingBinary, variables: variables, url: s.env.URL, // it migrates as well
		delivery: "retries = [\"1s\"]\ndisable_after = 10000"}
}

func (s *scene) addLeads(n int) {
	s.t.Helper()
	for i := range n {
		agenttest.AddEvent(s.t, s.env, "venue_1", "lead.created", fmt.Sprintf(`{"n": %d, "name":"Zoë \"Z\""}`, i))
	}
}

// addBulk writes many events, which only /steady wants, in one transaction.
func (s *scene) addBulk() {
	s.t.Helper()
	s.env.Exec(s.t, `insert into webhooks.outbox (type, venue, data) select 'payment.received', 'venue_1', to_json(i) from generate_series(1, $1) i`, bulk)
}

// trickle starts the agent and writes one event after the other, each when the last one has been
// recorded, until the agent has died.
func (s *scene) trickle(l launch) *process {
	s.t.Helper()
	p := l.start(s.t, s.env)
	p.awaitLeading(s.t)
	for range 10 {
		s.addLeads(1)
		if s.awaitSettled(p); p.hasEnded() {
			return p
		}
	}
	s.t.Fatalf("the agent did not come to the point; log:\n%s", p.stderr)
	return nil
}

// justRun starts the agent, which is to die by itself.
func (s *scene) justRun(l launch) *process { return l.start(s.t, s.env) }

// haveRows gives each event its rows when it is written. So PostgreSQL refuses each group of first
// rows, and the ledger writes the group anew.
//
// The rows are due after two seconds. A refill that saw one before the stream has brought its event
// would send the event a second time. The agent itself has no such rows: its ledger writes them all,
// and is never ahead of the stream.
func (s *scene) haveRows() {
	s.t.Helper()
	s.env.Exec(s.t, `create function have_rows() returns trigger language plpgsql as $$
	begin
		insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
		select new.id, id, new.venue, new.type, 'pending', now() + interval '2 seconds', new.created from webhooks.endpoints;
		return null;
	end $$`)
	s.env.Exec(s.t, `create trigger have_rows after insert on webhooks.outbox for each row execute function have_rows()`)
}

// dropSchema undoes the migration that the database was made with.
func (s *scene) dropSchema() {
	s.t.Helper()
	for _, name := range testenv.QueryAll[string](s.t, s.env, `select quote_ident(pubname) from pg_publication`) {
		s.env.Exec(s.t, "drop publication "+name)
	}
	s.env.Exec(s.t, `drop schema webhooks cascade`)
}

// migrate dies in a migration, which must have left the schema and nothing else. The app is quick
// to use it.
func (s *scene) migrate(l launch) *process {
	s.t.Helper()
	l.command = "migrate"
	p := l.start(s.t, s.env)
	s.wantKilled(p)
	if n := testenv.QueryOne[int](s.t, s.env, `select count(*) from pg_publication`); n != 0 {
		s.t.Errorf("there are %d publications after the kill", n)
	}
	s.addEndpoints()
	return p
}

// missBulk has many events missed because their endpoint is disabled.
func (s *scene) missBulk() {
	s.t.Helper()
	p := s.launch().start(s.t, s.env)
	p.awaitLeading(s.t)
	s.env.Exec(s.t, `update webhooks.endpoints set disabled_at = now() where url like '%/steady'`)
	s.addBulk()
	testenv.Eventually(s.t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](s.t, s.env, `select count(*) from webhooks.deliveries where status = 'missed'`); n != bulk {
			return fmt.Errorf("%d deliveries are missed, want %d", n, bulk)
		}
		return nil
	})
	s.env.Exec(s.t, `update webhooks.endpoints set disabled_at = null`)
	p.terminate(s.t)
}

// replayBulk has them replayed.
func (s *scene) replayBulk(l launch) *process {
	s.t.Helper()
	p := l.start(s.t, s.env)
	p.awaitLeading(s.t)
	s.env.Exec(s.t, `insert into webhooks.replays (endpoint_id, since, statuses)
		select id, now() - interval '1 hour', '{missed}' from webhooks.endpoints where url like '%/steady'`)
	return p
}

// cancelBulk has a replay begun slowly, and cancels it.
func (s *scene) cancelBulk(l launch) *process {
	s.t.Helper()
	p := l.start(s.t, s.env)
	p.awaitLeading(s.t)
	s.env.Exec(s.t, `insert into webhooks.replays (endpoint_id, since, statuses, per_second)
		select id, now() - interval '1 hour', '{missed}', 1 from webhooks.endpoints where url like '%/steady'`)
	testenv.Eventually(s.t, agenttest.Patience, func() error {
		if !testenv.QueryOne[bool](s.t, s.env, `select coalesce(total > 0, false) from webhooks.replays`) {
			return errors.New("the replay has not begun")
		}
		return nil
	})
	s.env.Exec(s.t, `update webhooks.replays set state = 'canceled'`)
	return p
}

// replayCanceled waits until the canceled replay is taken back, and has what it did not send replayed.
func (s *scene) replayCanceled() {
	s.t.Helper()
	testenv.Eventually(s.t, agenttest.Patience, func() error {
		if got := testenv.QueryOne[string](s.t, s.env, `select state || (finished is not null) from webhooks.replays`); got != "canceledtrue" {
			return fmt.Errorf("the replay is %s", got)
		}
		return nil
	})
	s.env.Exec(s.t, `insert into webhooks.replays (endpoint_id, since, statuses)
		select id, now() - interval '1 hour', '{missed}' from webhooks.endpoints where url like '%/steady'`)
}

// loseSlot has the agent deliver some events, and then drops its slot and writes many more that no
// slot streams.
func (s *scene) loseSlot() {
	s.t.Helper()
	p := s.launch().start(s.t, s.env)
	p.awaitLeading(s.t)
	s.addLeads(2)
	s.awaitSettled(p)
	p.terminate(s.t)
	s.env.Exec(s.t, `select pg_drop_replication_slot($1)`, s.env.Slot)
	s.addBulk()
}

// wantKilled waits until the agent has died and fails the test when that was not at a crash point.
func (s *scene) wantKilled(p *process) {
	s.t.Helper()
	testenv.Eventually(s.t, agenttest.Patience, func() error {
		if !p.hasEnded() {
			return fmt.Errorf("the agent did not come to the point; log:\n%s", p.stderr)
		}
		return nil
	})
	exit, ok := errors.AsType[*exec.ExitError](p.Wait())
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		s.t.Fatalf("the agent ended by itself (%v), not at the point; log:\n%s", p.Wait(), p.stderr)
	}
}

// awaitSettled waits until every event has all its deliveries, as they must end, or p has ended.
func (s *scene) awaitSettled(p *process) {
	s.t.Helper()
	testenv.Eventually(s.t, 2*agenttest.Patience, func() error {
		if p.hasEnded() {
			return nil
		}
		leads := testenv.QueryOne[int](s.t, s.env, `select count(*) from webhooks.outbox where type like 'lead.%'`)
		events := testenv.QueryOne[int](s.t, s.env, `select count(*) from webhooks.outbox`)
		got := testenv.QueryAll[string](s.t, s.env, `select substring(e.url from '/[a-z]+$') || ' ' || status || ' ' || count(*)
			from webhooks.deliveries d join webhooks.endpoints e on e.id = d.endpoint_id group by e.url, status order by 1`)
		want := []string{fmt.Sprintf("/dead failed %d", leads), fmt.Sprintf("/flaky succeeded %d", leads), fmt.Sprintf("/steady succeeded %d", events)}
		if !slices.Equal(got, want) {
			return fmt.Errorf("deliveries are %q, want %q; log:\n%s", got, want, p.stderr)
		}
		return nil
	})
}

// recorded returns how many attempts are on record.
func (s *scene) recorded() map[requestKey]int {
	s.t.Helper()
	recorded := map[requestKey]int{}
	for _, line := range testenv.QueryAll[string](s.t, s.env, `select concat_ws(' ', substring(e.url from '/[a-z]+$'), d.event_id, d.attempts)
		from webhooks.deliveries d join webhooks.endpoints e on e.id = d.endpoint_id`) {
		var (
			k requestKey
			n int
		)
		if _, err := fmt.Sscan(line, &k.path, &k.eventID, &n); err != nil {
			s.t.Fatal(err)
		}
		recorded[k] = n
	}
	return recorded
}

// received returns how many requests have arrived, after checking that each is what it must be.
func (s *scene) received() map[requestKey]int {
	s.t.Helper()
	received, bodies := map[requestKey]int{}, map[string][]byte{}
	for _, got := range s.receiver.Received() {
		if got.SignatureErr != nil {
			s.t.Errorf("event %s to %s: %v", got.ID, got.Path, got.SignatureErr)
		}
		if body, again := bodies[got.ID]; again && !bytes.Equal(body, got.Body) {
			s.t.Errorf("event %s came to %s with other bytes:\n%s\n%s", got.ID, got.Path, got.Body, body)
		}
		bodies[got.ID] = got.Body
		received[requestKey{got.Path, got.ID}]++
	}
	return received
}

// unrecorded returns how many requests of an agent that has died have arrived and are not on
// record.
func (s *scene) unrecorded() int {
	s.t.Helper()
	testenv.Eventually(s.t, agenttest.Patience, func() error {
		if n := s.front.Connections(); n != 0 {
			return fmt.Errorf("%d connections of the dead agent are open", n)
		}
		return nil
	})
	return s.repeated()
}

// repeated returns how many more requests have arrived than are on record. None may be on record
// that has not arrived.
func (s *scene) repeated() int {
	s.t.Helper()
	repeated, recorded := 0, s.recorded()
	received := s.received()
	for k, n := range received {
		repeated += n - recorded[k]
	}
	for k, n := range recorded {
		if received[k] < n {
			s.t.Errorf("event %s has %d attempts at %s on record, and %d requests arrived", k.eventID, n, k.path, received[k])
		}
	}
	return repeated
}

// check judges the whole: deliveries have ended as they must (awaitSettled).
func (s *scene) check(unrecorded int, c crash) {
	s.t.Helper()
	if n := s.repeated(); n != unrecorded {
		s.t.Errorf("%d requests were repeated, want the %d that were not recorded when the agent died", n, unrecorded)
	}
	if unrecorded < c.least || unrecorded > c.most {
		s.t.Errorf("%d attempts were not recorded when the agent died, want %d to %d", unrecorded, c.least, c.most)
	}
	received := s.received()
	for _, line := range testenv.QueryAll[string](s.t, s.env, `select id || ' ' || type from webhooks.outbox`) {
		id, eventType, _ := strings.Cut(line, " ")
		least := map[string]int{"/steady": 1, "/flaky": 2, "/dead": 2}
		if eventType == "payment.received" {
			least = map[string]int{"/steady": 1}
		}
		for path, n := range least {
			if got := received[requestKey{path, id}]; got < n {
				s.t.Errorf("%s came to %s %d times, want %d at least", id, path, got, n)
			}
			delete(received, requestKey{path, id})
		}
	}
	for k := range received {
		s.t.Errorf("%s came to %s, where it does not belong", k.eventID, k.path)
	}

	// Every failure on record is counted once: in the attempts of its delivery, and in the health
	// of its endpoint.
	if ids := testenv.QueryAll[string](s.t, s.env, `select event_id from webhooks.deliveries d
		where attempts - (status = 'succeeded')::int <> (select count(*) from webhooks.attempts a where a.event_id = d.event_id and a.endpoint_id = d.endpoint_id)`); len(ids) > 0 {
		s.t.Errorf("these have other failed attempts than they count: %v", ids)
	}
	leads := testenv.QueryOne[int](s.t, s.env, `select count(*) from webhooks.outbox where type like 'lead.%'`)
	health := testenv.QueryAll[string](s.t, s.env, `select substring(e.url from '/[a-z]+$') || ' ' || h.consecutive_failures
		from webhooks.endpoint_health h join webhooks.endpoints e on e.id = h.endpoint_id where h.consecutive_failures <> 0 order by 1`)
	if want := []string{fmt.Sprintf("/dead %d", 2*leads)}; !slices.Equal(health, want) {
		s.t.Errorf("consecutive failures are %q, want %q", health, want)
	}
	for _, replay := range testenv.QueryAll[string](s.t, s.env, `select concat_ws(' ', state, total + sent, done + sent) from webhooks.replays,
		lateral (select coalesce(sum(done), 0) as sent from webhooks.replays where state = 'canceled') before where state <> 'canceled'`) {
		if want := fmt.Sprintf("done %d %d", bulk, bulk); replay != want {
			s.t.Errorf("the replay is %q, want %q", replay, want)
		}
	}
}
