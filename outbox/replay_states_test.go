package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/quintago/webhook-agent/testenv"
)

// playReceivers ends the pending deliveries of rpl_1 with success, waits until that is recorded, and returns how many there were.
func playReceivers(t *testing.T, env *testenv.DB, b *book) int {
	t.Helper()
	events := testenv.QueryAll[string](t, env, `select event_id from webhooks.deliveries where status = 'pending' and replay_id = 'rpl_1'`)
	for _, id := range events {
		must(t, b.Write(t.Context(), success(replayed(id, 0))))
	}
	testenv.Eventually(t, patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'pending' and event_id = any($1)`, events); n > 0 {
			return fmt.Errorf("%d results of %d are not recorded", n, len(events))
		}
		return nil
	})
	return len(events)
}

func replayState(t *testing.T, env *testenv.DB, id string) string {
	t.Helper()
	return testenv.QueryOne[string](t, env, `select state || case when finished is null then '' else ' finished' end from webhooks.replays where id = $1`, id)
}

func awaitState(t *testing.T, env *testenv.DB, id, want string) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		if got := replayState(t, env, id); got != want {
			return fmt.Errorf("replay %s is %s, want %s", id, got, want)
		}
		return nil
	})
}

// One that is paused sets nothing more back, also by another agent, and ends once it is resumed.
func TestReplay_PausesWithinTheLookAheadAndStaysPausedUntilItIsResumed(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addSucceeded(t, env, 2*jobStep+11)
	addReplay(t, env, "rpl_1", `{succeeded}`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
	awaitReplay(t, env, fmt.Sprintf("running %d 0 0", lookAhead))
	for range 2 { // to pause a paused one is no error
		r, err := db.AllVenues().PauseReplay(t.Context(), "rpl_1")
		must(t, err)
		if r.State != ReplayPaused || r.PausedAt == nil || r.Ended() {
			t.Errorf("paused: %+v", r)
		}
	}
	if n := playReceivers(t, env, b); n != lookAhead {
		t.Errorf("%d deliveries are pending, want %d", n, lookAhead)
	}
	awaitReplay(t, env, fmt.Sprintf("paused %d %[1]d 0", lookAhead))
	b.close(t)

	b = keepBook(t, db.cfg, newTerm(t, db), nil)
	s, err := db.configured().LoadState(t.Context())
	must(t, err)
	if len(s.Replays) != 1 {
		t.Fatalf("another agent takes up %d replays, want the paused one", len(s.Replays))
	}
	// A further replay of the endpoint goes on beside the paused one, and ends.
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, event_ids, statuses) values ('rpl_2', 'ep_1', '{evt_00001}', '{succeeded}')`)
	must(t, b.Write(t.Context(), s.Replays[0], Replay{ID: "rpl_2"}))
	testenv.Eventually(t, patience, func() error {
		if !testenv.QueryOne[bool](t, env, `select requeued from webhooks.replays where id = 'rpl_2'`) {
			return errors.New("the other replay does not go on")
		}
		return nil
	})
	if got := replayText(t, env); got != fmt.Sprintf("paused %d %[1]d 0", lookAhead) {
		t.Errorf("at another agent the replay is %s", got)
	}
	r, err := db.AllVenues().ResumeReplay(t.Context(), "rpl_1")
	must(t, err)
	if r.State != ReplayRunning || r.PausedAt != nil {
		t.Errorf("resumed: %+v", r)
	}
	testenv.Eventually(t, patience, func() error {
		playReceivers(t, env, b)
		if got, want := replayText(t, env), fmt.Sprintf("done %d %[1]d 0", 2*jobStep+11); got != want {
			return fmt.Errorf("the replay is %s, want %s", got, want)
		}
		return nil
	})
	b.close(t)
}

// Of six deliveries one has been sent, one was attempted, and one is being attempted when the replay is canceled. The agent may
// die in the middle.
func TestReplay_CanceledMakesWhatItHasNotSentWhatItWas(t *testing.T) {
	t.Parallel()
	for _, takeOver := range []bool{false, true} {
		t.Run(fmt.Sprintf("taken over %t", takeOver), func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, 6)
			env.Exec(t, `update webhooks.deliveries set status = 'failed', last_code = 503, last_class = 'http_status', last_error = 'full' where event_id in ('evt_00004', 'evt_00002')`)
			env.Exec(t, `update webhooks.deliveries set status = 'missed', attempts = 0, last_code = null, last_error = 'off', last_latency_ms = null where event_id = 'evt_00005'`)
			addReplay(t, env, "rpl_1", `{succeeded,failed,missed}`)
			under := make(chan []string, 1)
			under <- []string{"evt_00003"}
			b := keepBook(t, db.cfg, newTerm(t, db), func(_ *book, lc *LedgerConfig) {
				lc.Withdraw = func(string, string) []string {
					kept := <-under
					under <- kept
					return kept
				}
			})
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitReplay(t, env, "running 6 0 0")
			must(t, b.Write(t.Context(), success(replayed("evt_00001", 0)), failedAttempt(replayed("evt_00002", 0), 1)))
			b.hasCommitted(t, 2)
			if takeOver {
				b.close(t)
			}
			r, err := db.AllVenues().CancelReplay(t.Context(), "rpl_1")
			must(t, err)
			if !r.Ended() || r.Finished != nil {
				t.Errorf("canceled: %+v", r)
			}
			if takeOver {
				s, err := db.configured().LoadState(t.Context())
				must(t, err)
				b = keepBook(t, db.cfg, newTerm(t, db), nil)
				must(t, b.Write(t.Context(), s.Replays[0]))
				awaitReplay(t, env, "canceled 6 2 4")
			} else {
				awaitReplay(t, env, "canceled 6 2 3") // evt_00003 is under way
				must(t, b.Write(t.Context(), failedAttempt(replayed("evt_00003", 0), 1)))
				b.hasCommitted(t, 3)
				<-under
				under <- nil
			}
			awaitState(t, env, "rpl_1", "canceled finished")
			b.close(t)
			for i, want := range []string{"succeeded 1 200", "failed 2 503 http_status full 7 2026-01-02", wasSucceeded,
				"failed 2 503 http_status full 7 2026-01-02", "missed 0 off 2026-01-02", wasSucceeded} {
				if got := rowText(t, env, fmt.Sprintf("evt_%05d", i+1)); !strings.HasPrefix(got, want) {
					t.Errorf("delivery %d is %q, want %q", i+1, got, want)
				}
			}
			for _, change := range []func() (ReplayInfo, error){
				func() (ReplayInfo, error) { return db.AllVenues().PauseReplay(t.Context(), "rpl_1") },
				func() (ReplayInfo, error) { return db.AllVenues().CancelReplay(t.Context(), "rpl_1") },
				func() (ReplayInfo, error) { return db.AllVenues().SetReplayPace(t.Context(), "rpl_1", 5) },
			} {
				_, err := change()
				wantError(t, err, ErrReplayEnded)
			}
		})
	}
}

// At one a second no more than a few can be set back within the test. Without the pace the rest follows at once.
func TestReplay_GoesAtItsPace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		r    openReplay
		want int
	}{
		{openReplay{}, lookAhead},
		{openReplay{waiting: 499}, 1},
		{openReplay{waiting: 600}, 0},
		{openReplay{perSecond: 50, unused: -1}, 1},
		{openReplay{perSecond: 50, unused: 0.01}, 0},
		{openReplay{perSecond: 50, unused: 0.5}, 25},
		{openReplay{perSecond: 50, unused: 3600}, 100}, // after a restart
		{openReplay{perSecond: 50, unused: 3600, waiting: 90}, 10},
		{openReplay{perSecond: 1, unused: 1.2, waiting: 19}, 1},
		{openReplay{perSecond: MaxPerSecond, unused: 1}, lookAhead},
	} {
		if got := test.r.room(); got != test.want {
			t.Errorf("%+v has room for %d, want %d", test.r, got, test.want)
		}
	}
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addSucceeded(t, env, 300)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses, per_second) values ('rpl_1', 'ep_1', '{succeeded}', 1)`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
	awaitReplay(t, env, "running 2 0 0")
	_, err := db.AllVenues().SetReplayPace(t.Context(), "rpl_1", 0)
	must(t, err)
	awaitReplay(t, env, "running 300 0 0")
	b.close(t)
}

func TestReplay_StatesThatPeopleSetBySQL(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	for _, test := range []struct{ from, to, want string }{
		{"pending", "paused", "paused"}, {"pending", "running", "pending"}, {"pending", "canceled", "canceled finished"},
		{"running", "paused", "paused"}, {"running", "pending", "running"}, {"running", "canceled", "canceled"},
		{"paused", "paused", "paused"}, {"paused", "running", "running"}, {"paused", "pending", "running"}, {"paused", "canceled", "canceled"},
		{"running", "done", "only the agent sets"}, {"paused", "failed", "only the agent sets"},
		{"running", "done', finished = now(), error = 'x", "only the agent sets"}, {"paused", "failed', finished = now(), error = 'x", "only the agent sets"},
		{"pending", "failed', finished = now(), error = 'x", "only the agent sets"}, {"running", "running', finished = now(), error = 'x", "only the agent sets"},
		{"running", "canceled', finished = now(), error = 'x", "only the agent sets"}, {"done", "done', finished = null, error = 'x", "has ended (done)"},
		{"done", "running", "has ended (done)"}, {"failed", "canceled", "has ended (failed)"}, {"canceled", "paused", "has ended (canceled)"},
		{"pending", "halted", "replays_state_check"},
	} {
		env.Exec(t, `truncate webhooks.replays`)
		env.Exec(t, `insert into webhooks.replays (id, endpoint_id, state, total) values ('rpl_1', 'ep_1', $1::text, case when $1::text <> 'pending' then 9 end)`, test.from)
		err := testenv.ExecSQL(t.Context(), env.URL, `update webhooks.replays set state = '`+test.to+`'`)
		got := replayState(t, env, "rpl_1")
		if err != nil {
			got = err.Error()
		}
		if got != test.want && (err == nil || !strings.Contains(got, test.want)) {
			t.Errorf("%s to %s: %s, want %s", test.from, test.to, got, test.want)
		}
	}
	if venue := testenv.QueryOne[string](t, env, `select venue from webhooks.replays`); venue != "venue_a" {
		t.Errorf("the replay is of %s", venue)
	}
}

// Somebody holds the row of a replay. Recording goes on, and what ended meanwhile is counted in the end.
func TestReplay_NothingWaitsForWhoHoldsItsRow(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addSucceeded(t, env, 3)
	addReplay(t, env, "rpl_1", `{succeeded}`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
	awaitReplay(t, env, "running 3 0 0")
	tx := begin(t, env)
	_, err := tx.Exec(t.Context(), `update webhooks.replays set per_second = 5`)
	must(t, err)
	for i := range 3 {
		must(t, b.Write(t.Context(), success(replayed(fmt.Sprintf("evt_%05d", i+1), 0))))
		b.hasCommitted(t, i+1)
	}
	must(t, tx.Commit(t.Context()))
	awaitReplay(t, env, "done 3 3 0")
	b.close(t)
	if left := testenv.QueryOne[string](t, env, `select uncounted::text from webhooks.checkpoint`); left != "{}" {
		t.Errorf("the checkpoint keeps %s", left)
	}
}

func TestStartReplay_WithTheSameKeyMakesOne(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_b", "*")
	start := func(v view, endpointID, hash string) (string, bool, error) {
		r, repeated, err := v.StartReplay(t.Context(), ReplayPlan{EndpointID: endpointID, Statuses: []Status{Missed}, Deliveries: 3},
			ReplayOptions{PerSecond: 7, Idempotency: Idempotency{Key: "k", Hash: []byte(hash)}})
		return r.ID, repeated, err
	}
	first, repeated, err := start(db.Venue("venue_a").view, "ep_1", "h")
	if err != nil || repeated {
		t.Fatalf("first: %t, %v", repeated, err)
	}
	again, repeated, err := start(db.AllVenues().view, "ep_1", "h")
	if err != nil || !repeated || again != first {
		t.Errorf("again: %s, %t, %v", again, repeated, err)
	}
	_, _, err = start(db.Venue("venue_a").view, "ep_1", "other")
	wantError(t, err, ErrIdempotency)
	other, repeated, err := start(db.Venue("venue_b").view, "ep_2", "other")
	if err != nil || repeated || other == first {
		t.Errorf("of another venue: %s, %t, %v", other, repeated, err)
	}
	// A request starts all of its replays or none, so that its second time can answer with all.
	plans := []ReplayPlan{{EndpointID: "ep_1", Statuses: []Status{Missed}}, {EndpointID: "ep_2", Statuses: []Status{Missed}}}
	_, _, err = db.Venue("venue_a").StartReplays(t.Context(), plans, ReplayOptions{Idempotency: Idempotency{Key: "k2", Hash: []byte("h")}})
	wantError(t, err, ErrNotFound)
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.replays where idempotency_key = 'k2'`); n != 0 {
		t.Errorf("a request that failed has started %d replays", n)
	}
	_, _, err = db.AllVenues().StartReplay(t.Context(), ReplayPlan{EndpointID: "ep_1"}, ReplayOptions{PerSecond: MaxPerSecond + 1})
	wantProblem(t, err, "the pace", "10001", "from 1 to 10000")
	r, err := db.Venue("venue_a").Replay(t.Context(), first)
	must(t, err)
	if r.Expected == nil || *r.Expected != 3 || r.PerSecond == nil || *r.PerSecond != 7 || r.Venue != "venue_a" || r.Events != nil {
		t.Errorf("it is %+v", r)
	}
}

func TestListReplays_PagesNewestFirstAndKeepsThoseOfRemovedEndpoints(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_b", "*")
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, created) select 'rpl_' || i, case when i = 3 then 'ep_2' else 'ep_1' end, '2026-01-01' from generate_series(1, 5) i`)
	env.Exec(t, `delete from webhooks.endpoints`)
	var ids []string
	f := ReplayFilter{Limit: 2}
	for {
		page, next, err := db.Venue("venue_a").ListReplays(t.Context(), f)
		must(t, err)
		for _, r := range page {
			ids = append(ids, r.ID)
		}
		if f.Before = next; next == "" {
			break
		}
	}
	if !slices.Equal(ids, []string{"rpl_5", "rpl_4", "rpl_2", "rpl_1"}) {
		t.Errorf("listed: %v", ids)
	}
	page, _, err := db.AllVenues().ListReplays(t.Context(), ReplayFilter{States: []string{ReplayPaused}, Limit: 9})
	if err != nil || len(page) > 0 {
		t.Errorf("paused ones: %v, %v", page, err)
	}
}

// A step of a canceled replay may fail by itself. To give the job up must not fail then: the Ledger would do nothing else.
func TestReplay_ThatIsCanceledCanBeGivenUp(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addReplay(t, env, "rpl_1", `{missed}`)
	env.Exec(t, `update webhooks.replays set state = 'running', total = 1`)
	env.Exec(t, `update webhooks.replays set state = 'canceled'`)
	must(t, (&replayJob{Replay: Replay{ID: "rpl_1"}}).abandon(t.Context(), db.pool, "a fault"))
	got := testenv.QueryOne[string](t, env, `select concat_ws(' ', state, finished is not null, error) from webhooks.replays`)
	if want := "canceled t it cannot be carried out: a fault"; got != want {
		t.Errorf("the replay is %q, want %q", got, want)
	}
}

// appearing is a connection on which something happens between two statements: before it executes
// one that contains the text.
type appearing struct {
	querier
	before string
	happen func()
}

func (a appearing) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if strings.Contains(sql, a.before) {
		a.happen()
	}
	return a.querier.Exec(ctx, sql, args...)
}

// The stream may bring a replay before queries see its row. A step that begins before the row is
// visible has not locked it, so it must not change it: somebody may pause it at the same time.
func TestReplay_ARowThatBecomesVisibleInAStepWaitsForTheNext(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addSucceeded(t, env, 3)
	tx := begin(t, env)
	j := &replayJob{Replay: Replay{ID: "rpl_1", XID: 3}, slot: db.cfg.Slot}
	finished, err := j.step(t.Context(), appearing{tx, "uncounted", func() { addReplay(t, env, "rpl_1", `{succeeded}`) }})
	must(t, err)
	if free := testenv.QueryAll[string](t, env, `select id from webhooks.replays for update skip locked`); len(free) != 1 {
		t.Error("the step has written to the replay")
	}
	must(t, tx.Commit(t.Context()))
	env.Exec(t, `update webhooks.replays set state = 'paused'`)
	if got := replayState(t, env, "rpl_1"); got != "paused" || finished || j.pause() == 0 {
		t.Errorf("the replay is %s, finished %t, and rests for %s; want it paused, and looked at later", got, finished, j.pause())
	}
	if n := testenv.QueryOne[int](t, env, `select count(*)::int from webhooks.deliveries where status = 'pending'`); n != 0 {
		t.Errorf("a replay that was paused before it began has set %d deliveries back", n)
	}
}
