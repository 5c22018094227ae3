package outbox

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// Of five deliveries one has been sent when somebody deletes the row of the replay.
func TestReplay_WhoseRowIsDeletedIsCanceled(t *testing.T) {
	t.Parallel()
	for _, state := range []string{ReplayRunning, ReplayPaused, ReplayCanceled} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, 5)
			env.Exec(t, `update webhooks.deliveries set status = 'failed', last_code = 503, last_class = 'http_status', last_error = 'full' where event_id = 'evt_00003'`)
			addReplay(t, env, "rpl_1", `{succeeded,failed,missed}`)
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitReplay(t, env, "running 5 0 0")
			must(t, b.Write(t.Context(), success(replayed("evt_00001", 0))))
			b.hasCommitted(t, 1)
			env.Exec(t, `update webhooks.replays set state = $1`, state)
			env.Exec(t, `delete from webhooks.replays`)
			awaitState(t, env, "rpl_1", "canceled finished")
			b.close(t)
			for i, want := range []string{"succeeded 1 200", wasSucceeded, "failed 2 503 http_status full 7 2026-01-02", wasSucceeded, wasSucceeded} {
				if got := rowText(t, env, fmt.Sprintf("evt_%05d", i+1)); !strings.HasPrefix(got, want) {
					t.Errorf("delivery %d is %q, want %q", i+1, got, want)
				}
			}
			env.Exec(t, `delete from webhooks.replays`)
			if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.replays`); n != 0 {
				t.Error("the row of a replay that has ended cannot be deleted")
			}
		})
	}
}

// A row that is gone before the agent has come to it, or in spite of the trigger, ends the job. Nothing
// waits for it.
func TestReplay_WhoseRowIsGoneEnds(t *testing.T) {
	t.Parallel()
	for _, begun := range []bool{false, true} {
		t.Run(fmt.Sprintf("begun %t", begun), func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, lookAhead+1)
			addReplay(t, env, "rpl_1", `{succeeded}`)
			l := newReplayLedger(t, db, env)
			if begun {
				l.next(t)
				env.Exec(t, `truncate webhooks.replays`)
			} else {
				env.Exec(t, `delete from webhooks.replays`)
			}
			if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.replays`); n != 0 {
				t.Fatal("the row is there still")
			}
			finished := false
			for range 3 {
				if _, finished = l.next(t); finished {
					break
				}
			}
			if !finished {
				t.Error("the job goes on")
			}
		})
	}
}
