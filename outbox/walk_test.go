package outbox

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// blocksOfEvents is a number of events that fills several parts of a walk, with a tenth of the
// first part's size.
const blocksOfEvents = 3000

// stopAt stores a sweep according to which everything before the middle of the table was compared
// already.
func stopAt(t *testing.T, c *compared, h Horizon) (next int64) {
	t.Helper()
	w, err := c.db.configured().walkPlaces(t.Context(), c.db.configured().comparison(lastHorizon{}, h, false))
	must(t, err)
	next = w.end / 2
	must(t, c.noteSweep(t.Context(), &sweep{Horizon: h, Files: w.layout.files, Next: next}))
	return next
}

// settledHorizon returns a horizon. In its snapshot, no transaction from before now is open.
func settledHorizon(t *testing.T, db *DB, env *testenv.DB) (h Horizon) {
	t.Helper()
	last := testenv.QueryOne[int64](t, env, `select pg_current_xact_id()::text::bigint`)
	testenv.Eventually(t, othersPatience, func() (err error) {
		if h, err = db.configured().Horizon(t.Context()); err == nil && h.xmin <= uint64(last) {
			err = fmt.Errorf("a transaction is open that is older than %d", last)
		}
		return err
	})
	return h
}

func TestSweep_GoesOnWhereAnEarlierTermStood(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	former := compareFirst(t, db, env)
	addEvents(t, env, "evt", blocksOfEvents)
	stopAt(t, former, settledHorizon(t, db, env))
	former.close(t)

	c := compareFirst(t, db, env)
	addEvents(t, env, "late", 5) // the horizon of the former term does not see them
	got := c.runSettled(t, true)
	first := testenv.QueryOne[string](t, env, `select min(event_id) from webhooks.deliveries where event_id like 'evt%'`)
	if got < blocksOfEvents/4 || got > blocksOfEvents*3/4 || first <= "evt_00100" {
		t.Errorf("%d rows were given, from %s on: want those of the second half", got, first)
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where event_id like 'late%'`); n != 5 {
		t.Errorf("%d of 5 events were found that came after the comparison had begun", n)
	}
	if testenv.QueryOne[bool](t, env, `select sweep is not null from webhooks.checkpoint`) {
		t.Error("the comparison is complete and the checkpoint says where it stands")
	}
}

func TestSweep_NotesWhereItStands(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	c := compareFirst(t, db, env)
	addEvents(t, env, "evt", blocksOfEvents)
	h, err := db.configured().Horizon(t.Context())
	must(t, err)
	next := stopAt(t, c, h)
	_, unfinished, err := db.configured().compared(t.Context(), c.cfg.Term)
	must(t, err)
	if got := unfinished; got.Next != next || next == 0 || got.Horizon.Snapshot != h.Snapshot || got.Horizon.LSN != h.LSN || !got.Horizon.At.Equal(h.At) ||
		!slices.Equal(got.Horizon.Coverage.Relations, h.Coverage.Relations) || len(got.Files) != len(h.Coverage.Relations) {
		t.Errorf("stored %+v, want the horizon %+v and the place %d", got, h, next)
	}
}

func TestSweep_BeginsAnewWhenTheTableWasRewritten(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compareFirst(t, db, env)
	addEvents(t, env, "evt", blocksOfEvents)
	h, err := db.configured().Horizon(t.Context())
	must(t, err)
	stopAt(t, c, h)
	env.Exec(t, `vacuum full webhooks.outbox`)
	if _, err := db.configured().Reconcile(t.Context(), c.Ledger, h, true); !errors.Is(err, errRewritten) {
		t.Errorf("the comparison of a table that was rewritten in the middle returns %v", err)
	}
	if got := c.runSettled(t, true); got != blocksOfEvents {
		t.Errorf("the next one gave %d rows, want %d", got, blocksOfEvents)
	}
}

func TestTakeOver_KeepsNoPlaceOfAComparisonOfAnotherServer(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	c := compareFirst(t, db, env)
	h, err := db.configured().Horizon(t.Context())
	must(t, err)
	for _, change := range []string{`system_identifier = '1'`, `database = 'other'`, `sweep = jsonb_set(sweep, '{Horizon,Snapshot}', '"900000000:900000000:"')`} {
		stopAt(t, c, h)
		env.Exec(t, `update webhooks.checkpoint set `+change)
		c.close(t)
		_, err := db.Adopt(t.Context(), "somebody", false)
		must(t, err)
		c = compareFirst(t, db, env)
		if testenv.QueryOne[bool](t, env, `select sweep is not null from webhooks.checkpoint`) {
			t.Errorf("%s: the next term would go on in the middle", change)
		}
	}
}

// One event has more endpoints than one transaction handles, and so have several events together.
func TestSweep_RecordsALargeFanOutInSmallTransactions(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	const endpoints = 2*giveLimit + giveLimit/2
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) select 'ep_' || i, 'venue_a', 'https://example.com', case when i % 2 = 0 then '{*}' else '{payment.*}' end::text[], 's' from generate_series(1, $1::int) i`, endpoints)
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) select 'small_' || i, 'venue_b', 'https://example.com', '{*}', 's' from generate_series(1, 3) i`)
	c := compareFirst(t, db, env)
	const large, small = 3, 700
	addEvents(t, env, "evt", large)
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_b', '{}' from generate_series(1, $1::int)`, small)
	before := c.sequence(t)
	const want = large*endpoints/2 + small*3
	if got := c.runSettled(t, true); got != want {
		t.Errorf("%d rows were given, want %d", got, want)
	}
	most := testenv.QueryOne[int](t, env, `select max(n) from (select count(*) n from webhooks.deliveries group by xmin) x`)
	if most > giveLimit {
		t.Errorf("one transaction wrote %d rows, want %d at most", most, giveLimit)
	}
	if n := c.sequence(t) - before; n > large*(endpoints/giveLimit+2)+small*3/giveLimit+3 {
		t.Errorf("it took %d transactions", n)
	}
}

// What was committed after the horizon was taken may still come by the stream. So it is left to the
// next comparison, and must not be hidden from it.
func TestReconcile_GoesByTheHorizonThatWasTakenBeforeItLooked(t *testing.T) {
	t.Parallel()
	eachComparison(t, func(t *testing.T, gap bool) {
		db, env := openDB(t)
		addEndpoint(t, env, "ep_1", "venue_a", "*")
		c := compare(t, db, env)
		h, err := db.configured().Horizon(t.Context())
		must(t, err)
		addEvents(t, env, "evt", 3)
		added, err := db.configured().Reconcile(t.Context(), c.Ledger, h, gap)
		if must(t, err); added != 0 {
			t.Errorf("%d rows were given to events that the stream may be about to bring", added)
		}
		if got := c.runSettled(t, gap); got != 3 {
			t.Errorf("%d of 3 events were found afterwards", got)
		}
	})
}

// Until the checkpoint is locked, a former leader may record what it has streamed.
func TestTakeOver_LooksUpWhatAFormerLeaderRecordedUntilItWasFenced(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	takeTerm(t, db)
	former := begin(t, env)
	_, err := former.Exec(t.Context(), `update webhooks.checkpoint set sequence = sequence + 1`)
	must(t, err)
	took := make(chan Term, 1)
	// The goroutine ends when the former leader has committed.
	go func() { took <- takeTerm(t, db) }()
	testenv.Eventually(t, patience, func() error {
		if !testenv.QueryOne[bool](t, env, `select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')`) {
			return errors.New("the new leader does not wait for the former one")
		}
		return nil
	})
	addEvents(t, env, "evt", 1)
	at := testenv.QueryOne[string](t, env, `select pg_current_wal_insert_lsn()::text`)
	must(t, former.Commit(t.Context()))
	if term := <-took; fmt.Sprint(term.LookupUntil) < at && len(fmt.Sprint(term.LookupUntil)) <= len(at) {
		t.Errorf("the new leader looks up to %s, an event stands before %s", term.LookupUntil, at)
	}
}

func TestPace_FollowsTheTimeThatAPartTakes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		step  int64
		took  time.Duration
		found int
		want  int64
	}{
		{100, 0, 0, 200},
		{600, 0, 0, 1000},
		{100, partTime, 0, 100},
		{100, 4 * partTime, 0, 25},
		{100, time.Hour, 0, 1},
		{100, 0, foundLimit, 100},
		{100, 0, foundLimit + 1, 50},
		{1, 0, foundLimit + 1, 1},
	} {
		p := pace{step: test.step, most: 1000}
		if p.adapt(test.took, test.found); p.step != test.want {
			t.Errorf("after a part of %d that took %s and found %d the next one is of %d, want %d", test.step, test.took, test.found, p.step, test.want)
		}
	}
}

// An update writes a row at a new place, which the comparison may have passed already, or which is
// beyond its end. The row's xid still says that the horizon sees it.
func TestSweep_FindsRowsThatMoveWhileItWalks(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compareFirst(t, db, env)
	addEvents(t, env, "evt", blocksOfEvents)
	h := settledHorizon(t, db, env)
	// The whole table was walked.
	must(t, c.noteSweep(t.Context(), &sweep{Horizon: h, Files: filesNow(t, c, h), Next: 1 << 40}))
	env.Exec(t, `update webhooks.outbox set type = type where id > 'evt_02000'`)
	added, err := db.configured().Reconcile(t.Context(), c.Ledger, h, true)
	must(t, err)
	if want := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.outbox where id > 'evt_02000'`); added != want || want == 0 {
		t.Errorf("%d rows were given, want those of the %d events that have moved", added, want)
	}
}

// filesNow returns the files of the outbox.
func filesNow(t *testing.T, c *compared, h Horizon) []string {
	t.Helper()
	w, err := c.db.configured().walkPlaces(t.Context(), c.db.configured().comparison(lastHorizon{}, h, false))
	must(t, err)
	return w.layout.files
}

// A filter that has changed may name a column that is gone.
func TestSweep_BeginsAnewUnderOtherRowFilters(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compareFirst(t, db, env)
	addEvents(t, env, "evt", 10)
	h, err := db.configured().Horizon(t.Context())
	must(t, err)
	former := h
	former.Coverage.Filters = []RowFilter{{Relations: h.Coverage.oids(), Name: `"webhooks"."outbox"`, Condition: "(region = 'eu'::text)"}}
	must(t, c.noteSweep(t.Context(), &sweep{Horizon: former, Files: filesNow(t, c, h)}))
	added, err := db.configured().Reconcile(t.Context(), c.Ledger, h, true)
	if must(t, err); added != 10 {
		t.Errorf("%d of 10 events were found", added)
	}
}
