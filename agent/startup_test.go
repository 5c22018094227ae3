package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// runOnce runs an agent that is expected to refuse to start, and returns its error.
func runOnce(t *testing.T, cfg *config.Config) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	var log agenttest.Buffer
	err := Run(ctx, testOptions(cfg, slog.New(slog.NewTextHandler(&log, nil))))
	if err == nil {
		t.Fatalf("Run came to no end by itself; log:\n%s", &log)
	}
	if password := passwordOf(t, cfg); strings.Contains(err.Error()+log.String(), password) {
		t.Errorf("the password stands in %q or the log", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one sentence: %q", err)
	}
	return err.Error()
}

func passwordOf(t *testing.T, cfg *config.Config) string {
	t.Helper()
	u, err := url.Parse(cfg.Database.URL.Reveal())
	if err != nil {
		t.Fatal("the test's database URL cannot be parsed")
	}
	password, _ := u.User.Password()
	return password
}

// expect fails the test unless text holds all of want.
func expect(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not say %q", text, w)
		}
	}
}

func TestRun_AWrongPasswordIsOneSentence(t *testing.T) {
	t.Parallel()
	cfg := agenttest.Config(testenv.NewDB(t))
	u, err := url.Parse(cfg.Database.URL.Reveal())
	if err != nil {
		t.Fatal("the test's database URL cannot be parsed")
	}
	u.User = url.UserPassword(u.User.Username(), "wrong-sentinel")
	cfg.Database.URL = secret.New(u.String())
	expect(t, runOnce(t, cfg), "refused the password", "database.url")
}

func TestRun_AMissingDatabaseIsOneSentence(t *testing.T) {
	t.Parallel()
	cfg := agenttest.Config(testenv.NewDB(t))
	u, err := url.Parse(cfg.Database.URL.Reveal())
	if err != nil {
		t.Fatal("the test's database URL cannot be parsed")
	}
	u.Path = "/nosuchdatabase"
	cfg.Database.URL = secret.New(u.String())
	expect(t, runOnce(t, cfg), `"nosuchdatabase"`, "does not exist")
}

func TestRun_ARoleWithoutReplicationIsOneSentence(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	role := env.Name + "_role"
	super := agenttest.ConnectURL(t, env.SuperuserURL)
	if _, err := super.Exec(context.Background(), "create role "+role+" login password 'p4ssword-sentinel'; grant agent to "+role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = super.Exec(context.Background(), "drop role "+role) }) // the cluster goes anyway
	cfg := agenttest.Config(env)
	u, err := url.Parse(env.URL)
	if err != nil {
		t.Fatal("the test's database URL cannot be parsed")
	}
	u.User = url.UserPassword(role, "p4ssword-sentinel")
	cfg.Database.URL = secret.New(u.String())
	expect(t, runOnce(t, cfg), role, "replication", "ALTER ROLE")
}

func TestRun_ASchemaThatIsTooNewIsOneSentence(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `update webhooks.schema_version set version = 999, compatible = 999`)
	expect(t, runOnce(t, agenttest.Config(env)), "schema webhooks", "999", "newer webhook-agent")
}

func TestRun_AnOutboxWithoutARequiredColumnIsOneSentence(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `alter table webhooks.outbox rename column venue to place`)
	expect(t, runOnce(t, agenttest.Config(env)), "webhooks.outbox", "venue")
}

func TestRun_WalLevelReplicaIsOneSentence(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{"wal_level": "replica"}})
	expect(t, runOnce(t, agenttest.Config(cluster.NewDB(t))), "wal_level", "logical", "ALTER SYSTEM")
}

func TestRun_NoFreeSlotIsOneSentence(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{"max_replication_slots": "1"}})
	env := cluster.NewDB(t)
	env.Exec(t, `select pg_create_physical_replication_slot('other')`)
	expect(t, runOnce(t, agenttest.Config(env)), "max_replication_slots", "raise it")
	env.Exec(t, `select pg_drop_replication_slot('other')`)
}

func TestRun_ASlotOfAnotherDatabaseIsOneSentence(t *testing.T) {
	t.Parallel()
	env, other := testenv.NewDB(t), testenv.NewDB(t)
	other.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, env.Slot)
	expect(t, runOnce(t, agenttest.Config(env)), env.Slot, other.Name, "outbox.slot")
}

func TestRun_AnAdminPortInUseIsOneSentence(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := agenttest.Config(testenv.NewDB(t))
	cfg.Admin.Listen = l.Addr().String()
	expect(t, runOnce(t, cfg), "admin.listen", "in use", "choose another")
}

// In a cluster that starts, the database's name may come after the agent.
func TestRun_WaitsForTheNameOfTheDatabase(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	cfg := agenttest.Config(env)
	cfg.Database.URL = secret.New(strings.Replace(env.LeastURL, "@127.0.0.1:", "@nowhere.invalid:", 1))
	a := start(t, cfg)
	a.WaitLog("cannot find the database; trying again")
	a.End()
	expect(t, a.Log.String(), "database host nowhere.invalid: its name cannot be resolved", "correct database.url, or this host's DNS")
}

func TestRun_WaitsForADatabaseThatIsDownAndThenLeads(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{})
	env := cluster.NewDB(t)
	if err := cluster.Stop(context.Background(), testenv.Fast); err != nil {
		t.Fatal(err)
	}
	a := start(t, agenttest.Config(env))
	a.WaitLog("cannot connect")
	if status, body := get(t, a.AdminURL()+"/readyz"); status != 503 || !strings.Contains(body, "cannot connect") {
		t.Errorf("/readyz says %d %q while the database is down", status, body)
	}
	if err := cluster.Resume(context.Background()); err != nil {
		t.Fatal(err)
	}
	a.WaitLog("leading")
	if n := strings.Count(a.Log.String(), "cannot connect"); n != 1 {
		t.Errorf("the same failure was logged %d times, want once", n)
	}
}

func TestRun_AFastShutdownOfPostgreSQLIsNotHeldUpAndTheAgentComesBack(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{})
	env := cluster.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")
	for round := range 3 {
		agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", fmt.Sprint(round)), endpoint, "succeeded")
		began := time.Now()
		if err := cluster.Restart(context.Background(), testenv.Fast); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 45*time.Second { // the machine may be busy; an agent that holds the shutdown up does so for ever
			t.Errorf("the restart took %s with the agent attached", took)
		}
	}
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `"last"`), endpoint, "succeeded")
	if got := r.Count(); got != 4 {
		t.Errorf("%d requests arrived for 4 events", got)
	}
}

// Under load the stream is not read while its consumer is slow. So the tailer alone would not
// notice.
func TestRun_AFastShutdownUnderLoadTakesLessThanTwoSeconds(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{})
	env := cluster.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")
	const events = 12_000
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(repeat('x', 200)) from generate_series(1, $1::int)`, events)
	r.Wait(t, 1000, agenttest.Patience)
	const limit = 2 * time.Second
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, fmt.Errorf("not within %s under load", limit))
	defer cancel()
	if err := cluster.Stop(ctx, testenv.Fast); err != nil {
		t.Fatal(err)
	}
	if n := r.Count(); n >= events {
		t.Fatal("all was delivered before the shutdown")
	}
	if err := cluster.Resume(context.Background()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 3*agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != events {
			return fmt.Errorf("%d of %d deliveries succeeded", n, events)
		}
		return nil
	})
}

func TestRun_ALostSlotIsReplacedWithoutHelp(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{"max_slot_wal_keep_size": "16MB", "max_wal_size": "32MB"}})
	env := cluster.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	a := start(t, agenttest.Config(env))
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `1`), endpoint, "succeeded")
	a.End()

	missed := agenttest.AddEvent(t, env, "venue_1", "lead.created", `2`)
	super := agenttest.ConnectURL(t, env.SuperuserURL)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if _, err := super.Exec(context.Background(), `create table if not exists noise (t text); insert into noise select repeat('x', 1000) from generate_series(1, 20000); checkpoint`); err != nil {
			t.Fatal(err)
		}
		if status := testenv.QueryOne[string](t, env, `select wal_status from pg_replication_slots`); status != "lost" {
			return fmt.Errorf("the slot is %s", status)
		}
		return nil
	})
	start(t, agenttest.Config(env))
	agenttest.WaitStatus(t, env, missed, endpoint, "succeeded")
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `3`), endpoint, "succeeded")
	if got := r.Count(); got != 3 {
		t.Errorf("%d requests arrived for 3 events", got)
	}
}
