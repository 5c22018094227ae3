package agent

import (
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestRun_DeliversAnInsertedEventSigned(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/hook", "lead.*")
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")

	const data = `{"b": 1.50,  "a":"É \u00e9", "b":2}`
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", data)
	got := r.Wait(t, 1, agenttest.Patience)[0]
	if got.SignatureErr != nil {
		t.Error(got.SignatureErr)
	}
	agenttest.WaitStatus(t, env, event, endpoint, "succeeded, attempts 1")
	created := testenv.QueryOne[string](t, env, `select to_char(created at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') from webhooks.outbox`)
	want := `{"id":"` + event + `","type":"lead.created","created":"` + created + `","venue":"venue_1","data":` + data + `}`
	if string(got.Body) != want {
		t.Errorf("body\n%s\nwant\n%s", got.Body, want)
	}
}
