package outbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/testenv"
)

// takeTerm makes what a new leader makes: a connection, a slot and a term. It does not start the
// stream.
func takeTerm(t *testing.T, db *DB) Term {
	t.Helper()
	tailer := NewTailer(db.cfg, testLog(t))
	must(t, tailer.Connect(t.Context()))
	defer tailer.Close()
	_, err := db.configured().PrepareSlot(t.Context(), tailer, "first", asItIs, func(error) {})
	must(t, err)
	term, err := db.configured().TakeOver(t.Context(), tailer, "first")
	must(t, err)
	return term
}

// recordedKeys returns the deliveries that have a row, as EVENT/ENDPOINT STATUS.
func recordedKeys(t *testing.T, env *testenv.DB) []string {
	t.Helper()
	return testenv.QueryAll[string](t, env, `select event_id || '/' || endpoint_id || ' ' || status from webhooks.deliveries order by 1`)
}

func TestLeader_FirstStartFindsWhatNoSlotHasSeen(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	for i, e := range []struct{ created, venue, event string }{
		{"-2 hours", "venue_a", "lead.*"}, {"-2 hours", "venue_a", "*"}, {"-2 hours", "venue_a", "lead.updated"},
		{"-2 hours", "venue_b", "*"}, {"-30 minutes", "venue_a", "*"}, {"-2 hours", "venue_a", "lead.created"},
	} {
		id := fmt.Sprintf("ep_%d", i)
		addEndpoint(t, env, id, e.venue, e.event)
		env.Exec(t, `update webhooks.endpoints set created = now() + $2::text::interval where id = $1`, id, e.created)
	}
	env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = 'ep_5'`)
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ('evt_1', 'lead.created', 'venue_a', '{}', now() - interval '1 hour'),
	    ('evt_2', 'leads', 'venue_a', '{}', now()), ('evt_3', 'lead.created', 'venue_c', '{}', now())`)
	// Recorded with an earlier slot.
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Succeeded, 60)
	c := compareFirst(t, db, env)
	recovered := c.runSettled(t, true)
	want := []string{"evt_1/ep_0 pending", "evt_1/ep_1 succeeded", "evt_1/ep_5 missed", "evt_2/ep_1 pending", "evt_2/ep_4 pending"}
	if got := recordedKeys(t, env); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
	if term := c.cfg.Term; term.Epoch != 1 || term.Gap == "" || recovered != 4 || term.LookupUntil == 0 {
		t.Errorf("the first term is %+v and recovered %d", term, recovered)
	}
	if term := takeTerm(t, db); term.Epoch != 2 || term.Gap != "" || term.Barrier != 0 {
		t.Errorf("the second term is %+v: the recovery is complete already", term)
	}
}

func TestLeader_RecoversAfterACrashBeforeTheSlotWasThere(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEvents(t, env, "evt", 2*giveLimit+1)
	tailer := NewTailer(db.cfg, testLog(t))
	must(t, tailer.Connect(t.Context()))
	t.Cleanup(tailer.Close)
	_, err := db.configured().PrepareSlot(t.Context(), tailer, "crashes now", asItIs, func(error) {})
	must(t, err)
	if got := testenv.QueryOne[bool](t, env, `select recovering from webhooks.checkpoint`); !got {
		t.Fatal("a new slot is not noted as recovering")
	}
	if got := compareFirst(t, db, env).runSettled(t, true); got != 2*giveLimit+1 {
		t.Errorf("the next leader recovered %d of %d", got, 2*giveLimit+1)
	}
}

func TestLeader_RecoversWhenTheCheckpointIsGone(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	takeTerm(t, db)
	addEvents(t, env, "evt", 1)
	env.Exec(t, `delete from webhooks.checkpoint`)
	c := compareFirst(t, db, env)
	if got := c.runSettled(t, true); got != 1 || c.cfg.Term.Gap == "" {
		t.Errorf("recovered %d, want 1; the gap is %q", got, c.cfg.Term.Gap)
	}
}

func TestLeader_RefusesAForeignSlot(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `select pg_create_logical_replication_slot($1, 'test_decoding')`, env.Slot)
	_, err := db.configured().PrepareSlot(t.Context(), &Tailer{}, "test", asItIs, func(error) {})
	wantProblem(t, err, fmt.Sprintf("replication slot %q", env.Slot), "plugin test_decoding", "outbox.slot")

	other, _ := openDB(t)
	takeTerm(t, other)
	db.cfg.Slot = other.cfg.Slot
	_, err = db.configured().PrepareSlot(t.Context(), &Tailer{}, "test", asItIs, func(error) {})
	wantProblem(t, err, "it belongs to something else", "shared by all databases")
}

func TestLeader_SeveralAgentsPrepareTheSlotAtOnce(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	var agents errgroup.Group
	for range poolSize {
		agents.Go(func() error {
			_, err := db.configured().PrepareSlot(t.Context(), &Tailer{}, "test", asItIs, func(error) {})
			if p, ok := errors.AsType[*Problem](err); ok && !p.Fatal && strings.Contains(p.Reason, "creating it waits") {
				return nil // another agent is making it
			}
			return err
		})
	}
	if err := agents.Wait(); err != nil {
		t.Errorf("one of the agents: %v", err)
	}
	if err := db.configured().create(t.Context(), &Tailer{}, "late", func(error) {}); err != nil {
		t.Errorf("an agent that saw no slot and came too late: %v", err)
	}
	if n := testenv.QueryOne[int64](t, env, `select count(*) from pg_replication_slots where slot_name = $1`, env.Slot); n != 1 {
		t.Errorf("%d slots", n)
	}
}

// Such a horizon occurs if tables were restored into a cluster of an earlier state.
func TestTakeOver_DoesNotBelieveAHorizonOfTheFuture(t *testing.T) {
	t.Parallel()
	for name, lsn := range map[string]string{"and the position too": "FF/0", "and the position is of the past": "0/1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			takeTerm(t, db)
			addEvents(t, env, "evt", 3)
			env.Exec(t, `update webhooks.checkpoint set horizon = '900000000:900000000:', horizon_at = now(), lsn = $1::text::pg_lsn, recovering = true`, lsn)
			c := compareFirst(t, db, env)
			if got := c.runSettled(t, true); got != 3 {
				t.Errorf("%s: recovered %d, want 3", c.cfg.Term.Gap, got)
			}
		})
	}
}

func TestBlocker_NamesAPreparedTransaction(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{"max_prepared_transactions": "1"}})
	env := cluster.NewDB(t)
	db, err := Open(t.Context(), testConfig(env.URL, env.Slot))
	must(t, err)
	t.Cleanup(db.Close)
	env.Exec(t, `begin; select pg_current_xact_id(); prepare transaction 'orphan'`)
	blocker, err := db.configured().Blocker(t.Context())
	must(t, err)
	if !strings.HasPrefix(blocker, "prepared transaction orphan of agent in "+env.Name) {
		t.Errorf("the blocker is %q", blocker)
	}
	env.Exec(t, `rollback prepared 'orphan'`)
}

func TestLoadState_HoldsWhatTheAgentNeeds(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "lead.*", "a,b")
	addEndpoint(t, env, "ep_2", "venue_b", "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = 'ep_2'`)
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, first_failure_at, unusable) values
	    ('ep_1', 1, 7, 'epoch', 'no URL'), ('ep_2', 0, 9, 'epoch', null)`)
	due := time.Now().Add(-time.Minute).Truncate(time.Microsecond)
	for i, id := range []string{"ep_1", "ep_1", "ep_gone"} {
		addPending(t, env, fmt.Sprintf("evt_%d", i), id, due, i)
	}
	addReplay(t, env, "rpl_1", `{missed}`)
	addReplay(t, env, "rpl_2", `{missed}`)
	env.Exec(t, `update webhooks.replays set state = 'done', finished = now() from `+agentEnds+` where id = 'rpl_2'`)
	s, err := db.configured().LoadState(t.Context())
	must(t, err)
	one, two := s.Endpoints[0], s.Endpoints[1]
	if one.ID != "ep_1" {
		one, two = two, one
	}
	if one.Failures != 7 || !one.FirstFailure.Equal(time.Unix(0, 0)) || one.Unusable != "no URL" || one.Secret.Reveal() != "sentinel" || !slices.Equal(one.Events, []string{"lead.*", "a,b"}) {
		t.Errorf("ep_1: %+v", one)
	}
	if two.Failures != 0 || !two.FirstFailure.IsZero() || !two.Disabled || two.DisabledReason != ReasonManual {
		t.Errorf("ep_2, whose failures are of an earlier generation: %+v", two)
	}
	if len(s.Due) != 2 || !s.Due["ep_1"].Equal(due) || !s.Due["ep_gone"].Equal(due.Add(2*time.Second)) {
		t.Errorf("due: %v", s.Due)
	}
	if !slices.Equal(s.Replays, []Replay{{ID: "rpl_1"}}) {
		t.Errorf("replays: %v", s.Replays)
	}
}

func TestReconcile_FindsOddRowsOfAMappedOutbox(t *testing.T) {
	t.Parallel()
	db, env := openMapped(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set created = '2025-01-01'`)
	env.Exec(t, `insert into public."App Events" (what, place, body, at) values ('lead.created', 'venue_a', '{}', '2025-05-10 14:32:00'),
	    (null, 'venue_a', null, null), ('lead.created', 'venue_a', '{}', 'infinity'), (null, null, null, null)`)
	if got := compareFirst(t, db, env).runSettled(t, true); got != 3 {
		t.Fatalf("recovered %d deliveries, want 3", got)
	}
	refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, time.Now().Add(time.Second), 1<<20)
	must(t, err)
	found := false
	for _, d := range refills["ep_1"].Deliveries {
		// A time without zone is in the database's zone, as in the stream.
		found = found || strings.Contains(string(d.Body), `"created":"2025-05-10T18:32:00Z"`)
	}
	if n := len(refills["ep_1"].Deliveries); n != 3 || !found {
		t.Errorf("%d of 3 bodies; one with the time of its row: %t", n, found)
	}
}
