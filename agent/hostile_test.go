package agent

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file are rows and transactions that nobody should write and somebody will: none
// may stop what it has nothing to do with.

func TestRun_OddRowsStopNothingElse(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	good := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	for _, column := range []string{"created = '-infinity'", "created = 'infinity'", "previous_secret = 'x', previous_secret_until = 'infinity'", "disabled_at = 'infinity'"} {
		env.Exec(t, `update webhooks.endpoints set `+column+` where id = $1`, agenttest.AddEndpoint(t, env, "venue_2", r.URL, "*"))
	}
	env.Exec(t, `insert into webhooks.replays (endpoint_id, since, until) values ($1, '-infinity', 'infinity')`, good)
	conn := connect(t, env)
	for _, refused := range []string{
		`insert into webhooks.replays (endpoint_id, event_ids) values ('x', '{NULL}')`,
		`insert into webhooks.replays (endpoint_id, since) values ('x', 'infinity')`,
		`insert into webhooks.endpoints (id, venue, url, events, secret) values ('', 'v', 'u', '{*}', 's')`,
		`update webhooks.endpoints set id = 'other'`,
	} {
		if _, err := conn.Exec(context.Background(), refused); err == nil {
			t.Errorf("accepted: %s", refused)
		}
	}
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ('evt_late', 'a.b', 'venue_1', '{}', 'infinity'), ('evt_early', 'a.b', 'venue_1', '{}', '-infinity')`)
	for round := range 2 { // the second one loads all of it again
		a := start(t, agenttest.Config(env))
		agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", fmt.Sprint(round)), good, "succeeded")
		agenttest.WaitStatus(t, env, "evt_late", good, "succeeded")
		agenttest.WaitStatus(t, env, "evt_early", good, "succeeded")
		a.End()
	}
}

func TestP9_ALockOnAnEndpointThatIsToBeDisabledHoldsUpNobody(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/gone", testenv.Statuses(410))
	gone := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/gone", "*")
	other := agenttest.AddEndpoint(t, env, "venue_2", r.URL, "*")
	start(t, agenttest.Config(env)).WaitLog("leading")
	tx, err := connect(t, env).BeginTx(context.Background(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), `update webhooks.endpoints set description = 'held' where id = $1`, gone); err != nil {
		t.Fatal(err)
	}
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`), gone, "missed, attempts 1")
	began := time.Now()
	for range 10 {
		agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_2", "lead.created", `{}`), other, "succeeded")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("ten deliveries of another venue took %s", took)
	}
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`), gone, "missed, attempts 0")
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := testenv.QueryOne[string](t, env, `select coalesce(disabled_reason, '') from webhooks.endpoints where id = $1`, gone); got != "gone" {
			return fmt.Errorf("disabled_reason is %q", got)
		}
		return nil
	})
}

func TestP5_AnEndpointThatChangesItsVenueTakesNothingAlong(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/before", testenv.Statuses(500))
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/before", "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.Retries[0] = time.Second
	start(t, cfg).WaitLog("leading")
	secretEvent := agenttest.AddEvent(t, env, "venue_1", "lead.created", `"of venue_1"`)
	agenttest.WaitStatus(t, env, secretEvent, endpoint, "pending, attempts 1")
	env.Exec(t, `update webhooks.endpoints set venue = 'venue_2', url = $1`, r.URL+"/after")
	agenttest.WaitStatus(t, env, secretEvent, endpoint, "missed, attempts 1, the endpoint belongs to another venue now")
	env.Exec(t, `insert into webhooks.replays (endpoint_id) values ($1)`, endpoint)
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_2", "lead.created", `{}`), endpoint, "succeeded")
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := testenv.QueryOne[string](t, env, `select state || ' ' || coalesce(total::text, 'of unknown size') from webhooks.replays`); got != "done 0" {
			return fmt.Errorf("the replay is %s", got)
		}
		return nil
	})
	for _, got := range r.Received() {
		if got.Path == "/after" && got.ID == secretEvent {
			t.Error("an event of venue_1 reached venue_2")
		}
	}
}

func TestP7_AnEndpointThatComesBackUnderItsIDIsCounted(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("", testenv.Statuses(500))
	insert := func() {
		env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_x', 'venue_1', $1, '{*}', $2)`, r.URL, agenttest.Secret)
	}
	insert()
	start(t, agenttest.Config(env)).WaitLog("leading")
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `1`), "ep_x", "failed, attempts 6")
	env.Exec(t, `delete from webhooks.endpoints`)
	insert()
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `2`), "ep_x", "failed, attempts 6")
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select coalesce(sum(consecutive_failures), 0) from webhooks.endpoint_health`); n != 6 {
			return fmt.Errorf("%d failures are recorded, want 6", n)
		}
		return nil
	})
}

func TestRun_APublicationThatWasDroppedAndMadeAgainLosesNothing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	start(t, agenttest.Config(env)).WaitLog("leading")
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `1`), endpoint, "succeeded")
	env.Exec(t, `drop publication webhooks_outbox`)
	hidden := agenttest.AddEvent(t, env, "venue_1", "lead.created", `2`)
	env.Exec(t, `create publication webhooks_outbox for table webhooks.outbox, webhooks.replays with (publish = 'insert')`)
	after := agenttest.AddEvent(t, env, "venue_1", "lead.created", `3`)
	agenttest.WaitStatus(t, env, after, endpoint, "succeeded")
	agenttest.WaitStatus(t, env, hidden, endpoint, "succeeded")
	if n := r.Count(); n != 3 {
		t.Errorf("%d requests arrived for 3 events", n)
	}
}
