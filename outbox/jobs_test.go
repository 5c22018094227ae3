package outbox

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/quintago/webhook-agent/testenv"
)

// addLog writes n deliveries evt_00001 to evt_n of ep_1, one created each second from 2026-01-01 00:00:01 on. Each ten after
// the first are of the same second.
func addLog(t *testing.T, env *testenv.DB, status Status, n int) {
	t.Helper()
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, created, finished)
	    select 'evt_' || lpad(i::text, 5, '0'), 'ep_1', 'venue_a', 'lead.created', $1, 6, case when $1 = 'pending' then now() end,
	           '2026-01-01 00:00:00+00'::timestamptz + make_interval(secs => i - i % 10), case when $1 <> 'pending' then now() end
	    from generate_series(1, $2::int) i`, string(status), n)
}

// addReplay asks for a replay of ep_1 by statuses.
func addReplay(t *testing.T, env *testenv.DB, id, statuses string) {
	t.Helper()
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses) values ($1, 'ep_1', $2::text::text[])`, id, statuses)
}

// awaitRequeued waits until a replay has set all its deliveries back.
func awaitRequeued(t *testing.T, env *testenv.DB, id string) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		if !testenv.QueryOne[bool](t, env, `select requeued or state = 'failed' from webhooks.replays where id = $1`, id) {
			return fmt.Errorf("replay %s is under way", id)
		}
		return nil
	})
}

// countByStatus returns the number of deliveries by status, such as "missed:3 pending:1".
func countByStatus(t *testing.T, env *testenv.DB) string {
	t.Helper()
	return testenv.QueryOne[string](t, env, `select coalesce(string_agg(status || ':' || n, ' ' order by status), '')
	    from (select status, count(*) n from webhooks.deliveries group by 1) s`)
}

func TestMissPending_EndsAllButWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addLog(t, env, Pending, 2*jobStep+3)
	addPending(t, env, "evt_1", "ep_2", time.Now(), 0)
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures) values ('ep_1', 1, 5), ('ep_2', 1, 5)`)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, state, total, done, requeued) values ('rpl_1', 'ep_1', 'running', 10, 1, true)`)
	env.Exec(t, `update webhooks.deliveries set replay_id = 'rpl_1' where event_id <= 'evt_00009' and endpoint_id = 'ep_1'`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Write(t.Context(), Missing{EndpointID: "ep_1", Reason: "the endpoint was removed", Keep: []string{"evt_00020", "evt_00021"}, Removed: true, Version: 1}))
	testenv.Eventually(t, patience, func() error {
		if got, want := countByStatus(t, env), fmt.Sprintf("missed:%d pending:3", 2*jobStep+1); got != want {
			return fmt.Errorf("%s, want %s", got, want)
		}
		return nil
	})
	b.close(t)
	if got, want := rowOf(t, env, "evt_00001"), "missed 6 the endpoint was removed t"; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
	if got := testenv.QueryOne[string](t, env, `select state || ' ' || done from webhooks.replays`); got != "done 10" {
		t.Errorf("the replay whose deliveries were missed is %s", got)
	}
	if left := testenv.QueryAll[string](t, env, `select endpoint_id from webhooks.endpoint_health`); !slices.Equal(left, []string{"ep_2"}) {
		t.Errorf("health is kept of %q", left)
	}
}

// The app's own trigger may refuse an update of its row.
func TestDisabling_ThatATriggerRefusesStopsNobody(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `create function refuse() returns trigger language plpgsql as 'begin raise exception ''not today''; end'`)
	env.Exec(t, `create trigger refuse before update on webhooks.endpoints for each row execute function refuse()`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	generation := testenv.QueryOne[int64](t, env, `select generation from webhooks.endpoints`)
	must(t, b.Write(t.Context(), Disabling{EndpointID: "ep_1", Reason: ReasonFailures, Generation: generation}))
	must(t, b.Write(t.Context(), success(b.track(t, 100, "evt_1")[0])))
	b.hasCommitted(t, 1)
	b.close(t)
}

func TestStopMissing_EndsVersionsUpToItsOwn(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addLog(t, env, Pending, 5)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Write(t.Context(), StopMissing{EndpointID: "ep_1", Version: 2}))
	must(t, b.Write(t.Context(), Missing{EndpointID: "ep_1", Reason: "overtaken", Version: 2}))
	must(t, b.Write(t.Context(), success(b.track(t, 100, "evt_1")[0])))
	b.hasCommitted(t, 1)
	if got, want := countByStatus(t, env), "pending:5 succeeded:1"; got != want {
		t.Fatalf("%s, want %s: an ended version was carried out", got, want)
	}
	must(t, b.Write(t.Context(), Missing{EndpointID: "ep_1", Reason: "later", Version: 3}))
	testenv.Eventually(t, patience, func() error {
		if got, want := countByStatus(t, env), "missed:5 succeeded:1"; got != want {
			return fmt.Errorf("%s, want %s", got, want)
		}
		return nil
	})
	b.close(t)
}

func TestReplay_RequeuesWhatItNames(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, columns, values string
		want                  []string
	}{
		{"all missed and failed", `endpoint_id`, `'ep_1'`, []string{"evt_00001", "evt_00002", "evt_00004", "evt_00005", "evt_00007", "evt_00008"}},
		{"by status", `endpoint_id, statuses`, `'ep_1', '{succeeded}'`, []string{"evt_00003", "evt_00006"}},
		{"by range, until excluded", `endpoint_id, since, until`, `'ep_1', '2026-01-01 00:00:02+00', '2026-01-01 00:00:05+00'`, []string{"evt_00002", "evt_00004"}},
		{"by event ids", `endpoint_id, event_ids`, `'ep_1', '{evt_00005,evt_00003,evt_00001,evt_x}'`, []string{"evt_00001", "evt_00005"}},
		{"nothing", `endpoint_id, event_ids`, `'ep_1', '{}'`, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			for i := range 9 { // the ninth is pending
				env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, created, finished)
				    values ('evt_0000' || $1::int, 'ep_1', 'venue_a', 't', $2, 6, case when $2 = 'pending' then 'epoch'::timestamptz end,
				            '2026-01-01 00:00:00+00'::timestamptz + make_interval(secs => $1), now())`,
					i+1, []string{"missed", "failed", "succeeded", "missed", "failed", "succeeded", "missed", "failed", "pending"}[i])
			}
			addDelivery(t, env, "evt_00001", "ep_2", "v", "t", Missed, 1)
			env.Exec(t, `insert into webhooks.replays (`+test.columns+`, id) values (`+test.values+`, 'rpl_1')`)
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitRequeued(t, env, "rpl_1")
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"})) // once more changes nothing
			b.close(t)
			got := testenv.QueryAll[string](t, env, `select event_id from webhooks.deliveries where endpoint_id = 'ep_1' and status = 'pending' and attempts = 0
			    and replay_id = 'rpl_1' and next_attempt_at <= now() and finished is null order by event_id`)
			if !slices.Equal(got, test.want) {
				t.Errorf("requeued %q, want %q", got, test.want)
			}
			state := "running"
			if len(test.want) == 0 {
				state = "done"
			}
			if got, want := testenv.QueryOne[string](t, env, `select concat_ws(' ', state, total - unsent, done) from webhooks.replays`), fmt.Sprintf("%s %d 0", state, len(test.want)); got != want {
				t.Errorf("the replay is %s, want %s", got, want)
			}
			if told := len(b.requeued) > 0; told != (len(test.want) > 0) {
				t.Errorf("told that rows are due: %q", b.requeued)
			}
		})
	}
}

func TestReplay_ResumesFromItsCursorAndCountsExactly(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	const n = jobStep + 11
	addLog(t, env, Missed, n)
	addReplay(t, env, "rpl_1", `{missed,failed}`)

	// One step, and the agent dies. Some of what was requeued fails again before the next agent comes: it must not be requeued once more.
	term := newTerm(t, db)
	l := NewLedger(LedgerConfig{Config: db.cfg, Term: term, Log: testLog(t), Clock: db.Clock(), ServerEnds: func() {}, Confirm: func(LSN) {}, Requeued: func(string) {}, Stalled: func(bool) {}})
	l.jobs = []job{&replayJob{Replay: Replay{ID: "rpl_1"}}}
	must(t, l.step(t.Context()))
	closeConn(l.conn)
	if got, want := countByStatus(t, env), fmt.Sprintf("missed:%d pending:%d", n-jobStep, jobStep); got != want {
		t.Fatalf("after one step %s, want %s", got, want)
	}

	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	finish := func(from, to int, status Status) {
		t.Helper()
		for i := from; i <= to; i++ {
			d := newDelivery(fmt.Sprintf("evt_%05d", i), "ep_1")
			d.Created = time.Date(2026, 1, 1, 0, 0, i-i%10, 0, time.UTC) // as addLog has it
			d.recorded, d.ReplayID = true, "rpl_1"
			r := success(d)
			if status == Failed {
				r = failedAttempt(d, 6)
				r.Status, r.NextAttempt = Failed, time.Time{}
			}
			must(t, b.Write(t.Context(), r))
		}
	}
	finish(1, 7, Failed)
	b.hasCommitted(t, 7)
	must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
	finish(8, jobStep, Succeeded)
	b.hasCommitted(t, jobStep)
	awaitRequeued(t, env, "rpl_1")
	state := func() string {
		return testenv.QueryOne[string](t, env, `select concat_ws(' ', state, total, done, finished is not null) from webhooks.replays`)
	}
	if got, want := state(), fmt.Sprintf("running %d %d f", n, jobStep); got != want {
		t.Errorf("the replay is %s, want %s", got, want)
	}
	finish(jobStep+1, n-1, Succeeded)
	b.hasCommitted(t, n-1)
	if got, want := state(), fmt.Sprintf("running %d %d f", n, n-1); got != want {
		t.Errorf("the replay is %s, want %s", got, want)
	}
	finish(n, n, Succeeded)
	b.close(t)
	if got, want := state(), fmt.Sprintf("done %d %[1]d t", n); got != want {
		t.Errorf("the replay is %s, want %s", got, want)
	}
	if got, want := countByStatus(t, env), fmt.Sprintf("failed:7 succeeded:%d", n-7); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestReplay_RefusesDisabledAndUnknownEndpoints(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	addLog(t, env, Missed, 3)
	addReplay(t, env, "rpl_1", `{missed}`)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id) values ('rpl_2', 'ep_x')`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	for _, id := range []string{"rpl_1", "rpl_2", "rpl_deleted"} {
		must(t, b.Write(t.Context(), Replay{ID: id}))
	}
	awaitRequeued(t, env, "rpl_1")
	awaitRequeued(t, env, "rpl_2")
	b.close(t)
	got := testenv.QueryAll[string](t, env, `select concat_ws(': ', state, error) from webhooks.replays where finished is not null order by id`)
	if want := []string{"failed: the endpoint is disabled: enable it first, then replay again", "failed: there is no endpoint ep_x"}; !slices.Equal(got, want) {
		t.Errorf("the replays are %q, want %q", got, want)
	}
	if got := countByStatus(t, env); got != "missed:3" {
		t.Errorf("deliveries are %s", got)
	}
}

func TestJobs_TakeTurns(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addLog(t, env, Pending, 3*jobStep)
	addPending(t, env, "evt_1", "ep_2", time.Now(), 0)
	l := NewLedger(LedgerConfig{Config: db.cfg, Term: newTerm(t, db), Log: testLog(t), Clock: db.Clock(), ServerEnds: func() {}, Confirm: func(LSN) {}, Stalled: func(bool) {}})
	l.miss(Missing{EndpointID: "ep_1", Version: 1})
	l.miss(Missing{EndpointID: "ep_2", Version: 2})
	must(t, l.step(t.Context()))
	closeConn(l.conn)
	if got, want := countByStatus(t, env), fmt.Sprintf("missed:%d pending:%d", jobStep/2+1, 3*jobStep-jobStep/2); got != want {
		t.Errorf("%s, want %s: the short job waits for the long one", got, want)
	}
}

// An app may remove very many endpoints at once.
func TestMissPending_EndsManyEndpointsByFewTransactions(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
		select 'evt_' || i % 7, 'ep_' || i, 'venue_a', 't', 'pending', now(), now() from generate_series(1, 20000) i where i % 10 = 0`)
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures) select 'ep_' || i, 1, 1 from generate_series(1, 20000) i`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	for i := range 20_000 {
		id := fmt.Sprint("ep_", i+1)
		must(t, b.Write(t.Context(), &Health{EndpointID: id, Generation: 1, Version: int64(i + 1), Failures: 1}))
		must(t, b.Write(t.Context(), Missing{EndpointID: id, Removed: true, Version: i + 1}))
	}
	before := testenv.QueryOne[int](t, env, `select sequence from webhooks.checkpoint`)
	testenv.Eventually(t, patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health`); n > 0 {
			return fmt.Errorf("health is kept of %d endpoints", n)
		}
		return nil
	})
	b.close(t)
	if n := testenv.QueryOne[int](t, env, `select sequence from webhooks.checkpoint`) - before; n > 20_000/missEndpoints*3 {
		t.Errorf("%d transactions ended 20,000 endpoints", n)
	}
	if got := countByStatus(t, env); got != "missed:2000" {
		t.Errorf("deliveries are %s", got)
	}
	if n := len(b.versions) + len(b.missing.waiting) + len(b.missing.order); n > missEndpoints {
		t.Errorf("%d entries are kept for endpoints that are gone", n)
	}
}

// brokenJob fails in each step.
type brokenJob struct{ steps, abandoned int }

func (j *brokenJob) step(ctx context.Context, tx querier) (bool, error) {
	j.steps++
	return false, exec(ctx, tx, `select 1 / 0`)
}
func (j *brokenJob) committed() []string  { return nil }
func (j *brokenJob) pause() time.Duration { return 0 }
func (j *brokenJob) abandon(context.Context, querier, string) error {
	j.abandoned++
	return nil
}

func TestJobs_OneThatFailsByItselfIsGivenUp(t *testing.T) {
	t.Parallel()
	db, _ := openDB(t)
	l := NewLedger(LedgerConfig{Config: db.cfg, Term: newTerm(t, db), Log: testLog(t), Clock: db.Clock(), ServerEnds: func() {}, Confirm: func(LSN) {}, Stalled: func(bool) {}})
	broken := &brokenJob{}
	l.jobs = []job{broken}
	must(t, l.step(t.Context()))
	closeConn(l.conn)
	if broken.steps != jobTries || broken.abandoned != 1 || len(l.jobs) != 0 {
		t.Errorf("%d steps, abandoned %d times, %d jobs left", broken.steps, broken.abandoned, len(l.jobs))
	}
}

// A job whose step takes too long would hold up all groups for ever.
func TestJobs_AStepThatTakesTooLongHasFailedByItself(t *testing.T) {
	none, cancel := context.WithTimeoutCause(t.Context(), 0, errNoAnswer)
	defer cancel()
	<-none.Done()
	ended, end := context.WithCancel(t.Context())
	end()
	refused := &pgconn.PgError{Code: "22012"}
	for _, test := range []struct {
		name   string
		ctx    context.Context
		err    error
		closed bool
		want   bool
	}{
		{"PostgreSQL refuses the statement", t.Context(), refused, false, true},
		{"the connection was lost", t.Context(), io.ErrUnexpectedEOF, true, false},
		{"no answer in time", none, context.DeadlineExceeded, true, true},
		{"the term has ended", ended, context.Canceled, true, false},
	} {
		if got := failedByItself(test.ctx, test.err, test.closed); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}

// TestStopMissing_LeavesNoCounterOfARemovedEndpointToItsSuccessor shows P7 for an endpoint that is deleted and inserted again
// under its id in one transaction: both have generation one.
func TestStopMissing_LeavesNoCounterOfARemovedEndpointToItsSuccessor(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) values
	    ('ep_1', 1, 60, 'no URL'), ('ep_2', 1, 60, null), ('ep_3', 1, 60, null)`)
	l, g := NewLedger(LedgerConfig{Config: db.cfg, Log: testLog(t)}), newGroup()
	for i, id := range []string{"ep_1", "ep_2"} {
		l.take(g, []Entry{&Health{EndpointID: id, Generation: 1, Version: int64(1 + i), Failures: 61}})
		l.take(g, []Entry{Missing{EndpointID: id, Removed: true, Version: 1 + i}})
		l.take(g, []Entry{StopMissing{EndpointID: id, Version: 2}})
	}
	l.take(g, []Entry{&Health{EndpointID: "ep_2", Generation: 1, Version: 3, Unusable: "no secret"}})
	l.take(g, []Entry{Missing{EndpointID: "ep_3", Version: 3}}) // disabled, and enabled again
	l.take(g, []Entry{StopMissing{EndpointID: "ep_3", Version: 3}})
	tx := begin(t, env)
	must(t, g.write(t.Context(), tx.Conn()))
	must(t, tx.Commit(t.Context()))
	got := testenv.QueryOne[string](t, env, `select string_agg(endpoint_id || ' ' || consecutive_failures || ' ' || coalesce(unusable, ''), ', ' order by endpoint_id)
	    from webhooks.endpoint_health`)
	if want := "ep_2 0 no secret, ep_3 60 "; got != want {
		t.Errorf("the recorded health is %q, want %q", got, want)
	}
}
