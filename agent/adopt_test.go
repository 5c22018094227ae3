package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// copyRows makes a database what a dump of another one restores: all rows of the agent's tables, on
// another server.
func copyRows(t *testing.T, from, to *testenv.DB) {
	t.Helper()
	for _, table := range []string{"outbox", "endpoints", "deliveries", "endpoint_health", "checkpoint", "replays"} {
		rows := testenv.QueryOne[string](t, from, `select coalesce(json_agg(r), '[]')::text from webhooks.`+table+` r`)
		to.Exec(t, `insert into webhooks.`+table+` select * from json_populate_recordset(null::webhooks.`+table+`, $1::text::json)`, rows)
	}
}

func TestAdopt_ARestoredCopySendsNothingUntilSomebodyHasSaidSo(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	s.agent.End()
	s.env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ('evt_retry', 'lead.created', 'venue_1', '{}', date_trunc('day', now()))`)
	s.env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, created)
	    values ('evt_retry', $1, 'venue_1', 'lead.created', 'pending', 1, now() - interval '1 minute', date_trunc('day', now()))`, s.endpoint)
	cluster := testenv.NewCluster(t, testenv.Options{OwnIdentity: true})
	for _, test := range []struct {
		name string
		args []string
		want string // the state of the retry
		sent int
	}{
		{"for staging", []string{"adopt", "--disable-endpoints"}, "missed", 0},
		{"in place of the original", []string{"adopt"}, "succeeded, attempts 2", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := cluster.NewDB(t)
			copyRows(t, s.env, env)
			before := s.receiver.Count()
			a := start(t, agenttest.Config(env))
			a.WaitLog("cannot stream the outbox; trying again")
			a.WaitLog("run webhook-agent adopt to go on here, or webhook-agent adopt --disable-endpoints")
			if status, stdout, _ := command(t, env, "check"); status != statusFailed || !strings.Contains(stdout, "fail  checkpoint: it is of another") {
				t.Errorf("check ended with %d:\n%s", status, stdout)
			}
			if n := s.receiver.Count() - before; n != 0 {
				t.Errorf("%d requests before anybody has adopted", n)
			}
			asked := time.Now()
			done := agenttest.Decode[outbox.Adoption](t, commandSucceeds(t, env, append(test.args, "--json")...))
			if !done.Adopted || done.Database != env.Name {
				t.Errorf("adopt --json: %+v", done)
			}
			agenttest.WaitStatus(t, env, "evt_retry", s.endpoint, test.want)
			if took := time.Since(asked); took > agenttest.Patience/6 {
				t.Errorf("the running agent took %s", took)
			}
			a.End()
			if n := s.receiver.Count() - before; n != test.sent {
				t.Errorf("%d requests after it, want %d", n, test.sent)
			}
			if got := commandSucceeds(t, env, test.args...); got != "the checkpoint is of this server and database already\n" {
				t.Errorf("the second time it says %q", got)
			}
		})
	}
}
