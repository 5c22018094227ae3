package outbox

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

func TestLastSuccesses_AreFoundWithoutBeingRecorded(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	for _, id := range []string{"ep_well", "ep_failing", "ep_again", "ep_never", "ep_recorded"} {
		addEndpoint(t, env, id, "venue_a", "*")
	}
	add := func(endpoint, status, created string, n int) {
		t.Helper()
		env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, finished)
		    select 'evt_' || $3 || i, $1, 'venue_a', 'lead.created', $2, $3::timestamptz + make_interval(secs => i), $3::timestamptz + interval '1 hour' from generate_series(1, $4::int) i`,
			endpoint, status, created, n)
	}
	health := func(endpoint string, generation int, first, success string) {
		t.Helper()
		env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, first_failure_at, last_success_at)
		    values ($1, $2, 5, $3::timestamptz, nullif($4, '')::timestamptz)`, endpoint, generation, first, success)
	}
	add("ep_well", "succeeded", "2026-01-01 09:00Z", 3)
	add("ep_well", "pending", "2026-01-02 09:00Z", 3)
	// What was missed since the failures began is more than is looked at.
	add("ep_failing", "succeeded", "2026-01-01 09:00Z", 1)
	add("ep_failing", "missed", "2026-01-03 09:00Z", successWalk+9)
	health("ep_failing", 1, "2026-01-02 00:00Z", "")
	// The failures are of an earlier generation.
	add("ep_again", "succeeded", "2026-01-03 09:00Z", 1)
	health("ep_again", 0, "2026-01-02 00:00Z", "")
	add("ep_never", "failed", "2026-01-03 09:00Z", 1)
	health("ep_recorded", 1, "2026-01-05 00:00Z", "2026-01-04 00:00Z")
	got, err := db.AllVenues().LastSuccesses(t.Context(), []string{"ep_well", "ep_failing", "ep_again", "ep_never", "ep_recorded", "ep_unknown"})
	must(t, err)
	texts := map[string]string{}
	for id, at := range got {
		texts[id] = at.UTC().Format(time.RFC3339)
	}
	want := map[string]string{"ep_well": "2026-01-01T10:00:00Z", "ep_failing": "2026-01-01T10:00:00Z", "ep_again": "2026-01-03T10:00:00Z", "ep_recorded": "2026-01-04T00:00:00Z"}
	if diff := cmp.Diff(want, texts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLastSuccesses_ReadABoundedPartOfTheLog(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	_, env, conn := openMonth(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	for status, most := range map[string]int{"succeeded": 30, "missed": 1200} {
		env.Exec(t, `update webhooks.deliveries set status = $1 where created > now() - interval '3 days'`, status)
		env.Exec(t, `vacuum analyze`)
		plan := explain(t, conn, venueClause.ReplaceAllString(selectLastSuccess, ""), []string{"ep_1"}, successWalk)
		checkPlans(t, []string{plan}, "deliveries_endpoint_created on", most)
	}
}

func TestReplayOutcome_CountsWhatTheReplayItselfHasDone(t *testing.T) {
	t.Parallel()
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("named %t", named), func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, 6)
			env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses, event_ids) values ('rpl_1', 'ep_1', '{succeeded}',
			    case when $1::bool then array(select event_id from webhooks.deliveries) end)`, named)
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitReplay(t, env, "running 6 0 0")
			failed := failedAttempt(replayed("evt_00003", 5), 6)
			failed.Status, failed.NextAttempt = Failed, time.Time{}
			lost := &Record{Delivery: replayed("evt_00004", 0), Status: Failed, Finished: time.Now(), Error: lostGone}
			must(t, b.Write(t.Context(), success(replayed("evt_00001", 0)), success(replayed("evt_00002", 0)), failed, lost, failedAttempt(replayed("evt_00005", 0), 1)))
			must(t, b.Write(t.Context(), Missing{EndpointID: "ep_1", Reason: "the endpoint is disabled", Version: 1}))
			testenv.Eventually(t, patience, func() error {
				r, err := db.AllVenues().Replay(t.Context(), "rpl_1")
				must(t, err)
				if !r.Ended() {
					return fmt.Errorf("it is %s", r.State)
				}
				return nil
			})
			b.close(t)
			r, err := db.AllVenues().Replay(t.Context(), "rpl_1")
			must(t, err)
			got, err := db.AllVenues().ReplayOutcome(t.Context(), r)
			must(t, err)
			if want := (ReplayOutcome{Succeeded: 2, Failed: 1, Missed: 3}); got != want || got.AllSucceeded() {
				t.Errorf("got %+v, want %+v of %+v", got, want, r)
			}
			env.Exec(t, `update webhooks.deliveries set replay_id = 'rpl_2' where event_id = 'evt_00001'`)
			r.State = ReplayDone // as one whose deliveries were all attempted
			got, err = db.AllVenues().ReplayOutcome(t.Context(), r)
			must(t, err)
			if want := (ReplayOutcome{Succeeded: 1, Failed: 1, Missed: 3, ReplayedSince: 1}); got != want || got.AllSucceeded() {
				t.Errorf("after a later replay of one: %+v, want %+v", got, want)
			}
			former, err := db.AllVenues().FormerDeliveries(t.Context(), "evt_00003")
			must(t, err)
			if f := former["ep_1"]; f.Status != Succeeded || f.Attempts != 2 || f.LastCode == nil || *f.LastCode != 204 || f.Finished == nil {
				t.Errorf("before the replay it was %+v", former)
			}
		})
	}
}

func TestLeading_SaysWhetherAnAgentDelivers(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	l, err := db.Leading(t.Context())
	must(t, err)
	if l.Leads() {
		t.Errorf("before the first agent: %+v", l)
	}
	follow(t, db)
	env.Exec(t, `update webhooks.checkpoint set epoch = 1`)
	testenv.Eventually(t, patience, func() error {
		if l, err = db.Leading(t.Context()); err != nil || !l.Leads() {
			return fmt.Errorf("with an agent: %+v, %w", l, err)
		}
		return nil
	})
}

func TestReplayOutcome_ReadsWhatTheReplayHasWalked(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	_, env, conn := openMonth(t)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, since, until) values ('rpl_1', 'ep_1', now() - interval '10 days', now() - interval '9 days')`)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, event_ids) values ('rpl_2', 'ep_1', '{evt_0000001,evt_0100000}')`)
	for _, test := range []struct {
		sql, replay, index string
		pages              int
	}{
		{selectRangeOutcome, "rpl_1", "deliveries_endpoint_created", 1500},
		{selectNamedOutcome, "rpl_2", "deliveries_pkey", 50},
	} {
		plan := explain(t, conn, test.sql, test.replay)
		if read := pages(t, plan); !strings.Contains(plan, test.index) || strings.Contains(plan, "Seq Scan on deliveries") || read > test.pages {
			t.Errorf("%d pages were read, at most %d may be; want %s:\n%s", read, test.pages, test.index, plan)
		}
	}
}
