package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const newHook = `{"url": "https://example.com/hook?key=sentinel-url", "events": ["lead.*"], "description": "the mailing list"}`

func TestEndpoints_FromTheFirstToTheLastTask(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.token("venue_1", access.ScopeManage)

	made := f.want(http.StatusCreated, token, "POST", "/api/v1/endpoints", newHook)
	id, secret := made.text(t, "id"), made.text(t, "secret")
	if !strings.HasPrefix(secret, "whsec_") || made.text(t, "venue") != "venue_1" || made.header.Get("Location") != "/api/v1/endpoints/"+id {
		t.Errorf("it made %s at %s", made.body, made.header.Get("Location"))
	}
	path := "/api/v1/endpoints/" + id
	shown := f.want(http.StatusOK, token, "GET", path, "")
	if shown.header.Get("ETag") != made.header.Get("ETag") || shown.header.Get("ETag") == "" {
		t.Errorf("the ETags are %q and %q", made.header.Get("ETag"), shown.header.Get("ETag"))
	}
	if shown.text(t, "url") != "https://example.com/hook?key=sentinel-url" {
		t.Errorf("the venue sees the URL %s", shown.text(t, "url"))
	}

	list := f.want(http.StatusOK, token, "GET", "/api/v1/endpoints", "")
	if list.text(t, "data", 0, "id") != id || list.value(t, "next") != nil {
		t.Errorf("the list is %s", list.body)
	}
	for _, r := range []reply{shown, list, f.want(http.StatusOK, operatorToken, "GET", path, "")} {
		if strings.Contains(r.body, secret) || strings.Contains(r.body, strings.TrimPrefix(secret, "whsec_")) {
			t.Errorf("an answer has the secret: %s", r.body)
		}
	}
	if operator := f.want(http.StatusOK, operatorToken, "GET", "/api/v1/endpoints?venue=venue_1", ""); strings.Contains(operator.body, "sentinel-url") {
		t.Errorf("the operator sees what may be a credential in the URL: %s", operator.body)
	}

	changed := f.want(http.StatusOK, token, "PATCH", path, `{"events": ["payment.received"], "description": ""}`, "If-Match", shown.header.Get("ETag"))
	if changed.header.Get("ETag") == shown.header.Get("ETag") || changed.text(t, "events", 0) != "payment.received" {
		t.Errorf("the change gives %s", changed.body)
	}
	f.want(http.StatusPreconditionFailed, token, "PATCH", path, `{"events": ["*"]}`, "If-Match", shown.header.Get("ETag"))
	f.want(http.StatusPreconditionFailed, token, "DELETE", path, "", "If-Match", `"1"`)
	f.want(http.StatusPreconditionFailed, token, "POST", path+"/rotate-secret", "", "If-Match", "garbage")

	rotated := f.want(http.StatusOK, token, "POST", path+"/rotate-secret", `{"overlap": "1h"}`)
	if rotated.text(t, "secret") == secret || rotated.value(t, "changed") != true || rotated.value(t, "previous_secret_until") == nil {
		t.Errorf("the rotation gives %s", rotated.body)
	}
	if again := f.want(http.StatusOK, token, "POST", path+"/rotate-secret", ""); again.value(t, "changed") != true {
		t.Errorf("a rotation without a body gives %s", again.body)
	}
	if off := f.want(http.StatusOK, token, "POST", path+"/disable", ""); off.text(t, "state") != "disabled" || off.text(t, "disabled_reason") != "manual" {
		t.Errorf("disabling gives %s", off.body)
	}
	if on := f.want(http.StatusOK, token, "POST", path+"/enable", ""); on.text(t, "state") != "enabled" {
		t.Errorf("enabling gives %s", on.body)
	}
	f.want(http.StatusNoContent, token, "DELETE", path, "")
	f.want(http.StatusNotFound, token, "GET", path, "")
	f.want(http.StatusNotFound, token, "DELETE", path, "")
	for _, leak := range []string{secret, rotated.text(t, "secret"), "sentinel-url"} {
		if strings.Contains(f.log.String(), leak) {
			t.Errorf("the log has %q", leak)
		}
	}
	if !strings.Contains(f.log.String(), "operation=rotate-secret by=venue venue=venue_1") || !strings.Contains(f.log.String(), "id="+id) {
		t.Errorf("the log does not say who changed what: %s", f.log.String())
	}
}

func TestEndpoints_ARepeatedRequestMakesOne(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.token("venue_1", access.ScopeManage)
	first := f.want(http.StatusCreated, token, "POST", "/api/v1/endpoints", newHook, "Idempotency-Key", "k1")
	again := f.want(http.StatusOK, token, "POST", "/api/v1/endpoints", newHook, "Idempotency-Key", "k1")
	if again.text(t, "id") != first.text(t, "id") || again.value(t, "secret") != nil {
		t.Errorf("the repeated request gives %s", again.body)
	}
	f.want(http.StatusUnprocessableEntity, token, "POST", "/api/v1/endpoints", strings.Replace(newHook, "lead.*", "*", 1), "Idempotency-Key", "k1")
	other := f.want(http.StatusCreated, f.token("venue_2", access.ScopeManage), "POST", "/api/v1/endpoints", newHook, "Idempotency-Key", "k1")
	if other.text(t, "id") == first.text(t, "id") {
		t.Error("another venue's key gives the endpoint of the first")
	}
}

func TestEndpoints_WhoMayNot(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	manage, read := f.token("venue_1", access.ScopeManage), f.token("venue_1", access.ScopeRead)
	id := f.want(http.StatusCreated, manage, "POST", "/api/v1/endpoints", newHook).text(t, "id")
	f.want(http.StatusOK, read, "GET", "/api/v1/endpoints/"+id, "")
	f.want(http.StatusForbidden, read, "POST", "/api/v1/endpoints", newHook)
	f.want(http.StatusForbidden, read, "DELETE", "/api/v1/endpoints/"+id, "")
	f.want(http.StatusForbidden, manage, "GET", "/api/v1/overview", "")
	f.want(http.StatusOK, operatorToken, "GET", "/api/v1/overview", "")
	if strings.Contains(f.log.String(), "show-overview") {
		t.Errorf("a look stands in the log as a change: %s", f.log.String())
	}
	f.want(http.StatusUnauthorized, "", "GET", "/api/v1/endpoints", "")
	f.want(http.StatusUnauthorized, "", "GET", "/api/v1/endpoints?token="+operatorToken, "", "Cookie", "token="+operatorToken)
	// The view of a venue makes nothing for another.
	f.want(http.StatusUnprocessableEntity, manage, "POST", "/api/v1/endpoints", strings.Replace(newHook, "{", `{"venue": "venue_2", `, 1))
	f.want(http.StatusUnprocessableEntity, operatorToken, "POST", "/api/v1/endpoints", newHook) // for whom?
	f.env.Exec(t, `update webhooks.endpoints set managed_by = 'file' where id = $1`, id)
	for _, c := range [][2]string{{"PATCH", ""}, {"DELETE", ""}, {"POST", "/rotate-secret"}} {
		body := ""
		if c[0] == "PATCH" {
			body = `{"events": ["*"]}`
		}
		f.want(http.StatusConflict, manage, c[0], "/api/v1/endpoints/"+id+c[1], body)
	}
}

func TestEvents_LargeDataAreNotShown(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "small")
	f.fillVenue("venue_1", betaIDs, strings.Repeat("x", 500))
	f.env.Exec(t, `update webhooks.outbox set data = json_build_object('text', repeat('y', $1::int)) where id = $2`, outbox.MaxShownData, betaIDs.event)
	token := f.token("venue_1", access.ScopeRead)
	small := f.want(http.StatusOK, token, "GET", "/api/v1/events/"+alphaIDs.event, "")
	if small.text(t, "data", 0, "data", "text") != "small" {
		t.Errorf("a small event is %s", small.body)
	}
	large := f.want(http.StatusOK, token, "GET", "/api/v1/events/"+betaIDs.event, "")
	if bytes, _ := large.value(t, "data", 0, "data_bytes").(float64); large.value(t, "data", 0, "data") != nil || bytes <= outbox.MaxShownData {
		t.Errorf("a large event has %d bytes in its answer, and %v by its field", len(large.body), bytes)
	}
	for ids, shown := range map[ids]bool{alphaIDs: true, betaIDs: false} {
		r := f.want(http.StatusOK, token, "GET", "/api/v1/deliveries/"+ids.event+"/"+ids.endpoint, "")
		if strings.Contains(r.body, `"request":`) != shown {
			t.Errorf("%s: the request is shown: %t, want %t", ids.event, !shown, shown)
		}
	}
}

// TestTest_WaitsForASlowServer has a request without a body, whose connection net/http reads meanwhile.
func TestTest_WaitsForASlowServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(bodyTime + time.Second):
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(receiver.Close)
	f.env.Exec(t, "insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_slow', 'venue_1', $1, '{*}', $2)", receiver.URL, agenttest.Secret)
	r := f.want(http.StatusOK, f.token("venue_1", access.ScopeManage), "POST", "/api/v1/endpoints/ep_slow/test", "")
	if code, _ := r.value(t, "code").(float64); code != http.StatusOK {
		t.Errorf("the sample: %s", r.body)
	}
}

// TestEndpoints_ShowABoundedNumberOfBytes has rows that were written by SQL, which the API would refuse.
func TestEndpoints_ShowABoundedNumberOfBytes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.token("venue_1", access.ScopeManage)
	long := strings.Repeat("ä", 199) + "ab"
	for _, events := range []string{`["` + long + `"]`, `["lead.*", "` + strings.Repeat("a", 100_000) + `"]`} {
		r := f.want(http.StatusUnprocessableEntity, token, "POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": `+events+`}`)
		if strings.Contains(r.body, "aaaa") || strings.Contains(r.body, "ää") {
			t.Errorf("the answer quotes what was sent: %s", r.body)
		}
	}
	id := f.want(http.StatusCreated, token, "POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": ["`+long[:len(long)-1]+`"]}`).text(t, "id")
	f.want(http.StatusUnprocessableEntity, token, "PATCH", "/api/v1/endpoints/"+id, `{"events": ["`+long+`"]}`)

	f.env.Exec(t, `update webhooks.endpoints set events = array[repeat('x', 500)]`)
	f.want(http.StatusOK, token, "PATCH", "/api/v1/endpoints/"+id, `{"description": "it stays usable"}`)
	if state := f.want(http.StatusOK, token, "GET", "/api/v1/endpoints/"+id, "").text(t, "state"); state != "enabled" {
		t.Errorf("an endpoint with a long pattern is %s", state)
	}
	f.env.Exec(t, `insert into webhooks.endpoints (venue, url, events, secret)
		select 'venue_1', 'https://example.com/', array[repeat('x', 300000)], $1 from generate_series(1, 9)`, agenttest.Secret)
	seen, pages, cursor := 0, 0, ""
	for {
		r := f.want(http.StatusOK, token, "GET", "/api/v1/endpoints?limit=200&cursor="+cursor, "")
		if len(r.body) > maxPage+100_000 {
			t.Errorf("a page has %d bytes", len(r.body))
		}
		rows, _ := r.value(t, "data").([]any)
		seen, pages = seen+len(rows), pages+1
		next, more := r.value(t, "next").(string)
		if !more {
			break
		}
		cursor = next
	}
	if seen != 10 || pages < 3 {
		t.Errorf("%d pages have %d endpoints, want 10 on several", pages, seen)
	}
}

func TestReplays_AnEmptyListIsNotEverything(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "text")
	token := f.token("venue_1", access.ScopeManage)
	for _, body := range []string{
		`{"endpoint_id": "ep_A1", "event_ids": []}`, `{"endpoint_id": "ep_A1", "statuses": []}`,
	} {
		f.want(http.StatusUnprocessableEntity, token, "POST", "/api/v1/replays", body)
		f.want(http.StatusUnprocessableEntity, token, "POST", "/api/v1/replays/plan", body)
	}
	f.want(http.StatusUnprocessableEntity, token, "POST", "/api/v1/endpoints/ep_A1/enable", `{"replay": {"statuses": []}}`)
	if n := testenv.QueryOne[int64](t, f.env, `select count(*) from webhooks.replays where id <> 'rep_A1'`); n != 0 {
		t.Errorf("%d replays began", n)
	}
}

func TestReplays_ARepeatedRequestStartsOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "text")
	f.fillVenue("venue_2", betaIDs, "text")
	token, request := f.token("venue_1", access.ScopeManage), `{"endpoint_id": "ep_A1"}`
	post := func(status int, token, body string) reply {
		t.Helper()
		return f.want(status, token, "POST", "/api/v1/replays", body, "Idempotency-Key", "k1")
	}
	first := post(http.StatusAccepted, token, request)
	f.env.Exec(t, `update webhooks.deliveries set status = 'succeeded'`) // as an agent does that has executed it
	f.env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = 'ep_A1'`)
	again := post(http.StatusOK, token, request)
	if again.text(t, "data", 0, "id") != first.text(t, "data", 0, "id") {
		t.Errorf("the repeated request gives %s", again.body)
	}
	for _, other := range []string{`{"endpoint_id": "ep_A1", "per_second": 5}`, `{"event_ids": ["evt_A1"]}`, `{"endpoint_id": "ep_A2"}`} {
		post(http.StatusUnprocessableEntity, token, other)
	}
	// The key is the venue's own, and the operator's for the venue of what he names.
	post(http.StatusNotFound, operatorToken, `{"endpoint_id": "ep_none"}`)
	if r := post(http.StatusOK, operatorToken, request); r.text(t, "data", 0, "id") != first.text(t, "data", 0, "id") {
		t.Errorf("the operator's request gives %s", r.body)
	}
	if r := post(http.StatusAccepted, operatorToken, `{"event_ids": ["evt_B1"]}`); r.text(t, "data", 0, "endpoint_id") != "ep_B1" {
		t.Errorf("the operator's request for another venue gives %s", r.body)
	}
	post(http.StatusUnprocessableEntity, f.token("venue_2", access.ScopeManage), `{"endpoint_id": "ep_B1"}`)
}

func TestEnable_ChangesNothingWhereItsReplayIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "text")
	f.env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_A2', 'venue_1', 'https://example.com/', '{*}', $1)`, agenttest.Secret)
	f.env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_A1', 'ep_A2', 'venue_1', 'text.made', 'missed', now())`)
	f.env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	f.env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) select id, generation, 0, 'the URL is bad' from webhooks.endpoints where id = 'ep_A1'`)
	token := f.token("venue_1", access.ScopeManage)
	refused := f.want(http.StatusConflict, token, "POST", "/api/v1/endpoints/ep_A1/enable", `{"replay": {}}`)
	if !strings.Contains(refused.body, "the URL is bad") || strings.Contains(refused.body, "webhooks.endpoints") || refused.text(t, "remedy") == "" {
		t.Errorf("it says %s", refused.body)
	}
	if state := f.want(http.StatusOK, token, "GET", "/api/v1/endpoints/ep_A1", "").text(t, "state"); state != "disabled" {
		t.Errorf("what was refused has made the endpoint %s", state)
	}
	if strings.Contains(f.log.String(), "enable-endpoint") {
		t.Errorf("the log has a change that was not made: %s", f.log.String())
	}
	on := f.want(http.StatusOK, token, "POST", "/api/v1/endpoints/ep_A2/enable", `{"replay": {}}`)
	if on.text(t, "state") != "enabled" || on.text(t, "replays", 0, "endpoint_id") != "ep_A2" {
		t.Errorf("enabling gives %s", on.body)
	}
	// The plan of several endpoints has the same reason.
	plan := f.want(http.StatusOK, token, "POST", "/api/v1/replays/plan", `{"event_ids": ["evt_A1"]}`)
	if strings.Contains(plan.body, "webhook-agent ") || strings.Contains(plan.body, "webhooks.") || !strings.Contains(plan.body, "it is disabled") {
		t.Errorf("the plan is %s", plan.body)
	}
}

func TestEnable_IsLoggedWhereItsReplayFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "text")
	f.env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	f.env.Exec(t, `create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$`)
	f.env.Exec(t, `create trigger refuse before insert on webhooks.replays for each row execute function refuse()`)
	f.want(http.StatusServiceUnavailable, f.token("venue_1", access.ScopeManage), "POST", "/api/v1/endpoints/ep_A1/enable", `{"replay": {"statuses": ["failed"]}}`)
	if !strings.Contains(f.log.String(), "operation=enable-endpoint by=venue") {
		t.Errorf("the log does not say who has enabled the endpoint: %s", f.log.String())
	}
}

func TestEndpoints_ShowTheirLastSuccess(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "text")
	f.env.Exec(t, `update webhooks.deliveries set status = 'succeeded', finished = '2026-11-29T08:00:00Z'`)
	// A delivery that the endpoint took for another venue is not this one's to see.
	f.env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, finished)
		values ('evt_other', 'ep_A1', 'venue_2', 'text.made', 'succeeded', now() + interval '1 hour', '2026-11-29T09:00:00Z')`)
	token := f.token("venue_1", access.ScopeManage)
	const want = "2026-11-29T08:00:00Z"
	if at := f.want(http.StatusOK, token, "GET", "/api/v1/endpoints/ep_A1", "").value(t, "last_success_at"); at != want {
		t.Errorf("the endpoint has %v", at)
	}
	if at := f.want(http.StatusOK, token, "GET", "/api/v1/endpoints", "").value(t, "data", 0, "last_success_at"); at != want {
		t.Errorf("the list has %v", at)
	}
	if at := f.want(http.StatusOK, token, "PATCH", "/api/v1/endpoints/ep_A1", `{"events": ["*"]}`).value(t, "last_success_at"); at != want {
		t.Errorf("a change answers with %v", at)
	}
}
