package outbox

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// notOK returns the findings that are not LevelOK, one line each.
func notOK(findings []Finding) (lines []string) {
	for _, f := range findings {
		if f.Level != LevelOK {
			lines = append(lines, fmt.Sprintf("%s %s: %s | %s", f.Level, f.Thing, f.Reason, f.Remedy))
		}
	}
	return lines
}

func TestCheck_FindsNothingInADatabaseThatIsReady(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	findings := db.Check(t.Context())
	if lines := notOK(findings); len(lines) > 0 {
		t.Errorf("findings:\n%s", strings.Join(lines, "\n"))
	}
	var things []string
	for _, f := range findings {
		things = append(things, f.Thing)
	}
	want := []string{"PostgreSQL", "server", "wal_level", "synchronous_commit", "encoding", "role agent", "connections", "max_replication_slots", "max_wal_senders",
		"schema webhooks", "privileges", "checkpoint", "outbox webhooks.outbox", "notices", "publication webhooks_outbox", "publication webhooks_outbox_endpoints",
		"slot " + env.Slot, "clock", "endpoints", "replication connection"}
	for i, thing := range things {
		if strings.HasPrefix(thing, "role ") {
			things[i] = "role agent" // the name comes from the test environment
		}
	}
	if diff := cmp.Diff(want, things); diff != "" {
		t.Errorf("what was looked at (-want +got):\n%s", diff)
	}
}

// TestCheck_NamesEachFaultWithItsRemedy breaks a ready database in one way at a time.
func TestCheck_NamesEachFaultWithItsRemedy(t *testing.T) {
	for _, test := range []struct {
		name   string
		since  int // the first major version of PostgreSQL that can be broken like this
		sql    []string
		change func(*Config)
		want   []string
	}{
		{
			name: "schema older",
			sql:  []string{`update webhooks.schema_version set version = 0`},
			want: []string{"fail schema webhooks: it has version 0, this binary needs", "run webhook-agent migrate"},
		}, {
			name: "schema newer",
			sql:  []string{`update webhooks.schema_version set version = 99, compatible = 99`},
			want: []string{"fail schema webhooks: it has version 99", "run a newer webhook-agent"},
		}, {
			name: "schema without a version",
			sql:  []string{`delete from webhooks.schema_version`},
			want: []string{"fail webhooks.schema_version: it does not say which version the schema has | give it one row"},
		}, {
			name:   "no outbox table",
			change: func(c *Config) { c.Table = "app.events" },
			want:   []string{"fail outbox app.events: there is no such table | correct outbox.table", "fail publication webhooks_outbox: it does not hold app.events"},
		}, {
			name:   "columns of other names and types",
			sql:    []string{`create table events (id text primary key, kind text, venue text, data jsonb, created timestamp)`, `alter publication webhooks_outbox set table events, webhooks.replays`},
			change: func(c *Config) { c.Table = "public.events" },
			want: []string{`fail outbox public.events: it has no column "type" | set outbox.columns.type to the column that holds it`,
				`warn outbox public.events: column "data" is jsonb, which loses key order`, `warn time zone: column "created" has no time zone and is read as of UTC (the database's)`},
		}, {
			name:   "columns that cannot be right",
			sql:    []string{`create table events (id text primary key, type text, venue text, data text, created date)`, `alter publication webhooks_outbox set table events, webhooks.replays`},
			change: func(c *Config) { c.Table = "public.events" },
			want: []string{`fail outbox public.events: column "data" is text, must be json or jsonb`,
				`fail outbox public.events: column "created" is date, must be timestamptz`},
		}, {
			name: "an id of a type that has no one text",
			sql: []string{`create domain weight as float8`, `create type kind as enum ('a')`, `create table events (id weight primary key, type kind, venue boolean, data json, created timestamptz)`,
				`alter publication webhooks_outbox set table events, webhooks.replays`},
			change: func(c *Config) { c.Table = "public.events" },
			want: []string{`fail outbox public.events: column "id" is double precision, which cannot be an event's id | use a column of one of the types text, varchar`,
				`fail outbox public.events: column "venue" is boolean, which cannot be an event's venue`},
		}, {
			name:   "no column for the trace",
			change: func(c *Config) { c.Columns.Traceparent = "trace" },
			want:   []string{`fail outbox webhooks.outbox: it has no column "trace", so no traceparent is sent | add the column, of type text, or remove outbox.columns.traceparent`},
		}, {
			name:   "a column for the trace of another type",
			sql:    []string{`alter table webhooks.outbox add column trace json`},
			change: func(c *Config) { c.Columns.Traceparent = "trace" },
			want:   []string{`fail outbox webhooks.outbox: column "trace" is json, must be text to hold a traceparent | use a column of type text`},
		}, {
			name: "no unique id",
			sql: []string{`create table "Events" ("Id" bigint, type text, venue text, data json, created timestamptz, unique ("Id", type))`,
				`alter publication webhooks_outbox set table "Events", webhooks.replays`},
			change: func(c *Config) { c.Table, c.Columns.ID = "public.Events", "Id" },
			want:   []string{`fail outbox public.Events: no unique index makes column "Id" the id of one event`, `| CREATE UNIQUE INDEX CONCURRENTLY ON "public"."Events" ("Id"), or ON "public"."Events" ("Id", "venue")`},
		}, {
			name: "an id that no index begins with",
			sql: []string{`create table events (id bigint, type text, venue text, data json, created timestamptz, primary key (venue, id))`,
				`alter publication webhooks_outbox set table events, webhooks.replays`},
			change: func(c *Config) { c.Table = "public.events" },
			want:   []string{`warn outbox public.events: no index begins with column "id", so each retry reads the whole table | CREATE INDEX CONCURRENTLY ON "public"."events" ("id")`},
		}, {
			name: "a key with created",
			sql: []string{`create table events (id bigint, type text, venue text, data json, created timestamptz, primary key (id, created)) partition by range (created)`,
				`alter publication webhooks_outbox set table events, webhooks.replays`},
			change: func(c *Config) { c.Table = "public.events" },
			want:   []string{`warn outbox public.events: its key holds column "created" too, so two events may have one id`},
		}, {
			name:   "a zone that nobody knows",
			sql:    []string{`create table events (id bigint primary key, type text, venue text, data json, created timestamp)`, `alter publication webhooks_outbox set table events, webhooks.replays`},
			change: func(c *Config) { c.Table, c.TimeZone = "public.events", "Mars/Base" },
			want:   []string{`fail outbox.time_zone: PostgreSQL knows no time zone "Mars/Base"`},
		}, {
			name:   "a view",
			sql:    []string{`create view events as select * from webhooks.outbox`},
			change: func(c *Config) { c.Table = "public.events" },
			want:   []string{"fail outbox public.events: it is a view, which has no stream | name the table that the app inserts into"},
		}, {
			name: "publication missing",
			sql:  []string{`drop publication webhooks_outbox`},
			want: []string{"fail publication webhooks_outbox: it is missing in this database | run webhook-agent migrate"},
		}, {
			name: "publication with updates",
			sql:  []string{`alter publication webhooks_outbox set (publish = 'insert, update')`},
			want: []string{"warn publication webhooks_outbox: it publishes more than inserts", `ALTER PUBLICATION "webhooks_outbox" SET (publish = 'insert')`},
		}, {
			name: "publication without inserts",
			sql:  []string{`alter publication webhooks_outbox set (publish = 'delete')`},
			want: []string{"fail publication webhooks_outbox: it does not publish inserts"},
		}, {
			name: "endpoints without updates",
			sql:  []string{`alter publication webhooks_outbox_endpoints set (publish = 'insert')`},
			want: []string{"fail publication webhooks_outbox_endpoints: it does not publish all changes"},
		}, {
			name: "publication with another table",
			sql:  []string{`create table other (id int primary key)`, `alter publication webhooks_outbox add table other`},
			want: []string{"warn publication webhooks_outbox: it also holds public.other"},
		}, {
			name:  "row filter",
			since: 15,
			sql:   []string{`alter publication webhooks_outbox set table webhooks.replays, webhooks.outbox where (venue = 'venue_a')`},
			want:  []string{"warn publication webhooks_outbox: only rows of webhooks.outbox with (venue = 'venue_a'::text) are events", "nothing, if that is wanted"},
		}, {
			name:  "row filter of endpoints",
			since: 15,
			sql:   []string{`alter publication webhooks_outbox_endpoints set (publish = 'insert')`, `alter publication webhooks_outbox_endpoints set table webhooks.endpoints where (venue = 'venue_a')`},
			want:  []string{"fail publication webhooks_outbox_endpoints: it drops rows of webhooks.endpoints by a filter"},
		}, {
			name:  "column list",
			since: 15,
			sql:   []string{`alter publication webhooks_outbox set table webhooks.replays, webhooks.outbox (id, type, venue, data)`},
			want:  []string{"fail publication webhooks_outbox: it leaves out columns of webhooks.outbox: created"},
		}, {
			name:   "column list without the trace",
			since:  15,
			sql:    []string{`alter table webhooks.outbox add column trace text`, `alter publication webhooks_outbox set table webhooks.replays, webhooks.outbox (id, type, venue, data, created, xid)`},
			change: func(c *Config) { c.Columns.Traceparent = "trace" },
			want:   []string{`fail publication webhooks_outbox: it leaves out column "trace" of webhooks.outbox, so no traceparent is sent | ALTER PUBLICATION`},
		}, {
			name: "privilege revoked",
			sql:  []string{`revoke insert, delete on webhooks.attempts from current_user`, `revoke select on webhooks.outbox from current_user`},
			want: []string{"fail privileges: role", "lacks INSERT, DELETE ON webhooks.attempts | GRANT INSERT, DELETE ON webhooks.attempts TO",
				"lacks SELECT ON webhooks.outbox"},
		}, {
			name: "schema closed",
			sql:  []string{`revoke usage on schema webhooks from current_user`},
			want: []string{"lacks USAGE ON SCHEMA webhooks | GRANT USAGE ON SCHEMA webhooks TO"},
		}, {
			name: "table missing",
			sql:  []string{`drop table webhooks.attempts, webhooks.endpoint_health cascade`},
			want: []string{"fail schema webhooks: it has version", "but lacks webhooks.attempts, webhooks.endpoint_health, webhooks.endpoint_settings | make them again: webhook-agent migrate --print shows how"},
		}, {
			name: "slot of another plugin",
			sql:  []string{`select pg_create_logical_replication_slot(current_database() || '_slot', 'test_decoding')`},
			want: []string{"_slot: it belongs to something else (database", "plugin test_decoding) | choose another outbox.slot"},
		}, {
			name: "endpoint unusable",
			sql:  []string{`insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_a', 'x', '{*}', 's')`, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) values ('ep_1', 1, 0, 'the URL is bad')`},
			want: []string{"warn endpoint ep_1: venue venue_a: the URL is bad"},
		}, {
			name: "commits not synchronous",
			sql:  []string{`do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$`},
			want: []string{"warn synchronous_commit: it is off"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := testenv.NewDB(t)
			if testenv.QueryOne[int](t, env, `select current_setting('server_version_num')::int`) < test.since*10000 {
				return
			}
			for _, sql := range test.sql {
				env.Exec(t, sql)
			}
			cfg := testConfig(env.URL, env.Slot)
			if test.change != nil {
				test.change(&cfg)
			}
			db, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			said := strings.Join(notOK(db.Check(t.Context())), "\n")
			if strings.Contains(said, " database: ") {
				t.Errorf("a look failed:\n%s", said)
			}
			for _, want := range test.want {
				if !strings.Contains(said, want) {
					t.Errorf("no finding says %q; findings:\n%s", want, said)
				}
			}
		})
	}
}

func TestCheck_SeesARoleWithoutReplicationAndAMissingSchema(t *testing.T) {
	env := testenv.NewDB(t)
	role := env.Name + "_plain"
	superuser, err := Open(t.Context(), testConfig(env.SuperuserURL, env.Slot))
	if err != nil {
		t.Fatal(err)
	}
	defer superuser.Close()
	for _, sql := range []string{
		`drop schema webhooks cascade`,
		`create role ` + role + ` login password 'plain'`,
	} {
		if _, err := superuser.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	db, err := Open(t.Context(), testConfig(strings.Replace(env.URL, urlUser(env.URL), role+":plain", 1), env.Slot))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	findings := db.Check(t.Context())
	said := strings.Join(notOK(findings), "\n")
	if strings.Contains(said, " database: ") {
		t.Errorf("a look failed:\n%s", said)
	}
	for _, f := range findings {
		if f.Thing == "privileges" && f.Level == LevelOK {
			t.Errorf("the privileges on tables that do not exist are said to be fine: %s", f.Reason)
		}
	}
	for _, want := range []string{
		"fail role " + role + ": it may not open a replication connection | ALTER ROLE",
		"fail schema webhooks: it is missing in this database | run webhook-agent migrate",
		"fail outbox webhooks.outbox: there is no such table",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("no finding says %q; findings:\n%s", want, said)
		}
	}
}

// plainRole makes a role without privileges in a test's database and returns its connection URL.
func plainRole(t *testing.T, env *testenv.DB) string {
	t.Helper()
	role := env.Name + "_plain"
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `create role `+role+` login replication password 'plain'`))
	return strings.Replace(env.URL, urlUser(env.URL), role+":plain", 1)
}

func TestPreflight_NamesTheGrantForARoleThatMayNotUseTheSchema(t *testing.T) {
	env := testenv.NewDB(t)
	db, err := Open(t.Context(), testConfig(plainRole(t, env), env.Slot))
	must(t, err)
	defer db.Close()
	_, err = db.Preflight(t.Context())
	wantProblem(t, err, "privileges: role", "lacks USAGE ON SCHEMA webhooks; GRANT USAGE ON SCHEMA webhooks TO")
}

// urlUser returns the user and the password of a connection URL.
func urlUser(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	user, _, _ := strings.Cut(rest, "@")
	return user
}

func TestPing_SaysWhyTheDatabaseDoesNotAnswer(t *testing.T) {
	env := testenv.NewDB(t)
	for name, test := range map[string]struct{ url, want string }{
		"password": {strings.Replace(env.URL, urlUser(env.URL), "agent:sentinel-wrong", 1), "role"},
		"database": {strings.Replace(env.URL, "/"+env.Name, "/no_such", 1), `database "no_such": it does not exist`},
		"port":     {"postgres://agent:sentinel-wrong@127.0.0.1:1/db", "PostgreSQL at 127.0.0.1:1: cannot connect"},
	} {
		db, err := Open(t.Context(), testConfig(test.url, ""))
		if err != nil {
			t.Fatal(err)
		}
		err = db.Ping(t.Context())
		db.Close()
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "sentinel") {
			t.Errorf("%s: %v, want %s and no password", name, err, test.want)
		}
	}
}

func TestCheckURL_TellsNoPartOfTheURL(t *testing.T) {
	if err := CheckURL(secret.New("postgres://agent:pw@db.example.com/app")); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"postgres://u:sentinel@[x/db", "mysql://sentinel", "host=sentinel port=abc", "postgres://u:senti nel@h/db"} {
		err := CheckURL(secret.New(bad))
		if err == nil || strings.Contains(err.Error(), "senti") {
			t.Errorf("%q gives %v", bad, err)
		}
	}
}
