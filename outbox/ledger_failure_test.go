package outbox

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

func TestLedger_OfAFormerTermWritesNothing(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	former := newTerm(t, db)
	b := keepBook(t, db.cfg, former, nil)
	must(t, b.Write(t.Context(), success(b.track(t, 100, "before")[0])))
	b.hasCommitted(t, 1)
	must(t, db.configured().CheckEpoch(t.Context(), former))
	latter := newTerm(t, db)
	wantError(t, db.configured().CheckEpoch(t.Context(), former), ErrFenced)
	must(t, db.configured().CheckEpoch(t.Context(), latter))
	if latter.Epoch != former.Epoch+1 || latter.LSN != 100 {
		t.Errorf("the term after %+v is %+v", former, latter)
	}
	must(t, b.Write(t.Context(), success(b.track(t, 200, "after")[0])))
	wantError(t, b.wait(t), ErrFenced)
	if row, stored := rowOf(t, env, "after"), storedLSN(t, env); row != "" || stored != 100 || b.confirmed != 100 {
		t.Errorf("recorded %q, checkpoint %s, confirmed %s", row, stored, b.confirmed)
	}
	next := keepBook(t, db.cfg, latter, nil)
	must(t, next.Write(t.Context(), success(next.track(t, 200, "after")[0])))
	next.close(t)
	if stored := storedLSN(t, env); stored != 200 {
		t.Errorf("the checkpoint of the new term is %s", stored)
	}
}

func TestLedger_IsFencedByALostCheckpoint(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	term := newTerm(t, db)
	b := keepBook(t, db.cfg, term, nil)
	env.Exec(t, `delete from webhooks.checkpoint`)
	must(t, b.Write(t.Context(), success(b.track(t, 100, "evt_1")[0])))
	wantError(t, b.wait(t), ErrFenced)
	wantError(t, db.configured().CheckEpoch(t.Context(), term), ErrFenced)
}

func TestLedger_CountsACommitWhoseAnswerWasLostOnce(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]testenv.CommitFault{"applied": testenv.LoseAnswer, "not applied": testenv.LoseCommit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			p := behindProxy(t, db, env)
			env.Exec(t, `insert into webhooks.replays (id, endpoint_id, state, total, requeued) values ('rpl_1', 'ep_1', 'running', 5, true)`)
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			p.BreakCommit(fault)
			for i := range 3 {
				d := b.track(t, LSN(100+i), fmt.Sprintf("evt_%d", i))[0]
				d.ReplayID = "rpl_1"
				r := failedAttempt(d, 1)
				r.Status, r.NextAttempt = Failed, time.Time{}
				r.Health = &Health{EndpointID: "ep_1", Generation: 1, Version: int64(i + 1), Failures: i + 1}
				must(t, b.Write(t.Context(), r))
				b.hasCommitted(t, i+1)
			}
			b.close(t)
			if p.BrokenCommits() != 1 {
				t.Fatalf("%d commits were broken", p.BrokenCommits())
			}
			got := testenv.QueryOne[string](t, env, `select concat_ws(' ', (select count(*) from webhooks.deliveries where status = 'failed'),
			    (select count(*) from webhooks.attempts), (select done from webhooks.replays), (select consecutive_failures from webhooks.endpoint_health))`)
			if want := "3 3 3 3"; got != want {
				t.Errorf("deliveries, attempts, done of the replay and failures are %s, want %s", got, want)
			}
			if stored := storedLSN(t, env); stored != 102 || b.confirmed != 102 || len(b.committed) != 3 {
				t.Errorf("checkpoint %s, confirmed %s, %d results told to be durable", stored, b.confirmed, len(b.committed))
			}
		})
	}
}

func TestLedger_CountsAStepOfAJobWhoseAnswerWasLostOnce(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]testenv.CommitFault{"applied": testenv.LoseAnswer, "not applied": testenv.LoseCommit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			p := behindProxy(t, db, env)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addLog(t, env, Missed, jobStep-7)
			addReplay(t, env, "rpl_1", `{missed}`)
			p.BreakCommit(fault)
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitRequeued(t, env, "rpl_1")
			b.close(t)
			got := testenv.QueryOne[string](t, env, `select concat_ws(' ', state, total, done, (select count(*) from webhooks.deliveries where status = 'pending'))
			    from webhooks.replays`)
			if want := fmt.Sprintf("running %d 0 %[1]d", jobStep-7); got != want || p.BrokenCommits() != 1 {
				t.Errorf("state, total, done and pending are %s, want %s; %d commits broken", got, want, p.BrokenCommits())
			}
		})
	}
}

func TestLedger_KeepsWhatItHasWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := behindProxy(t, db, env)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Write(t.Context(), success(b.track(t, 100, "before")[0])))
	b.hasCommitted(t, 1)
	p.SetFault(testenv.Refuse)
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprintf("evt_%d", i))
	}
	for _, d := range b.track(t, 219, ids...) {
		must(t, b.Write(t.Context(), success(d)))
	}
	testenv.Eventually(t, patience, func() error {
		if stalls := b.stalled(); !slices.Equal(stalls, []bool{true}) || b.Stats().Failing == "" {
			return fmt.Errorf("stalls are %v, failing %q, want one that has begun", stalls, b.Stats().Failing)
		}
		return nil
	})
	p.SetFault(testenv.Pass)
	b.hasCommitted(t, 21)
	b.close(t)
	if stalls := b.stalled(); !slices.Equal(stalls, []bool{true, false}) || b.Stats().Failing != "" {
		t.Errorf("stalls are %v, failing %q", stalls, b.Stats().Failing)
	}
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != 21 {
		t.Errorf("%d of 21 deliveries are recorded", n)
	}
	if stored := storedLSN(t, env); stored != 219 {
		t.Errorf("the checkpoint is %s", stored)
	}
}

func TestLedger_EndsWithItsContextWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := behindProxy(t, db, env)
	term := newTerm(t, db)
	p.SetFault(testenv.Refuse)
	b := keepBook(t, db.cfg, term, nil) // the test's cleanup cancels and waits
	must(t, b.Write(t.Context(), success(b.track(t, 100, "evt_1")[0])))
	testenv.Eventually(t, patience, func() error {
		if b.Stats().Failing == "" {
			return fmt.Errorf("not failing yet")
		}
		return nil
	})
}
