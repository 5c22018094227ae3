package agent

import (
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The checkpoint is moved beyond an event, so the stream does not bring it, and the agent does not
// know that. The test has a cluster of its own: a transaction that another test keeps open would
// delay the event until the next comparison.
func TestRecovery_AnEventLostWithoutAKnownCauseIsFoundAndToldAsAnError(t *testing.T) {
	t.Parallel()
	s, _ := ownOutage(t, nil)
	changed := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, s.env, "venue_1", changed.URL, "payment.*")
	s.agent.End()
	s.event()
	s.env.Exec(t, `update webhooks.endpoints set events = '{*}' where url = $1`, changed.URL)
	late := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, s.env, "venue_1", late.URL, "*")
	s.env.Exec(t, `update webhooks.checkpoint set lsn = pg_current_wal_insert_lsn()`)
	s.start()
	s.wait(s.events...)
	s.eventually(func() error {
		return logged(s.agent, "level=ERROR", "nothing was known to be wrong", "recovered_deliveries=1\n")
	})
	if got := s.metric("webhook_agent_recovered_deliveries_total"); got != "1" {
		t.Errorf("the metric counts %s recovered deliveries, want 1", got)
	}
	s.eachOnce()
	for name, r := range map[string]*testenv.Receiver{"was changed": changed, "was registered": late} {
		if n := r.Count(); n != 1 {
			t.Errorf("%d events reached an endpoint that %s after the lost one, want the last", n, name)
		}
	}
}
