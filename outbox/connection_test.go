package outbox

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// hostileSettings change what is read and written, or end every statement that takes any time.
func hostileSettings(major int) map[string]string {
	settings := map[string]string{
		"client_encoding": "LATIN1", "timezone": "America/Sao_Paulo", "datestyle": "SQL, DMY", "intervalstyle": "sql_standard",
		"bytea_output": "escape", "extra_float_digits": "-15", "standard_conforming_strings": "off", "row_security": "on",
		"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on",
		"idle_session_timeout": "1ms", "idle_in_transaction_session_timeout": "1ms", "statement_timeout": "1ms", "lock_timeout": "1ms",
		"wal_sender_timeout": "1ms", "synchronous_commit": "off", "search_path": "hostile, public, pg_catalog",
		"quote_all_identifiers": "on", "array_nulls": "off", "transform_null_equals": "on", "backslash_quote": "off",
		"enable_indexscan": "off", "plan_cache_mode": "force_generic_plan", "client_min_messages": "debug1", "work_mem": "64kB",
		"xmloption": "document", "lc_numeric": "C", "check_function_bodies": "off", "application_name": "hostile",
	}
	if major >= 17 {
		// A shorter one would end the statement that resets it.
		settings["transaction_timeout"] = "300ms"
	}
	return settings
}

// newHostileDB makes a database and its owner with only hostile settings. It returns the agent's
// configuration, and the app's connection, which none of these settings affects.
func newHostileDB(t *testing.T, encoding string) (Config, *testenv.DB) {
	t.Helper()
	base := testenv.NewDB(t)
	name := base.Name + "_h"
	major := testenv.QueryOne[int](t, base, `select current_setting('server_version_num')::int / 10000`)
	super := func(sql string) { must(t, testenv.ExecSQL(t.Context(), base.SuperuserURL, sql)) }
	super(`create role ` + name + ` login replication password 'hostile'`)
	super(`create database ` + name + ` template template0 encoding '` + encoding + `' owner ` + name)
	t.Cleanup(func() {
		for _, sql := range []string{
			`select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '` + name + `'`,
			`drop database ` + name + ` with (force)`, `drop role ` + name,
		} {
			if err := testenv.ExecSQL(context.Background(), base.SuperuserURL, sql); err != nil {
				t.Error(err)
			}
		}
	})
	url := strings.Replace(base.URL, "/"+base.Name, "/"+name, 1)
	url = strings.Replace(url, urlUser(url), name+":hostile", 1)
	app := &testenv.DB{Name: name, Slot: name, URL: strings.Replace(base.SuperuserURL, "/"+base.Name, "/"+name, 1)}
	if !strings.Contains(app.URL, "?") {
		app.URL += "?sslmode=disable"
	}
	app.URL += "&client_encoding=UTF8"
	// Each of these functions would return an epoch, an empty text, or something wrong.
	must(t, testenv.ExecSQL(t.Context(), app.URL, `
	    create schema hostile;
	    create function hostile.now() returns timestamptz language sql as $$ select timestamptz 'epoch' $$;
	    create function hostile.clock_timestamp() returns timestamptz language sql as $$ select timestamptz 'epoch' $$;
	    create function hostile.gen_random_uuid() returns uuid language sql as $$ select '00000000-0000-0000-0000-000000000000'::uuid $$;
	    create function hostile.length(text) returns int language sql as $$ select -1 $$;
	    create function hostile.lower(text) returns text language sql as $$ select 'hostile' $$;
	    grant usage on schema hostile to public`))
	var settings []string
	for setting, value := range hostileSettings(major) {
		settings = append(settings, fmt.Sprintf(`alter role %s set %s = '%s'; alter database %s set %s = '%s'`, name, setting, value, name, setting, value))
	}
	super(strings.Join(settings, "; "))
	// A quoted value with a comma is one name. A list of names has no quotes around it.
	super(`alter role ` + name + ` set search_path = hostile, public, pg_catalog`)
	super(`alter database ` + name + ` set search_path = hostile, public, pg_catalog`)
	// The app's own settings take precedence over those of the database.
	app.URL += "&statement_timeout=0&lock_timeout=0&idle_session_timeout=0&idle_in_transaction_session_timeout=0" +
		"&default_transaction_read_only=off&default_transaction_isolation=read%20committed&search_path=pg_catalog,public&client_min_messages=warning"
	if major >= 17 {
		app.URL += "&transaction_timeout=0"
	}
	cfg := testConfig(url, app.Slot)
	cfg.Watchful = true
	return cfg, app
}

// TestConnections_HeedNoSettingOfRoleAndDatabase runs everything that an agent does with a database
// that has hostile settings.
func TestConnections_HeedNoSettingOfRoleAndDatabase(t *testing.T) {
	for _, encoding := range []string{"UTF8", "LATIN1"} {
		t.Run(encoding, func(t *testing.T) {
			cfg, app := newHostileDB(t, encoding)
			t.Setenv("PGCLIENTENCODING", "LATIN1")
			t.Setenv("PGOPTIONS", "-c client_encoding=LATIN1")
			_, version, err := Migrate(t.Context(), cfg)
			must(t, err)
			if version != SchemaVersion() {
				t.Fatalf("version %d", version)
			}
			if n := testenv.QueryOne[int](t, app, `select count(*)::int from pg_catalog.pg_attrdef where pg_catalog.pg_get_expr(adbin, adrelid) like 'hostile.%'`); n != 0 {
				t.Errorf("%d columns have defaults of the role's search path", n)
			}
			db, err := Open(t.Context(), cfg)
			must(t, err)
			defer db.Close()
			found := db.Check(t.Context())
			if lines := notOK(found); len(lines) != 1 || !strings.HasPrefix(lines[0], "warn synchronous_commit: it is off") {
				t.Errorf("findings:\n%s", strings.Join(lines, "\n"))
			}
			_, err = db.Preflight(t.Context())
			must(t, err)
			addEndpoint(t, app, "ep_1", "venue_é", "*")
			state, err := db.configured().LoadState(t.Context())
			must(t, err)
			if len(state.Endpoints) != 1 || state.Endpoints[0].Venue != "venue_é" || state.Endpoints[0].Events[0] != "*" {
				t.Fatalf("the state holds %+v", state.Endpoints)
			}
			f := follow(t, db)
			const data = `{"name": "é", "price": 1.0,  "back\\slash": "\""}`
			app.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_é', 'lead.é', 'venue_é', $1::text::json)`, data)
			e := f.next(t).Changes[0].Event
			if e.ID != "evt_é" || e.Type != "lead.é" || e.Venue != "venue_é" || string(e.Data) != data {
				t.Errorf("the stream brings %q %q %q %q", e.ID, e.Type, e.Venue, e.Data)
			}
			if age := time.Since(e.Created); age < -time.Minute || age > time.Minute {
				t.Errorf("the event was created at %s", e.Created)
			}
			term, err := db.configured().TakeOver(t.Context(), f.Tailer, "test")
			must(t, err)
			b := keepBook(t, cfg, term, nil)
			d := &Delivery{EventID: e.ID, EndpointID: "ep_1", Venue: e.Venue, Type: e.Type, Created: e.Created}
			must(t, b.Track(t.Context(), &Tracked{End: 1, Read: time.Now(), Deliveries: []*Delivery{d}}))
			r := failedAttempt(d, 1)
			r.Attempt.Response = "世界 €"
			r.NextAttempt = time.Now()
			must(t, b.Write(t.Context(), r))
			b.hasCommitted(t, 1)
			refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, time.Now().Add(time.Second), 1<<20)
			must(t, err)
			if got := refills["ep_1"].Deliveries; len(got) != 1 || string(got[0].Body) != string(e.Envelope()) {
				t.Errorf("SQL brings %+v, want %s", got, e.Envelope())
			}
			horizon, err := db.configured().Horizon(t.Context())
			must(t, err)
			app.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_2', 'lead.created', 'venue_é', '{}')`)
			f.next(t)
			_, err = db.configured().Reconcile(t.Context(), b.Ledger, horizon, false)
			must(t, err)
			if said := testenv.QueryOne[int](t, app, `select code::int from webhooks.attempts`); said != 500 {
				t.Errorf("the attempt is recorded with code %d", said)
			}
			b.close(t)
		})
	}
}

// TestConnections_OfEveryKindHaveTheSameSettings asks each kind of connection.
func TestConnections_OfEveryKindHaveTheSameSettings(t *testing.T) {
	cfg, _ := newHostileDB(t, "UTF8")
	db, err := Open(t.Context(), cfg)
	must(t, err)
	defer db.Close()
	tailer := NewTailer(cfg, testLog(t))
	must(t, tailer.Connect(t.Context()))
	defer tailer.Close()
	want := map[string]string{"client_encoding": "UTF8", "timezone": "UTC", "datestyle": "ISO, MDY",
		"standard_conforming_strings": "on", "statement_timeout": "0", "lock_timeout": "0", "idle_session_timeout": "0", "transaction_timeout": "0"}
	for name, value := range want {
		const show = `select coalesce((select current_setting(name) from pg_catalog.pg_settings where pg_catalog.lower(name) = '%s'), '0')`
		sql := fmt.Sprintf(show, name)
		var ordinary string
		must(t, db.pool.QueryRow(t.Context(), sql).Scan(&ordinary))
		rows, err := tailer.conn.Exec(t.Context(), sql).ReadAll()
		must(t, err)
		if stream := string(rows[0].Rows[0][0]); ordinary != value || stream != value {
			t.Errorf("%s is %q in the pool and %q for the stream, want %q", name, ordinary, stream, value)
		}
	}
	var path string
	must(t, db.pool.QueryRow(t.Context(), `select current_setting('search_path')`).Scan(&path))
	if !strings.HasPrefix(path, "pg_catalog, hostile") {
		t.Errorf("the search path is %s", path)
	}
}

// A primary that a setting makes read-only is no standby.
func TestCheck_NamesTheSettingThatMakesADatabaseReadOnly(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `alter database `+env.Name+` set default_transaction_read_only = on`))
	db.Reset()
	lines := notOK(db.Check(t.Context()))
	if len(lines) != 1 || !strings.Contains(lines[0], "default_transaction_read_only") || !strings.Contains(lines[0], "fail") {
		t.Errorf("findings:\n%s", strings.Join(lines, "\n"))
	}
	_, err := db.Preflight(t.Context())
	wantProblem(t, err, "it is read-only", "default_transaction_read_only")
}
