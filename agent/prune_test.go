package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// shortRetention is shorter than a configuration file may ask for.
const shortRetention = time.Second

// left wants so many rows in the outbox and in the log.
func left(t *testing.T, env *testenv.DB, want int) error {
	t.Helper()
	if n := testenv.QueryOne[int](t, env, `select (select count(*) from webhooks.outbox) + (select count(*) from webhooks.deliveries)`); n != want {
		return fmt.Errorf("%d rows are left, want %d", n, want)
	}
	return nil
}

func TestPrune_WhatIsOldGoesAndIsNeverSentAgain(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, ownDB(t))
	s.cfg.Outbox.Retention = 0
	s.start()
	s.settle()
	for range 20 {
		s.wait(s.event())
	}
	s.agent.End()

	s.cfg.Outbox.Retention = shortRetention
	s.start()
	s.eventually(func() error { return left(t, s.env, 0) })
	for _, table := range []string{"outbox", "deliveries"} {
		if got := s.metric(`webhook_agent_pruned_rows_total{table="` + table + `"}`); got != "21" {
			t.Errorf("the metric counts %s rows of %s, want 21", got, table)
		}
	}
	pruned := s.events[0]
	s.forget(len(s.events))
	status, _, stderr := command(t, s.env, "deliveries", "replay", pruned)
	if status != statusFailed || !strings.Contains(stderr, "the delivery log does not have it; webhook-agent deliveries show "+pruned) {
		t.Errorf("replay of a pruned event: status %d, %s", status, stderr)
	}
	status, _, stderr = command(t, s.env, "deliveries", "show", pruned)
	if status != statusFailed || !strings.Contains(stderr, "what is older than outbox.retention is deleted") {
		t.Errorf("a pruned event: status %d, %s", status, stderr)
	}
	replay := testenv.QueryOne[string](t, s.env, `insert into webhooks.replays (endpoint_id, event_ids) values ($1, array[$2]) returning id`,
		s.endpoint, pruned)
	s.eventually(func() error {
		if n := testenv.QueryOne[int](t, s.env, `select count(*) from webhooks.replays where id = $1`, replay); n != 0 {
			return errors.New("a replay of a pruned event has not ended and gone")
		}
		return nil
	})
	s.agent.End()

	s.cfg.Outbox.Retention = 0
	s.env.Exec(t, `select pg_drop_replication_slot($1)`, s.env.Slot)
	s.event()
	s.start()
	s.recovered(1)
	s.eachOnce()
}

func TestPrune_AnAgentKilledInTheMiddleIsGoneOnWith(t *testing.T) {
	t.Parallel()
	env := ownDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	env.Exec(t, `update webhooks.endpoints set created = '2020-01-01'`) // what lacks a delivery would be sent
	const events = 20_000
	env.Exec(t, `insert into webhooks.outbox (type, venue, data, created)
		select 'lead.created', 'venue_1', to_json(i), now() - interval '31 days' from generate_series(1, $1) i`, events)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created)
		select id, $1, venue, type, 'succeeded', 1, created from webhooks.outbox`, endpoint)

	p := startBinary(t, env)
	begun := func() error {
		if left(t, env, 2*events) == nil {
			return fmt.Errorf("nothing was deleted; log:\n%s", p.stderr)
		}
		return nil
	}
	testenv.Eventually(t, agenttest.Patience, begun)
	p.kill(t)
	if left(t, env, 0) == nil {
		t.Error("everything was deleted before the kill")
	}
	p = startBinary(t, env)
	testenv.Eventually(t, 2*agenttest.Patience, func() error {
		if err := left(t, env, 0); err != nil {
			return fmt.Errorf("%w; log:\n%s", err, p.stderr)
		}
		return nil
	})
	p.terminate(t)
	if n := r.Count(); n != 0 {
		t.Errorf("%d requests arrived, of events that were delivered a month ago", n)
	}
}

func TestPrune_TellsOnceWhatItCannotDelete(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, ownDB(t))
	s.cfg.Outbox.Retention = shortRetention
	s.env.Exec(t, `create table notes (event text references webhooks.outbox (id))`)
	s.env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ('evt_noted', 'x', 'venue_other', '{}', '2020-01-01')`)
	s.env.Exec(t, `insert into notes values ('evt_noted')`)
	s.env.Exec(t, `revoke delete on webhooks.replays from webhook_agent`)
	s.start()
	s.agent.WaitLog("it cannot be pruned")
	s.agent.WaitLog("retention of webhooks.replays: it is not pruned")
	s.env.Exec(t, `grant delete on webhooks.replays to webhook_agent`)
	for range 3 { // each goes with a run of its own
		s.env.Exec(t, `insert into webhooks.replays (endpoint_id, state, finished) values ('x', 'done', '2020-01-01')`)
		s.eventually(func() error {
			if n := testenv.QueryOne[int](t, s.env, `select count(*) from webhooks.replays`); n != 0 {
				return errors.New("a replay is left")
			}
			return nil
		})
	}
	if log := s.agent.Log.String(); strings.Count(log, "it cannot be pruned") != 1 {
		t.Errorf("that the outbox is not pruned is not told once:\n%s", log)
	}
	s.env.Exec(t, `drop table notes`)
	s.agent.WaitLog(`msg="pruning goes on" table=outbox`)
	if n := testenv.QueryOne[int](t, s.env, `select count(*) from webhooks.outbox`); n != 0 {
		t.Errorf("%d events are left", n)
	}
}
