package agent

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestRun_AnUnusableEndpointShowsWhyAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	good := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	bad := map[string]string{ // what is wrong, and a word of the reason
		agenttest.AddEndpoint(t, env, "venue_1", "ftp://files.example.com/", "*"):             "https",
		agenttest.AddEndpoint(t, env, "venue_1", "https://user:pw@h.example.com/", "*"):       "credentials",
		agenttest.AddEndpoint(t, env, "venue_1", "not a url", "*"):                            "",
		agenttest.AddEndpoint(t, env, "venue_1", r.URL, "lead.created", "lead*"):              "lead*",
		testenv.QueryOne[string](t, env, badSecret, r.URL, "whsec_tooshort"):                  "secret",
		testenv.QueryOne[string](t, env, badSecret, r.URL, "\ufeff"+agenttest.Secret):         "character 1",
		testenv.QueryOne[string](t, env, badSecret, r.URL, "Bearer "+agenttest.Secret):        "from whsec_ on",
		testenv.QueryOne[string](t, env, badSecret, r.URL, ""):                                "secret",
		testenv.QueryOne[string](t, env, badEvents, r.URL, agenttest.Secret, `{{"a"},{"b"}}`): "",
	}
	start(t, agenttest.Config(env)).WaitLog("leading")
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, good, "succeeded")
	for id, word := range bad {
		if word == "" {
			continue
		}
		agenttest.WaitStatus(t, env, event, id, "missed, attempts 0, the endpoint cannot be sent to: ")
		why := testenv.QueryOne[string](t, env, `select unusable from webhooks.endpoint_health where endpoint_id = $1`, id)
		if !strings.Contains(why, word) {
			t.Errorf("unusable is %q, want it to say %q", why, word)
		}
		if strings.Contains(why, "pw") || strings.Contains(why, "tooshort") {
			t.Errorf("the reason holds a secret: %q", why)
		}
	}

	// Mended by plain SQL, it gets what it missed by a replay.
	var mended string
	for id, word := range bad {
		if word == "https" {
			mended = id
		}
	}
	env.Exec(t, `update webhooks.endpoints set url = $2 where id = $1`, mended, r.URL+"/mended")
	env.Exec(t, `insert into webhooks.replays (endpoint_id, event_ids) values ($1, array[$2])`, mended, event)
	agenttest.WaitStatus(t, env, event, mended, "succeeded")
	if left := testenv.QueryOne[bool](t, env, `select unusable is null from webhooks.endpoint_health where endpoint_id = $1`, mended); !left {
		t.Error("the mended endpoint still shows a reason")
	}
}

const (
	badSecret = `insert into webhooks.endpoints (venue, url, events, secret) values ('venue_1', $1, '{*}', $2) returning id`
	badEvents = `insert into webhooks.endpoints (venue, url, secret, events) values ('venue_1', $1, $2, $3::text::text[]) returning id`
)

func TestRun_OddEventsArriveAsTheyAre(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.MaxBody = 16 << 20
	start(t, cfg).WaitLog("leading")
	big := `{"photo":"` + strings.Repeat("QUJDRA==", 10<<20/8) + `"}`
	for name, data := range map[string]string{
		"an object of 10 MiB": big, "null": "null", "an empty object": "{}", "a number": "1e400", "a text": `"\u0000 <&> \u2028"`,
		"duplicate keys": `{"a":1,"a":2}`, "deep": strings.Repeat("[", 500) + strings.Repeat("]", 500),
	} {
		event := agenttest.AddEvent(t, env, "venue_1", "no.such.type", data)
		agenttest.WaitStatus(t, env, event, endpoint, "succeeded")
		got := r.Received()
		last := got[len(got)-1]
		if last.SignatureErr != nil || !bytes.HasSuffix(last.Body, []byte(`,"data":`+data+`}`)) {
			t.Errorf("%s: %d bytes arrived, signatures: %v", name, len(last.Body), last.SignatureErr)
		}
	}
	// Types, venues and ids are texts of the app's choice.
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('no "plain" ünïcode', '', 'venue_1', '{}'), ('x', 'a"b\c', 'venue_1', '{}')`)
	agenttest.WaitStatus(t, env, "x", endpoint, "succeeded")
	agenttest.WaitStatus(t, env, `no "plain" ünïcode`, endpoint, "failed, attempts 1, ") // it cannot stand in a header
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health`); n != 0 {
		t.Error("the producer's mistake is counted against the endpoint")
	}
}

func TestRun_AnOutboxOfTheAppsOwnIsMapped(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "7", r.URL, "order.*")
	env.Exec(t, `create schema app`)
	env.Exec(t, `create table app.events (key uuid primary key default gen_random_uuid(), kind varchar(40), place bigint, body jsonb, at timestamp default now(), more text)`)
	cfg := agenttest.OwnersConfig(env)
	cfg.Outbox.Table = "app.events"
	cfg.Outbox.Publication = "app_events"
	cfg.Outbox.Columns = config.Columns{ID: "key", Type: "kind", Venue: "place", Data: "body", Created: "at"}
	if _, _, err := outbox.Migrate(context.Background(), cfg.OutboxConfig()); err != nil {
		t.Fatal(err)
	}
	before := testenv.QueryOne[string](t, env, `insert into app.events (kind, place, body) values ('order.made', 7, '{"b":1, "a":2}') returning key::text`)
	r.SetAnswer("", testenv.Statuses(500, 200))
	a := start(t, cfg)
	agenttest.WaitStatus(t, env, before, endpoint, "succeeded, attempts 2") // swept, and fetched twice from the table
	after := testenv.QueryOne[string](t, env, `insert into app.events (kind, place, body) values ('order.made', 7, '{"b":1, "a":2}') returning key::text`)
	agenttest.WaitStatus(t, env, after, endpoint, "succeeded, attempts 1")
	env.Exec(t, `alter table app.events add column later int default 5`)
	altered := testenv.QueryOne[string](t, env, `insert into app.events (kind, place, body) values ('order.made', 7, null) returning key::text`)
	agenttest.WaitStatus(t, env, altered, endpoint, "succeeded, attempts 1")
	a.End()
	for _, got := range r.Received() {
		data := `{"a": 2, "b": 1}`
		if got.ID == altered {
			data = `null`
		}
		if !bytes.HasSuffix(got.Body, []byte(`,"venue":"7","data":`+data+`}`)) {
			t.Errorf("arrived: %s", got.Body)
		}
	}
}

func TestRun_410DisablesAndRetryAfterLengthensTheWait(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/gone", testenv.Statuses(410))
	r.SetAnswer("/busy", testenv.Script(testenv.Answer{Status: 503, Header: map[string]string{"Retry-After": "2"}}, testenv.Answer{}))
	gone := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/gone", "*")
	busy := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/busy", "*")
	start(t, agenttest.Config(env)).WaitLog("leading")
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, gone, "missed, attempts 1")
	agenttest.WaitStatus(t, env, event, busy, "succeeded, attempts 2")
	if reason := testenv.QueryOne[string](t, env, `select disabled_reason from webhooks.endpoints where id = $1`, gone); reason != "gone" {
		t.Errorf("disabled_reason is %q", reason)
	}
	var at []time.Time
	for _, got := range r.Received() {
		if got.Path == "/busy" {
			at = append(at, got.At)
		}
	}
	// The wait is the database's, whose clock is known to within a few milliseconds.
	if wait := at[1].Sub(at[0]); wait < 2*time.Second-20*time.Millisecond {
		t.Errorf("the second attempt came after %s, the server asked for 2s", wait)
	}
}

func TestRun_BothSecretsSignWhileOneIsRotated(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	const fresh = "the customer's new secret"
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetSecret("/changed", fresh)
	r.SetAnswer("/changed", agenttest.RefuseForgeries)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/changed", "*")
	start(t, agenttest.Config(env)).WaitLog("leading")
	env.Exec(t, `update webhooks.endpoints set previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = $1`, fresh)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, endpoint, "succeeded")
	all := r.Wait(t, 2, agenttest.Patience)
	if err := testenv.VerifyQuintago(all[0].Header.Get("X-Quintago-Signature"), all[0].Body, agenttest.Secret); err != nil {
		t.Errorf("at first with the former secret: %v", err)
	}
	if all[1].SignatureErr != nil {
		t.Errorf("with the new secret: %v", all[1].SignatureErr)
	}
	for _, got := range all {
		for _, s := range []string{agenttest.Secret, fresh} {
			if err := testenv.VerifyStandard(got.Header, got.Body, s, got.At); err != nil {
				t.Errorf("Standard Webhooks: %v", err)
			}
		}
		if err := testenv.VerifyQuintago(got.Header.Get("X-Quintago-Signature-Previous"), got.Body, agenttest.Secret); err != nil {
			t.Errorf("with the former secret: %v", err)
		}
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts`); n != 0 {
		t.Errorf("%d failed attempts", n)
	}
}

func TestRun_EndpointsOfTheFileAreKeptInStepWithIt(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	foreign := agenttest.AddEndpoint(t, env, "venue_9", r.URL+"/foreign", "*")
	cfg := agenttest.Config(env)
	file := func(path string, events ...string) config.Endpoint {
		return config.Endpoint{Venue: "venue_1", URL: secret.New(r.URL + path), Events: events, Secret: secret.New(agenttest.Secret)}
	}
	list := func() string {
		t.Helper()
		return fmt.Sprint(testenv.QueryAll[string](t, env, `select regexp_replace(url, '.*/', '') || ' ' || events::text || ' ' || coalesce(managed_by, 'app')
			from webhooks.endpoints order by 1`))
	}
	cfg.Endpoints = []config.Endpoint{file("/a", "lead.*"), file("/b", "*")}
	a := start(t, cfg)
	a.WaitLog("leading")
	if got := list(); got != "[a {lead.*} file b {*} file foreign {*} app]" {
		t.Errorf("endpoints are %s", got)
	}
	id := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints where url like '%/a'`)
	a.End()

	cfg.Endpoints = []config.Endpoint{file("/a", "payment.*"), file("/c", "*")}
	a = start(t, cfg)
	a.WaitLog("leading")
	if got := list(); got != "[a {payment.*} file c {*} file foreign {*} app]" {
		t.Errorf("endpoints are %s", got)
	}
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "payment.received", `{}`), id, "succeeded")
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_9", "payment.received", `{}`), foreign, "succeeded")
}

func TestRun_NoSecretReachesTheLog(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("", testenv.Script(testenv.Answer{Status: 500, Body: "sentinel-body"}))
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sentinel-path?token=sentinel-query", "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.DisableAfter = 4
	cfg.Admin.Token = secret.New("sentinel-token-of-32-characters-at-least")
	a := start(t, cfg)
	a.WaitLog("leading")
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"payload":"sentinel-payload"}`), endpoint, "missed")
	a.WaitLog("endpoint disabled")
	request, err := http.NewRequest(http.MethodGet, a.AdminURL()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+cfg.Admin.Token.Reveal())
	_, metrics := ask(t, request)
	a.End()
	for _, text := range []string{a.Log.String(), metrics} {
		for _, leak := range []string{"sentinel", agenttest.Secret, agenttest.Secret[6:], passwordOf(t, cfg), "venue_1/", r.URL} {
			if strings.Contains(text, leak) {
				t.Errorf("%q stands in the log or the metrics:\n%s", leak, text)
			}
		}
	}
	if !strings.Contains(metrics, `webhook_agent_attempts_total{class="http_status",outcome="failed"} 4`) {
		t.Errorf("the metrics do not count four failed attempts:\n%s", metrics)
	}
}

func TestP5_ARetryNeverCarriesAnotherVenuesEventWithTheSameID(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	a, b := testenv.StartReceiver(t, agenttest.Secret), testenv.StartReceiver(t, agenttest.Secret)
	toA, toB := agenttest.AddEndpoint(t, env, "venue_a", a.URL, "*"), agenttest.AddEndpoint(t, env, "venue_b", b.URL, "*")
	env.Exec(t, `create table public.ob (id bigint, type text, venue text, data json, created timestamptz default now(), primary key (venue, id))`)
	cfg := agenttest.OwnersConfig(env)
	cfg.Outbox.Table, cfg.Outbox.Publication = "public.ob", "ob"
	if _, _, err := outbox.Migrate(context.Background(), cfg.OutboxConfig()); err != nil {
		t.Fatal(err)
	}
	a.SetAnswer("", testenv.Statuses(500, 200))
	start(t, cfg).WaitLog("leading")
	env.Exec(t, `insert into ob values (1, 't.a', 'venue_a', '{"of":"A"}'), (1, 't.a', 'venue_b', '{"of":"B"}')`)
	agenttest.WaitStatus(t, env, "1", toA, "succeeded, attempts 2")
	agenttest.WaitStatus(t, env, "1", toB, "succeeded, attempts 1")
	env.Exec(t, `insert into webhooks.replays (endpoint_id, event_ids, statuses) values ($1, '{1}', '{succeeded}')`, toA)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := len(a.Received()); n < 3 || testenv.QueryOne[string](t, env, `select state from webhooks.replays`) != "done" {
			return fmt.Errorf("venue_a's receiver got %d requests, and the replay is not done", n)
		}
		return nil
	})
	for _, got := range a.Received() {
		if bytes.Contains(got.Body, []byte("venue_b")) || bytes.Contains(got.Body, []byte(`"B"`)) {
			t.Errorf("venue_a's receiver got %s", got.Body)
		}
	}
}

func TestRun_ALongIDFailsVisiblyAndStopsNoOther(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	start(t, agenttest.Config(env)).WaitLog("leading")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) select string_agg(md5(i::text), ''), 't', 'venue_1', '{}' from generate_series(1, 80) i`)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, endpoint, "succeeded")
	long := testenv.QueryOne[string](t, env, `select event_id from webhooks.deliveries where event_id <> $1`, event)
	agenttest.WaitStatus(t, env, long, endpoint, "failed, attempts 0, the event's id is longer than 512 bytes")
}

// An id with a dot makes ambiguous what Standard Webhooks signs. It is the producer's doing, and no
// endpoint pays for it.
func TestRun_AnIDWithADotFailsVisiblyAndCountsAgainstNobody(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	start(t, agenttest.Config(env)).WaitLog("leading")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) select 'evt.' || i, 't', 'venue_1', '{}' from generate_series(1, 120) i`)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, endpoint, "succeeded, attempts 1")
	for i := range 120 {
		agenttest.WaitStatus(t, env, fmt.Sprintf("evt.%d", i+1), endpoint, "failed, attempts 1, the event's id has a dot")
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts where class = 'invalid_event_id'`); n != 120 {
		t.Errorf("%d failed attempts have the class", n)
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoints where disabled_at is not null`) +
		testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health where consecutive_failures > 0`); n > 0 || r.Count() != 1 {
		t.Errorf("the endpoint is disabled or has failures, and received %d requests", r.Count())
	}
}

// An event with more data than delivery.max_body fails at once, by the stream and when it is
// fetched again, and stops no other.
func TestInputs_AnEventThatIsTooLargeFailsAtOnce(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	cfg := agenttest.Config(env)
	cfg.Delivery.MaxBody = 10_000
	start(t, cfg).WaitLog("leading")
	fits := func(n int) string { return `"` + strings.Repeat("x", n-2) + `"` }
	large := agenttest.AddEvent(t, env, "venue_1", "lead.created", fits(10_001))
	largest := agenttest.AddEvent(t, env, "venue_1", "lead.created", fits(10_000))
	agenttest.WaitStatus(t, env, largest, endpoint, "succeeded")
	agenttest.WaitStatus(t, env, large, endpoint, "failed")
	wantWhy := func() {
		t.Helper()
		why := testenv.QueryOne[string](t, env, `select last_error from webhooks.deliveries where event_id = $1`, large)
		if !strings.Contains(why, "10001 bytes") || !strings.Contains(why, "delivery.max_body allows 10000") {
			t.Errorf("the event failed: %s", why)
		}
	}
	wantWhy()
	env.Exec(t, `update webhooks.deliveries set last_error = null where event_id = $1`, large)
	env.Exec(t, `insert into webhooks.replays (endpoint_id, event_ids) values ($1, array[$2])`, endpoint, large)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if state := testenv.QueryOne[string](t, env, `select state || ' ' || coalesce((select last_error from webhooks.deliveries where event_id = $1), '') from webhooks.replays`, large); !strings.HasPrefix(state, "failed the") {
			return fmt.Errorf("the replay is %s", state)
		}
		return nil
	})
	wantWhy()
	if n := r.Count(); n != 1 {
		t.Errorf("%d requests", n)
	}
}
