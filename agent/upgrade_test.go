package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// formerDB returns a database as the binary of a former schema has migrated it, with the rights of
// the agent's role.
func formerDB(t *testing.T, version int) *testenv.DB {
	t.Helper()
	env := testenv.NewDB(t)
	env.Exec(t, `drop publication webhooks_outbox, webhooks_outbox_endpoints`)
	env.Exec(t, `drop schema webhooks cascade`)
	migrateTo(t, env, version)
	env.Exec(t, `grant usage on schema webhooks to `+testenv.LeastRole)
	env.Exec(t, `grant select, insert, update, delete on all tables in schema webhooks to `+testenv.LeastRole)
	return env
}

// migrateTo migrates as the binary of a schema does; 0 is this one.
func migrateTo(t *testing.T, env *testenv.DB, version int) {
	t.Helper()
	cfg := agenttest.OwnersConfig(env).OutboxConfig()
	cfg.Schema = version
	if _, _, err := outbox.Migrate(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// startOf starts an agent whose binary knows a schema; 0 is this one.
func startOf(t *testing.T, env *testenv.DB, schema int) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, agenttest.Config(env), func(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
		o := testOptions(cfg, log)
		o.Schema = schema
		return Run(ctx, o)
	})
}

// producer writes events for venue_1 until stop is called.
type producer struct {
	stop  context.CancelFunc
	ended sync.WaitGroup
	err   error // belongs to its goroutine until that has ended
}

func produce(t *testing.T, env *testenv.DB) *producer {
	t.Helper()
	conn := connect(t, env)
	ctx, cancel := context.WithCancel(context.Background())
	p := &producer{stop: cancel}
	p.ended.Go(func() { // ends by stop
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil && p.err == nil {
			_, p.err = conn.Exec(context.Background(), `insert into webhooks.outbox (type, venue, data) values ('lead.created', 'venue_1', '{}')`)
			<-pace.C
		}
	})
	t.Cleanup(func() { cancel(); p.ended.Wait() })
	return p
}

func (p *producer) end(t *testing.T) {
	t.Helper()
	p.stop()
	p.ended.Wait()
	if p.err != nil {
		t.Fatal(p.err)
	}
}

// wantAllOnce waits until every event that matches venue_1 is delivered, and fails the test when
// one arrived twice. sent are those that had been sent before.
func wantAllOnce(t *testing.T, env *testenv.DB, receiver *testenv.Receiver, sent ...string) {
	t.Helper()
	testenv.Eventually(t, agenttest.Patience, func() error {
		n := testenv.QueryOne[int](t, env, `select count(*)::int from webhooks.outbox o where venue = 'venue_1' and not exists (
		    select from webhooks.deliveries d where d.event_id = o.id and d.status <> 'pending')`)
		if n > 0 {
			return fmt.Errorf("%d events have no delivery that has ended", n)
		}
		return nil
	})
	times := map[string]int{}
	for _, got := range receiver.Received() {
		times[got.ID]++
	}
	for _, id := range sent {
		if times[id] > 0 {
			t.Errorf("%s was sent again", id)
		}
		times[id] = 1
	}
	ids := testenv.QueryAll[string](t, env, `select id from webhooks.outbox where venue = 'venue_1'`)
	for _, id := range ids {
		if times[id] != 1 {
			t.Errorf("%s arrived %d times", id, times[id])
		}
	}
	if failed := testenv.QueryAll[string](t, env, `select to_jsonb(d)::text from webhooks.deliveries d where status <> 'succeeded'`); len(failed) != max(len(sent)-1, 0) {
		t.Errorf("%d deliveries did not succeed: %s", len(failed), failed)
	}
	t.Logf("%d events", len(ids))
}

// addFormerLog adds what an agent of an early version has left: an event that was delivered, one
// whose attempts have failed, one that is pending, and its slot with the checkpoint.
func addFormerLog(t *testing.T, env *testenv.DB, endpoint string) {
	t.Helper()
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created)
	    select id, 'lead.created', 'venue_1', '{}', now() - interval '1 hour' from unnest('{evt_sent,evt_failed,evt_pending}'::text[]) id`)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, created, finished)
	    select event, $1, 'venue_1', 'lead.created', status, 1, case when status = 'pending' then now() end, created, case when status <> 'pending' then now() end
	    from (values ('evt_sent', 'succeeded'), ('evt_failed', 'failed'), ('evt_pending', 'pending')) v (event, status) join webhooks.outbox on id = event`, endpoint)
	env.Exec(t, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class)
	    select id, $1, 1, now() - interval '1 hour', 500, 'status' from unnest('{evt_failed,evt_pending}'::text[]) id`, endpoint)
	env.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, env.Slot)
	env.Exec(t, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
	    select slot_name, confirmed_flush_lsn, 3, 'former/1', (select system_identifier::text from pg_control_system()),
	           (select timeline_id from pg_control_checkpoint()), current_database()
	    from pg_replication_slots where slot_name = $1`, env.Slot)
}

// The agent of this version is there before the migration, as in a cluster that starts everything at
// once. The app writes all the while.
func TestUpgrade_FromAnEarlySchemaUnderLoadDeliversEachEventOnce(t *testing.T) {
	t.Parallel()
	for version := 1; version <= 5; version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			env := formerDB(t, version)
			receiver := testenv.StartReceiver(t, agenttest.Secret)
			endpoint := agenttest.AddEndpoint(t, env, "venue_1", receiver.URL, "*")
			addFormerLog(t, env, endpoint)
			load := produce(t, env)
			a := startOf(t, env, 0)
			want := fmt.Sprintf("schema webhooks: it has version %d, this binary needs %d; run webhook-agent migrate\n", version, outbox.SchemaVersion())
			testenv.Eventually(t, agenttest.Patience, func() error {
				if status, body := get(t, a.AdminURL()+"/readyz"); status != http.StatusServiceUnavailable || body != want {
					return fmt.Errorf("/readyz says %d %q, want %q", status, body, want)
				}
				return nil
			})
			migrateTo(t, env, 0)
			a.WaitLog("msg=leading")
			receiver.Wait(t, 100, agenttest.Patience)
			load.end(t)
			wantAllOnce(t, env, receiver, "evt_sent", "evt_failed")
			if n := strings.Count(a.Log.String(), strings.TrimSpace(want)); n != 1 {
				t.Errorf("the log says %d times what it waits for", n)
			}
		})
	}
}

// The schema goes ahead by what an expansion may add, and the agents follow one by one. This
// version plays the one before, since only its own statements are there, and the one that knows the
// schema.
func TestUpgrade_AnAgentOfTheSchemaBeforeDeliversOnAndRestarts(t *testing.T) {
	t.Parallel()
	const later = 99
	former := outbox.SchemaVersion()
	env := testenv.NewDB(t)
	receiver := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, env, "venue_1", receiver.URL, "*")
	goesOn := func() {
		t.Helper()
		receiver.Wait(t, receiver.Count()+50, agenttest.Patience)
	}
	load := produce(t, env)
	old := startOf(t, env, former)
	old.WaitLog("msg=leading")
	goesOn()
	// Each statement is a transaction of its own: one that locks several tables can meet the agent's
	// in a deadlock.
	for _, sql := range []string{
		`alter table webhooks.outbox add column later text`,
		`alter table webhooks.endpoints add column later text not null default 'x', add column later_too bigint`,
		`alter table webhooks.deliveries add column later jsonb`,
		`alter table webhooks.attempts add column later int`,
		`alter table webhooks.endpoint_health add column later int not null default 0`,
		`alter table webhooks.checkpoint add column later text`,
		`alter table webhooks.replays add column later text`,
		`alter table webhooks.event_types add column later text`,
		`create table webhooks.later (id text primary key)`,
		`update webhooks.schema_version set version = ` + strconv.Itoa(later),
	} {
		env.Exec(t, sql)
	}
	goesOn()
	if strings.Contains(old.Log.String(), "newer than this binary") {
		t.Error("the agent has looked at the schema again; this test wants one that has not")
	}
	old.End()
	old = startOf(t, env, former)
	old.WaitLog("msg=leading")
	goesOn()
	notice := fmt.Sprintf("schema webhooks: it has version 99 and is newer than this binary, which knows %d and works with it", former)
	if log := old.Log.String(); !strings.Contains(log, notice) || !strings.Contains(log, `remedy="upgrade this binary"`) {
		t.Errorf("the log does not say that the schema is newer:\n%s", log)
	}
	if status, body := get(t, old.AdminURL()+"/readyz"); status != http.StatusOK || body != "leading; "+notice+"\n" {
		t.Errorf("/readyz says %d %q", status, body)
	}
	current := startOf(t, env, later)
	current.WaitLog("standing by")
	old.End()
	current.WaitLog("msg=leading")
	goesOn()
	load.end(t)
	wantAllOnce(t, env, receiver)
}

// An agent that stood by when the schema left it behind must not lead.
func TestUpgrade_AStandbyThatIsTooOldDoesNotTakeOver(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	receiver := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, env, "venue_1", receiver.URL, "*")
	current := startOf(t, env, 0)
	current.WaitLog("msg=leading")
	standby := startOf(t, env, 0)
	standby.WaitLog("standing by")
	env.Exec(t, `update webhooks.schema_version set version = 99, compatible = 99`)
	current.End()
	if err := standby.EndsBy(); err == nil || !strings.Contains(err.Error(), "schema webhooks: it has version 99, this binary knows versions up to") {
		t.Errorf("the standby ends with %v", err)
	}
	if strings.Contains(standby.Log.String(), "msg=leading") {
		t.Error("the standby has led")
	}
}

func TestRun_WaitsForASchemaThatIsMissing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `drop publication webhooks_outbox, webhooks_outbox_endpoints`)
	env.Exec(t, `drop schema webhooks cascade`)
	a := agenttest.Start(t, agenttest.OwnersConfig(env), func(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
		return Run(ctx, testOptions(cfg, log))
	})
	a.WaitLog("schema webhooks: it is missing in this database; run webhook-agent migrate")
	migrateTo(t, env, 0)
	a.WaitLog("msg=leading")
}
