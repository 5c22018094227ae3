package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// outage is an agent with one endpoint that takes all events of venue_1, for the tests that take
// something away from the agent and want every event to arrive once all the same.
type outage struct {
	t        *testing.T
	env      *testenv.DB
	receiver *testenv.Receiver
	endpoint string
	cfg      *config.Config
	insert   string           // writes an event with the data $1 and returns its id
	agent    *agenttest.Agent // the latest one
	events   []string         // all that were committed; each must arrive once
	gone     []string         // those of which the database knows nothing any more
}

// newOutage makes one with an agent that leads, has completed the recovery that every new slot
// begins with, and has delivered an event.
func newOutage(t *testing.T, env *testenv.DB) *outage {
	t.Helper()
	s := newQuietOutage(t, env)
	s.start()
	s.settle()
	return s
}

// newOwnersOutage is newOutage with an agent whose role owns the database.
func newOwnersOutage(t *testing.T, env *testenv.DB) *outage {
	t.Helper()
	s := newQuietOutage(t, env)
	s.cfg = agenttest.OwnersConfig(env)
	s.start()
	s.settle()
	return s
}

// newQuietOutage makes one whose agent is not started yet.
func newQuietOutage(t *testing.T, env *testenv.DB) *outage {
	t.Helper()
	s := &outage{t: t, env: env, receiver: testenv.StartReceiver(t, agenttest.Secret), cfg: agenttest.Config(env),
		insert: `insert into webhooks.outbox (type, venue, data) values ('lead.created', 'venue_1', $1::text::json) returning id`}
	s.endpoint = agenttest.AddEndpoint(t, env, "venue_1", s.receiver.URL, "*")
	return s
}

// ownDB makes a database in a cluster of its own. It is for tests that keep a transaction open, for
// which the recovery of every other agent of the cluster would wait, and for those that cannot wait
// for the transactions of others.
func ownDB(t *testing.T) *testenv.DB {
	t.Helper()
	return testenv.NewCluster(t, testenv.Options{}).NewDB(t)
}

// ownOutage makes an outage in a cluster of its own.
func ownOutage(t *testing.T, settings map[string]string) (*outage, *testenv.Cluster) {
	t.Helper()
	cluster := testenv.NewCluster(t, testenv.Options{Settings: settings})
	return newOutage(t, cluster.NewDB(t)), cluster
}

// start starts an agent and waits until it is ready.
func (s *outage) start() {
	s.t.Helper()
	s.agent = start(s.t, s.cfg)
	s.ready()
}

// settle waits until the recovery is complete that the first start is, so that what comes later
// cannot be found by it.
func (s *outage) settle() {
	s.t.Helper()
	s.wait(s.event())
	s.recovered(0)
}

// event writes an event.
func (s *outage) event() string {
	s.t.Helper()
	id := testenv.QueryOne[string](s.t, s.env, s.insert, fmt.Sprint(len(s.events)))
	s.events = append(s.events, id)
	return id
}

// wrote runs a statement that returns the ids of the events it has written.
func (s *outage) wrote(sql string) {
	s.t.Helper()
	s.events = append(s.events, testenv.QueryAll[string](s.t, s.env, sql)...)
}

// forget removes the latest n events from the expected ones that the database must still have. They
// were delivered.
func (s *outage) forget(n int) {
	kept := len(s.events) - n
	s.gone = append(s.gone, s.events[kept:]...)
	s.events = s.events[:kept]
}

// wait waits until events are delivered.
func (s *outage) wait(events ...string) {
	s.t.Helper()
	s.eventually(func() error {
		open := testenv.QueryAll[string](s.t, s.env, `
			select id || ' is ' || coalesce(status, 'not there') from unnest($1::text[]) id
			left join webhooks.deliveries on event_id = id and endpoint_id = $2
			where status is distinct from 'succeeded'`, events, s.endpoint)
		if len(open) > 0 {
			return fmt.Errorf("%d of %d events are not delivered; the delivery of %s", len(open), len(events), open[0])
		}
		return nil
	})
}

// eventually is testenv.Eventually with the agent's log where it comes to nothing.
func (s *outage) eventually(cond func() error) {
	s.t.Helper()
	testenv.Eventually(s.t, agenttest.Patience, func() error {
		if err := cond(); err != nil {
			return fmt.Errorf("%w; log:\n%s", err, s.agent.Log)
		}
		return nil
	})
}

// ready waits until the agent leads and says that all is well.
func (s *outage) ready() {
	s.t.Helper()
	url := s.agent.AdminURL() + "/readyz"
	s.eventually(func() error {
		if status, body := get(s.t, url); status != http.StatusOK || body != "leading\n" {
			return fmt.Errorf("/readyz says %d %q", status, body)
		}
		return nil
	})
}

// unready waits until the agent says that all is not well, and why in these words.
func (s *outage) unready(why ...string) {
	s.t.Helper()
	url := s.agent.AdminURL() + "/readyz"
	s.eventually(func() error {
		status, body := get(s.t, url)
		if status != http.StatusServiceUnavailable {
			return fmt.Errorf("/readyz says %d %q", status, body)
		}
		for _, word := range why {
			if !strings.Contains(body, word) {
				return fmt.Errorf("/readyz says %q and not %q", body, word)
			}
		}
		return nil
	})
}

// recovered waits until the agent's log and metrics show a recovery with n deliveries.
func (s *outage) recovered(n int) {
	s.t.Helper()
	s.eventually(func() error {
		if err := logged(s.agent, "recovery is complete", fmt.Sprintf("recovered_deliveries=%d\n", n)); err != nil {
			return err
		}
		if got := s.metric("webhook_agent_recovered_deliveries_total"); got != fmt.Sprint(n) {
			return fmt.Errorf("the metric counts %s recovered deliveries, want %d", got, n)
		}
		if got := s.metric("webhook_agent_recovering"); got != "0" {
			return errors.New("the metric says that the recovery goes on")
		}
		return nil
	})
}

// logged returns an error unless one line of the agent's log has all the words.
func logged(a *agenttest.Agent, words ...string) error {
	for line := range strings.Lines(a.Log.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			return nil
		}
	}
	return fmt.Errorf("no line of the log has all of %q", words)
}

// metric returns the value of a metric without labels.
func (s *outage) metric(name string) string {
	s.t.Helper()
	_, body := get(s.t, s.agent.AdminURL()+"/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	s.t.Fatalf("there is no metric %s", name)
	return ""
}

// eachOnce fails the test unless every event has arrived exactly once, and the agent is well and
// goes on.
func (s *outage) eachOnce() {
	s.t.Helper()
	s.wait(s.events...)
	s.wait(s.event())
	s.ready()
	s.agent.End() // what it would still have sent it has sent now
	arrived := map[string]int{}
	for _, got := range s.receiver.Received() {
		arrived[got.ID]++
		if got.SignatureErr != nil {
			s.t.Errorf("%s: %v", got.ID, got.SignatureErr)
		}
	}
	for _, id := range append(s.events, s.gone...) {
		if arrived[id] != 1 {
			s.t.Errorf("%s arrived %d times, want once", id, arrived[id])
		}
		delete(arrived, id)
	}
	for id := range arrived {
		s.t.Errorf("%s arrived and is none of the events", id)
	}
	if s.t.Failed() {
		s.t.Logf("log of the agent:\n%s", s.agent.Log)
	}
}

// super runs statements as a superuser, who is not affected by the settings of the database that
// disturb the agent.
func (s *outage) super(statements ...string) {
	s.t.Helper()
	const untroubled = "&options=-c%20default_transaction_read_only%3Doff%20-c%20statement_timeout%3D0"
	for _, sql := range statements {
		if err := testenv.ExecSQL(context.Background(), s.env.SuperuserURL+untroubled, sql); err != nil {
			s.t.Fatalf("%s: %v", sql, err)
		}
	}
}

// disconnect ends all connections of the agent, and lets it have no other until the returned
// function is called.
func (s *outage) disconnect() (admit func()) {
	s.t.Helper()
	testenv.QueryOne[int](s.t, s.env, `select 1`) // the test keeps the connection that it has
	s.super(`alter database ` + s.env.Name + ` connection limit 0`)
	s.endConnections()
	s.eventually(func() error {
		if n := testenv.QueryOne[int](s.t, s.env, `select count(*) from pg_stat_activity where datname = current_database() and application_name = 'webhook-agent'`); n > 0 {
			return fmt.Errorf("the agent has %d connections", n)
		}
		return nil
	})
	return func() {
		s.t.Helper()
		s.super(`alter database ` + s.env.Name + ` connection limit -1`)
	}
}

// endConnections ends those of the agent, as an administrator may.
func (s *outage) endConnections() {
	s.t.Helper()
	s.super(`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'webhook-agent'`)
}

// hold begins a transaction of the app, for the test to end.
func (s *outage) hold() pgx.Tx {
	s.t.Helper()
	tx, err := connect(s.t, s.env).Begin(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	return tx
}
