package outbox

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// The tests in this file write events that no stream brings. So each row in the log comes from
// comparing the outbox with the log.

// compared is a term with a ledger that makes comparisons.
type compared struct {
	*book
	db  *DB
	env *testenv.DB
}

// compare begins a term whose recovery is complete. The outbox has no events.
func compare(t *testing.T, db *DB, env *testenv.DB) *compared {
	t.Helper()
	c := compareFirst(t, db, env)
	c.run(t, true)
	return c
}

// compareFirst begins a term that has compared nothing yet.
func compareFirst(t *testing.T, db *DB, env *testenv.DB) *compared {
	t.Helper()
	return &compared{keepBook(t, db.cfg, takeTerm(t, db), nil), db, env}
}

// eachComparison runs a test for either kind of comparison.
func eachComparison(t *testing.T, test func(t *testing.T, gap bool)) {
	for _, gap := range []bool{false, true} {
		t.Run(fmt.Sprintf("gap %t", gap), func(t *testing.T) {
			t.Parallel()
			test(t, gap)
		})
	}
}

// run makes one comparison and returns how many rows were missing.
func (c *compared) run(t *testing.T, gap bool) int64 {
	t.Helper()
	h, err := c.db.configured().Horizon(t.Context())
	must(t, err)
	h.Completes = true
	added, err := c.db.configured().Reconcile(t.Context(), c.Ledger, h, gap)
	must(t, err)
	return added
}

// runSettled does the same as run, with a horizon that sees everything that is committed now. Open
// transactions of other tests in the same cluster delay it.
func (c *compared) runSettled(t *testing.T, gap bool) int64 {
	t.Helper()
	last := testenv.QueryOne[string](t, c.env, `select pg_current_xact_id()::text`)
	testenv.Eventually(t, othersPatience, func() error {
		if !testenv.QueryOne[bool](t, c.env, `select pg_snapshot_xmin(pg_current_snapshot()) > $1::text::xid8`, last) {
			return fmt.Errorf("a transaction is open that is older than %s", last)
		}
		return nil
	})
	return c.run(t, gap)
}

// sequence counts the transactions of the ledger.
func (c *compared) sequence(t *testing.T) int64 {
	t.Helper()
	return testenv.QueryOne[int64](t, c.env, `select sequence from webhooks.checkpoint`)
}

func TestReconcile_GivesLostEventsTheirRowsOnce(t *testing.T) {
	t.Parallel()
	eachComparison(t, func(t *testing.T, gap bool) {
		db, env := openDB(t)
		addEndpoint(t, env, "ep_1", "venue_a", "*")
		c := compare(t, db, env)
		addEvents(t, env, "evt", 2*giveLimit+1)
		addDelivery(t, env, "evt_00007", "ep_1", "venue_a", "lead.created", Succeeded, 0)
		if got := c.runSettled(t, gap); got != 2*giveLimit {
			t.Errorf("%d rows were lacking, want %d", got, 2*giveLimit)
		}
		if got := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.deliveries where status = 'pending' and next_attempt_at <= now()`); got != 2*giveLimit {
			t.Errorf("%d rows are due, want %d", got, 2*giveLimit)
		}
		c.locked(func() {
			if !slices.Contains(c.requeued, "ep_1") {
				t.Error("nobody was told that the endpoint has deliveries that are due")
			}
		})
		if got := c.run(t, gap); got != 0 {
			t.Errorf("%d rows were lacking the second time", got)
		}
		if testenv.QueryOne[bool](t, env, `select recovering from webhooks.checkpoint`) {
			t.Error("the recovery has not ended")
		}
	})
}

func TestReconcile_SendsAnEventToNoEndpointThatCameOrChangedAfterIt(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	for _, id := range []string{"ep_there", "ep_widened", "ep_moved", "ep_enabled"} {
		addEndpoint(t, env, id, "venue_a", "*")
	}
	env.Exec(t, `update webhooks.endpoints set events = '{payment.*}' where id = 'ep_widened'`)
	env.Exec(t, `update webhooks.endpoints set venue = 'venue_b' where id = 'ep_moved'`)
	c := compare(t, db, env)
	// It registers an endpoint, dates it at its own beginning, and commits after the event.
	slow := begin(t, env)
	_, err := slow.Exec(t.Context(), `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_slow', 'venue_a', 'https://example.com', '{*}', 'sentinel')`)
	must(t, err)
	addEvents(t, env, "evt", 1)
	env.Exec(t, `update webhooks.endpoints set events = '{*}' where id = 'ep_widened'`)
	env.Exec(t, `update webhooks.endpoints set venue = 'venue_a' where id = 'ep_moved'`)
	addEndpoint(t, env, "ep_late", "venue_a", "*")

	if got := c.run(t, false); got != 2 {
		t.Errorf("%d rows were given while a transaction was open that is older than the event, want 2", got)
	}
	must(t, slow.Commit(t.Context()))
	if got := c.runSettled(t, false); got != 0 {
		t.Errorf("%d rows were given after it had ended", got)
	}
	want := []string{"evt_00001/ep_enabled pending", "evt_00001/ep_there pending"}
	if got := recordedKeys(t, env); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

// An event waits for its transaction to end, and is then streamed to an endpoint that was
// registered meanwhile. After a gap, the endpoint gets the event if it existed before the horizon
// that did not see the event. Without a gap, the comparison does not know whether the stream had a
// reason to skip the event, so it leaves this endpoint out.
func TestReconcile_KnowsWhichEndpointsWereRegisteredWhileTheEventsTransactionWasOpen(t *testing.T) {
	t.Parallel()
	eachComparison(t, func(t *testing.T, gap bool) {
		db, env := openDB(t)
		addEndpoint(t, env, "ep_there", "venue_a", "*")
		c := compare(t, db, env)
		slow := begin(t, env)
		_, err := slow.Exec(t.Context(), `insert into webhooks.outbox (id, type, venue, data) values ('evt_slow', 'lead.created', 'venue_a', '{}')`)
		must(t, err)
		addEndpoint(t, env, "ep_meanwhile", "venue_a", "*")
		if got := c.run(t, gap); got != 0 {
			t.Errorf("%d rows were given to an event that is not committed", got)
		}
		must(t, slow.Commit(t.Context()))
		c.runSettled(t, gap)
		want := []string{"evt_slow/ep_there pending"}
		if gap {
			want = []string{"evt_slow/ep_meanwhile pending", "evt_slow/ep_there pending"}
		}
		if got := recordedKeys(t, env); !slices.Equal(got, want) {
			t.Errorf("recorded %q, want %q", got, want)
		}
	})
}

// A snapshot does not list the ids of subtransactions. So a row that was written in one must not be
// taken for one that the snapshot sees.
func TestReconcile_FindsEventsOfSubtransactionsThatWereOpenAtTheLastHorizon(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	slow := begin(t, env)
	for i := range 100 { // more subtransactions than the server's process list has room for
		nested, err := slow.Begin(t.Context())
		must(t, err)
		_, err = nested.Exec(t.Context(), `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_a', '{}')`, fmt.Sprintf("evt_%03d", i))
		must(t, err)
		must(t, nested.Commit(t.Context()))
	}
	addEvents(t, env, "other", horizonStep+1)
	c.run(t, true) // stores a horizon
	must(t, slow.Commit(t.Context()))
	c.runSettled(t, false)
	if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where event_id like 'evt%'`); got != 100 {
		t.Errorf("%d of 100 events were found", got)
	}
}

func TestReconcile_FindsRowsThatCameWithAPartitionHoweverOldTheyAre(t *testing.T) {
	t.Parallel()
	eachComparison(t, func(t *testing.T, gap bool) {
		db, env := openPartitioned(t)
		addEndpoint(t, env, "ep_1", "venue_a", "*")
		const insert = `insert into %s (id, type, venue, data, part) values ('%s', 'lead.created', 'venue_a', '{}', %d)`
		env.Exec(t, `create table part_3 (like events including all)`)
		env.Exec(t, fmt.Sprintf(insert, "part_3", "evt_old", 3))
		c := compare(t, db, env)
		c.runSettled(t, true)
		env.Exec(t, fmt.Sprintf(insert, "events", "evt_new", 1))
		env.Exec(t, `alter table events attach partition part_3 for values in (3)`)
		c.runSettled(t, gap)
		want := []string{"evt_new/ep_1 pending", "evt_old/ep_1 pending"}
		if got := recordedKeys(t, env); !slices.Equal(got, want) {
			t.Errorf("recorded %q, want %q", got, want)
		}
	})
}

func TestReconcile_WalksAnOutboxWhoseIDsAreNoText(t *testing.T) {
	t.Parallel()
	db, env := openMapped(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set created = '2020-01-01'`)
	c := compare(t, db, env)
	// After a gap, an event counts even if its time is far from that of its transaction.
	env.Exec(t, `insert into public."App Events" (what, place, body, at) select 'lead.created', 'venue_a', '{}', '2025-05-10'::timestamp + make_interval(days => i)
	    from generate_series(1, $1) i`, 2*giveLimit+1)
	if got := c.runSettled(t, true); got != 2*giveLimit+1 {
		t.Errorf("%d rows were lacking, want %d", got, 2*giveLimit+1)
	}
}

func TestReconcile_WritesNothingWhileNothingHappens(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	c.runSettled(t, false)
	before := c.sequence(t)
	began := testenv.QueryOne[int64](t, env, `select pg_snapshot_xmin(horizon)::text::bigint from webhooks.checkpoint`)
	for range 20 {
		c.run(t, false)
	}
	// Other tests write in this cluster too.
	ended := testenv.QueryOne[int64](t, env, `select pg_snapshot_xmin(pg_current_snapshot())::text::bigint`)
	if got, allowed := c.sequence(t)-before, (ended-began)/horizonStep; got > allowed {
		t.Errorf("the ledger wrote %d times, want %d at most", got, allowed)
	}
	env.Exec(t, `do $$ begin for i in 1..100 loop perform pg_current_xact_id(); commit; end loop; end $$`)
	before = c.sequence(t)
	c.runSettled(t, false)
	if got := c.sequence(t); got == before {
		t.Error("the horizon was not stored after a hundred transactions: each comparison looks at more and more rows")
	}
}

func TestReconcile_OfAFormerTermWritesNothing(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	addEvents(t, env, "evt", 1)
	h, err := db.configured().Horizon(t.Context())
	must(t, err)
	env.Exec(t, `update webhooks.checkpoint set epoch = epoch + 1`)
	_, err = db.configured().Reconcile(t.Context(), c.Ledger, h, true)
	wantError(t, err, ErrFenced)
	if got := recordedKeys(t, env); len(got) != 0 {
		t.Errorf("recorded %q", got)
	}
}

func TestReconcile_AwaitsWhatTheStreamHasBroughtBeforeTheHorizon(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	end := LSN(1 << 40)
	deliveries := c.track(t, end, "evt_1")
	waiting := make(chan error, 1)
	// The goroutine ends when the delivery is recorded.
	go func() { waiting <- c.AwaitRecorded(t.Context(), end) }()
	select {
	case err := <-waiting:
		t.Fatalf("did not wait for a delivery without a row: %v", err)
	case <-time.After(2 * recordedInterval):
	}
	must(t, c.Write(t.Context(), success(deliveries[0])))
	must(t, <-waiting)
	if got := recordedKeys(t, env); !slices.Equal(got, []string{"evt_1/ep_1 succeeded"}) {
		t.Errorf("recorded %q", got)
	}
}

func TestReconcile_LeavesARecoveryOpenThatItDoesNotComplete(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	c := compareFirst(t, db, env)
	h, err := db.configured().Horizon(t.Context())
	must(t, err)
	_, err = db.configured().Reconcile(t.Context(), c.Ledger, h, true)
	must(t, err)
	if !testenv.QueryOne[bool](t, env, `select recovering from webhooks.checkpoint`) {
		t.Error("the recovery has ended")
	}
}

// The app may give an event any time, and now() is the start of its transaction.
func TestReconcile_TakesAnEventForNewerThanTheHorizonWhateverItsOwnTime(t *testing.T) {
	t.Parallel()
	eachComparison(t, func(t *testing.T, gap bool) {
		db, env := openDB(t)
		addEndpoint(t, env, "ep_1", "venue_a", "*")
		c := compare(t, db, env)
		c.runSettled(t, true)
		addEndpoint(t, env, "ep_2", "venue_a", "*")
		env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ('evt_1', 'lead.created', 'venue_a', '{}', now() - interval '50 minutes')`)
		c.runSettled(t, gap)
		if got := recordedKeys(t, env); !slices.Equal(got, []string{"evt_1/ep_1 pending"}) {
			t.Errorf("recorded %q, want the endpoint of before the horizon only", got)
		}
	})
}

func TestReconcile_LeavesToTheLanesWhetherAnEndpointCanBeSentTo(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) values ('ep_1', 1, 0, 'what its URL was before it was mended')`)
	addEvents(t, env, "evt", 1)
	compareFirst(t, db, env).runSettled(t, true)
	if got := testenv.QueryAll[string](t, env, `select status from webhooks.deliveries`); !slices.Equal(got, []string{"pending"}) {
		t.Errorf("the delivery is %q, want pending", got)
	}
}

func TestReconcile_PassesOverRowsWithoutAnID(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `create table public.ev (id text unique, type text, venue text, data json, created timestamptz default now())`)
	db.cfg.Table, db.cfg.Publication = "public.ev", "mapped"
	_, _, err := Migrate(t.Context(), db.cfg)
	must(t, err)
	env.Exec(t, `insert into public.ev values (null, 'lead.created', 'venue_a', '{}'), ('evt_1', 'lead.created', 'venue_a', '{}')`)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update public.ev set created = now()`)
	if got := compareFirst(t, db, env).runSettled(t, true); got != 1 {
		t.Errorf("recovered %d, want 1", got)
	}
}

// The transaction ids in rows have 32 bits and wrap around.
func TestHandedOver_TakesAnIDForTheNearestToTheHorizon(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	for _, test := range []struct {
		xmin, horizon string
		want          bool
	}{
		{"999", "1000:1005:", true},
		{"1000", "1000:1005:", false},
		{"1001", "1000:1005:1000", false}, // it may have been seen, and a further look costs little
		{"4294967295", "4294967300:4294967300:", true},
		{"3", "4294967300:4294967300:", true},
		{"4", "4294967300:4294967300:", false},
		{"5", "4294967300:4294967300:", false},
		{"3000000000", "4294967300:4294967300:", true},
		{"2000000000", "4294967300:4294967300:", false},
		{"100", "12884901990:12884901990:", true}, // three wraparounds later
	} {
		got := testenv.QueryOne[bool](t, env, `select webhooks.handed_over($1::text::xid, $2::text::pg_snapshot)`, test.xmin, test.horizon)
		if got != test.want {
			t.Errorf("handed_over(%s, %s) is %t", test.xmin, test.horizon, got)
		}
	}
}
