package console

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// secretMark is in every text of alpha's rows.
const secretMark = "alphamark"

// fillMarked gives a venue one row of each kind, with a text in all its texts.
func (s *site) fillMarked(venue, text string) {
	s.Helper()
	s.env.Exec(s, `insert into webhooks.endpoints (id, venue, url, events, secret, description) values ('ep_' || $1, $1, 'https://' || $2 || '.example.com/' || $2, array[$2 || '.*'], $3, $2)`, venue, text, agenttest.Secret)
	s.env.Exec(s, `insert into webhooks.outbox (id, type, venue, data) values ('evt_' || $1, $2 || '.made', $1, json_build_object('text', $2::text))`, venue, text)
	s.env.Exec(s, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_error, last_class, last_code, created, finished)
		select id, 'ep_' || $1, venue, type, 'failed', 6, $2, 'status', 500, created, now() from webhooks.outbox where id = 'evt_' || $1`, venue, text)
	s.env.Exec(s, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response) values ('evt_' || $1, 'ep_' || $1, 1, now(), 500, 'status', $2, 5, $2)`, venue, text)
	s.env.Exec(s, `insert into webhooks.replays (id, endpoint_id, statuses) values ('rpl_' || $1, 'ep_' || $1, '{failed}')`, venue)
	s.env.Exec(s, `update webhooks.replays set error = $2 where id = 'rpl_' || $1`, venue, text)
}

// walkRequest is a request of the walk.
type walkRequest struct {
	method, path string
	form         url.Values // nil for a GET
}

// walk returns a request for each route with the ids of the venue alpha in its path, its query and its form.
// base begins the paths.
func (s *site) walk(base string) (requests []walkRequest) {
	const venue = "alpha"
	ids := url.Values{
		"endpoint": {"ep_" + venue}, "event": {"evt_" + venue}, "id": {"ep_" + venue}, "venue": {venue}, "query": {secretMark[1 : len(secretMark)-1]}, "position": {"0"}, "replay": {"missed"},
		"url": {"https://example.com/"}, "events": {"*"}, "overlap": {"0s"}, "status": {"failed"}, "do": {"cancel"}, "type": {secretMark + ".made"},
	}
	for _, r := range s.handler.routes() {
		method, path, _ := strings.Cut(r.pattern, " ")
		path = base + strings.NewReplacer("{endpoint}", "ep_"+venue, "{event}", "evt_"+venue, "{replay}", "rpl_"+venue, "{$}", "").Replace(path)
		if strings.Contains(path, "{") {
			s.Fatalf("the test knows no id for %s", r.pattern)
		}
		if method == http.MethodPost {
			requests = append(requests, walkRequest{method, path, ids})
			continue
		}
		requests = append(requests, walkRequest{method, path, nil})
		for name, values := range ids {
			requests = append(requests, walkRequest{method, path + "?" + url.Values{name: values}.Encode(), nil})
		}
	}
	return requests
}

// everything returns all rows that the venue alpha has, as text.
func (s *site) everything() string {
	s.Helper()
	return testenv.QueryOne[string](s, s.env, `select (select string_agg(e::text, ';') from webhooks.endpoints e where venue = $1)
		|| (select string_agg(d::text, ';') from webhooks.deliveries d where venue = $1) || (select string_agg(r::text, ';') from webhooks.replays r where venue = $1)`, "alpha")
}

// TestIsolation_NoVenueSeesOrChangesAnothersRows asks for every page with the ids of the venue alpha in
// a session of the venue beta, at beta's paths, at alpha's and at the operators'.
func TestIsolation_NoVenueSeesOrChangesAnothersRows(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fillMarked("alpha", secretMark)
	s.fillMarked("beta", "betamark")
	beta := s.user("beta", access.ScopeManage)
	before := s.everything()
	for _, base := range []string{basePath("beta"), basePath("alpha"), Prefix} {
		for _, r := range s.walk(base) {
			got := beta.send(r.method, r.path, r.form)
			// The type that was asked for may be in the answer, as in the field of a filter.
			body := strings.ReplaceAll(got.body, secretMark+".made", "")
			if strings.Contains(body, secretMark) {
				t.Errorf("%s %s shows beta what is alpha's", r.method, r.path)
			}
			if base != basePath("beta") && got.status < 300 {
				t.Errorf("%s %s answers beta with %d", r.method, r.path, got.status)
			}
			if path, _, _ := strings.Cut(r.path, "?"); strings.Contains(path, "_alpha") && got.status < 300 {
				t.Errorf("%s %s: status %d, want that of what is not there", r.method, r.path, got.status)
			}
		}
	}
	for _, method := range []string{"PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"} {
		for _, r := range s.walk(basePath("alpha")) {
			if got := beta.send(method, r.path, nil); got.status < 300 || strings.Contains(got.body, secretMark) {
				t.Errorf("%s %s: status %d", method, r.path, got.status)
			}
		}
	}
	if after := s.everything(); after != before {
		t.Errorf("beta has changed what is alpha's:\nbefore %s\nafter  %s", before, after)
	}

	// The same requests show alpha what is alpha's, so the test above can fail.
	alpha, shown := s.user("alpha", access.ScopeManage), 0
	for _, r := range s.walk(basePath("alpha")) {
		if r.method == http.MethodGet && strings.Contains(alpha.send(r.method, r.path, nil).body, secretMark) {
			shown++
		}
	}
	if shown < 30 {
		t.Errorf("only %d requests show alpha its own rows", shown)
	}
}

// TestScope_ReadChangesNothing asks for every page in a session that may only look.
func TestScope_ReadChangesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fillMarked("alpha", secretMark)
	reader := s.user("alpha", access.ScopeRead)
	before := s.everything()
	for _, r := range s.walk(basePath("alpha")) {
		got := reader.send(r.method, r.path, r.form)
		if strings.Contains(got.body, `method="post"`) {
			t.Errorf("%s %s has a form that changes something", r.method, r.path)
		}
	}
	if after := s.everything(); after != before {
		t.Errorf("a session that may only look has changed something:\nbefore %s\nafter  %s", before, after)
	}
}
