package outbox

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// randomRecord makes a record of any kind, with texts and times of all sorts.
func randomRecord(random *rand.Rand, number int) *Record {
	texts := []string{"", "x", "Zoë", "日本語", "a\tb\nc\\d", `"quoted" 'text'`, `\N`, `\.`, strings.Repeat("long ", 400), "\u2028\ufeff"}
	text := func() string { return texts[random.IntN(len(texts))] }
	at := func() time.Time {
		times := []time.Time{
			time.Date(2026, 2, 28, 23, 59, 59, 999_999_999, time.UTC), time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1999, 12, 31, 23, 59, 59, 500, time.UTC),
			time.Date(1, 1, 2, 0, 0, 0, 1000, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC), time.Unix(0, 0), time.Unix(-1, 999_999_999),
			time.Unix(random.Int64N(4e9), random.Int64N(1e9)),
		}
		return times[random.IntN(len(times))]
	}
	d := &Delivery{EventID: fmt.Sprintf("evt_%d%s", number, text()), EndpointID: "ep_" + text(), Venue: text(), Type: text(), Created: at(),
		Attempts: random.IntN(6), undated: random.IntN(8) == 0}
	if random.IntN(4) == 0 {
		d.ReplayID = "rpl_" + text()
	}
	r := &Record{Delivery: d, Status: []Status{Pending, Succeeded, Failed, Missed}[random.IntN(4)], Finished: at(), Error: text()}
	switch {
	case r.Status == Pending:
		r.NextAttempt = at()
	case r.Status == Succeeded:
		r.Code, r.Latency = 200+random.IntN(100), time.Duration(random.Int64N(int64(30*24*time.Hour)))
	}
	if r.Status != Succeeded && random.IntN(2) == 0 {
		r.Attempt = &Attempt{Number: 1 + random.IntN(6), At: at(), Code: []int{0, 404, 500}[random.IntN(3)], Class: text(), Error: text(),
			Latency: time.Duration(random.Int64N(int64(time.Minute))), Response: text()}
	}
	return r
}

const selectDeliveries = `select d::text from webhooks.deliveries d order by event_id, endpoint_id`

// writeRecords writes records as one group, and returns the rows.
func writeRecords(t *testing.T, env *testenv.DB, records []*Record, adjust func(*group)) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	defer closeConn(conn)
	g := newGroup()
	adjust(g)
	for _, r := range records {
		g.add(r)
	}
	must(t, g.write(t.Context(), conn))
	return testenv.QueryAll[string](t, env, selectDeliveries)
}

// TestGroup_FirstRowsAreTheSameByCopy compares COPY with the statement that writes the same rows
// when COPY is refused.
func TestGroup_FirstRowsAreTheSameByCopy(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, texts := range []bool{true, false} {
		random := rand.New(rand.NewPCG(seed, 1))
		var records []*Record
		for i := range 700 {
			records = append(records, randomRecord(random, i))
		}
		var rows [2][]string
		for i, exist := range []bool{false, true} {
			env.Exec(t, `truncate webhooks.deliveries, webhooks.attempts`)
			rows[i] = writeRecords(t, env, records, func(g *group) { g.rowsExist, g.withoutTexts = exist, !texts })
		}
		if len(rows[0]) != len(records) || !slices.Equal(rows[0], rows[1]) {
			for i, row := range rows[0] {
				if i < len(rows[1]) && row != rows[1][i] {
					t.Errorf("COPY writes      %s\nwithout COPY it is %s", row, rows[1][i])
				}
			}
			t.Errorf("COPY has written %d rows of %d, and without it there are %d", len(rows[0]), len(records), len(rows[1]))
		}
	}
}

func TestGroup_FirstRowsAreWrittenByCopyAlone(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	defer closeConn(conn)
	g := newGroup()
	for i := range 100 {
		g.add(success(newDelivery(fmt.Sprintf("evt_%d", i), "ep_1")))
	}
	must(t, g.write(t.Context(), conn))
	prepared, err := queryRows(t.Context(), conn, `select statement from pg_prepared_statements where statement ~ '^\s*(insert|update|delete|with)'`, pgx.RowTo[string])
	must(t, err)
	if len(prepared) > 0 {
		t.Errorf("these statements were needed: %q", prepared)
	}
	if rows := testenv.QueryOne[int](t, env, `select count(*)::int from webhooks.deliveries`); rows != 100 {
		t.Errorf("there are %d rows, want 100", rows)
	}
}

// TestLedger_ARowThatSomebodyElseWritesMeanwhileIsTakenOver has another session write the same row
// and commit while COPY waits for it.
func TestLedger_ARowThatSomebodyElseWritesMeanwhileIsTakenOver(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	ds := b.track(t, 100, "evt_1", "evt_2", "evt_3")
	tx := begin(t, env)
	_, err := tx.Exec(t.Context(), `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
		values ('evt_2', $1, $2, $3, 'pending', now(), $4)`, ds[1].EndpointID, ds[1].Venue, ds[1].Type, ds[1].Created)
	must(t, err)
	for _, d := range ds {
		must(t, b.Write(t.Context(), success(d)))
	}
	testenv.Eventually(t, patience, func() error {
		waits := testenv.QueryOne[bool](t, env, `select exists (select from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock' and query like '%copy webhooks.deliveries%')`)
		if !waits {
			return fmt.Errorf("COPY does not wait for the other session")
		}
		return nil
	})
	must(t, tx.Commit(t.Context()))
	b.close(t)
	for _, d := range ds {
		if got, want := rowOf(t, env, d.EventID), "succeeded 1 200 t"; got != want {
			t.Errorf("%s is recorded as %q, want %q", d.EventID, got, want)
		}
	}
	if stored := storedLSN(t, env); stored != 100 {
		t.Errorf("the checkpoint is %s", stored)
	}
}

func TestCopyRows_AreWhatTheFormatSays(t *testing.T) {
	rows := newCopyRows(1)
	rows.add(deliveryRow{eventID: "e", endpointID: "p", venue: "v", eventType: "t", status: Pending, created: time.Unix(postgresEpoch, 1999), attempts: 3})
	got := rows.end()
	want := []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0e")
	for _, field := range []string{"e", "p", "v", "t", "\x00\x00\x00\x00\x00\x00\x00\x01", "pending", "\x00\x03"} {
		want = binary.BigEndian.AppendUint32(want, uint32(len(field)))
		want = append(want, field...)
	}
	for range 7 {
		want = append(want, 0xff, 0xff, 0xff, 0xff)
	}
	want = append(want, 0xff, 0xff)
	if string(got) != string(want) {
		t.Errorf("a row is\n%q, want\n%q", got, want)
	}
}
