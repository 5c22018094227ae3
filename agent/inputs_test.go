package agent

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

func TestRun_AnUnusableEndpointShowsWhyAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	good := addEndpoint(t, env, "venue_1", r.URL, "*")
	bad := map[string]string{ // what is wrong, and a word of the reason
		addEndpoint(t, env, "venue_1", "ftp://files.example.com/", "*"):                 "https",
		addEndpoint(t, env, "venue_1", "https://user:pw@h.example.com/", "*"):           "credentials",
		addEndpoint(t, env, "venue_1", "not a url", "*"):                                "",
		addEndpoint(t, env, "venue_1", r.URL, "lead.created", "lead*"):                  "lead*",
		testenv.QueryOne[string](t, env, badSecret, r.URL, "whsec_tooshort"):            "secret",
		testenv.QueryOne[string](t, env, badSecret, r.URL, ""):                          "secret",
		testenv.QueryOne[string](t, env, badEvents, r.URL, testSecret, `{{"a"},{"b"}}`): "",
	}
	start(t, testConfig(env)).waitLog("leading")
	event := addEvent(t, env, "venue_1", "lead.created", `{}`)
	waitStatus(t, env, event, good, "succeeded")
	for id, word := range bad {
		if word == "" {
			continue
		}
		waitStatus(t, env, event, id, "missed, attempts 0, the endpoint cannot be sent to: ")
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
	waitStatus(t, env, event, mended, "succeeded")
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
	r := testenv.StartReceiver(t, testSecret)
	endpoint := addEndpoint(t, env, "venue_1", r.URL, "*")
	cfg := testConfig(env)
	cfg.Delivery.MaxBody = 16 << 20
	start(t, cfg).waitLog("leading")
	big := `{"photo":"` + strings.Repeat("QUJDRA==", 10<<20/8) + `"}`
	for name, data := range map[string]string{
		"an object of 10 MiB": big, "null": "null", "an empty object": "{}", "a number": "1e400", "a text": `"\u0000 <&> \u2028"`,
		"duplicate keys": `{"a":1,"a":2}`, "deep": strings.Repeat("[", 500) + strings.Repeat("]", 500),
	} {
		event := addEvent(t, env, "venue_1", "no.such.type", data)
		waitStatus(t, env, event, endpoint, "succeeded")
		got := r.Received()
		last := got[len(got)-1]
		if last.SignatureErr != nil || !bytes.HasSuffix(last.Body, []byte(`,"data":`+data+`}`)) {
			t.Errorf("%s: %d bytes arrived, signatures: %v", name, len(last.Body), last.SignatureErr)
		}
	}
	// Types, venues and ids are texts of the app's choice.
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('no "plain" ünïcode', '', 'venue_1', '{}'), ('x', 'a"b\c', 'venue_1', '{}')`)
	waitStatus(t, env, "x", endpoint, "succeeded")
	waitStatus(t, env, `no "plain" ünïcode`, endpoint, "failed, attempts 1, ") // it cannot stand in a header
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health`); n != 0 {
		t.Error("the producer's mistake is counted against the endpoint")
	}
}

func TestRun_AnOutboxOfTheAppsOwnIsMapped(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	endpoint := addEndpoint(t, env, "7", r.URL, "order.*")
	env.Exec(t, `create schema app`)
	env.Exec(t, `create table app.events (key uuid primary key default gen_random_uuid(), kind varchar(40), place bigint, body jsonb, at timestamp default now(), more text)`)
	cfg := ownersConfig(env)
	cfg.Outbox.Table = "app.events"
	cfg.Outbox.Publication = "app_events"
	cfg.Outbox.Columns = ColumnsConfig{ID: "key", Type: "kind", Venue: "place", Data: "body", Created: "at"}
	if _, _, err := outbox.Migrate(context.Background(), cfg.outbox()); err != nil {
		t.Fatal(err)
	}
	before := testenv.QueryOne[string](t, env, `insert into app.events (kind, place, body) values ('order.made', 7, '{"b":1, "a":2}') returning key::text`)
	r.SetAnswer("", testenv.Statuses(500, 200))
	a := start(t, cfg)
	waitStatus(t, env, before, endpoint, "succeeded, attempts 2") // swept, and fetched twice from the table
	after := testenv.QueryOne[string](t, env, `insert into app.events (kind, place, body) values ('order.made', 7, '{"b":1, "a":2}') returning key::text`)
	waitStatus(t, env, after, endpoint, "succeeded, attempts 1")
	env.Exec(t, `alter table app.events add column later int default 5`)
	altered := testenv.QueryOne[string](t, env, `insert into app.events (kind, place, body) values ('order.made', 7, null) returning key::text`)
	waitStatus(t, env, altered, endpoint, "succeeded, attempts 1")
	a.end()
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
	r := testenv.StartReceiver(t, testSecret)
	r.SetAnswer("/gone", testenv.Statuses(410))
	r.SetAnswer("/busy", testenv.Script(testenv.Answer{Status: 503, Header: map[string]string{"Retry-After": "2"}}, testenv.Answer{}))
	gone := addEndpoint(t, env, "venue_1", r.URL+"/gone", "*")
	busy := addEndpoint(t, env, "venue_1", r.URL+"/busy", "*")
	start(t, testConfig(env)).waitLog("leading")
	event := addEvent(t, env, "venue_1", "lead.created", `{}`)
	waitStatus(t, env, event, gone, "missed, attempts 1")
	waitStatus(t, env, event, busy, "succeeded, attempts 2")
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
	r := testenv.StartReceiver(t, testSecret)
	r.SetSecret("/changed", fresh)
	r.SetAnswer("/changed", refuseForgeries)
	endpoint := addEndpoint(t, env, "venue_1", r.URL+"/changed", "*")
	start(t, testConfig(env)).waitLog("leading")
	env.Exec(t, `update webhooks.endpoints set previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = $1`, fresh)
	event := addEvent(t, env, "venue_1", "lead.created", `{}`)
	waitStatus(t, env, event, endpoint, "succeeded")
	all := r.Wait(t, 2, patience)
	if err := testenv.VerifyQuintago(all[0].Header.Get("X-Quintago-Signature"), all[0].Body, testSecret); err != nil {
		t.Errorf("at first with the former secret: %v", err)
	}
	if all[1].SignatureErr != nil {
		t.Errorf("with the new secret: %v", all[1].SignatureErr)
	}
	for _, got := range all {
		for _, s := range []string{testSecret, fresh} {
			if err := testenv.VerifyStandard(got.Header, got.Body, s, got.At); err != nil {
				t.Errorf("Standard Webhooks: %v", err)
			}
		}
		if err := testenv.VerifyQuintago(got.Header.Get("X-Quintago-Signature-Previous"), got.Body, testSecret); err != nil {
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
	r := testenv.StartReceiver(t, testSecret)
	foreign := addEndpoint(t, env, "venue_9", r.URL+"/foreign", "*")
	cfg := testConfig(env)
	file := func(path string, events ...string) EndpointConfig {
		return EndpointConfig{Venue: "venue_1", URL: secret.New(r.URL + path), Events: events, Secret: secret.New(testSecret)}
	}
	list := func() string {
		t.Helper()
		return fmt.Sprint(testenv.QueryAll[string](t, env, `select regexp_replace(url, '.*/', '') || ' ' || events::text || ' ' || coalesce(managed_by, 'app')
			from webhooks.endpoints order by 1`))
	}
	cfg.Endpoints = []EndpointConfig{file("/a", "lead.*"), file("/b", "*")}
	a := start(t, cfg)
	a.waitLog("leading")
	if got := list(); got != "[a {lead.*} file b {*} file foreign {*} app]" {
		t.Errorf("endpoints are %s", got)
	}
	id := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints where url like '%/a'`)
	a.end()

	cfg.Endpoints = []EndpointConfig{file("/a", "payment.*"), file("/c", "*")}
	a = start(t, cfg)
	a.waitLog("leading")
	if got := list(); got != "[a {payment.*} file c {*} file foreign {*} app]" {
		t.Errorf("endpoints are %s", got)
	}
	waitStatus(t, env, addEvent(t, env, "venue_1", "payment.received", `{}`), id, "succeeded")
	waitStatus(t, env, addEvent(t, env, "venue_9", "payment.received", `{}`), foreign, "succeeded")
}

func TestRun_NoSecretReachesTheLog(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	r.SetAnswer("", testenv.Script(testenv.Answer{Status: 500, Body: "sentinel-body"}))
	endpoint := addEndpoint(t, env, "venue_1", r.URL+"/sentinel-path?token=sentinel-query", "*")
	cfg := testConfig(env)
	cfg.Delivery.DisableAfter = 4
	cfg.Admin.Token = secret.New("sentinel-token-of-32-characters-at-least")
	a := start(t, cfg)
	a.waitLog("leading")
	waitStatus(t, env, addEvent(t, env, "venue_1", "lead.created", `{"payload":"sentinel-payload"}`), endpoint, "missed")
	a.waitLog("endpoint disabled")
	request, err := http.NewRequest(http.MethodGet, a.adminURL()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+cfg.Admin.Token.Reveal())
	_, metrics := ask(t, request)
	a.end()
	for _, text := range []string{a.log.String(), metrics} {
		for _, leak := range []string{"sentinel", testSecret, testSecret[6:], passwordOf(t, cfg), "venue_1/", r.URL} {
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
	a, b := testenv.StartReceiver(t, testSecret), testenv.StartReceiver(t, testSecret)
	toA, toB := addEndpoint(t, env, "venue_a", a.URL, "*"), addEndpoint(t, env, "venue_b", b.URL, "*")
	env.Exec(t, `create table public.ob (id bigint, type text, venue text, data json, created timestamptz default now(), primary key (venue, id))`)
	cfg := ownersConfig(env)
	cfg.Outbox.Table, cfg.Outbox.Publication = "public.ob", "ob"
	if _, _, err := outbox.Migrate(context.Background(), cfg.outbox()); err != nil {
		t.Fatal(err)
	}
	a.SetAnswer("", testenv.Statuses(500, 200))
	start(t, cfg).waitLog("leading")
	env.Exec(t, `insert into ob values (1, 't.a', 'venue_a', '{"of":"A"}'), (1, 't.a', 'venue_b', '{"of":"B"}')`)
	waitStatus(t, env, "1", toA, "succeeded, attempts 2")
	waitStatus(t, env, "1", toB, "succeeded, attempts 1")
	env.Exec(t, `insert into webhooks.replays (endpoint_id, event_ids, statuses) values ($1, '{1}', '{succeeded}')`, toA)
	testenv.Eventually(t, patience, func() error {
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
	r := testenv.StartReceiver(t, testSecret)
	endpoint := addEndpoint(t, env, "venue_1", r.URL, "*")
	start(t, testConfig(env)).waitLog("leading")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) select string_agg(md5(i::text), ''), 't', 'venue_1', '{}' from generate_series(1, 80) i`)
	event := addEvent(t, env, "venue_1", "lead.created", `{}`)
	waitStatus(t, env, event, endpoint, "succeeded")
	long := testenv.QueryOne[string](t, env, `select event_id from webhooks.deliveries where event_id <> $1`, event)
	waitStatus(t, env, long, endpoint, "failed, attempts 0, the event's id is longer than 512 bytes")
}

// An id with a dot makes ambiguous what Standard Webhooks signs. It is the producer's doing, and no
// endpoint pays for it.
func TestRun_AnIDWithADotFailsVisiblyAndCountsAgainstNobody(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	endpoint := addEndpoint(t, env, "venue_1", r.URL, "*")
	start(t, testConfig(env)).waitLog("leading")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) select 'evt.' || i, 't', 'venue_1', '{}' from generate_series(1, 120) i`)
	event := addEvent(t, env, "venue_1", "lead.created", `{}`)
	waitStatus(t, env, event, endpoint, "succeeded, attempts 1")
	for i := range 120 {
		waitStatus(t, env, fmt.Sprintf("evt.%d", i+1), endpoint, "failed, attempts 1, the event's id has a dot")
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts where class = 'invalid_event_id'`); n != 120 {
		t.Errorf("%d failed attempts have the class", n)
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoints where disabled_at is not null`) +
		testenv.QueryOne[int](t, env, `select count(*) from webhooks.endpoint_health where consecutive_failures > 0`); n > 0 || r.Count() != 1 {
		t.Errorf("the endpoint is disabled or has failures, and received %d requests", r.Count())
	}
}

// An event with more data than delivery.max_body fails at once, by the stream and when it is fetched again, and stops no other.
func TestInputs_AnEventThatIsTooLargeFailsAtOnce(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	endpoint := addEndpoint(t, env, "venue_1", r.URL, "*")
	cfg := testConfig(env)
	cfg.Delivery.MaxBody = 10_000
	start(t, cfg).waitLog("leading")
	fits := func(n int) string { return `"` + strings.Repeat("x", n-2) + `"` }
	large := addEvent(t, env, "venue_1", "lead.created", fits(10_001))
	largest := addEvent(t, env, "venue_1", "lead.created", fits(10_000))
	waitStatus(t, env, largest, endpoint, "succeeded")
	waitStatus(t, env, large, endpoint, "failed")
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
	testenv.Eventually(t, patience, func() error {
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
