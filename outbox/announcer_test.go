package outbox

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

// noticeTest is a Ledger that writes notices about the endpoints ep_1 and ep_2.
type noticeTest struct {
	*book
	t       *testing.T
	db      *DB
	env     *testenv.DB
	log     *lockedBuffer
	version int64
	number  int64
	events  int
}

// lockedBuffer keeps what is logged.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func newNoticeTest(t *testing.T, db *DB, env *testenv.DB) *noticeTest {
	t.Helper()
	n := &noticeTest{t: t, db: db, env: env}
	for _, id := range []string{"ep_1", "ep_2"} {
		addEndpoint(t, env, id, "venue_a", "*")
	}
	db.cfg.Notices = true
	n.begin()
	return n
}

// begin begins a term.
func (n *noticeTest) begin() {
	n.t.Helper()
	n.log = &lockedBuffer{}
	n.book = keepBook(n.t, n.db.cfg, newTerm(n.t, n.db), func(_ *book, lc *LedgerConfig) {
		lc.DisableAfter, lc.Log = 100, slog.New(slog.NewTextHandler(n.log, nil))
	})
}

// entry returns a failed attempt at an endpoint, with a counter and notices as a lane has them.
func (n *noticeTest) entry(endpointID string, failures int, notices ...Notice) *Record {
	n.events++
	n.version++
	r := failedAttempt(newDelivery(fmt.Sprintf("evt_%05d", n.events), endpointID), 1)
	r.Health = &Health{EndpointID: endpointID, Generation: 1, Version: n.version, Failures: failures, FirstFailure: time.Date(2026, 2, 3, 18, 5, 0, 0, time.UTC),
		LastFailure: time.Now(), LastError: "the server answered 500", Notices: notices}
	return r
}

// at returns a notice of a level.
func (n *noticeTest) at(level int) Notice {
	n.number++
	return Notice{Number: n.number, Generation: 1, Level: level, Failures: level, LastError: "the server answered 500"}
}

// record writes entries and waits until they are committed.
func (n *noticeTest) record(entries ...Entry) {
	n.t.Helper()
	n.locked(func() { n.committed = nil })
	must(n.t, n.Write(n.t.Context(), entries...))
	n.hasCommitted(n.t, len(entries))
}

// awaitJobs waits until the Ledger has done the jobs that it has.
func (n *noticeTest) awaitJobs() {
	n.t.Helper()
	must(n.t, n.note(n.t.Context(), `select 1`))
}

// want compares the notices that the outbox has, in their order.
func (n *noticeTest) want(want ...string) {
	n.t.Helper()
	got := testenv.QueryAll[string](n.t, n.env, `select concat_ws(' ', substr(type, 18), venue, data ->> 'endpoint_id', data ->> 'consecutive_failures')
		from webhooks.outbox order by ctid`)
	if diff := cmp.Diff(want, got); diff != "" && len(want)+len(got) > 0 {
		n.t.Errorf("the notices (-want +got):\n%s\n%s", diff, n.log)
	}
}

func TestAnnouncer_WritesEachNoticeOnceWithItsMark(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	n := newNoticeTest(t, db, env)
	fifty := n.at(50)
	n.record(n.entry("ep_1", 50, fifty))
	n.record(n.entry("ep_1", 51, fifty)) // the lane does not know yet that it is committed
	n.want("failing venue_a ep_1 50")
	// A Health that is dropped because a later one was quicker leaves its notices to that one.
	seventy, ninety := n.at(70), n.at(90)
	late, quick := n.entry("ep_1", 70, seventy), n.entry("ep_1", 90, seventy, ninety)
	n.record(quick)
	n.record(late)
	n.want("failing venue_a ep_1 50", "failing venue_a ep_1 90")
	if got := testenv.QueryOne[string](t, env, `select concat_ws(' ', notified, notified_generation) from webhooks.endpoint_health`); got != "90 1" {
		t.Errorf("the mark is %s", got)
	}
	n.record(n.entry("ep_1", 0, n.at(NoticeWell)), n.entry("ep_2", 50, n.at(50)))
	n.record(n.entry("ep_2", 0, n.at(NoticeWell)))
	n.record(n.entry("ep_2", 0, n.at(NoticeWell))) // nothing was announced since
	n.want("failing venue_a ep_1 50", "failing venue_a ep_1 90", "recovered venue_a ep_1 0", "failing venue_a ep_2 50", "recovered venue_a ep_2 0")
	n.close(t)
}

func TestAnnouncer_AnnouncesADisablingThatTheAgentHasMade(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	n := newNoticeTest(t, db, env)
	n.record(n.entry("ep_1", 100), n.entry("ep_2", 100))
	env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = 'ep_2'`)
	for range 2 { // the second time nothing is left to do
		must(t, n.Write(t.Context(), Disabling{"ep_1", ReasonFailures, 1}, Disabling{"ep_2", ReasonFailures, 1}))
		n.awaitJobs()
	}
	n.close(t)
	n.want("disabled venue_a ep_1 100")
	if got := testenv.QueryAll[int](t, env, `select coalesce(notified, -1)::int from webhooks.endpoint_health order by endpoint_id`); !slices.Equal(got, []int{100, -1}) {
		t.Errorf("the marks are %v", got)
	}
	state, err := db.configured().LoadState(t.Context())
	must(t, err)
	for _, e := range state.Endpoints {
		if want := map[string]int{"ep_1": NoticeDisabled}[e.ID]; e.Announced != want {
			t.Errorf("%s is loaded with the level %d, want %d", e.ID, e.Announced, want)
		}
	}
	env.Exec(t, `update webhooks.endpoints set disabled_at = null`)
	state, err = db.configured().LoadState(t.Context())
	must(t, err)
	if got := state.Endpoints[slices.IndexFunc(state.Endpoints, func(e EndpointState) bool { return e.ID == "ep_1" })].Announced; got != NoticeFormer {
		t.Errorf("after it was enabled, ep_1 is loaded with the level %d, want %d", got, NoticeFormer)
	}
}

// Nothing else says that an endpoint is off, so the word of it is not lost where the outbox refuses
// it.
func TestAnnouncer_WritesARefusedDisablingLater(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	n := newNoticeTest(t, db, env)
	marks := func() string {
		return testenv.QueryOne[string](t, env, `select string_agg(coalesce(notified, 0)::text, ' ' order by endpoint_id) from webhooks.endpoint_health`)
	}
	n.record(n.entry("ep_1", 90, n.at(90)), n.entry("ep_2", 4))
	env.Exec(t, `alter table webhooks.outbox add constraint not_now check (type not like 'webhook.%') not valid`)
	must(t, n.Write(t.Context(), Disabling{"ep_1", ReasonFailures, 1}, Disabling{"ep_2", ReasonGone, 1}))
	n.awaitJobs()
	n.close(t)
	if got := marks(); got != "-90 -1" {
		t.Errorf("the marks are %s", got)
	}
	state, err := db.configured().LoadState(t.Context())
	must(t, err)
	for _, e := range state.Endpoints {
		if e.Announced < 0 {
			t.Errorf("%s is loaded with the level %d", e.ID, e.Announced)
		}
	}
	// Still refused, by the next leader. Then one is enabled, and the other is late.
	n.begin()
	n.record(n.entry("ep_1", 100))
	n.close(t)
	n.want("failing venue_a ep_1 90")
	env.Exec(t, `alter table webhooks.outbox drop constraint not_now`)
	env.Exec(t, `update webhooks.endpoints set disabled_at = null where id = 'ep_2'`)
	n.begin()
	n.record(n.entry("ep_1", 100))
	n.record(n.entry("ep_1", 100), n.entry("ep_2", 0, n.at(NoticeWell))) // others do not know that ep_2 was off
	n.close(t)
	n.want("failing venue_a ep_1 90", "disabled venue_a ep_1 100")
	if got := marks(); got != "100 -1" {
		t.Errorf("afterwards the marks are %s", got)
	}
}

// While a term lasts, it looks once a minute, and only where something is late.
func TestAnnouncer_LooksForLateDisablingsWithinATerm(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	n := newNoticeTest(t, db, env)
	n.record(n.entry("ep_1", 100))
	n.close(t)
	env.Exec(t, `update webhooks.endpoints set disabled_at = now(), disabled_reason = 'failures' where id = 'ep_1'`)
	a := newAnnouncer(db.cfg, 100, slog.New(slog.DiscardHandler))
	write := func(all ...news) {
		t.Helper()
		tx := begin(t, env)
		must(t, a.write(t.Context(), tx, all))
		must(t, tx.Commit(t.Context()))
		a.done(all)
	}
	write()
	if wait := time.Until(a.lateAt); wait < never/2 {
		t.Errorf("nothing is late, and it looks again in %s", wait)
	}
	env.Exec(t, `alter table webhooks.outbox add constraint not_now check (type not like 'webhook.%') not valid`)
	write(news{"ep_1", Notice{Generation: 1, Level: NoticeDisabled}})
	if wait := time.Until(a.lateAt); wait < lateRest/2 || wait > lateRest {
		t.Errorf("after a refusal it looks in %s", wait)
	}
	a.lateAt = time.Time{}
	write()
	if wait := time.Until(a.lateAt); wait < lateRest/2 || wait > lateRest {
		t.Errorf("after another refusal it looks in %s", wait)
	}
	env.Exec(t, `alter table webhooks.outbox drop constraint not_now`)
	write()
	n.want()
	a.lateAt = time.Time{}
	write()
	n.want("disabled venue_a ep_1 100")
	a.lateAt = time.Time{}
	write()
	n.want("disabled venue_a ep_1 100")
}

func TestAnnouncer_LeavesOutWhatAPersonKnows(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	n := newNoticeTest(t, db, env)
	env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	n.record(n.entry("ep_1", 50, n.at(50)))
	env.Exec(t, `update webhooks.endpoints set disabled_at = null`)
	n.record(n.entry("ep_1", 70, n.at(70))) // of the generation before
	env.Exec(t, `delete from webhooks.endpoints where id = 'ep_2'`)
	n.record(n.entry("ep_2", 50, n.at(50)))
	n.close(t)
	n.want()
}

// When notices are switched off, an endpoint that is well again must not keep its mark.
func TestAnnouncer_SwitchedOffWritesNothing(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	n := newNoticeTest(t, db, env)
	n.record(n.entry("ep_1", 50, n.at(50)))
	n.close(t)
	db.cfg.Notices = false
	n.begin()
	n.record(n.entry("ep_1", 0, n.at(NoticeWell)), n.entry("ep_2", 50, n.at(50)))
	must(t, n.Write(t.Context(), Disabling{"ep_2", ReasonFailures, 1}))
	n.awaitJobs()
	n.close(t)
	n.want("failing venue_a ep_1 50")
	if got := testenv.QueryAll[int](t, env, `select coalesce(notified, -1)::int from webhooks.endpoint_health order by endpoint_id`); !slices.Equal(got, []int{0, -1}) {
		t.Errorf("the marks are %v", got)
	}
}

func TestAnnouncer_WritesNoTypeThatOutboxTypesLeavesOut(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	db.cfg.Types = []string{"lead.*", TypeEndpointRecovered}
	n := newNoticeTest(t, db, env)
	n.record(n.entry("ep_1", 50, n.at(50)))
	n.record(n.entry("ep_1", 0, n.at(NoticeWell)))
	n.close(t)
	n.want("recovered venue_a ep_1 0")
}

// Notices alone never stall the recording. TestAnnouncer_NeverKeepsTheLedgerFromRecording cannot show
// it, since a slow machine takes longer than stallAfter for the rest of a commit.
func TestAnnouncer_ItsLimitsAreWithinTheTimeThatACommitMayTake(t *testing.T) {
	lock, err := time.ParseDuration(noticeLock)
	must(t, err)
	statement, err := time.ParseDuration(noticeTime)
	must(t, err)
	if lock+statement >= stallAfter {
		t.Errorf("notices may take %s and %s, and no attempt starts after %s", lock, statement, stallAfter)
	}
}

// Whatever the outbox has against notices, the group is recorded, and soon.
func TestAnnouncer_NeverKeepsTheLedgerFromRecording(t *testing.T) {
	t.Parallel()
	const refuse = `create function refuse() returns trigger language plpgsql as 'begin raise exception ''not today''; end'`
	for _, test := range []struct {
		name  string
		setup []string
		lock  string // taken in an open transaction
		warn  string
	}{
		{"no right", []string{`revoke insert on webhooks.outbox from current_user`}, "", "permission denied"},
		{"an unknown column", []string{`alter table webhooks.outbox add column more text not null`}, "", "more"},
		{"a trigger", []string{refuse, `create trigger refuse before insert on webhooks.outbox for each row execute function refuse()`}, "", "not today"},
		{"a deferred trigger", []string{refuse, `create constraint trigger refuse after insert on webhooks.outbox initially deferred for each row execute function refuse()`}, "", "not today"},
		{"a slow trigger", []string{`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(60); return new; end'`,
			`create trigger slow before insert on webhooks.outbox for each row execute function slow()`}, "", "statement timeout"},
		// Nobody can know that it was the trigger, so nothing is said of notices.
		{"a trigger that ends the session", []string{`create function quit() returns trigger language plpgsql as 'begin perform pg_terminate_backend(pg_backend_pid()); return new; end'`,
			`create trigger quit before insert on webhooks.outbox for each row execute function quit()`}, "", ""},
		{"a lock", nil, `lock table webhooks.outbox`, "lock timeout"},
		{"another type", []string{`alter table webhooks.outbox alter column venue type bigint using 1`}, "", "venue_a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			for _, statement := range test.setup {
				env.Exec(t, statement)
			}
			n := newNoticeTest(t, db, env)
			if test.lock != "" {
				tx := begin(t, env)
				if _, err := tx.Exec(t.Context(), test.lock); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			n.record(n.entry("ep_1", 50, n.at(50)), n.entry("ep_2", 50, n.at(50)))
			n.record(n.entry("ep_1", 70, n.at(70)), n.entry("ep_2", 0, n.at(NoticeWell)))
			must(t, n.Write(t.Context(), Disabling{"ep_1", ReasonFailures, 1}))
			n.awaitJobs()
			took := time.Since(began)
			n.close(t)
			if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries`); got != 4 {
				t.Errorf("%d deliveries are recorded, want 4", got)
			}
			if got := testenv.QueryOne[string](t, env, `select disabled_reason from webhooks.endpoints where id = 'ep_1'`); got != ReasonFailures {
				t.Errorf("the endpoint is disabled for %q", got)
			}
			if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health where notified > 0`); got != 0 {
				t.Errorf("%d endpoints count as announced", got)
			}
			if took > patience/2 { // a trigger alone would take twice as long
				t.Errorf("recording took %s", took)
			}
			if log := n.log.String(); test.warn != "" && (strings.Count(log, "notices about endpoints cannot be written") != 1 || !strings.Contains(log, test.warn)) {
				t.Errorf("it is not logged once with %q:\n%s", test.warn, log)
			}
		})
	}
}

// One endpoint whose venue the outbox does not take must not keep the notices of others back.
func TestAnnouncer_ARefusedNoticeKeepsNoOtherBack(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `alter table webhooks.outbox add constraint venues check (venue <> 'venue_b')`)
	n := newNoticeTest(t, db, env)
	env.Exec(t, `update webhooks.endpoints set venue = 'venue_b' where id = 'ep_1'`)
	n.record(n.entry("ep_1", 50, n.at(50)), n.entry("ep_2", 50, n.at(50)))
	n.close(t)
	n.want("failing venue_a ep_2 50")
}

func TestAnnouncer_FitsTheColumnsOfAMappedOutbox(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, columns, want string }{
		{"a number by default", "key bigserial primary key, kind text not null, place bigint, body jsonb, at timestamptz", "1"},
		{"an identity", "key int generated always as identity primary key, kind varchar(40), place numeric, body json, at timestamp", "1"},
		{"a UUID by default", "key uuid primary key default '00000000-0000-4000-8000-000000000001', kind text, place int, body jsonb, at timestamptz", "00000000-0000-4000-8000-000000000001"},
		{"a UUID without default", "key uuid primary key, kind text, place smallint, body jsonb, at timestamptz", ""},
		{"a text without default", "key text primary key, kind kinds, place text, body json, at timestamptz not null", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			env.Exec(t, `create type kinds as enum ('lead.created', 'webhook.endpoint_failing')`)
			env.Exec(t, `create table public.events (`+test.columns+`)`)
			cfg := testConfig(env.URL, env.Slot)
			cfg.Table, cfg.Publication = "public.events", "mapped"
			cfg.Columns = Columns{ID: "key", Type: "kind", Venue: "place", Data: "body", Created: "at"}
			_, _, err := Migrate(t.Context(), cfg)
			must(t, err)
			db, err := Open(t.Context(), cfg)
			must(t, err)
			t.Cleanup(db.Close)
			n := newNoticeTest(t, db, env)
			env.Exec(t, `update webhooks.endpoints set venue = '7'`)
			n.record(n.entry("ep_1", 50, n.at(50)))
			n.close(t)
			got := testenv.QueryOne[string](t, env, `select concat_ws(' ', kind, place, body ->> 'endpoint_id', abs(extract(epoch from at at time zone '`+
				testenv.QueryOne[string](t, env, `show timezone`)+`' - now()::timestamptz)) < 600) from (select kind, place, body, at::timestamp as at from public.events) e`)
			if !strings.HasPrefix(got, "webhook.endpoint_failing 7 ep_1 ") {
				t.Errorf("the outbox has %q; log:\n%s", got, n.log)
			}
			if key := testenv.QueryOne[string](t, env, `select key::text from public.events`); test.want != "" && key != test.want || key == "" {
				t.Errorf("the id is %q, want %q", key, test.want)
			}
			found, err := db.findNotices(t)
			if must(t, err); found[0].Level != LevelOK {
				t.Errorf("check finds %+v", found)
			}
		})
	}
}

// findNotices runs checkNotices.
func (db *DB) findNotices(t *testing.T) (found []Finding, err error) {
	t.Helper()
	tx, err := db.pool.Begin(t.Context())
	must(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	return db.checkNotices(t.Context(), tx)
}

func TestCheck_SaysWhatKeepsNoticesFromBeingWritten(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		adjust   func(*Config)
		columns  string
		grant    string
		want     Level
		contains []string
	}{
		{"fine", nil, "", "", LevelOK, []string{"can be written into public.events"}},
		{"off", func(c *Config) { c.Notices = false }, "", "select", LevelOK, []string{"switched off"}},
		{"left out", func(c *Config) { c.Types = []string{"lead.*"} }, "", "select", LevelOK, []string{"outbox.types does not ask for webhook.*"}},
		{"no right", nil, "", "select", LevelWarn, []string{`lacks INSERT`, `GRANT INSERT ON "public"."events" TO "webhook_agent"`, "enabled = false in [notices]"}},
		{"no right to the sequence", nil, "key bigserial", "", LevelWarn, []string{"GRANT USAGE ON SEQUENCE", "events_key_seq"}},
		{"an unknown column", nil, `key text, "Tenant" int not null, also int not null default 1`, "", LevelWarn, []string{`does not know them: "Tenant"`}},
		{"a number without default", nil, "key bigint", "", LevelWarn, []string{"ADD GENERATED BY DEFAULT AS IDENTITY"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			columns, grant := test.columns, test.grant
			if columns == "" {
				columns = "key text"
			}
			if grant == "" {
				grant = "select, insert"
			}
			env.Exec(t, `create table public.events (`+columns+`, kind text, place text, body json, at timestamptz)`)
			env.Exec(t, `grant `+grant+` on public.events to webhook_agent`)
			cfg := testConfig(env.LeastURL, env.Slot)
			cfg.Table, cfg.Notices = "public.events", true
			cfg.Columns = Columns{ID: "key", Type: "kind", Venue: "place", Data: "body", Created: "at"}
			if test.adjust != nil {
				test.adjust(&cfg)
			}
			db, err := Open(t.Context(), cfg)
			must(t, err)
			t.Cleanup(db.Close)
			found, err := db.findNotices(t)
			must(t, err)
			if len(found) != 1 || found[0].Level != test.want {
				t.Fatalf("found %+v, want one of level %s", found, test.want)
			}
			for _, text := range test.contains {
				if !strings.Contains(found[0].Reason+"; "+found[0].Remedy, text) {
					t.Errorf("%q does not say %q", found[0].Reason+"; "+found[0].Remedy, text)
				}
			}
		})
	}
}

// A group without notices must cost what it costs where they are switched off.
func TestAnnouncer_AGroupWithoutNoticesTakesNoMoreRoundTrips(t *testing.T) {
	t.Parallel()
	turns := map[string]int{}
	for _, on := range []bool{false, true} {
		db, env := openDB(t)
		n := newNoticeTest(t, db, env)
		n.close(t)
		p := behindProxy(t, db, env)
		db.cfg.Notices = on
		n.begin()
		n.record(n.entry("ep_1", 1)) // connects, and prepares the statements
		count := func(entry Entry) int {
			before := p.Turns()
			n.record(entry)
			return p.Turns() - before
		}
		// COPY answers while its data are still sent, which may look like one more turn. So the
		// least of some groups counts.
		least := count(n.entry("ep_1", 2))
		for failures := 3; failures < 10; failures++ {
			least = min(least, count(n.entry("ep_1", failures)))
		}
		turns[fmt.Sprint("none, on: ", on)] = least
		n.record(n.entry("ep_1", 50, n.at(50)))
		turns[fmt.Sprint("one, on: ", on)] = min(count(n.entry("ep_1", 70, n.at(70))), count(n.entry("ep_1", 90, n.at(90))))
		n.close(t)
	}
	t.Logf("round trips of a group with so many notices: %v", turns)
	if turns["none, on: true"] != turns["none, on: false"] {
		t.Errorf("a group without notices takes more round trips: %v", turns)
	}
	if more := turns["one, on: true"] - turns["none, on: true"]; more < 1 || more > 5 { // 4, and one for COPY
		t.Errorf("a notice takes %d round trips more", more)
	}
}
