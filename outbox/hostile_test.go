package outbox

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// randomText returns a text of n characters that PostgreSQL cannot compress.
func randomText(n int) string {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + r.IntN(26))
	}
	return string(b)
}

// hostileRows are rows of a table without constraints. They have extreme values in every column.
var hostileRows = [][5]any{ // id, type, venue, data, created
	{randomText(2688), "t", "venue_a", "1", "2026-01-01"},
	{randomText(200_000), "t", "venue_a", "1", "2026-01-01"},
	{strings.Repeat("€", 171), "t", "venue_a", "1", "2026-01-01"},
	{"long type", "t." + randomText(300_000), "venue_a", "1", "2026-01-01"},
	{"long venue", "t", randomText(300_000), "1", "2026-01-01"},
	{"", "", "venue_a", "1", "2026-01-01"}, // the next row has the same id
	{nil, nil, nil, nil, nil},
	{"null data", "t", "venue_a", nil, "infinity"},
	{"BC", "t", "venue_a", "1", "4713-01-01 00:00:00+00 BC"},
	{"9999", "t", "venue_a", "1", "9999-12-31 23:59:59.999999+00"},
	{"year 1", "t", "venue_a", "1", "0001-01-01 00:00:00+00"},
	{"far", "t", "venue_a", "1", "294276-12-31 23:59:59.999999+00"},
	{"large", "t", "venue_a", `"` + randomText(4_000_000) + `"`, "2026-01-01"},
	{"control \x01\t\n", "\x1f", "venue_a", `"\u0000"`, "2026-01-01"},
	{"plain", "t", "venue_a", "1", "2026-01-01"},
}

// TestHostileRows_StopNoOther records each row by the stream and by a comparison, and fetches all
// of them again.
func TestHostileRows_StopNoOther(t *testing.T) {
	t.Parallel()
	db, env := openTable(t, `n int, id text, type text, venue text, data json, created timestamptz)`)
	addEndpoint(t, env, "ep_compared", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set created = '-infinity'`)
	f := follow(t, db)
	term, err := db.configured().TakeOver(t.Context(), f.Tailer, "first")
	must(t, err)
	b := keepBook(t, db.cfg, term, nil)
	for i, row := range hostileRows {
		env.Exec(t, `insert into ob values ($1, $2, $3, $4, $5::text::json, $6::text::timestamptz)`, append([]any{i}, row[:]...)...)
	}
	fit := 0
	for n := 0; n < len(hostileRows); {
		batch := f.next(t)
		tracked := &Tracked{End: batch.End, Read: time.Now()}
		for _, change := range batch.Changes {
			n++
			if change.Event.Unfit == "" {
				fit++
			}
			tracked.Deliveries = append(tracked.Deliveries, change.Event.Delivery("ep_streamed", batch.Committed, nil))
		}
		must(t, b.Track(t.Context(), tracked))
	}
	b.hasCommitted(t, len(hostileRows)) // all are parked, so each has a row
	if fit != len(hostileRows)-5 {
		t.Errorf("%d of %d rows can be sent", fit, len(hostileRows))
	}
	if n := testenv.QueryOne[int](t, env, `select max(octet_length(event_id) + octet_length(type) + octet_length(venue)) from webhooks.deliveries`); n > 3*maxLogText {
		t.Errorf("a row of the log has texts of %d bytes", n)
	}
	c := &compared{b, db, env}
	if told := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts where class = 'id_taken' and event_id = ''`); told != 1 {
		t.Errorf("%d of two events without an id were told to have none, want 1", told)
	}
	c.runSettled(t, true)
	want := testenv.QueryAll[string](t, env, `select event_id from webhooks.deliveries where endpoint_id = 'ep_streamed' and venue = 'venue_a' order by 1`)
	got := testenv.QueryAll[string](t, env, `select event_id from webhooks.deliveries where endpoint_id = 'ep_compared' order by 1`)
	if !slices.Equal(got, want) {
		t.Errorf("a comparison recorded %d deliveries, the stream %d:\n%q\n%q", len(got), len(want), got, want)
	}
	if differ := testenv.QueryAll[string](t, env, `select event_id from webhooks.deliveries group by event_id having count(distinct (venue, type, created)) > 1`); len(differ) > 0 {
		t.Errorf("the two readings differ for %q", differ)
	}
	if n := c.run(t, true); n != 0 {
		t.Errorf("a second comparison recorded %d deliveries", n)
	}
	if found := fetchedOf(t, db, "ep_compared"); strings.Count(found, "longer than 512 bytes") != 4 || strings.Contains(found, lostGone) || strings.Contains(found, lostOther) {
		t.Errorf("fetched %.2000s", found)
	}
}

// TestLedger_SetsAsideWhatPostgreSQLRefuses refuses rows in several ways, by constraints and a
// trigger that a database's owner may have made.
func TestLedger_SetsAsideWhatPostgreSQLRefuses(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `alter table webhooks.deliveries add check (event_id not like '%never%'), add check (last_error is distinct from 'the text')`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	ids := []string{"evt_1", "evt_2_never", "evt_3", "evt_4_text", "evt_5", "evt_6_never", "evt_7"}
	deliveries := b.track(t, 1000, ids...)
	for _, d := range deliveries {
		r := success(d)
		if strings.HasSuffix(d.EventID, "text") {
			r = failedAttempt(d, 1)
			r.Attempt.Error = "the text"
		}
		must(t, b.Write(t.Context(), r))
	}
	b.hasCommitted(t, len(ids))
	got := testenv.QueryAll[string](t, env, `select event_id || ' ' || status from webhooks.deliveries order by 1`)
	if want := []string{"evt_1 succeeded", "evt_3 succeeded", "evt_4_text failed", "evt_5 succeeded", "evt_7 succeeded"}; !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
	if n := b.cfg.Counts.SetAside.Load(); n != 3 {
		t.Errorf("%d deliveries were counted as set aside, want 3", n)
	}
	b.close(t)
	if stored := storedLSN(t, env); stored != 1000 {
		t.Errorf("the checkpoint is %s, want 1000", stored)
	}
}

func TestLedger_KeepsEverythingWhilePostgreSQLRefusesEveryRow(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `alter table webhooks.deliveries add constraint none check (status is null) not valid`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	d := b.track(t, 1000, "evt_1")[0]
	must(t, b.Write(t.Context(), success(d)))
	testenv.Eventually(t, patience, func() error {
		if !strings.Contains(b.Stats().Failing, "none") {
			return errDecode
		}
		return nil
	})
	env.Exec(t, `alter table webhooks.deliveries drop constraint none`)
	b.hasCommitted(t, 1)
	if got := rowOf(t, env, "evt_1"); !strings.HasPrefix(got, "succeeded 1 200") {
		t.Errorf("recorded as %q", got)
	}
}

func TestTypes_PassOverWhatIsNoEventOfOurs(t *testing.T) {
	t.Parallel()
	db, env := openTable(t, `id text primary key, type text, venue text, data json, created timestamptz default now())`)
	db.cfg.Types = []string{"lead.*", "o'clock", `back\slash`}
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	f := follow(t, db)
	term, err := db.configured().TakeOver(t.Context(), f.Tailer, "first")
	must(t, err)
	c := &compared{keepBook(t, db.cfg, term, nil), db, env}
	c.run(t, true) // this stores a horizon
	env.Exec(t, `insert into ob (id, type, venue, data) select t, t, 'venue_a', '1' from unnest(array['internal.search_reindex', 'lead.created', 'o''clock', 'back\slash', 'lead', '']) t`)
	ours := []string{"lead.created", "o'clock", `back\slash`}
	if ids := eventIDs(f.next(t).Changes); !slices.Equal(ids, ours) {
		t.Errorf("the stream brought %q", ids)
	}
	if n := db.cfg.Counts.Filtered.Load(); n != 3 {
		t.Errorf("%d were counted as passed over, want 3", n)
	}
	c.runSettled(t, false)
	c.runSettled(t, true)
	slices.Sort(ours)
	if ids := testenv.QueryAll[string](t, env, `select event_id from webhooks.deliveries order by event_id collate "C"`); !slices.Equal(ids, ours) {
		t.Errorf("comparisons recorded %q", ids)
	}
	env.Exec(t, `update webhooks.deliveries set status = 'succeeded'`)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created) select id, 'ep_1', venue, type, 'pending', now(), created from ob where id = 'lead'`)
	if got := fetchedOf(t, db, "ep_1"); got != lostNotOurs {
		t.Errorf("a replay of what is no event of ours: %s", got)
	}
}

// TestSQLASCII_ARowThatIsNotUTF8FailsAlone uses a database that accepts any bytes as text.
func TestSQLASCII_ARowThatIsNotUTF8FailsAlone(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{})
	must(t, testenv.ExecSQL(t.Context(), cluster.URL("postgres"), `create database ascii encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0`))
	cfg := testConfig(cluster.URL("ascii"), "ascii_slot")
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	conn, err := pgx.Connect(t.Context(), cfg.URL.Reveal())
	must(t, err)
	defer closeConn(conn)
	exec := func(sql string) {
		t.Helper()
		_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
		must(t, err)
	}
	exec(`set client_encoding = 'SQL_ASCII'`)
	tailer := follow(t, db)
	exec("insert into webhooks.outbox (id, type, venue, data) values ('good', 't', 'venue_a', '\"€\"'), ('data', 't', 'venue_a', '\"\xe9\"'), ('id\xe9', 't', 'venue_a', '1'), ('" + strings.Repeat("\xe9", 600) + "', 't', 'venue_a', '1')")
	unfit := 0
	for _, c := range tailer.next(t).Changes {
		if c.Event.Unfit != "" {
			unfit++
		}
	}
	if unfit != 3 {
		t.Errorf("%d of 4 events cannot be sent, want 3", unfit)
	}
	exec(`insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created) select webhooks.log_text(id), 'ep_1', venue, type, 'pending', now(), created from webhooks.outbox`)
	got := fetchedOf(t, db, "ep_1")
	if !strings.Contains(got, `"€"`) || strings.Count(got, "not valid UTF-8") != 2 || !strings.Contains(got, "longer than") {
		t.Errorf("fetched %q", got)
	}
}
