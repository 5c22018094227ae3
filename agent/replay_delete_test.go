package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// Somebody deletes the row of a replay in an editor of tables while the agent is sending. What was under way
// ends; the rest is what it was and is not sent.
func TestP8_AReplayWhoseRowIsDeletedSendsNothingMore(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	cfg := agenttest.Config(env)
	cfg.Delivery.EndpointConcurrency = 2
	start(t, cfg).WaitLog("leading")
	const events = 600
	missed := func() int {
		return testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'missed' and attempts = 0 and former is null`)
	}
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, $1)`, events)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := missed(); n != events {
			return fmt.Errorf("%d deliveries are missed", n)
		}
		return nil
	})
	env.Exec(t, `update webhooks.endpoints set disabled_at = null`)
	r.SetAnswer("", testenv.Script(testenv.Answer{Delay: 50 * time.Millisecond}))
	env.Exec(t, `insert into webhooks.replays (endpoint_id, statuses) values ($1, '{missed}')`, endpoint)
	r.Wait(t, 10, agenttest.Patience)
	env.Exec(t, `delete from webhooks.replays`)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := testenv.QueryOne[string](t, env, `select state || ' ' || (finished is not null) from webhooks.replays`); got != "canceled true" {
			return fmt.Errorf("the replay is %s", got)
		}
		return nil
	})
	sent := r.Count()
	if sent >= events/2 {
		t.Errorf("%d of %d were sent, although the row was deleted at the tenth", sent, events)
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != sent {
		t.Errorf("%d have succeeded, %d were sent", n, sent)
	}
	if n := missed(); n != events-sent {
		t.Errorf("%d are missed as before, want %d", n, events-sent)
	}
}
