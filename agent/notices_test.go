package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// noticesAbout returns the notices about an endpoint that have arrived under a path, in their order,
// such as "failing 50".
func noticesAbout(t *testing.T, r *testenv.Receiver, path, endpointID string) (all []string) {
	t.Helper()
	seen := map[string]bool{}
	for _, got := range r.Received() {
		var body struct {
			Type string `json:"type"`
			Data struct {
				EndpointID          string `json:"endpoint_id"`
				ConsecutiveFailures int    `json:"consecutive_failures"`
			} `json:"data"`
		}
		if err := json.Unmarshal(got.Body, &body); err != nil {
			t.Fatalf("%s: %v", got.Body, err)
		}
		if kind, is := strings.CutPrefix(body.Type, "webhook.endpoint_"); is && got.Path == path && body.Data.EndpointID == endpointID && !seen[got.ID] {
			seen[got.ID] = true
			all = append(all, fmt.Sprintf("%s %d", kind, body.Data.ConsecutiveFailures))
		}
	}
	slices.Sort(all) // attempts are made beside each other
	return all
}

// awaitNotices waits until exactly these notices about an endpoint have arrived at /app.
func awaitNotices(t *testing.T, r *testenv.Receiver, endpointID string, want ...string) {
	t.Helper()
	slices.Sort(want)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := noticesAbout(t, r, "/app", endpointID); !slices.Equal(got, want) {
			return fmt.Errorf("the notices about %s are %q, want %q", endpointID, got, want)
		}
		return nil
	})
}

// slowly is a server that fails after a while. What is announced within one commit is announced as
// one notice, so the parts of a run of failures must lie farther apart.
func slowly(after time.Duration) testenv.Answerer {
	return testenv.Script(testenv.Answer{Status: 500, Delay: after})
}

func addLeads(t *testing.T, env *testenv.DB, n int) {
	t.Helper()
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, $1::int)`, n)
}

func TestNotices_OthersOfTheVenueHearOfAnEndpointThatFailsIsDisabledAndIsWellAgain(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/sick", slowly(20*time.Millisecond))
	sick := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sick?token=very-secret", "*")
	env.Exec(t, `update webhooks.endpoints set description = 'the CRM'`)
	agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/app", "webhook.*")
	agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/leads", "lead.*")
	agenttest.AddEndpoint(t, env, "venue_2", r.URL+"/other", "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.EndpointConcurrency = 1
	a := start(t, cfg)
	a.WaitLog("leading")
	addLeads(t, env, 40)
	want := []string{"failing 50", "failing 70", "failing 90", "disabled 100"}
	awaitNotices(t, r, sick, want...)

	// A restart repeats nothing. Then a person enables it.
	a.End()
	a = start(t, agenttest.Config(env))
	a.WaitLog("leading")
	r.SetAnswer("/sick", testenv.Statuses(200))
	env.Exec(t, `update webhooks.endpoints set disabled_at = null where id = $1`, sick)
	addLeads(t, env, 3)
	want = append(want, "recovered 0")
	awaitNotices(t, r, sick, want...)
	a.End()
	// With another agent, which looks at all of the outbox, nobody gets more.
	env.Exec(t, `select pg_drop_replication_slot($1)`, env.Slot)
	a = start(t, agenttest.Config(env))
	testenv.Eventually(t, agenttest.Patience, func() error {
		if testenv.QueryOne[bool](t, env, `select recovering from webhooks.checkpoint`) {
			return errors.New("the recovery goes on")
		}
		return nil
	})
	a.End()

	for path, want := range map[string][]string{"/app": want, "/sick": nil, "/leads": nil, "/other": nil} {
		slices.Sort(want)
		if got := noticesAbout(t, r, path, sick); !slices.Equal(got, want) {
			t.Errorf("%s got the notices %q, want %q", path, got, want)
		}
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where endpoint_id = $1 and type like 'webhook.%'`, sick); n != 0 {
		t.Errorf("the log has %d deliveries of notices to the endpoint that they are about", n)
	}
	host := agenttest.HostOf(t, r.URL)
	bodies := testenv.QueryAll[string](t, env, `select type || ' ' || regexp_replace(data::text, '"first_failure_at":"20[0-9-]*T[0-9:]*Z"', '"first_failure_at":"T"')
		from webhooks.outbox where type like 'webhook.%' order by created`)
	body := func(kind string, failures int, first, reason, remedy string) string {
		return fmt.Sprintf(`webhook.endpoint_%s {"endpoint_id":"%s","host":"%s","description":"the CRM","consecutive_failures":%d,"disable_after":100,"first_failure_at":%s,"last_error":"the server answered 500",`+
			`"disabled_reason":%s,"what_to_do":"%s"}`, kind, sick, host, failures, first, reason, remedy)
	}
	failing := "See why its server does not answer 2xx. After 100 failed attempts in a row the endpoint is disabled."
	wantBodies := []string{
		body("failing", 50, `"T"`, "null", failing), body("failing", 70, `"T"`, "null", failing), body("failing", 90, `"T"`, "null", failing),
		body("disabled", 100, `"T"`, `"failures"`, "Repair its server and enable the endpoint again. Its events are kept as missed meanwhile, and can be replayed."),
		body("recovered", 0, "null", "null", "Nothing. To send what it has missed, replay its missed and failed events."),
	}
	wantBodies[4] = strings.Replace(wantBodies[4], `"last_error":"the server answered 500"`, `"last_error":null`, 1)
	if diff := cmp.Diff(wantBodies, bodies); diff != "" {
		t.Errorf("the notices in the outbox (-want +got):\n%s", diff)
	}
}

func TestNotices_APersonsDisablingIsNotAnnouncedAndASuccessIs(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	sick := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sick", "lead.*")
	agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/app", "*")
	r.SetAnswer("/sick", testenv.Statuses(500, append(slices.Repeat([]int{500}, 11), 200)...))
	cfg := agenttest.Config(env)
	cfg.Delivery.DisableAfter, cfg.Delivery.EndpointConcurrency = 20, 1
	start(t, cfg).WaitLog("leading")
	addLeads(t, env, 8)
	awaitNotices(t, r, sick, "failing 10", "recovered 0")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = $1`, sick)
	env.Exec(t, `update webhooks.endpoints set disabled_at = null where id = $1`, sick)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, sick, "succeeded")
	if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.outbox where type like 'webhook.%'`); got != 2 {
		t.Errorf("the outbox has %d notices, want 2", got)
	}
}

// Fifty endpoints of one venue fail and ask for everything, so each notice fails 49 times.
func TestNotices_OfEndpointsThatAllFailDoNotGrow(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("", testenv.Statuses(500))
	const endpoints = 50
	for i := range endpoints {
		agenttest.AddEndpoint(t, env, "venue_1", fmt.Sprintf("%s/%d", r.URL, i), "*")
	}
	start(t, agenttest.Config(env)).WaitLog("leading")
	addLeads(t, env, 10)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoints where disabled_at is null`); n > 0 {
			return fmt.Errorf("%d endpoints are enabled", n)
		}
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'pending'`); n > 0 {
			return fmt.Errorf("%d deliveries are pending", n)
		}
		return nil
	})
	for _, line := range testenv.QueryAll[string](t, env, `select data ->> 'endpoint_id' || ' ' || string_agg(substr(type, 18) || (data ->> 'consecutive_failures'), ' ' order by id)
		from webhooks.outbox where type like 'webhook.%' group by data ->> 'endpoint_id'`) {
		if _, got, _ := strings.Cut(line, " "); strings.Count(got, "disabled100") != 1 || strings.Count(got, "failing") > 3 || len(strings.Fields(got)) > 4 {
			t.Errorf("announced of %s", line)
		}
	}
	if got := testenv.QueryOne[int](t, env, `select count(distinct data ->> 'endpoint_id') from webhooks.outbox where type = 'webhook.endpoint_disabled'`); got != endpoints {
		t.Errorf("%d endpoints are announced as disabled, want %d", got, endpoints)
	}
	if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health where consecutive_failures <> 100`); got != 0 {
		t.Errorf("%d endpoints were not disabled at their hundredth failure", got)
	}
}

func TestNotices_AreSwitchedOff(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/sick", testenv.Statuses(500))
	sick := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sick", "*")
	cfg := agenttest.Config(env)
	cfg.Notices.Enabled = false
	a := start(t, cfg)
	a.WaitLog("leading")
	addLeads(t, env, 40)
	awaitDisabled(t, env, sick)
	if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.outbox where type like 'webhook.%'`); got != 0 {
		t.Errorf("the outbox has %d notices", got)
	}
}

func awaitDisabled(t *testing.T, env *testenv.DB, endpointID string) {
	t.Helper()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if !testenv.QueryOne[bool](t, env, `select disabled_at is not null from webhooks.endpoints where id = $1`, endpointID) {
			return errors.New("the endpoint is enabled")
		}
		return nil
	})
}

func TestNotices_AnOutboxWithoutTheRightToInsertGetsNoneAndStopsNothing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/sick", testenv.Statuses(500))
	sick := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sick", "lead.*")
	app := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/app", "*")
	env.Exec(t, `revoke insert on webhooks.outbox from webhook_agent`)
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")
	a.WaitLog(`GRANT INSERT ON`)
	addLeads(t, env, 40)
	awaitDisabled(t, env, sick)
	a.WaitLog("notices about endpoints cannot be written into the outbox")
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, app, "succeeded")
	agenttest.WaitStatus(t, env, event, sick, "missed")
}

func TestNotices_AMappedOutboxMakesTheirIDs(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/sick", slowly(20*time.Millisecond))
	sick := agenttest.AddEndpoint(t, env, "7", r.URL+"/sick", "*")
	agenttest.AddEndpoint(t, env, "7", r.URL+"/app", "webhook.*")
	env.Exec(t, `create table public.events (key bigserial primary key, kind varchar(40), place bigint, body jsonb, at timestamp default now())`)
	cfg := agenttest.OwnersConfig(env)
	cfg.Delivery.EndpointConcurrency = 1
	cfg.Outbox.Table, cfg.Outbox.Publication = "public.events", "app_events"
	cfg.Outbox.Columns = config.Columns{ID: "key", Type: "kind", Venue: "place", Data: "body", Created: "at"}
	if _, _, err := outbox.Migrate(t.Context(), cfg.OutboxConfig()); err != nil {
		t.Fatal(err)
	}
	start(t, cfg).WaitLog("leading")
	env.Exec(t, `insert into public.events (kind, place, body) select 'lead.created', 7, '{}' from generate_series(1, 40)`)
	awaitNotices(t, r, sick, "failing 50", "failing 70", "failing 90", "disabled 100")
	if got := noticesAbout(t, r, "/sick", sick); got != nil {
		t.Errorf("the endpoint got notices about itself: %q", got)
	}
}

// The agent dies when a notice is written and not committed. Afterwards there is one.
func TestNotices_AKillBeforeTheCommitLeavesOne(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"in-notice", "in-notice:3", "after-ledger-commit:8"} { // the third notice is that it is disabled
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			r := testenv.StartReceiver(t, agenttest.Secret)
			r.SetAnswer("/sick", slowly(300*time.Millisecond))
			sick := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sick", "lead.*")
			agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/app", "webhook.*")
			l := launch{binary: crashingBinary, delivery: "retries = [\"1s\"]\ndisable_after = 8\nendpoint_concurrency = 1"}
			dying := l
			dying.variables = []string{crashpoint.Variable + "=" + at}
			p := dying.start(t, env)
			p.awaitLeading(t)
			addLeads(t, env, 10)
			testenv.Eventually(t, agenttest.Patience, func() error {
				if !p.hasEnded() {
					return errors.New("the agent has not died")
				}
				return nil
			})
			p = l.start(t, env)
			p.awaitLeading(t)
			awaitDisabled(t, env, sick)
			awaitNotices(t, r, sick, "failing 5", "failing 6", "disabled 8")
			p.terminate(t)
			if got := testenv.QueryOne[int](t, env, `select count(*) from webhooks.outbox where type like 'webhook.%'`); got != 3 {
				t.Errorf("the outbox has %d notices, want 3", got)
			}
		})
	}
}
