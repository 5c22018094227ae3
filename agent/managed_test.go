package agent

import (
	"context"
	"testing"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The app holds the row of an endpoint of the configuration file, which has changed. Nobody else
// waits for that.
func TestManaged_ALockedEndpointOfTheFileHoldsUpNobody(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	other := agenttest.AddEndpoint(t, env, "venue_2", r.URL+"/other", "*")
	cfg := agenttest.Config(env)
	file := func(description string) []config.Endpoint {
		return []config.Endpoint{{Venue: "venue_1", URL: secret.New(r.URL + "/file"), Events: []string{"*"}, Secret: secret.New(agenttest.Secret), Description: description}}
	}
	cfg.Endpoints = file("before")
	first := start(t, cfg)
	first.WaitLog("leading")
	first.End()
	conn := connect(t, env)
	if _, err := conn.Exec(context.Background(), `begin; select from webhooks.endpoints where managed_by = 'file' for update`); err != nil {
		t.Fatal(err)
	}
	cfg.Endpoints = file("after")
	a := start(t, cfg)
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_2", "lead.created", `{}`), other, "succeeded")
	a.WaitLog("the endpoints of the configuration file are not taken over yet")
	if _, err := conn.Exec(context.Background(), `rollback`); err != nil {
		t.Fatal(err)
	}
	a.WaitLog("the endpoints of the configuration file are taken over")
	if got := testenv.QueryOne[string](t, env, `select description from webhooks.endpoints where managed_by = 'file'`); got != "after" {
		t.Errorf("the endpoint of the file is %q, want %q", got, "after")
	}
}
