package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file are the promises of the design, P1 to P10, seen from outside: SQL goes in,
// requests come out.

func TestP1_EventsInsertedBeforeTheFirstStartAndWhileTheAgentIsDownArrive(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	first := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"n":1}`)

	a := start(t, agenttest.Config(env))
	agenttest.WaitStatus(t, env, first, endpoint, "succeeded")
	a.End()
	second := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"n":2}`)
	start(t, agenttest.Config(env))
	agenttest.WaitStatus(t, env, second, endpoint, "succeeded")
	if got := r.Count(); got != 2 {
		t.Errorf("%d requests arrived for 2 events", got)
	}
}

func TestP2_RolledBackEventsAreNeverSent(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	start(t, agenttest.Config(env)).WaitLog("leading")

	conn := connect(t, env)
	ctx := context.Background()
	const insert = `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_1', '{}')`
	want := map[string]bool{}
	for i := range 40 {
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprintf("evt_%02d", i)
		if _, err := tx.Exec(ctx, insert, id); err != nil {
			t.Fatal(err)
		}
		// Every third transaction rolls back all of it, every other one a savepoint with a second
		// event.
		if _, err := tx.Exec(ctx, "savepoint s"); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, insert, id+"_inner"); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if _, err := tx.Exec(ctx, "rollback to savepoint s"); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 0 {
			err = tx.Rollback(ctx)
		} else {
			err = tx.Commit(ctx)
			want[id] = true
			if i%2 != 0 {
				want[id+"_inner"] = true
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	last := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	want[last] = true
	for _, got := range r.Wait(t, len(want), agenttest.Patience) {
		if !want[got.ID] {
			t.Errorf("%s arrived, which was rolled back or came twice", got.ID)
		}
		delete(want, got.ID)
	}
}

func TestP4_AllAttemptsAndEndpointsGetTheSameBytes(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/a", testenv.Statuses(500, 503, 200))
	r.SetAnswer("/b", testenv.Statuses(500, 200))
	one := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/a", "*")
	other := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/b", "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.Retries[1] = 3 * time.Second // the third attempt to /a comes after the restart
	a := start(t, cfg)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", "{ \"z\" : 1e400,\t\"a\":\"<&>\u2028\", \"z\":0.10 }")
	agenttest.WaitStatus(t, env, event, other, "succeeded, attempts 2")
	agenttest.WaitStatus(t, env, event, one, "pending, attempts 2")
	a.End()
	start(t, cfg)
	agenttest.WaitStatus(t, env, event, one, "succeeded, attempts 3")
	got := r.Received()
	if len(got) != 5 {
		t.Fatalf("%d requests arrived, want 5", len(got))
	}
	for _, g := range got {
		if string(g.Body) != string(got[0].Body) || g.ID != event {
			t.Errorf("%s got\n%s\nafter\n%s", g.Path, g.Body, got[0].Body)
		}
		if g.SignatureErr != nil {
			t.Error(g.SignatureErr)
		}
	}
}

func TestP5_AnEventReachesItsOwnVenueOnly(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	for _, venue := range []string{"venue_1", "venue_2", "venue_3"} {
		agenttest.AddEndpoint(t, env, venue, r.URL+"/"+venue, "*")
	}
	start(t, agenttest.Config(env)).WaitLog("leading")
	want := map[string]string{}
	for i := range 30 {
		venue := fmt.Sprintf("venue_%d", 1+i%4) // the fourth has no endpoint
		id := agenttest.AddEvent(t, env, venue, "payment.received", `{}`)
		if i%4 != 3 {
			want[id] = "/" + venue
		}
	}
	for _, got := range r.Wait(t, len(want), agenttest.Patience) {
		if want[got.ID] != got.Path {
			t.Errorf("event %s arrived at %s, want %q", got.ID, got.Path, want[got.ID])
		}
	}
}

func TestP6_AttemptsEndAfterSixAndTheWaitSurvivesARestart(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("", testenv.Script(testenv.Answer{Status: 302, Header: map[string]string{"Location": r.URL + "/elsewhere"}}))
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.Retries[0] = 4 * time.Second
	a := start(t, cfg)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, endpoint, "pending, attempts 1")
	a.End()
	start(t, cfg)
	agenttest.WaitStatus(t, env, event, endpoint, "failed, attempts 6")
	got := r.Received()
	if len(got) != 6 {
		t.Fatalf("%d requests arrived, want 6", len(got))
	}
	if wait := got[1].At.Sub(got[0].At); wait < 4*time.Second {
		t.Errorf("the second attempt came after %s, want 4s at least", wait)
	}
	codes := testenv.QueryAll[string](t, env, `select attempt || ':' || code || ':' || class from webhooks.attempts order by attempt`)
	if fmt.Sprint(codes) != "[1:302:redirect 2:302:redirect 3:302:redirect 4:302:redirect 5:302:redirect 6:302:redirect]" {
		t.Errorf("attempts are %v", codes)
	}
}

func TestP7_TheHundredthConsecutiveFailureDisables(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("", testenv.Statuses(500))
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, 150)`)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if reason := testenv.QueryOne[string](t, env, `select coalesce(disabled_reason, '') from webhooks.endpoints`); reason != "failures" {
			return fmt.Errorf("disabled_reason is %q", reason)
		}
		if open := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'pending'`); open > 0 {
			return fmt.Errorf("%d deliveries are pending", open)
		}
		return nil
	})
	if got := r.Count(); got != 100 {
		t.Errorf("%d attempts were made, want exactly 100", got)
	}
	if got := testenv.QueryOne[int](t, env, `select consecutive_failures from webhooks.endpoint_health`); got != 100 {
		t.Errorf("consecutive_failures is %d", got)
	}
	for _, percent := range []string{"consecutive_failures=50", "consecutive_failures=70", "consecutive_failures=90"} {
		a.WaitLog(percent)
	}
	late := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"late":true}`)
	agenttest.WaitStatus(t, env, late, endpoint, "missed")

	// Plain SQL enables it again and replays, and the counter begins anew.
	r.SetAnswer("", testenv.Statuses(200))
	env.Exec(t, `update webhooks.endpoints set disabled_at = null`)
	env.Exec(t, `insert into webhooks.replays (endpoint_id) values ($1)`, endpoint)
	testenv.Eventually(t, agenttest.Patience, func() error {
		got := testenv.QueryOne[string](t, env, `select state || ' ' || done || '/' || coalesce(total, -1) from webhooks.replays`)
		if got != "done 151/151" {
			return fmt.Errorf("the replay is %s", got)
		}
		return nil
	})
	if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); got != 151 {
		t.Errorf("%d deliveries succeeded after the replay, want 151", got)
	}
	if got := testenv.QueryOne[int](t, env, `select consecutive_failures from webhooks.endpoint_health`); got != 0 {
		t.Errorf("consecutive_failures is %d after the endpoint was enabled", got)
	}
}

func TestP8_AReplayGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("", testenv.Script(testenv.Answer{Delay: 20 * time.Millisecond}))
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	cfg := agenttest.Config(env)
	cfg.Delivery.EndpointConcurrency = 4
	a := start(t, cfg)
	a.WaitLog("leading")
	const events = 400
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, $1)`, events)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'missed'`); n != events {
			return fmt.Errorf("%d deliveries are missed", n)
		}
		return nil
	})
	env.Exec(t, `update webhooks.endpoints set disabled_at = null`)
	env.Exec(t, `insert into webhooks.replays (endpoint_id, since, statuses) values ($1, now() - interval '1 hour', '{missed}')`, endpoint)
	r.Wait(t, events/10, agenttest.Patience)
	a.End()
	if got := r.Count(); got >= events {
		t.Fatalf("all %d requests arrived before the restart: the test shows nothing", got)
	}
	start(t, cfg)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := testenv.QueryOne[string](t, env, `select state || ' ' || done from webhooks.replays`); got != fmt.Sprint("done ", events) {
			return fmt.Errorf("the replay is %s", got)
		}
		return nil
	})
	ids := map[string]int{}
	for _, got := range r.Received() {
		ids[got.ID]++
	}
	if len(ids) != events || r.Count() != events {
		t.Errorf("%d requests with %d ids arrived, want %d of each: a restart in good order repeats nothing", r.Count(), len(ids), events)
	}
}

// The receiver fails half-way through a replay of what it has taken already, and its endpoint is
// disabled.
func TestP8_AReplayThatIsCutShortLeavesWhatHadSucceededAndSaysWhatItDidNotSend(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.DisableAfter = 3
	start(t, cfg).WaitLog("leading")
	const events, sent = 300, 120
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, $1)`, events)
	succeeded := func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded' and attempts = 1 and last_code = 200 and last_error is null`); n != events {
			return fmt.Errorf("%d deliveries have succeeded", n)
		}
		return nil
	}
	testenv.Eventually(t, agenttest.Patience, succeeded)
	var requests atomic.Int64
	r.SetAnswer("", func(testenv.Received) testenv.Answer {
		if requests.Add(1) > sent {
			return testenv.Answer{Status: http.StatusInternalServerError}
		}
		return testenv.Answer{}
	})
	replay := func() string {
		return testenv.QueryOne[string](t, env, `select concat_ws(' ', state, error) from webhooks.replays`)
	}
	env.Exec(t, `insert into webhooks.replays (endpoint_id, statuses) values ($1, '{succeeded}')`, endpoint)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := replay(); !strings.HasPrefix(got, "failed") {
			return fmt.Errorf("the replay is %s", got)
		}
		return nil
	})
	if err := succeeded(); err != nil {
		t.Error(err)
	}
	ids := map[string]struct{}{}
	for _, got := range r.Received()[events:] {
		ids[got.ID] = struct{}{}
	}
	if got, want := replay(), fmt.Sprintf("failed %d of %d deliveries were not sent: the endpoint is disabled", events-len(ids), events); !strings.HasPrefix(got, want) {
		t.Errorf("the replay is %s, want %s", got, want)
	}
	if got := testenv.QueryOne[string](t, env, `select concat_ws(' ', total, done, unsent) from webhooks.replays`); got != fmt.Sprint(events, " ", len(ids), " ", events-len(ids)) {
		t.Errorf("the replay counts %s, and %d events were sent", got, len(ids))
	}
}

func TestP9_AHungEndpointHoldsBackNeitherOthersNorWAL(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/hung", testenv.Script(testenv.Answer{Hang: true}))
	agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/hung", "*")
	healthy := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/healthy", "*")
	cfg := agenttest.Config(env)
	start(t, cfg).WaitLog("leading")
	for i := range 30 {
		event := agenttest.AddEvent(t, env, "venue_1", "lead.created", fmt.Sprintf(`{"n":%d}`, i))
		began := time.Now()
		agenttest.WaitStatus(t, env, event, healthy, "succeeded")
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("delivery %d to the healthy endpoint took %s", i, took)
		}
	}
	last := testenv.QueryOne[string](t, env, `select pg_current_wal_lsn()::text`)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'pending'`); n != 30 {
			return fmt.Errorf("%d deliveries to the hung endpoint are pending, want 30", n)
		}
		return slotReached(t, env, last)
	})
	env.Exec(t, `delete from webhooks.endpoints where url like '%hung'`)
	testenv.Eventually(t, agenttest.Patience, func() error {
		// Those whose attempts hang go on; releasing them lets the agent end at once.
		r.Release()
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'pending'`); n != 0 {
			return fmt.Errorf("%d deliveries are pending after the endpoint was removed", n)
		}
		return nil
	})
}

func TestP10_SubscriptionsChangeInCommitOrderWithEvents(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	start(t, agenttest.Config(env)).WaitLog("leading")
	ctx := context.Background()
	conn := connect(t, env)
	event := func(id string) {
		t.Helper()
		if _, err := conn.Exec(ctx, `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_1', '{}')`, id); err != nil {
			t.Fatal(err)
		}
	}
	run := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	event("evt_before")
	run(`begin`)
	event("evt_same_before")
	run(`insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_1', $1, '{lead.created}', $2)`, r.URL, agenttest.Secret)
	event("evt_same_after")
	run(`commit`)
	event("evt_subscribed")
	run(`update webhooks.endpoints set events = '{payment.*}'`)
	event("evt_unsubscribed")
	run(`update webhooks.endpoints set events = '{lead.*}'`)
	event("evt_again")
	run(`update webhooks.endpoints set disabled_at = now()`)
	event("evt_disabled")
	run(`update webhooks.endpoints set disabled_at = null`)
	event("evt_enabled")
	run(`delete from webhooks.endpoints`)
	event("evt_deleted")
	run(`insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_2', 'venue_1', $1, '{*}', $2)`, r.URL, agenttest.Secret)
	event("evt_last")

	agenttest.WaitStatus(t, env, "evt_last", "ep_2", "succeeded")
	got := testenv.QueryAll[string](t, env, `select event_id || ' ' || endpoint_id from webhooks.deliveries where event_id <> 'evt_disabled' order by 1`)
	want := "[evt_again ep_1 evt_enabled ep_1 evt_last ep_2 evt_same_after ep_1 evt_subscribed ep_1]"
	if fmt.Sprint(got) != want {
		t.Errorf("deliveries are %v, want %s", got, want)
	}
	if got := testenv.QueryOne[string](t, env, `select status from webhooks.deliveries where event_id = 'evt_disabled'`); got != "missed" {
		t.Errorf("the event of the disabled endpoint is %s, want missed", got)
	}
}

func TestRun_LostConnectionsLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")
	super := agenttest.ConnectURL(t, env.SuperuserURL)
	const rounds, perRound = 4, 50
	for range rounds {
		env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, $1)`, perRound)
		if _, err := super.Exec(context.Background(), `select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and application_name = 'webhook-agent'`); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != rounds*perRound {
			return fmt.Errorf("%d deliveries succeeded, want %d", n, rounds*perRound)
		}
		return nil
	})
	if got := r.Count(); got != rounds*perRound {
		t.Errorf("%d requests arrived for %d events", got, rounds*perRound)
	}
	a.WaitLog("the stream is back")
}

// retains finds a slot that keeps something.
var retains = regexp.MustCompile(`(?m)^webhook_agent_slot_retained_bytes [1-9]`)

func TestRun_AStandbyTakesOverAndIsReadyMeanwhile(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	first := start(t, agenttest.Config(env))
	first.WaitLog("leading")
	second := start(t, agenttest.Config(env))
	second.WaitLog("standing by")
	testenv.Eventually(t, agenttest.Patience, func() error {
		if _, body := get(t, second.AdminURL()+"/metrics"); !retains.MatchString(body) {
			return errors.New("the agent that stands by does not say what the slot keeps")
		}
		return nil
	})
	if status, body := get(t, second.AdminURL()+"/readyz"); status != http.StatusOK || body != "standing by\n" {
		t.Errorf("/readyz of the standby: %d %q", status, body)
	}
	first.End()
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	began := time.Now()
	agenttest.WaitStatus(t, env, event, endpoint, "succeeded")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the standby took %s to take over", took)
	}
	if status, body := get(t, second.AdminURL()+"/readyz"); status != http.StatusOK || body != "leading\n" {
		t.Errorf("/readyz of the new leader: %d %q", status, body)
	}
	if r.Count() != 1 {
		t.Errorf("%d requests arrived for one event", r.Count())
	}
}

// slotReached reports whether the slot's confirmed position has come to lsn.
func slotReached(t testing.TB, env *testenv.DB, lsn string) error {
	t.Helper()
	reached := testenv.QueryOne[bool](t, env, `select confirmed_flush_lsn >= $2::pg_lsn from pg_replication_slots where slot_name = $1`, env.Slot, lsn)
	if !reached {
		return fmt.Errorf("the slot has not come to %s", lsn)
	}
	return nil
}

func connect(t testing.TB, env *testenv.DB) *pgx.Conn {
	t.Helper()
	return agenttest.ConnectURL(t, env.URL)
}

func get(t testing.TB, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ask(t, request)
}

func ask(t testing.TB, request *http.Request) (status int, body string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestRun_ADroppedSlotIsReplacedAndOnlyWhatItMissedIsSent(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "lead.created")
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")
	unwanted := agenttest.AddEvent(t, env, "venue_1", "payment.received", `{}`)
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`), endpoint, "succeeded")
	a.End()

	// The horizon of this run covers all of the above; the first thing that is recorded stores it.
	a = start(t, agenttest.Config(env))
	a.WaitLog("leading")
	testenv.Eventually(t, agenttest.Patience, func() error {
		agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`), endpoint, "succeeded")
		covered := testenv.QueryOne[bool](t, env, `select webhooks.handed_over(o.xmin, c.horizon) from webhooks.outbox o, webhooks.checkpoint c where o.id = $1`, unwanted)
		if !covered {
			return fmt.Errorf("the horizon does not cover the first events")
		}
		return nil
	})
	env.Exec(t, `update webhooks.endpoints set events = '{*}'`)
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.updated", `{}`), endpoint, "succeeded")
	a.End()
	before := r.Count()

	env.Exec(t, `select pg_drop_replication_slot($1)`, env.Slot)
	missed := agenttest.AddEvent(t, env, "venue_1", "message.received", `{}`)
	a = start(t, agenttest.Config(env))
	agenttest.WaitStatus(t, env, missed, endpoint, "succeeded")
	a.WaitLog("recovered_deliveries=1")
	if got := r.Count() - before; got != 1 {
		t.Errorf("%d requests arrived after the slot was lost, want the one for the event it missed", got)
	}
}

func TestP9_AnIdleOutboxPinsNoWALAndTheAgentStaysReady(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	a := start(t, agenttest.Config(env))
	a.WaitLog("recovery is complete") // which stores horizons
	env.Exec(t, `create table other (text text)`)
	env.Exec(t, `insert into other select repeat('x', 1000) from generate_series(1, 20000)`)
	written := testenv.QueryOne[string](t, env, `select pg_current_wal_lsn()::text`)
	testenv.Eventually(t, agenttest.Patience, func() error { return slotReached(t, env, written) })

	commits := func() int {
		return testenv.QueryOne[int](t, env, `select sequence from webhooks.checkpoint`)
	}
	before, began := commits(), time.Now()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if quiet := time.Since(began); quiet < silence+2*time.Second {
			return fmt.Errorf("quiet for %s", quiet)
		}
		return nil
	})
	if status, body := get(t, a.AdminURL()+"/readyz"); status != http.StatusOK {
		t.Errorf("/readyz says %d %q after a quiet time", status, body)
	}
	// Recording a position writes WAL as well; that must not go round.
	if n := commits() - before; n > 1 {
		t.Errorf("the ledger committed %d times while nothing happened", n)
	}
}
