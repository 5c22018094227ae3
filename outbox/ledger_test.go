package outbox

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// storedLSN returns the checkpoint.
func storedLSN(t *testing.T, env *testenv.DB) (lsn LSN) {
	t.Helper()
	must(t, lsn.Scan(testenv.QueryOne[string](t, env, `select lsn::text from webhooks.checkpoint`)))
	return lsn
}

// rowOf describes a delivery as it is recorded. It returns "" if it is not.
func rowOf(t *testing.T, env *testenv.DB, eventID string) string {
	t.Helper()
	rows := testenv.QueryAll[string](t, env, `select concat_ws(' ', status, attempts, last_code, last_class, last_error, finished is not null)
	    from webhooks.deliveries where event_id = $1`, eventID)
	if len(rows) == 0 {
		return ""
	}
	return rows[0]
}

func TestLedger_ConfirmsOnlyWhatIsCommitted(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	var batches []*Tracked
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		b := &Tracked{Read: time.Now()}
		for n := range random.IntN(3) {
			b.Deliveries = append(b.Deliveries, newDelivery(fmt.Sprintf("evt_%d_%d", i, n), "ep_1"))
		}
		if random.IntN(4) > 0 {
			b.End = LSN(1000 * (i + 1))
		}
		batches = append(batches, b)
	}
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	defer closeConn(conn)
	b := keepBook(t, db.cfg, newTerm(t, db), func(b *book, lc *LedgerConfig) {
		remember := lc.Confirm
		// The ledger's goroutine calls this and waits. So the database now holds what was committed
		// before.
		lc.Confirm = func(confirmed LSN) {
			remember(confirmed)
			var stored LSN
			var rows int
			if err := conn.QueryRow(t.Context(), `select lsn, (select count(*) from webhooks.deliveries) from webhooks.checkpoint`).Scan(&stored, &rows); err != nil {
				t.Error(err)
			}
			needed := 0
			for _, batch := range batches {
				if batch.End != 0 && batch.End <= confirmed {
					needed = 0
					for _, earlier := range batches[:slices.Index(batches, batch)+1] {
						needed += len(earlier.Deliveries)
					}
				}
			}
			if stored < confirmed || rows < needed {
				t.Errorf("confirmed %s, which needs %d rows; the checkpoint is %s with %d rows", confirmed, needed, stored, rows)
			}
		}
	})
	var open []*Delivery
	for _, batch := range batches {
		must(t, b.Track(t.Context(), batch))
		open = append(open, batch.Deliveries...)
		for len(open) > random.IntN(20) {
			i := random.IntN(len(open))
			must(t, b.Write(t.Context(), success(open[i])))
			open = slices.Delete(open, i, i+1)
		}
	}
	for _, d := range open {
		must(t, b.Write(t.Context(), success(d)))
	}
	b.close(t)
	last := LSN(0)
	for _, batch := range batches {
		last = max(last, batch.End)
	}
	if stored := storedLSN(t, env); stored != last || b.confirmed != last {
		t.Errorf("at the end the checkpoint is %s and %s is confirmed, want %s", stored, b.confirmed, last)
	}
	if stats := b.Stats(); stats.Checkpoint != last || stats.Lag != 0 || stats.Failing != "" || stats.Rows == 0 || stats.Groups == 0 {
		t.Errorf("stats: %+v", stats)
	}
}

func TestLedger_AFirstSuccessCostsOneInsertedRowAndNoUpdate(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	d := b.track(t, 100, "evt_1")[0]
	must(t, b.Write(t.Context(), success(d)))
	b.close(t)
	// This is the first version of the first row of the table.
	if place := testenv.QueryOne[string](t, env, `select ctid::text || xmax::text from webhooks.deliveries`); place != "(0,1)0" {
		t.Errorf("the row is at %s: it was not written once", place)
	}
	if got, want := rowOf(t, env, "evt_1"), "succeeded 1 200 t"; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	if n := testenv.QueryOne[int64](t, env, `select (select count(*) from webhooks.attempts) + (select count(*) from webhooks.endpoint_health)`); n != 0 {
		t.Errorf("%d further rows", n)
	}
	if stored := storedLSN(t, env); stored != 100 {
		t.Errorf("the checkpoint is %s", stored)
	}
}

func TestLedger_RecordsEachFailedAttemptAndItsCounter(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	d := b.track(t, 100, "evt_1")[0]
	r := failedAttempt(d, 1)
	r.Health = &Health{EndpointID: "ep_1", Generation: 1, Version: 1, Failures: 1, FirstFailure: r.Finished, LastFailure: r.Finished, LastError: "status 500"}
	must(t, b.Write(t.Context(), r))
	d.Attempts = 1
	last := failedAttempt(d, 2)
	last.Status, last.NextAttempt, last.Error = Failed, time.Time{}, ""
	last.Health = &Health{EndpointID: "ep_1", Generation: 1, Version: 2, Failures: 2, FirstFailure: r.Finished, LastFailure: last.Finished, LastError: "status 500"}
	must(t, b.Write(t.Context(), last))
	b.close(t)
	if got, want := rowOf(t, env, "evt_1"), "failed 2 500 http_status status 500 t"; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	attempts := testenv.QueryAll[string](t, env, `select concat_ws(' ', attempt, code, class, error, latency_ms, response) from webhooks.attempts order by attempt`)
	if want := []string{"1 500 http_status status 500 1 oops", "2 500 http_status status 500 1 oops"}; !slices.Equal(attempts, want) {
		t.Errorf("attempts are %q, want %q", attempts, want)
	}
	if n := testenv.QueryOne[int32](t, env, `select consecutive_failures from webhooks.endpoint_health`); n != 2 {
		t.Errorf("the counter is %d, want 2", n)
	}
}

func TestRecord_IsShownAsTheLogShowsIt(t *testing.T) {
	t.Parallel()
	db, _ := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	records := map[string]func(*Delivery) *Record{
		"evt_1": success,
		"evt_2": func(d *Delivery) *Record { return failedAttempt(d, 1) },
	}
	shown := map[string]DeliveryInfo{}
	for id, record := range records {
		d := newDelivery(id, "ep_1")
		d.Created = d.Created.Truncate(time.Microsecond) // as the stream has it
		must(t, b.Track(t.Context(), &Tracked{End: LSN(100 + len(shown)), Read: time.Now(), Deliveries: []*Delivery{d}}))
		r := record(d)
		must(t, b.Write(t.Context(), r))
		info := r.Info()
		info.Cursor = r.Cursor()
		shown[id] = info
	}
	b.close(t)
	for id, want := range shown {
		found, err := db.AllVenues().Deliveries(t.Context(), DeliveryFilter{EventID: id, Limit: 1})
		must(t, err)
		if diff := cmp.Diff([]DeliveryInfo{want}, found.Deliveries, cmpopts.EquateApproxTime(time.Microsecond)); diff != "" {
			t.Errorf("the log shows %s in another way (-record +log):\n%s", id, diff)
		}
	}
}

func TestLedger_DisablesTheGenerationThatFailed(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	for i := range 2 {
		addEndpoint(t, env, fmt.Sprintf("ep_%d", i), "venue_a", "*")
	}
	// The endpoint was enabled again meanwhile.
	env.Exec(t, `update webhooks.endpoints set generation = 2 where id = 'ep_1'`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	for i := range 2 {
		d := newDelivery("evt_1", fmt.Sprintf("ep_%d", i))
		must(t, b.Track(t.Context(), &Tracked{End: LSN(100 + i), Read: time.Now(), Deliveries: []*Delivery{d}}))
		r := failedAttempt(d, 1)
		r.Disable, r.Health = ReasonFailures, &Health{EndpointID: d.EndpointID, Generation: 1, Version: 1, Failures: 100}
		must(t, b.Write(t.Context(), r))
	}
	b.close(t)
	disabled := testenv.QueryAll[string](t, env, `select id || ' ' || disabled_reason from webhooks.endpoints where disabled_at is not null`)
	if want := []string{"ep_0 failures"}; !slices.Equal(disabled, want) {
		t.Errorf("disabled are %q, want %q", disabled, want)
	}
}

func TestLedger_ParksWhatIsNotRecordedInTime(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	started := time.Now()
	slow := b.track(t, 100, "slow")[0]
	quick := b.track(t, 200, "quick")[0]
	must(t, b.Write(t.Context(), success(quick)))
	b.hasCommitted(t, 1)
	// One snapshot, since a busy machine may come here when the delivery is parked already.
	if !testenv.QueryOne[bool](t, env, `select lsn = '0/0' or exists (select from webhooks.deliveries where event_id = 'slow') from webhooks.checkpoint`) {
		t.Fatal("the checkpoint has moved while a delivery before it has no row")
	}
	b.hasCommitted(t, 2)
	if waited := time.Since(started); waited < ParkAfter {
		t.Errorf("parked after %v, before its time", waited)
	}
	if got, want := rowOf(t, env, "slow"), "pending 0 f"; got != want {
		t.Errorf("parked as %q, want %q", got, want)
	}
	if r := b.committed[1]; !r.Parked || r.Delivery != slow {
		t.Errorf("told to be durable: %+v", r)
	}
	if stored := storedLSN(t, env); stored != 200 {
		t.Errorf("the checkpoint is %s after parking", stored)
	}
	must(t, b.Write(t.Context(), success(slow)))
	b.close(t)
	if got, want := rowOf(t, env, "slow"), "succeeded 1 200 t"; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	if n := b.Stats().Parked; n != 1 {
		t.Errorf("%d parked", n)
	}
}

func TestLedger_TakesTheLatestOfSeveralResultsInOneGroup(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	hold := begin(t, env)
	term := newTerm(t, db)
	_, err := hold.Exec(t.Context(), `select from webhooks.checkpoint for update`)
	must(t, err)
	b := keepBook(t, db.cfg, term, nil)
	first := b.track(t, 100, "first")[0]
	// Its commit waits for the lock; what comes now is gathered.
	must(t, b.Write(t.Context(), success(first)))
	d := newDelivery("evt_1", "ep_1")
	must(t, b.Track(t.Context(), &Tracked{End: 200, Read: time.Now().Add(-ParkAfter), Deliveries: []*Delivery{d}}))
	must(t, b.Write(t.Context(), failedAttempt(d, 1)))
	d.Attempts = 1
	must(t, b.Write(t.Context(), success(d)))
	must(t, hold.Rollback(t.Context()))
	b.close(t)
	if got, want := rowOf(t, env, "evt_1"), "succeeded 2 200 t"; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.attempts`); n != 1 {
		t.Errorf("%d failed attempts, want 1", n)
	}
}

func TestLedger_KeepsTheLatestHealthWhateverTheOrder(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	failed, succeeded := time.Unix(1000, 0).UTC(), time.Unix(2000, 0).UTC()
	for _, h := range []Health{
		{Version: 1, Failures: 1, FirstFailure: failed, LastFailure: failed, LastError: "first"},
		{Version: 3, Failures: 0, LastSuccess: succeeded},
		{Version: 2, Failures: 2, FirstFailure: failed, LastFailure: failed, LastError: "second"},
	} {
		h.EndpointID, h.Generation = "ep_1", 1
		must(t, b.Write(t.Context(), &h))
		must(t, b.Write(t.Context(), &Health{EndpointID: "ep_2", Generation: 1, Version: h.Version, Unusable: "no URL"}))
	}
	b.close(t)
	got := testenv.QueryAll[string](t, env, `select concat_ws(' ', endpoint_id, consecutive_failures, first_failure_at is null,
	    coalesce(extract(epoch from last_success_at)::int, 0), unusable) from webhooks.endpoint_health order by 1`)
	if want := []string{"ep_1 0 t 2000", "ep_2 0 t 0 no URL"}; !slices.Equal(got, want) {
		t.Errorf("health is %q, want %q", got, want)
	}
}

// All endpoints of an app may become unusable at once, for example because a key is missing.
func TestLedger_RecordsTheHealthOfVeryManyEndpointsInPieces(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	const endpoints = 10_000
	var entries []Entry
	for i := range endpoints {
		entries = append(entries, &Health{EndpointID: fmt.Sprint("ep_", i), Generation: 1, Version: int64(i + 1), Unusable: "no key"})
	}
	must(t, b.Write(t.Context(), entries...))
	b.close(t)
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health where unusable = 'no key'`); n != endpoints {
		t.Errorf("%d of %d states are recorded", n, endpoints)
	}
	if n := b.Stats().Groups; n < endpoints/(groupRows+writeLength) {
		t.Errorf("they were recorded by %d commits, the bound of one is %d rows", n, groupRows)
	}
}

func TestLedger_IsNotBlockedByWhatACustomersServerSaid(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	deliveries := b.track(t, 100, "evt_1", "evt_2", "evt_3")
	for i, text := range []string{"fine", "nul \x00", "not UTF-8 \xff"} {
		r := failedAttempt(deliveries[i], 1)
		r.Attempt.Response, r.Attempt.Error = text, text
		must(t, b.Write(t.Context(), r))
	}
	b.close(t)
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.attempts where code = 500`); n != 3 {
		t.Errorf("%d of 3 attempts are recorded", n)
	}
	if stored := storedLSN(t, env); stored != 100 {
		t.Errorf("the checkpoint is %s", stored)
	}
}

func TestLedger_StoresAWatermarkThatNoResultTakesAlong(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Track(t.Context(), &Tracked{End: 100, Read: time.Now()})) // nobody wants this event
	testenv.Eventually(t, patience, func() error {
		if stored := storedLSN(t, env); stored != 100 {
			return fmt.Errorf("the checkpoint is %s, want %s", stored, LSN(100))
		}
		return nil
	})
	must(t, b.Track(t.Context(), &Tracked{End: 200, Idle: true, Read: time.Now()}))
	b.close(t)
	if stored := storedLSN(t, env); stored != 200 {
		t.Errorf("the last checkpoint is %s: the idle position was not stored at the end", stored)
	}
}

// A comparison may have added the row of a delivery while its first attempt was under way.
func TestLedger_RecordsAFirstResultWhoseRowIsThereAlready(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	deliveries := b.track(t, 1000, "evt_1", "evt_2")
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Pending, 0)
	env.Exec(t, `update webhooks.deliveries set created = $1`, deliveries[0].Created)
	for _, d := range deliveries {
		must(t, b.Write(t.Context(), success(d)))
	}
	b.hasCommitted(t, 2)
	for _, d := range deliveries {
		if got := rowOf(t, env, d.EventID); !strings.HasPrefix(got, "succeeded 1 200") {
			t.Errorf("%s is recorded as %q", d.EventID, got)
		}
	}
}

func TestLedger_GathersWhatComesInQuickSuccession(t *testing.T) {
	t.Parallel()
	db, _ := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	ids := make([]string, 300)
	for i := range ids {
		ids[i] = fmt.Sprintf("evt_%d", i)
	}
	began := time.Now()
	next := time.NewTicker(time.Millisecond)
	defer next.Stop()
	for _, d := range b.track(t, 100, ids...) {
		<-next.C
		must(t, b.Write(t.Context(), success(d)))
	}
	b.close(t)
	// The first commit at once, and the last one at the end.
	most := int64(time.Since(began)/groupInterval) + 2
	// On a busy machine this takes more than a second, and waiting deliveries are parked. That
	// makes more rows, but not more commits.
	if stats := b.Stats(); stats.Rows < 300 || stats.Groups > most {
		t.Errorf("%d rows in %d commits within %s, want at most %d commits", stats.Rows, stats.Groups, time.Since(began), most)
	}
}
