package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/secret"
)

func TestRequests_WhatIsNotKnownIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.token("venue_1", access.ScopeManage)
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		want               int
	}{
		"unknown parameter":          {"GET", "/api/v1/endpoints?endpont=x", "", nil, 422},
		"parameter given twice":      {"GET", "/api/v1/endpoints?limit=1&limit=2", "", nil, 200},
		"limit of zero":              {"GET", "/api/v1/endpoints?limit=0", "", nil, 422},
		"limit too great":            {"GET", "/api/v1/endpoints?limit=201", "", nil, 422},
		"limit that is no number":    {"GET", "/api/v1/endpoints?limit=sentinel", "", nil, 422},
		"unknown state":              {"GET", "/api/v1/endpoints?state=sentinel", "", nil, 422},
		"unknown status":             {"GET", "/api/v1/deliveries?status=sentinel", "", nil, 422},
		"time that is none":          {"GET", "/api/v1/deliveries?since=sentinel", "", nil, 422},
		"cursor that is none":        {"GET", "/api/v1/deliveries?cursor=sentinel", "", nil, 422},
		"cursor with bad time":       {"GET", "/api/v1/deliveries?cursor=AQtzZW50aW5lbAMD", "", nil, 422},
		"unknown field":              {"POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": ["*"], "sentinel": 1}`, nil, 422},
		"missing field":              {"POST", "/api/v1/endpoints", `{"events": ["*"]}`, nil, 422},
		"field of another kind":      {"POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": "sentinel"}`, nil, 422},
		"bad secret":                 {"POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": ["*"], "secret": "whsec_sentinel!"}`, nil, 422},
		"long secret":                {"POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": ["*"], "secret": "` + strings.Repeat("sentinel", 100) + `"}`, nil, 422},
		"bad URL":                    {"POST", "/api/v1/endpoints", `{"url": "ftp://example.com/sentinel", "events": ["*"]}`, nil, 422},
		"bad pattern":                {"POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": ["*sentinel"]}`, nil, 422},
		"zero byte":                  {"POST", "/api/v1/endpoints", `{"url": "https://example.com/", "events": ["*"], "description": "\u0000sentinel"}`, nil, 422},
		"no JSON":                    {"POST", "/api/v1/endpoints", `sentinel`, nil, 400},
		"JSON and more":              {"POST", "/api/v1/endpoints", newHook + `sentinel`, nil, 400},
		"list":                       {"POST", "/api/v1/endpoints", `["sentinel"]`, nil, 422},
		"no body":                    {"POST", "/api/v1/endpoints", ``, nil, 400},
		"a form":                     {"POST", "/api/v1/endpoints", `url=sentinel`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		"text":                       {"POST", "/api/v1/endpoints", newHook, []string{"Content-Type", "text/plain"}, 415},
		"no content type":            {"POST", "/api/v1/endpoints", newHook, []string{"Content-Type", ""}, 415},
		"content type in capitals":   {"POST", "/api/v1/endpoints", newHook, []string{"Content-Type", "Application/JSON; charset=utf-8"}, 201},
		"page of another origin":     {"POST", "/api/v1/endpoints", newHook, []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"another origin":             {"POST", "/api/v1/endpoints", newHook, []string{"Origin", "https://evil.example"}, 403},
		"overlap that is none":       {"POST", "/api/v1/endpoints/ep_1/rotate-secret", `{"overlap": "sentinel"}`, nil, 422},
		"overlap too long":           {"POST", "/api/v1/endpoints/ep_1/rotate-secret", `{"overlap": "31d"}`, nil, 422},
		"id with a zero byte":        {"GET", "/api/v1/endpoints/%00sentinel", "", nil, 404},
		"id with a line break":       {"GET", "/api/v1/events/%0a%0d/explain", "", nil, 404},
		"id that is no UTF-8":        {"GET", "/api/v1/endpoints/%ff%fe", "", nil, 404},
		"id with a slash":            {"GET", "/api/v1/endpoints/a%2Fb", "", nil, 404},
		"long id":                    {"GET", "/api/v1/endpoints/" + strings.Repeat("a", 201), "", nil, 422},
		"path above":                 {"GET", "/api/v1/endpoints/..%2f..%2fmetrics", "", nil, 404},
		"unknown path":               {"GET", "/api/v1/sentinel", "", nil, 404},
		"the root":                   {"GET", "/api/v1/", "", nil, 404},
		"unknown version":            {"GET", "/api/v2/endpoints", "", nil, 404},
		"wrong method":               {"PUT", "/api/v1/endpoints", newHook, nil, 405},
		"delete of a list":           {"DELETE", "/api/v1/endpoints", "", nil, 405},
		"replay of nothing":          {"POST", "/api/v1/replays", `{}`, nil, 422},
		"replay of events and time":  {"POST", "/api/v1/replays/plan", `{"event_ids": ["a"], "since": "2026-01-01T00:00:00Z"}`, nil, 422},
		"replay of pending":          {"POST", "/api/v1/replays/plan", `{"endpoint_id": "ep_1", "statuses": ["pending"]}`, nil, 422},
		"pace below zero":            {"POST", "/api/v1/replays", `{"endpoint_id": "ep_1", "per_second": -1}`, nil, 422},
		"events above the bound":     {"POST", "/api/v1/replays/plan", `{"event_ids": [` + strings.Repeat(`"e",`, 1000) + `"e"]}`, nil, 422},
		"unknown window":             {"GET", "/api/v1/endpoints/ep_1/stats?window=1y", "", nil, 422},
		"a token in the query alone": {"GET", "/api/v1/endpoints?token=x", "", nil, 422},
	} {
		r := f.ask(token, c.method, c.path, c.body, c.headers...)
		if r.status != c.want {
			t.Errorf("%s: status %d, want %d: %s", name, r.status, c.want, r.body)
		}
		if c.want < 300 {
			continue
		}
		if kind := r.header.Get("Content-Type"); kind != "application/problem+json" {
			t.Errorf("%s: the answer is %s: %s", name, kind, r.body)
		}
		for _, field := range []string{"value", "$schema"} {
			if strings.Contains(r.body, `"`+field+`"`) {
				t.Errorf("%s: the answer has a field %s: %s", name, field, r.body)
			}
		}
		if strings.Contains(r.body, "sentinel") && !strings.Contains(c.path, "%00") && !strings.Contains(r.body, `"location":"body.sentinel"`) {
			t.Errorf("%s: the answer has the value that was sent: %s", name, r.body)
		}
	}
}

func TestRequests_AreBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.handler.limits = limits.New(limits.Default())
	token := f.token("venue_1", access.ScopeManage)
	if r := f.ask(token, "POST", "/api/v1/endpoints", `{"url": "`+strings.Repeat("a", 10<<20)+`"}`); r.status != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of 10 MiB: status %d: %s", r.status, r.body)
	}
	// So many that the limit must come, however slow the machine is: the reads of a burst, and more.
	var last reply
	for range 20 * limits.Default().Reads.Burst {
		if last = f.ask(token, "GET", "/api/v1/whoami", ""); last.status != http.StatusOK {
			break
		}
	}
	if last.status != http.StatusTooManyRequests || last.header.Get("Retry-After") == "" {
		t.Errorf("after many requests: status %d, Retry-After %q", last.status, last.header.Get("Retry-After"))
	}
	if other := f.ask(f.token("venue_2", access.ScopeRead), "GET", "/api/v1/whoami", ""); other.status != http.StatusOK {
		t.Errorf("another venue: status %d", other.status)
	}
}

func TestHandler_SharesItsLimitsWithAnotherListener(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	console := f.handler.For(access.NewVerifier(secret.Text{}, f.cfg.ConsoleKeys()))
	ask := func(token string) int {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/events/evt_1/explain", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		console.ServeHTTP(w, r)
		return w.Code
	}
	token := f.token("venue_1", access.ScopeRead)
	if status := ask(operatorToken); status != http.StatusUnauthorized {
		t.Errorf("the operator: status %d", status)
	}
	if status := ask(token); status != http.StatusNotFound {
		t.Errorf("a venue: status %d", status)
	}
	done, _ := f.handler.limits.Heavy("venue venue_1")
	defer done()
	if status := ask(token); status != http.StatusTooManyRequests {
		t.Errorf("a venue that counts by the other listener: status %d", status)
	}
}

func TestRequests_NeedATokenThatIsConfigured(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.want(http.StatusOK, "", "GET", "/api/v1/openapi.json", "")
	for _, token := range []string{"", "garbage", operatorToken[1:]} {
		r := f.want(http.StatusUnauthorized, token, "GET", "/api/v1/whoami", "")
		if !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("WWW-Authenticate is %q", r.header.Get("WWW-Authenticate"))
		}
	}
	f.handler.verifier = access.NewVerifier(secret.Text{}, access.Keys{})
	for _, token := range []string{"", operatorToken, f.token("venue_1", access.ScopeRead)} {
		if r := f.want(http.StatusForbidden, token, "GET", "/api/v1/whoami", ""); !strings.Contains(r.body, "admin.token") {
			t.Errorf("the answer has no remedy: %s", r.body)
		}
	}
	f.handler.verifier = access.NewVerifier(secret.Text{}, f.cfg.ConsoleKeys())
	f.want(http.StatusUnauthorized, operatorToken, "GET", "/api/v1/whoami", "")
	caller := f.want(http.StatusOK, f.token("venue_1", access.ScopeRead), "GET", "/api/v1/whoami", "")
	if caller.text(t, "role") != "venue" || caller.text(t, "venue") != "venue_1" || caller.text(t, "scope") != "read" {
		t.Errorf("the caller is %s", caller.body)
	}
	if ends, err := time.Parse(time.RFC3339, caller.text(t, "expires")); err != nil || time.Until(ends) > 5*time.Minute {
		t.Errorf("the token ends %v (%v)", ends, err)
	}
}

// slowWriter is the answer to a caller who does not read it until he may.
type slowWriter struct {
	http.ResponseWriter
	writing chan struct{} // gets a value when something is written
	read    chan struct{} // which is closed when he reads
}

func (w slowWriter) Write(b []byte) (int, error) {
	w.writing <- struct{}{}
	<-w.read
	return w.ResponseWriter.Write(b)
}

func TestRequests_WhoReadsSlowlyKeepsABoundedNumberOfAnswers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	serve := func(venue string, wrap func(http.ResponseWriter) http.ResponseWriter) int {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/endpoints", nil)
		r.Header.Set("Authorization", "Bearer "+f.token(venue, access.ScopeRead))
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(wrap(w), r)
		return w.Code
	}
	atOnce := func(w http.ResponseWriter) http.ResponseWriter { return w }
	writing, read := make(chan struct{}), make(chan struct{})
	slowly := func(w http.ResponseWriter) http.ResponseWriter { return slowWriter{w, writing, read} }
	var slow sync.WaitGroup
	for range 8 {
		slow.Go(func() { serve("venue_1", slowly) })
		<-writing
	}
	if status := serve("venue_1", atOnce); status != http.StatusServiceUnavailable {
		t.Errorf("one request more than the caller may have: status %d", status)
	}
	if status := serve("venue_2", atOnce); status != http.StatusOK {
		t.Errorf("another venue: status %d", status)
	}
	close(read)
	slow.Wait()
	if status := serve("venue_1", atOnce); status != http.StatusOK {
		t.Errorf("after the answers were read: status %d", status)
	}
}

func TestRequests_AQueryThatCannotBeReadIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "text")
	token := f.token("venue_1", access.ScopeManage)
	for _, path := range []string{
		"/deliveries?status=missed%", "/deliveries?status=missed;type=x", "/deliveries?status=missed%zz&limit=5", "/endpoints?state=disabled%f",
		"/replays?state=done%", "/deliveries/stream?type=x%", "/whoami?%",
	} {
		r := f.want(http.StatusUnprocessableEntity, token, "GET", "/api/v1"+path, "")
		if strings.Contains(r.body, "missed") {
			t.Errorf("%s: the answer has what was sent: %s", path, r.body)
		}
	}
	f.want(http.StatusUnprocessableEntity, token, "POST", "/api/v1/endpoints/ep_A1/disable?x=%", "")
	f.want(http.StatusOK, token, "GET", "/api/v1/deliveries?status=missed%2Cfailed", "")
}

func TestRequests_ABodyIsNotChangedBeforeItIsRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.token("venue_1", access.ScopeManage)
	body := func(text string) string {
		return `{"url": "https://example.com/", "events": ["*"], "secret": "sentinel-0123456789abcdef0123456789` + text + `"}`
	}
	for name, text := range map[string]string{
		"a byte alone": "\xff", "an overlong form": "\xc0\xaf", "a surrogate in UTF-8": "\xed\xa0\x80", "a high surrogate": `\ud800`,
		"at the end of the text": `\uD83D`, "a low surrogate": `\udc00`, "two high ones": `\ud83d\ud83d`, "the wrong order": `\ude00\ud83d`,
		"a high one before a letter": `\ud83d\u0041`, "a high one before a line break": `\ud83d\n`, "after a backslash": `\\\ud800`,
	} {
		r := f.ask(token, "POST", "/api/v1/endpoints", body(text))
		if r.status != http.StatusUnprocessableEntity || !strings.Contains(r.body, "UTF-8") && !strings.Contains(r.body, "surrogate") || strings.Contains(r.body, "sentinel") {
			t.Errorf("%s: status %d: %s", name, r.status, r.body)
		}
	}
	for name, text := range map[string]string{"a pair": `\ud83d\ude00`, "a backslash": `\\ud800`, "a letter": "ü"} {
		if r := f.ask(token, "POST", "/api/v1/endpoints", body(text)); r.status != http.StatusCreated {
			t.Errorf("%s: status %d: %s", name, r.status, r.body)
		}
	}
	for _, text := range []string{`{"url": "\ud8`, `{"url": "\`, `{"url": "\uzzzz"}`} {
		f.want(http.StatusBadRequest, token, "POST", "/api/v1/endpoints", text)
	}
}

func TestStreams_SayWhyTheyEndAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	// The clocks of the app and the agent may differ by half a minute.
	ended, err := f.cfg.ConsoleKeys().Mint("venue_1", access.ScopeRead, -5*time.Second, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.want(http.StatusOK, ended.Reveal(), "GET", "/api/v1/deliveries", "")
	if r := f.want(http.StatusUnauthorized, ended.Reveal(), "GET", "/api/v1/deliveries/stream", ""); !strings.Contains(r.body, "the token has ended") {
		t.Errorf("it says %s", r.body)
	}
	// The log and its stream have the same filters.
	token := f.token("venue_1", access.ScopeRead)
	for _, path := range []string{"/api/v1/deliveries", "/api/v1/deliveries/stream"} {
		r := f.want(http.StatusUnprocessableEntity, token, "GET", path+"?type=sentinel.**", "")
		if r.text(t, "errors", 0, "location") != "query.type" || strings.Contains(r.body, "sentinel") {
			t.Errorf("%s says %s", path, r.body)
		}
	}
}

func TestCursors_AreOfOneList(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("alpha", alphaIDs, mark)
	token := f.token("alpha", access.ScopeRead)
	cursors := map[string]string{}
	for _, path := range []string{"/endpoints", "/deliveries", "/replays"} {
		f.fillMore("/api/v1" + path)
		cursors[path] = f.want(http.StatusOK, token, "GET", "/api/v1"+path+"?limit=1", "").text(t, "next")
	}
	cursors["no list"], cursors["an id"] = "sentinel", "ep_A1"
	for of, cursor := range cursors {
		for _, path := range []string{"/endpoints", "/deliveries", "/replays"} {
			want := http.StatusUnprocessableEntity
			if path == of {
				want = http.StatusOK
			}
			if r := f.ask(token, "GET", "/api/v1"+path+"?cursor="+cursor, ""); r.status != want {
				t.Errorf("%s with the cursor %q of %s: status %d, want %d: %s", path, cursor, of, r.status, want, r.body)
			}
		}
	}
}
