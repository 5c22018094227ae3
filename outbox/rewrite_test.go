package outbox

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// The tests in this file rewrite the rows of the outbox, as apps, migrations and restores do.
// Afterwards a row has another xmin, but its event is as old as before.

// rewrites are statements that rewrite the outbox %[1]s.
var rewrites = []struct{ name, sql string }{
	{"an update of all rows", `update %[1]s set type = type`},
	{"a column of another type", `alter table %[1]s alter column venue type varchar(100)`},
	{"a column with a volatile default", `alter table %[1]s add column extra double precision default random()`},
	{"rows that are deleted and inserted again", `create table kept as select * from %[1]s; delete from %[1]s; insert into %[1]s select * from kept; drop table kept`},
	{"a restore of the table", `create table kept as select * from %[1]s; truncate %[1]s; insert into %[1]s select * from kept; drop table kept`},
}

// eachTable runs a test for the agent's own table and for a table of the app's.
func eachTable(t *testing.T, test func(t *testing.T, db *DB, env *testenv.DB)) {
	t.Run("own table", func(t *testing.T) {
		t.Parallel()
		db, env := openDB(t)
		test(t, db, env)
	})
	t.Run("mapped table", func(t *testing.T) {
		t.Parallel()
		db, env := openDB(t)
		env.Exec(t, `create table public.ob (id text primary key, type text, venue text, data json, created timestamptz default now())`)
		db.cfg.Table, db.cfg.Publication = "public.ob", "mapped"
		_, _, err := Migrate(t.Context(), db.cfg)
		must(t, err)
		test(t, db, env)
	})
}

// aged writes to the outbox three events of the given age. It also writes endpoints from before
// them: one that existed, one that wanted other events, and one that was disabled. A comparison
// adds their rows.
func aged(t *testing.T, db *DB, env *testenv.DB, age time.Duration) *compared {
	t.Helper()
	for _, id := range []string{"ep_there", "ep_widened", "ep_enabled"} {
		addEndpoint(t, env, id, "venue_a", "*")
	}
	env.Exec(t, `update webhooks.endpoints set created = now() - $1::interval - interval '1 day'`, age)
	env.Exec(t, `update webhooks.endpoints set events = '{payment.*}' where id = 'ep_widened'`)
	env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = 'ep_enabled'`)
	c := compare(t, db, env)
	env.Exec(t, fmt.Sprintf(`insert into %s (id, type, venue, data, created)
	    select 'evt_' || i, 'lead.created', 'venue_a', '{}', now() - $1::interval from generate_series(1, 3) i`, db.cfg.table()), age)
	if got := c.runSettled(t, true); got != 3*2 {
		t.Fatalf("%d rows were given, want those of three events to two endpoints", got)
	}
	return c
}

// laterEndpoints registers an endpoint, widens one, and enables one. Then it makes a comparison
// that finds nothing.
func laterEndpoints(t *testing.T, c *compared) {
	t.Helper()
	addEndpoint(t, c.env, "ep_late", "venue_a", "*")
	c.env.Exec(t, `update webhooks.endpoints set events = '{*}' where id = 'ep_widened'`)
	c.env.Exec(t, `update webhooks.endpoints set disabled_at = null where id = 'ep_enabled'`)
	// This makes the horizon be stored.
	c.env.Exec(t, `do $$ begin for i in 1..100 loop perform pg_current_xact_id(); commit; end loop; end $$`)
	if got := c.runSettled(t, false); got != 0 {
		t.Fatalf("%d rows were given although nothing has happened", got)
	}
}

func TestReconcile_FindsNothingInRowsThatWereRewritten(t *testing.T) {
	t.Parallel()
	eachTable(t, func(t *testing.T, db *DB, env *testenv.DB) {
		for _, age := range []time.Duration{0, 20 * 24 * time.Hour} {
			c := aged(t, db, env, age)
			laterEndpoints(t, c)
			rewritten := func(name, sql string, gap bool) {
				t.Helper()
				for statement := range strings.SplitSeq(fmt.Sprintf(sql, db.cfg.table()), "; ") {
					env.Exec(t, statement)
				}
				if got := c.runSettled(t, gap); got != 0 {
					t.Errorf("events of %s ago, gap %t, %s: %d rows were given:\n%s", age, gap, name, got,
						strings.Join(testenv.QueryAll[string](t, env, `select event_id || ' to ' || endpoint_id from webhooks.deliveries`), "\n"))
				}
			}
			for _, rewrite := range rewrites {
				rewritten(rewrite.name, rewrite.sql, false)
				env.Exec(t, fmt.Sprintf(`alter table %s drop column if exists extra, alter column venue type text`, db.cfg.table()))
				rewritten(rewrite.name, rewrite.sql, true)
				env.Exec(t, fmt.Sprintf(`alter table %s drop column if exists extra, alter column venue type text`, db.cfg.table()))
			}
			env.Exec(t, `update webhooks.checkpoint set horizon = null, relations = null`)
			rewritten("no horizon", `update %[1]s set type = type`, true)
			env.Exec(t, `truncate `+db.cfg.table()+`, webhooks.endpoints, webhooks.deliveries`)
			c.close(t)
		}
	})
}

// Deliveries are pruned when their events are gone. A dump from before brings back the events
// without them.
func TestReconcile_FindsNothingInEventsThatAreOlderThanTheLog(t *testing.T) {
	t.Parallel()
	eachTable(t, func(t *testing.T, db *DB, env *testenv.DB) {
		c := aged(t, db, env, 40*24*time.Hour)
		db.cfg.Retention = 30 * 24 * time.Hour
		env.Exec(t, `delete from webhooks.deliveries`)
		for _, gap := range []bool{false, true} {
			env.Exec(t, fmt.Sprintf(`create table kept as select * from %[1]s`, db.cfg.table()))
			env.Exec(t, fmt.Sprintf(`truncate %[1]s`, db.cfg.table()))
			env.Exec(t, fmt.Sprintf(`insert into %[1]s select * from kept`, db.cfg.table()))
			env.Exec(t, `drop table kept`)
			if got := c.runSettled(t, gap); got != 0 {
				t.Errorf("gap %t: %d rows were given", gap, got)
			}
		}
	})
}

// Such a transaction writes before the gap and commits after it. Its event is older than the last
// horizon.
func TestReconcile_FindsTheEventOfATransactionThatWasOpenAcrossAHorizon(t *testing.T) {
	t.Parallel()
	eachTable(t, func(t *testing.T, db *DB, env *testenv.DB) {
		for i, gap := range []bool{false, true} {
			ep, late := fmt.Sprintf("ep_%d", i), fmt.Sprintf("late_%d", i)
			addEndpoint(t, env, ep, "venue_a", "*")
			c := compare(t, db, env)
			slow := begin(t, env)
			_, err := slow.Exec(t.Context(), fmt.Sprintf(`insert into %s (id, type, venue, data) values ('evt_%d', 'lead.created', 'venue_a', '{}')`, db.cfg.table(), i))
			must(t, err)
			env.Exec(t, `update webhooks.endpoints set description = 'changed meanwhile'`)
			c.run(t, true)
			must(t, slow.Commit(t.Context()))
			addEndpoint(t, env, late, "venue_a", "*")
			c.runSettled(t, true)
			want := []string{fmt.Sprintf("evt_%d/%s pending", i, ep)}
			if got := recordedKeys(t, env); !slices.Equal(got, want) {
				t.Errorf("gap %t: recorded %q, want %q", gap, got, want)
			}
			env.Exec(t, `truncate webhooks.deliveries, webhooks.endpoints`)
			c.close(t)
		}
	})
}

// The transaction ids of another server mean nothing here.
func TestReconcile_TakesNoTransactionOfAnotherServerForOneOfThisOne(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created, xid) values ('evt_1', 'lead.created', 'venue_a', '{}', now(), '900000000000'),
	    ('evt_2', 'lead.created', 'venue_a', '{}', now(), null)`)
	if got := c.runSettled(t, false); got != 2 {
		t.Errorf("%d events were found, want 2", got)
	}
	addEndpoint(t, env, "ep_late", "venue_a", "*")
	if got := c.runSettled(t, true); got != 0 {
		t.Errorf("%d rows were given", got)
	}
	for _, test := range []struct {
		xid, xmin, next string
		known           bool
	}{
		{"100", "100", "200", true}, {"100", "150", "200", true}, {"151", "150", "200", false},
		{"4294967290", "3", "4294967310", true}, {"4294967300", "3", "4294967310", false}, {"4294967299", "3", "4294967310", true},
		{"100", "150", "8589934800", true}, // nobody has written to this row for two wraparounds
	} {
		if got := testenv.QueryOne[bool](t, env, `select webhooks.event_xid($1::text::xid8, $2::text::xid, $3::text::bigint) is not null`, test.xid, test.xmin, test.next); got != test.known {
			t.Errorf("transaction %s of a row that %s wrote, at %s, is known: %t", test.xid, test.xmin, test.next, got)
		}
	}
}

func TestEndpoints_KeepSinceWhenTheyWantWhatTheyWant(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	subscribed := func() string {
		t.Helper()
		return testenv.QueryOne[string](t, env, `select coalesce(subscribed::text, '') from webhooks.endpoints`)
	}
	for _, sql := range []string{`set url = 'https://example.org', secret = 's', description = 'd'`, `set disabled_at = now()`, `set disabled_at = null`,
		`set created = now() - interval '1 day'`, `set events = '{*}', venue = 'venue_a'`, `set subscribed = now()`} {
		env.Exec(t, `update webhooks.endpoints `+sql)
		if got := subscribed(); got != "" {
			t.Errorf("%s: subscribed at %s", sql, got)
		}
	}
	for _, sql := range []string{`set events = '{lead.*}'`, `set venue = 'venue_b'`, `set events = '{lead.*,null}'`} {
		last := subscribed()
		env.Exec(t, `update webhooks.endpoints `+sql)
		if got := subscribed(); got == "" || got == last {
			t.Errorf("%s: subscribed at %q", sql, got)
		}
	}
	last := subscribed()
	env.Exec(t, `update webhooks.endpoints set subscribed = null, url = 'https://example.net'`)
	if got := subscribed(); got != last {
		t.Errorf("subscribed was set by hand, to %q", got)
	}
}
