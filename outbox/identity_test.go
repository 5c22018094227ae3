package outbox

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// openTable returns a database whose outbox is a table of the app's, with the default names of
// columns.
func openTable(t *testing.T, columns string) (*DB, *testenv.DB) {
	t.Helper()
	env := testenv.NewDB(t)
	env.Exec(t, `create table public.ob (`+columns)
	return mapTo(t, env, func(*Config) {}), env
}

// mapTo migrates for the table public.ob and opens the database.
func mapTo(t *testing.T, env *testenv.DB, change func(*Config)) *DB {
	t.Helper()
	cfg := testConfig(env.URL, env.Slot)
	cfg.Table, cfg.Publication = "public.ob", "ob"
	change(&cfg)
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	return db
}

const oneTime = `'2026-01-01 00:00:00+00'`

// pend records a pending delivery of an event created at oneTime.
func pend(t *testing.T, env *testenv.DB, eventID, endpointID, venue, eventType string) {
	t.Helper()
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
	    values ($1, $2, $3, $4, 'pending', now(), `+oneTime+`)`, eventID, endpointID, venue, eventType)
}

// fetchedOf returns the result for what is due for an endpoint: the body's data, or why there is
// none. It waits until that is settled.
func fetchedOf(t *testing.T, db *DB, endpointID string) string {
	t.Helper()
	var found []string
	testenv.Eventually(t, patience, func() error {
		refills, err := db.configured().Due(t.Context(), []Want{wantAll(endpointID, 100)}, time.Now().Add(time.Minute), 1<<20)
		must(t, err)
		r := refills[endpointID]
		found = nil
		for _, d := range r.Deliveries {
			_, data, _ := strings.Cut(string(d.Body), `"data":`)
			found = append(found, strings.TrimSuffix(data, "}"))
		}
		for _, l := range r.Lost {
			found = append(found, l.Reason)
		}
		if len(found) == 0 {
			return fmt.Errorf("nothing is due for %s", endpointID)
		}
		return nil
	})
	return strings.Join(found, "; ")
}

// TestDue_BringsBackTheSameEventOrNone uses tables of several shapes in which an id occurs twice.
func TestDue_BringsBackTheSameEventOrNone(t *testing.T) {
	t.Parallel()
	const columns = `id bigint, type text, venue text, data json, created timestamptz not null default ` + oneTime
	for _, test := range []struct{ name, table, rows, want string }{
		{"a key of venue and id", columns + `, primary key (venue, id))`, `('venue_a', 1, 't.a', '"A"'), ('venue_b', 1, 't.a', '"B"')`, `"A"`},
		{"a key of venue and id, replaced", columns + `, primary key (venue, id))`, `('venue_b', 1, 't.a', '"B"')`, lostOther},
		{"no key", columns + `)`, `('venue_b', 1, 't.a', '"B"'), ('venue_a', 1, 't.b', '"C"'), ('venue_a', 1, 't.a', '"A"')`, `"A"`},
		{"no key, the same event twice", columns + `)`, `('venue_a', 1, 't.a', '"A"'), ('venue_a', 1, 't.a', '"A"')`, `"A"`},
		{"no key, other data", columns + `)`, `('venue_a', 1, 't.a', '"A"'), ('venue_a', 1, 't.a', '"D"')`, lostTwice},
		{"no key, many times", columns + `)`, strings.Repeat(`('venue_a', 1, 't.a', '"A"'), `, manyRows) + `('venue_a', 1, 't.a', '"A"')`, lostTwice},
		{"gone", columns + `)`, `('venue_a', 2, 't.a', '"A"')`, lostGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openTable(t, test.table)
			env.Exec(t, `insert into ob (venue, id, type, data) values `+test.rows)
			pend(t, env, "1", "ep_a", "venue_a", "t.a")
			if got := fetchedOf(t, db, "ep_a"); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestDue_TellsPartsOfAPartitionedTableApartByCreated(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `create table ob (id text, type text, venue text, data json, created timestamptz, primary key (id, created)) partition by range (created)`)
	env.Exec(t, `create table ob_25 partition of ob for values from ('2025-01-01') to ('2026-01-01')`)
	env.Exec(t, `create table ob_26 partition of ob for values from ('2026-01-01') to ('2027-01-01')`)
	db := mapTo(t, env, func(*Config) {})
	env.Exec(t, `insert into ob values ('1', 't.a', 'venue_a', '"A"', '2025-12-31 00:00:00+00'), ('1', 't.a', 'venue_a', '"B"', `+oneTime+`)`)
	pend(t, env, "1", "ep_b", "venue_a", "t.a")
	pend(t, env, "1", "ep_a", "venue_a", "t.a")
	env.Exec(t, `update webhooks.deliveries set created = '2025-12-31 00:00:00+00' where endpoint_id = 'ep_a'`)
	if a, b := fetchedOf(t, db, "ep_a"), fetchedOf(t, db, "ep_b"); a != `"A"` || b != `"B"` {
		t.Errorf("got %s and %s", a, b)
	}
}

// A log may hold ids of an outbox that was used before. They may have no form of a key in the
// present one.
func TestDue_IsNotStoppedByIDsThatAreNoKeys(t *testing.T) {
	t.Parallel()
	for _, idType := range []string{"bigint", "smallint", "uuid", "numeric", "char(3)", "varchar(3)", "name"} {
		t.Run(idType, func(t *testing.T) {
			t.Parallel()
			db, env := openTable(t, `id `+idType+` primary key, type text, venue text, data json, created timestamptz)`)
			for _, id := range []string{"", "evt_1", "9223372036854775808", "99999999999999999999", "-", "1e400", "é", strings.Repeat("9", 400), "NaN", "1 "} {
				pend(t, env, id, "ep_1", "venue_a", "t")
			}
			// Transactions of other tests may delay this.
			testenv.Eventually(t, othersPatience, func() error {
				if got := fetchedOf(t, db, "ep_1"); strings.Count(got, lostGone) != 10 {
					return fmt.Errorf("got %s", got)
				}
				return nil
			})
		})
	}
}

func TestLedger_AnEventTakesTheRowOfAnotherWithItsIDThatHasEnded(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_code, last_error, created, finished)
	    values ('evt_1', 'ep_1', 'venue_b', 'other', 'failed', 1, 500, 'status 500', `+oneTime+`, now())`)
	d := b.track(t, 1000, "evt_1")[0]
	must(t, b.Write(t.Context(), success(d)))
	b.hasCommitted(t, 1)
	got := testenv.QueryOne[string](t, env, `select concat_ws(' ', venue, type, status, last_code, last_error, created = $1) from webhooks.deliveries`, d.Created)
	if want := "venue_a lead.created succeeded 200 t"; got != want {
		t.Errorf("the row is %q, want %q", got, want)
	}
	if n := b.cfg.Counts.Reused.Load(); n != 1 {
		t.Errorf("%d ids were counted as used again, want 1", n)
	}
	const told = "warn outbox webhooks.outbox: 1 deliveries were of events with the id of another event"
	if said := strings.Join(notOK(db.Check(t.Context())), "\n"); !strings.Contains(said, told) {
		t.Errorf("check does not say %q:\n%s", told, said)
	}
	env.Exec(t, `update webhooks.checkpoint set reused_at = now() - interval '8 days'`)
	if said := strings.Join(notOK(db.Check(t.Context())), "\n"); strings.Contains(said, "another event") {
		t.Errorf("check tells of what was more than a week ago:\n%s", said)
	}
}

func TestLedger_TellsOfAnEventWhoseIDIsPendingForAnother(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	pend(t, env, "evt_1", "ep_1", "venue_b", "other")
	pend(t, env, "evt_2", "ep_1", "venue_b", "other")
	ds := b.track(t, 1000, "evt_1", "evt_2", "evt_3")
	must(t, b.Write(t.Context(), success(ds[0])))
	must(t, b.Write(t.Context(), IDTaken(ds[1], time.Now())))
	must(t, b.Write(t.Context(), success(ds[2])))
	b.hasCommitted(t, 3)
	rows := testenv.QueryAll[string](t, env, `select concat_ws(' ', event_id, venue, type, status) from webhooks.deliveries order by 1`)
	if want := []string{"evt_1 venue_b other pending", "evt_2 venue_b other pending", "evt_3 venue_a lead.created succeeded"}; !slices.Equal(rows, want) {
		t.Errorf("the log has %q, want %q", rows, want)
	}
	told := testenv.QueryAll[string](t, env, `select event_id || ' ' || class || ' ' || error from webhooks.attempts order by 1`)
	if len(told) != 2 || !strings.Contains(told[0], "evt_1 id_taken the outbox has used the id again for another event (venue venue_a, type lead.created") ||
		!strings.Contains(told[0], "its delivery was succeeded") || !strings.Contains(told[1], "evt_2 id_taken") || !strings.Contains(told[1], "it was not sent") {
		t.Errorf("told %q", told)
	}
	if n := b.cfg.Counts.Reused.Load(); n != 2 {
		t.Errorf("%d ids were counted as used again, want 2", n)
	}
	b.close(t)
	if stored := storedLSN(t, env); stored != 1000 {
		t.Errorf("the checkpoint is %s, want 1000: a delivery without a row holds it back", stored)
	}
}

// A comparison cannot distinguish a row that was changed from another event that was written in its
// place. So it sends nothing, and says so once.
func TestReconcile_TellsOnceOfAnEventWhoseIDTheLogHasForAnother(t *testing.T) {
	t.Parallel()
	eachComparison(t, func(t *testing.T, gap bool) {
		db, env := openDB(t)
		addEndpoint(t, env, "ep_1", "venue_a", "*")
		c := compare(t, db, env)
		addEvents(t, env, "evt", 2)
		env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_00001', 'ep_1', 'venue_a', 'lead.created', 'succeeded', `+oneTime+`)`)
		for range 2 {
			c.runSettled(t, gap)
			env.Exec(t, `update webhooks.outbox set type = type`)
		}
		if got, want := recordedKeys(t, env), []string{"evt_00001/ep_1 succeeded", "evt_00002/ep_1 pending"}; !slices.Equal(got, want) {
			t.Errorf("recorded %q, want %q", got, want)
		}
		if told := testenv.QueryAll[string](t, env, `select event_id || ' ' || class from webhooks.attempts`); !slices.Equal(told, []string{"evt_00001 id_taken"}) {
			t.Errorf("told %q", told)
		}
	})
}
