package agent

import (
	"errors"
	"fmt"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// An app may delete an endpoint and insert another one under its id, as a job that synchronizes two
// tables does. The new one gets no event from before it was registered.
func TestP10_AnEndpointWithTheIDOfARemovedOneGetsNothingOfIt(t *testing.T) {
	t.Parallel()
	const events = 20
	remove := `delete from webhooks.endpoints where id = 'ep_again'`
	add := fmt.Sprintf(`insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_again', 'venue_1', $1, '{*}', '%s')`, agenttest.Secret)
	for _, test := range []struct {
		name    string
		running bool // the agent runs meanwhile
	}{
		{"while no agent runs", false},
		{"in one transaction", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			r := testenv.StartReceiver(t, agenttest.Secret)
			// So no attempt is under way, and no other one is made, when the endpoint is removed.
			r.SetAnswer("/former", testenv.Script(testenv.Answer{Status: 503, Header: map[string]string{"Retry-After": "600"}}))
			env.Exec(t, add, r.URL+"/former")
			cfg := agenttest.Config(env)
			a := start(t, cfg)
			env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(n) from generate_series(1, $1::int) n`, events)
			testenv.Eventually(t, agenttest.Patience, func() error {
				if got := testenv.QueryOne[string](t, env, `select count(*) || ' ' || coalesce(sum(attempts), 0) from webhooks.deliveries where status = 'pending'`); got != fmt.Sprint(events, " 1") {
					return errors.New("so many deliveries are pending, with so many attempts: " + got)
				}
				return nil
			})
			env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created, finished)
				select status, 'ep_again', 'venue_1', 'lead.created', status, 6, now() - interval '1 hour', now() - interval '1 minute'
				from unnest('{succeeded,failed}'::text[]) status`)
			if !test.running {
				a.End()
			}
			env.Exec(t, `begin`)
			env.Exec(t, remove)
			env.Exec(t, add, r.URL+"/new")
			env.Exec(t, `commit`)
			if !test.running {
				start(t, cfg)
			}
			later := agenttest.AddEvent(t, env, "venue_1", "lead.created", `"later"`)
			agenttest.WaitStatus(t, env, later, "ep_again", "succeeded")
			testenv.Eventually(t, agenttest.Patience, func() error {
				if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'missed' and last_error = 'the endpoint was removed'`); n < events-1 { // one is due later
					return fmt.Errorf("%d deliveries are missed", n)
				}
				return nil
			})
			// A replay sends nothing of the former one either, whatever came of it.
			env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses) values ('rpl_1', 'ep_again', '{missed,failed,succeeded}')`)
			testenv.Eventually(t, agenttest.Patience, func() error {
				if got := testenv.QueryOne[string](t, env, `select state || ' ' || coalesce(total, -1) from webhooks.replays`); got != "done 1" { // the event of after the registration
					return errors.New("the replay is " + got)
				}
				return nil
			})
			for _, got := range r.Received() {
				if got.Path == "/new" && got.ID != later {
					t.Errorf("the new endpoint got %s of before", got.ID)
				}
			}
		})
	}
}
