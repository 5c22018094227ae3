package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// doctorCase is a way in which a database, a table or a setting differs from what the agent needs.
type doctorCase struct {
	name          string
	since, before int                  // the major versions of PostgreSQL that have it, 0 for all
	sql           string               // as the owner of the database
	super         string               // as a superuser, before sql; %s is the database
	url           func(*url.URL)       // what the operator has written
	change        func(*config.Config) // the rest of the configuration
	mapped        bool                 // the table public.ob is the outbox
	level         outbox.Level         // of what check says
	said          string               // by check
	leads         bool                 // the agent runs all the same
}

const okTable = `create table ob (id bigserial primary key, type text, venue text, data json, created timestamptz default now()); create index on ob (created);`

var doctorCases = []doctorCase{
	{name: "nothing", level: outbox.LevelOK, leads: true},
	{name: "an outbox of the app", sql: okTable, mapped: true, level: outbox.LevelOK, leads: true},

	// What is published and streamed.
	{name: "no publication", sql: `drop publication webhooks_outbox`, level: outbox.LevelFail, said: "publication webhooks_outbox: it is missing"},
	{name: "a publication without inserts", sql: `alter publication webhooks_outbox set (publish = 'delete')`, level: outbox.LevelFail, said: "it does not publish inserts"},
	{name: "a row filter", since: 15, sql: `alter publication webhooks_outbox set table webhooks.replays, webhooks.outbox where (venue = 'venue_a')`, level: outbox.LevelWarn,
		said: "only rows of webhooks.outbox with", leads: true},
	{name: "a column list", since: 15, sql: `alter publication webhooks_outbox set table webhooks.replays, webhooks.outbox (id, type, venue, data)`, level: outbox.LevelFail,
		said: "it leaves out columns of webhooks.outbox: created"},
	{name: "a publication for all tables beside ours", super: `create publication all_tables for all tables`, level: outbox.LevelOK, leads: true},
	{name: "a slot of another plugin", sql: `select pg_create_logical_replication_slot(current_database() || '_slot', 'test_decoding')`, level: outbox.LevelFail,
		said: "it belongs to something else"},

	// The outbox table.
	{name: "no such table", mapped: true, level: outbox.LevelFail, said: "outbox public.ob: there is no such table"},
	{name: "a view", sql: `create view ob as select * from webhooks.outbox`, mapped: true, level: outbox.LevelFail, said: "it is a view"},
	{name: "an unlogged table", sql: strings.Replace(okTable, "create table", "create unlogged table", 1), mapped: true, level: outbox.LevelFail, said: "it is not logged"},
	{name: "a foreign table", super: `create extension file_fdw; create server f foreign data wrapper file_fdw;
		create foreign table ob (id bigint, type text, venue text, data json, created timestamptz) server f options (program 'true'); grant select on ob to agent`, mapped: true, level: outbox.LevelFail, said: "it is a foreign table"},
	{name: "a column of another name", sql: strings.Replace(okTable, "venue text", "place text", 1), mapped: true, level: outbox.LevelFail, said: `it has no column "venue"`},
	{name: "a type that is not accepted", sql: strings.Replace(okTable, "venue text", "venue boolean", 1), mapped: true, level: outbox.LevelFail, said: `column "venue" is boolean`},
	{name: "an id that is not unique", sql: strings.Replace(okTable, "primary key", "", 1), mapped: true, level: outbox.LevelFail, said: `no unique index makes column "id"`, leads: true},
	{name: "an id that is unique within a day", sql: `create table ob (id bigserial, type text, venue text, data json, created timestamptz default now(), primary key (id, created)) partition by range (created);
		create table ob_1 partition of ob default`, mapped: true, level: outbox.LevelWarn, said: `its key holds column "created" too`, leads: true},
	{name: "an id without an index", sql: `create table ob (id bigserial, type text, venue text, data json, created timestamptz default now(), primary key (venue, id))`, mapped: true,
		level: outbox.LevelWarn, said: `no index begins with column "id"`, leads: true},
	{name: "created without a zone", super: `alter database %s set timezone = 'America/Sao_Paulo'`, sql: strings.Replace(okTable, "timestamptz", "timestamp", 1), mapped: true,
		level: outbox.LevelWarn, said: "is read as of America/Sao_Paulo", leads: true},
	{name: "created without a zone, and a role with one of its own", super: `alter role agent in database %s set timezone = 'Asia/Tokyo'`,
		sql: strings.Replace(okTable, "timestamptz", "timestamp", 1), mapped: true, level: outbox.LevelWarn, said: "is read as of Asia/Tokyo (that of the agent's role", leads: true},
	{name: "an unknown zone", sql: strings.Replace(okTable, "timestamptz", "timestamp", 1), mapped: true, change: func(c *config.Config) { c.Outbox.TimeZone = "Mars/Base" }, level: outbox.LevelFail,
		said: `PostgreSQL knows no time zone "Mars/Base"`},
	{name: "a generated venue", before: 18, sql: strings.Replace(okTable, "venue text", "venue text generated always as ('v') stored", 1), mapped: true, level: outbox.LevelFail, said: "generated"},
	{name: "a generated venue that is not published", since: 18, sql: strings.Replace(okTable, "venue text", "venue text generated always as ('v') stored", 1), mapped: true, level: outbox.LevelFail,
		said: "publish_generated_columns = stored"},
	{name: "children by inheritance", sql: okTable + `create table ob_child () inherits (ob)`, mapped: true, level: outbox.LevelFail, said: "ob_child", leads: true},
	{name: "a trigger that pruning fires", sql: okTable + `create function f() returns trigger language plpgsql as 'begin return old; end';
		create trigger spy before delete on ob for each row execute function f()`, mapped: true, level: outbox.LevelWarn, said: "pruning runs trigger spy", leads: true},
	{name: "events in the table that nobody reads", sql: okTable + `insert into webhooks.outbox (type, venue, data) values ('t.a', 'venue_a', '{}')`, mapped: true, level: outbox.LevelWarn,
		said: "it has rows, which nobody delivers", leads: true},

	// The server, the role, the connection.
	{name: "read-only by default", super: `alter database %s set default_transaction_read_only = on`, level: outbox.LevelFail, said: "default_transaction_read_only"},
	{name: "too few connections", super: `alter database %s connection limit 2`, level: outbox.LevelFail, said: "ONNECTION LIMIT"},
	{name: "a role that may not read the outbox", sql: `revoke select on webhooks.outbox from webhook_agent`, level: outbox.LevelFail, said: "lacks SELECT ON webhooks.outbox"},
	{name: "a host that is not there", url: func(u *url.URL) { u.Host = "nowhere.invalid" }, level: outbox.LevelFail, said: "nowhere.invalid"},
	{name: "a password that is wrong", url: func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "wrong") }, level: outbox.LevelFail, said: "refused the password"},
	{name: "a parameter of another driver", url: func(u *url.URL) { u.RawQuery += "&schema=public&pool_max_conns=4" }, level: outbox.LevelOK, leads: true},
	{name: "a parameter that nobody knows", url: func(u *url.URL) { u.RawQuery += "&slsmode=require" }, level: outbox.LevelFail, said: "slsmode"},
	{name: "a URL of another driver", url: func(u *url.URL) { u.Scheme = "postgresql+asyncpg" }, level: outbox.LevelFail, said: "the name of a driver"},

	// The schema and what stands in it.
	{name: "no schema", sql: `drop schema webhooks cascade`, level: outbox.LevelFail, said: "schema webhooks"},
	{name: "a newer schema", sql: `update webhooks.schema_version set version = 999, compatible = 999`, level: outbox.LevelFail, said: "run a newer webhook-agent"},
	{name: "a newer schema that works", sql: `update webhooks.schema_version set version = 999`, level: outbox.LevelWarn, said: "upgrade this binary", leads: true},
	{name: "an older schema", sql: `update webhooks.schema_version set version = version - 1`, level: outbox.LevelFail, said: "run webhook-agent migrate"},
	{name: "a checkpoint of another server", sql: `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
		select current_database() || '_slot', '0/1', 1, 'x', '1', 1, current_database()`, level: outbox.LevelFail, said: "webhook-agent adopt"},
	{name: "a checkpoint of another database", sql: `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
		select current_database() || '_slot', '0/1', 1, 'x', (select system_identifier::text from pg_control_system()), 1, 'production'`, level: outbox.LevelFail, said: "webhook-agent adopt"},
}

// For each fault, check looks first, and then an agent runs. check must report what keeps the agent
// from leading, and an agent must be able to lead with everything that check accepts.
func TestDoctor_FindsWhateverKeepsAnAgentFromLeading(t *testing.T) {
	t.Parallel()
	for _, f := range doctorCases {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			if major := testenv.QueryOne[int](t, env, `select current_setting('server_version_num')::int / 10000`); major < f.since || f.before > 0 && major >= f.before {
				return
			}
			cfg := f.make(t, env)
			level, text := checked(t, cfg)
			if level != f.level || !strings.Contains(text, f.said) {
				t.Errorf("check finds %q at worst, want %q and %q; all of it:\n%s", level, f.level, f.said, text)
			}
			ctx, cancel := context.WithTimeout(t.Context(), agenttest.Patience)
			defer cancel()
			log := &agenttest.Buffer{}
			done := make(chan error, 1)
			go func() {
				done <- agent.Run(ctx, agent.Options{Config: cfg, Log: slog.New(slog.NewTextHandler(log, nil)), Version: "test"})
			}()
			outcome := awaitOutcome(t, log, done)
			if f.leads != (outcome == "") {
				t.Errorf("an agent that leads: %v, want %v; check says:\n%s\nthe agent:\n%s\n%s", outcome == "", f.leads, text, outcome, log)
			}
			if !f.leads && f.level != outbox.LevelFail {
				t.Error("check passes what keeps an agent from leading")
			}
			if outcome != "" && !strings.Contains(outcome, f.said) {
				t.Errorf("the agent says %q, want %q as check says", outcome, f.said)
			}
			cancel()
		})
	}
}

// make makes the fault and returns the configuration.
func (f doctorCase) make(t *testing.T, env *testenv.DB) *config.Config {
	t.Helper()
	if f.super != "" {
		statement := f.super
		if strings.Contains(statement, "%s") {
			statement = fmt.Sprintf(statement, env.Name)
		}
		if _, err := agenttest.ConnectURL(t, env.SuperuserURL).Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	cfg := agenttest.Config(env)
	if f.mapped {
		cfg = agenttest.OwnersConfig(env)
		cfg.Outbox.Table = "public.ob"
	}
	if f.sql != "" {
		env.Exec(t, f.sql)
	}
	if f.mapped && testenv.QueryOne[bool](t, env, `select exists (select from pg_class where relname = 'ob' and relkind in ('r', 'p') and relpersistence = 'p')`) {
		env.Exec(t, `alter publication webhooks_outbox set table only public.ob, webhooks.replays`)
	}
	if f.change != nil {
		f.change(cfg)
	}
	if f.url != nil {
		u, err := url.Parse(cfg.Database.URL.Reveal())
		if err != nil {
			t.Fatal("the test's database URL cannot be parsed")
		}
		f.url(u)
		cfg.Database.URL = secret.New(u.String())
	}
	return cfg
}

// checked returns the gravest level of what check finds, and what it says.
func checked(t *testing.T, cfg *config.Config) (worst outbox.Level, text string) {
	t.Helper()
	db, err := outbox.Open(t.Context(), cfg.OutboxConfig())
	if err != nil {
		return outbox.LevelFail, err.Error()
	}
	defer db.Close()
	findings, err := examine(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	worst = outbox.LevelOK
	var lines []string
	for _, f := range findings {
		if f.Level == outbox.LevelFail || worst == outbox.LevelOK {
			worst = f.Level
		}
		lines = append(lines, fmt.Sprintf("%s %s: %s; remedy: %s", f.Level, f.Thing, f.Reason, f.Remedy))
	}
	return worst, strings.Join(lines, "\n")
}

// awaitOutcome waits until an agent leads ("") or says why it does not.
func awaitOutcome(t *testing.T, log *agenttest.Buffer, done <-chan error) (outcome string) {
	t.Helper()
	testenv.Eventually(t, agenttest.Patience, func() error {
		select {
		case err := <-done:
			outcome = fmt.Sprint(err)
			return nil
		default:
		}
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, "msg=leading") {
				outcome = ""
				return nil
			}
			if strings.Contains(line, "level=ERROR") {
				outcome = line
				return nil
			}
		}
		return fmt.Errorf("the agent says nothing; its log:\n%s", log)
	})
	return outcome
}

// A host without root certificates can judge no customer's certificate.
func TestCheck_FailsWithoutRootCertificates(t *testing.T) {
	if f := rootsFinding("", ""); f.Level != outbox.LevelOK || f.Remedy != "" {
		t.Errorf("%+v", f)
	}
	f := rootsFinding("this host has no root certificates", "install ca-certificates")
	if f.Level != outbox.LevelFail || !strings.Contains(f.Reason, "no root certificates") || f.Remedy != "install ca-certificates" {
		t.Errorf("%+v", f)
	}
}
