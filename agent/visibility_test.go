package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// hideCommits makes commits of the app reach the stream but stay invisible to queries until show is
// called.
func hideCommits(t *testing.T, env *testenv.DB) (show func()) {
	t.Helper()
	super := agenttest.ConnectURL(t, env.SuperuserURL)
	standby := func(name string) {
		t.Helper()
		if _, err := super.Exec(context.Background(), "alter system set synchronous_standby_names = '"+name+"'"); err != nil {
			t.Fatal(err)
		}
		if _, err := super.Exec(context.Background(), "select pg_reload_conf()"); err != nil {
			t.Fatal(err)
		}
	}
	standby("nobody")
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := testenv.QueryOne[string](t, env, "show synchronous_standby_names"); got != "nobody" {
			return fmt.Errorf("synchronous_standby_names is %q", got)
		}
		return nil
	})
	return func() { standby("") }
}

// A commit is streamed when its record is on disk. Queries see it only when a synchronous standby
// has answered too. The test names a standby that does not exist, so the time between is as long as
// it wants.
func TestRun_WhatIsStreamedBeforeItIsVisibleIsNeitherLostNorForgotten(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{})
	env := cluster.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	cfg := agenttest.Config(env)
	cfg.Database.URL = secret.New(env.LeastURL + "&options=-c%20synchronous_commit%3Dlocal") // the agent's own commits do not wait
	cfg.Delivery.Retries[0] = 300 * time.Millisecond
	start(t, cfg).WaitLog("leading")
	missed := agenttest.AddEvent(t, env, "venue_1", "lead.created", `1`)
	agenttest.WaitStatus(t, env, missed, endpoint, "succeeded")

	show := hideCommits(t, env)
	done := make(chan error, 2)
	hang := func(sql string, args ...any) {
		conn := connect(t, env)
		go func() {
			_, err := conn.Exec(context.Background(), sql, args...)
			done <- err
		}()
	}
	r.SetAnswer("", testenv.Statuses(500, 500, 200))
	hang(`insert into webhooks.outbox (id, type, venue, data) values ('evt_hidden', 'lead.created', 'venue_1', '2')`)
	r.Wait(t, 2, agenttest.Patience) // the first attempt at it; its retry has to read the row
	hang(`insert into webhooks.replays (endpoint_id, event_ids, statuses) values ($1, array[$2], '{succeeded}')`, endpoint, missed)
	agenttest.WaitStatus(t, env, "evt_hidden", endpoint, "pending, attempts 1")
	refilled := time.Now()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if passed := time.Since(refilled); passed < time.Second {
			return fmt.Errorf("%s since the first attempt failed", passed)
		}
		return nil
	})
	agenttest.WaitStatus(t, env, "evt_hidden", endpoint, "pending, attempts 1")

	show()
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	agenttest.WaitStatus(t, env, "evt_hidden", endpoint, "succeeded")
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := testenv.QueryOne[string](t, env, `select state || ' ' || done from webhooks.replays`); got != "done 1" {
			return fmt.Errorf("the replay is %s", got)
		}
		return nil
	})
}

func TestSeal_ASecretThatIsStreamedBeforeItIsVisibleIsSealedToo(t *testing.T) {
	t.Parallel()
	env := testenv.NewCluster(t, testenv.Options{}).NewDB(t)
	cfg := agenttest.Config(env)
	cfg.Database.URL = secret.New(env.LeastURL + "&options=-c%20synchronous_commit%3Dlocal") // the agent's own commits do not wait
	cfg.Security.Keys = testKeys[:1]
	agent := start(t, cfg)
	agent.WaitLog("msg=leading")
	show := hideCommits(t, env)
	conn := connect(t, env)
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), `insert into webhooks.endpoints (id, venue, url, events, secret, disabled_at) values ('ep_hidden', 'venue_1', 'http://127.0.0.1:1/', '{*}', $1, now())`, agenttest.Secret)
		done <- err
	}()
	url := agent.AdminURL() + "/metrics"
	testenv.Eventually(t, agenttest.Patience, func() error {
		if _, body := get(t, url); !strings.Contains(body, "webhook_agent_endpoints_not_sending 1") {
			return errors.New("the agent has not read the endpoint")
		}
		return nil
	})
	show()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	waitSealed(t, env, cfg.Security.Keys, "ep_hidden", agenttest.Secret)
}
