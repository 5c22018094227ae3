package outbox

import (
	"fmt"
	"slices"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// replayLedger is a Ledger whose only job is a replay, and whose steps the test makes. under are the
// events of the endpoint whose attempts are under way.
type replayLedger struct {
	*Ledger
	env   *testenv.DB
	job   *replayJob
	under []string
}

func newReplayLedger(t *testing.T, db *DB, env *testenv.DB) *replayLedger {
	t.Helper()
	l := &replayLedger{env: env, Ledger: NewLedger(LedgerConfig{Config: db.cfg, Term: newTerm(t, db), Log: testLog(t), Clock: db.Clock(), ServerEnds: func() {},
		Confirm: func(LSN) {}, Requeued: func(string) {}, Stalled: func(bool) {}})}
	l.job = &replayJob{Replay: Replay{ID: "rpl_1"}, slot: db.cfg.Slot, withdraw: func(string, string) []string { return slices.Clone(l.under) }}
	t.Cleanup(func() {
		if l.conn != nil {
			closeConn(l.conn)
		}
	})
	return l
}

// next makes one step. It reports whether it committed something, and whether it was the last.
func (l *replayLedger) next(t *testing.T) (committed, finished bool) {
	t.Helper()
	before := l.sequence
	l.jobs, l.resting = []job{l.job}, nil
	must(t, l.step(t.Context()))
	return l.sequence > before, len(l.jobs)+len(l.resting) == 0
}

// end makes steps until the last, and returns how many there were.
func (l *replayLedger) end(t *testing.T) (steps int) {
	t.Helper()
	for steps = 1; ; steps++ {
		if _, finished := l.next(t); finished {
			return steps
		}
		if steps == 1000 {
			t.Fatalf("the replay does not end: %s", replayText(t, l.env))
		}
	}
}

// An agent of before has set back 12,000 deliveries. Between them 100,000 others of the endpoint are
// pending.
func TestReplay_CanceledLooksAtEachRowOnceAndLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	const n, others = 12000, 100000
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("named %t", named), func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, n)
			env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
			    select 'other_' || i, 'ep_1', 'venue_a', 'lead.created', 'pending', now(), d.created
			    from generate_series(1, $1::int) i join webhooks.deliveries d on d.event_id = 'evt_' || lpad((i % $2::int + 1)::text, 5, '0')`, others, n)
			env.Exec(t, `vacuum analyze webhooks.deliveries`)
			env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses, event_ids) values ('rpl_1', 'ep_1', '{succeeded}',
			    case when $1::bool then array(select event_id from webhooks.deliveries where status = 'succeeded' order by event_id) end)`, named)
			l := newReplayLedger(t, db, env)
			l.next(t)
			env.Exec(t, `update webhooks.deliveries set status = 'pending', attempts = 0, next_attempt_at = now() + interval '1 hour', finished = null, replay_id = 'rpl_1',
			    former = jsonb_build_object('attempts', attempts, 'finished', finished) where status = 'succeeded'`)
			env.Exec(t, `update webhooks.replays r set total = $1, (cursor_created, cursor_event_id) =
			    (select created, event_id from webhooks.deliveries order by created desc, event_id desc limit 1)`, n)
			env.Exec(t, `update webhooks.replays set state = 'canceled'`)
			reads := `select coalesce(sum(idx_tup_read), 0)::bigint from pg_stat_user_indexes where relname = 'deliveries' and indexrelname = $1`
			before := testenv.QueryOne[int64](t, env, reads, "deliveries_pending")
			steps := l.end(t)
			closeConn(l.conn)
			l.conn = nil
			if got, want := replayText(t, env), fmt.Sprintf("canceled %d 0 %[1]d", n); got != want {
				t.Errorf("the replay is %s, want %s", got, want)
			}
			if got, want := countByStatus(t, env), fmt.Sprintf("pending:%d succeeded:%d", others, n); got != want {
				t.Errorf("deliveries are %s, want %s", got, want)
			}
			// What the connection has read counts once it has ended.
			testenv.Eventually(t, patience, func() error {
				if testenv.QueryOne[int64](t, env, reads, "deliveries_pkey") == 0 {
					return fmt.Errorf("no statistics yet")
				}
				return nil
			})
			if n := testenv.QueryOne[int64](t, env, reads, "deliveries_pending") - before; n > 0 {
				t.Errorf("it has read %d entries of the index of pending rows", n)
			}
			if most := 1 + (n+others)/lookStep + n/jobStep + 3; steps > most {
				t.Errorf("it took %d steps, want %d at most", steps, most)
			}
		})
	}
}

func TestReplay_ThatWaitsCostsNoCommit(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addSucceeded(t, env, 2*lookAhead)
	addReplay(t, env, "rpl_1", `{succeeded}`)
	l := newReplayLedger(t, db, env)
	wants := func(what string, committed bool, text string) {
		t.Helper()
		if got, _ := l.next(t); got != committed {
			t.Errorf("%s: committed %t, want %t", what, got, committed)
		}
		if got := replayText(t, env); got != text {
			t.Errorf("%s: the replay is %s, want %s", what, got, text)
		}
	}
	l.under = []string{"evt_00003", "evt_00004", "other"}
	wants("it begins", true, "running 500 0 0")
	l.next(t) // finds out that there is no room
	wants("the look-ahead is full", false, "running 500 0 0")
	env.Exec(t, `update webhooks.replays set state = 'paused'`)
	wants("paused", false, "paused 500 0 0")
	env.Exec(t, `update webhooks.checkpoint set uncounted = '{"rpl_1": {"done": 1, "unsent": 0}}'`)
	env.Exec(t, `update webhooks.deliveries set status = 'failed' where event_id = 'evt_00001'`)
	wants("something is uncounted", true, "paused 500 1 0")
	wants("paused again", false, "paused 500 1 0")
	env.Exec(t, `update webhooks.replays set state = 'running'`)
	wants("resumed", true, "running 501 1 0")
	env.Exec(t, `update webhooks.replays set state = 'canceled'`)
	for range 3 {
		l.next(t)
	}
	wants("canceled, with two under way", false, "canceled 501 1 498")
	l.under = []string{"evt_00004"}
	wants("one under way", true, "canceled 501 1 499")
	wants("still one under way", false, "canceled 501 1 499")
	env.Exec(t, `update webhooks.deliveries set attempts = 1, next_attempt_at = now() + interval '5 seconds' where event_id = 'evt_00004'`)
	l.under = nil
	if committed, finished := l.next(t); !committed || !finished {
		t.Errorf("none under way: committed %t, finished %t", committed, finished)
	}
	if got := replayText(t, env); got != "canceled 501 2 499" {
		t.Errorf("at the end the replay is %s", got)
	}
	if got := countByStatus(t, env); got != fmt.Sprintf("failed:1 succeeded:%d", 2*lookAhead-1) {
		t.Errorf("at the end the deliveries are %s", got)
	}
}
