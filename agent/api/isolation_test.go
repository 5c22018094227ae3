package api

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
)

// mark stands in every text of the rows of the venue alpha.
const mark = "alphamark"

// ids are those of a venue's rows.
type ids struct{ endpoint, event, replay string }

var (
	alphaIDs = ids{"ep_A1", "evt_A1", "rep_A1"}
	betaIDs  = ids{"ep_B1", "evt_B1", "rep_B1"}
	// noIDs are of the same form as alpha's and belong to nobody.
	noIDs = ids{"ep_N1", "evt_N1", "rep_N1"}
)

// of returns the id for a parameter of this name, "" for a parameter that names no row.
func (i ids) of(parameter string) string {
	switch parameter {
	case "endpoint_id":
		return i.endpoint
	case "event_id", "event_ids":
		return i.event
	case "replay_id":
		return i.replay
	}
	return ""
}

// fillVenue gives a venue one row of each kind, with text in all its texts.
func (f *fixture) fillVenue(venue string, i ids, text string) {
	f.Helper()
	f.env.Exec(f, `insert into webhooks.endpoints (id, venue, url, events, secret, description) values ($1, $2, 'https://' || $3 || '.example.com/', array[$3 || '.*'], 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', $3)`,
		i.endpoint, venue, text)
	f.env.Exec(f, `insert into webhooks.outbox (id, type, venue, data) values ($1, $3 || '.made', $2, json_build_object('text', $3::text))`, i.event, venue, text)
	f.env.Exec(f, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_error, last_class, last_code, created, finished)
		select id, $1, venue, type, 'failed', 6, $2, 'status', 500, created, now() from webhooks.outbox where id = $3`, i.endpoint, text, i.event)
	f.env.Exec(f, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response) values ($1, $2, 1, now(), 500, 'status', $3, 5, $3)`,
		i.event, i.endpoint, text)
	f.env.Exec(f, `insert into webhooks.replays (id, endpoint_id, statuses) values ($1, $2, '{failed}')`, i.replay, i.endpoint)
	f.env.Exec(f, `update webhooks.replays set error = $2 where id = $1`, i.replay, text)
}

// everything returns all rows that a venue has, as text.
func (f *fixture) everything() string {
	f.Helper()
	return testenv.QueryOne[string](f, f.env, `select (select string_agg(e::text, ';' order by id) from webhooks.endpoints e where id = 'ep_A1')
		|| (select string_agg(d::text, ';') from webhooks.deliveries d where endpoint_id = 'ep_A1')
		|| (select string_agg(r::text, ';') from webhooks.replays r where endpoint_id = 'ep_A1')`)
}

// request is one request of the walk.
type walkRequest struct{ method, path, query, body string }

// walk returns a request for each operation of the document with these ids in its path and its body,
// and one more for each parameter of its query.
func (f *fixture) walk(i ids, cursors map[string]string) (requests []walkRequest) {
	paths := f.check.document["paths"].(map[string]any)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		methods := paths[path].(map[string]any)
		for _, method := range slices.Sorted(maps.Keys(methods)) {
			operation := methods[method]
			r := walkRequest{method: strings.ToUpper(method), path: path}
			var queries []string
			parameters, _ := pointer(operation, "parameters").([]any)
			for _, p := range parameters {
				name := pointer(p, "name").(string)
				switch pointer(p, "in") {
				case "path":
					if i.of(name) == "" {
						f.Fatalf("the test knows no id for the parameter %s of %s", name, path)
					}
					r.path = strings.ReplaceAll(r.path, "{"+name+"}", i.of(name))
				case "query":
					switch {
					case i.of(name) != "":
						queries = append(queries, name+"="+i.of(name))
					case name == "venue":
						queries = append(queries, "venue=alpha", "venue=%25")
					case name == "query":
						queries = append(queries, "query="+mark)
					case name == "type":
						queries = append(queries, "type="+mark+".*")
					case name == "cursor" && cursors[path] != "":
						queries = append(queries, "cursor="+url.QueryEscape(cursors[path]))
					}
				}
			}
			if schema := pointer(operation, "requestBody", "content", "application/json", "schema"); schema != nil {
				body, err := json.Marshal(f.fill(schema, "", i))
				if err != nil {
					f.Fatal(err)
				}
				r.body = string(body)
			}
			requests = append(requests, r)
			for _, query := range queries {
				r.query = query
				requests = append(requests, r)
			}
		}
	}
	return requests
}

// fill makes a value of a schema that names the rows of i wherever it can.
func (f *fixture) fill(schema any, name string, i ids) any {
	if ref, ok := pointer(schema, "$ref").(string); ok {
		return f.fill(pointer(f.check.document, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...), name, i)
	}
	kind, _ := pointer(schema, "type").(string)
	if list, ok := pointer(schema, "type").([]any); ok {
		kind, _ = list[0].(string)
	}
	switch kind {
	case "object":
		object := map[string]any{}
		properties, _ := pointer(schema, "properties").(map[string]any)
		for property, of := range properties {
			if property != "venue" && property != "secret" && property != "since" && property != "until" {
				object[property] = f.fill(of, property, i)
			}
		}
		return object
	case "array":
		return []any{f.fill(pointer(schema, "items"), name, i)}
	case "integer":
		return 1
	}
	if values, ok := pointer(schema, "enum").([]any); ok {
		return values[0]
	}
	switch {
	case i.of(name) != "":
		return i.of(name)
	case name == "url":
		return "https://example.com/"
	case name == "overlap":
		return "1h"
	}
	return "lead.created"
}

// stranger sends a request and returns the answer; of a stream the first moment of it.
func (f *fixture) stranger(token string, r walkRequest) reply {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), time.Minute)
	defer cancel()
	target := f.url + r.path
	if r.query != "" {
		target += "?" + r.query
	}
	request, err := http.NewRequestWithContext(ctx, r.method, target, strings.NewReader(r.body))
	if err != nil {
		f.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		f.Fatal(err)
	}
	defer response.Body.Close()
	if response.Header.Get("Content-Type") == "text/event-stream" {
		f.publishAlpha()
		time.AfterFunc(5*f.handler.tailPoll, cancel)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil && ctx.Err() == nil {
		f.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, string(text)}
}

// publishAlpha is what an agent does that has recorded a delivery of alpha.
func (f *fixture) publishAlpha() {
	f.feed.Recorded([]*outbox.Record{{
		Delivery: &outbox.Delivery{EventID: alphaIDs.event, EndpointID: alphaIDs.endpoint, Venue: "alpha", Type: mark + ".made", Created: time.Now()},
		Status:   outbox.Succeeded, Code: 200,
	}})
}

// TestIsolation_NoVenueSeesOrChangesAnothersRows tries every operation of the document with every id
// and cursor of the venue alpha, with the token of the venue beta. To beta alpha's rows are as if they
// were not there: the answers are those for ids that nobody has.
func TestIsolation_NoVenueSeesOrChangesAnothersRows(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("alpha", alphaIDs, mark)
	f.fillVenue("beta", betaIDs, "betamark")
	alpha, beta := f.token("alpha", access.ScopeManage), f.token("beta", access.ScopeManage)

	cursors := map[string]string{}
	for _, path := range []string{"/api/v1/endpoints", "/api/v1/deliveries", "/api/v1/replays"} {
		f.fillMore(path)
		cursors[path], _ = f.want(http.StatusOK, alpha, "GET", path+"?limit=1", "").value(t, "next").(string)
		if cursors[path] == "" {
			t.Errorf("%s gives alpha no cursor", path)
		}
	}
	before := f.everything()
	absent := f.walk(noIDs, cursors)
	for i, r := range f.walk(alphaIDs, cursors) {
		got, none := f.stranger(beta, r), f.stranger(beta, absent[i])
		what := r.method + " " + r.path + "?" + r.query + " " + r.body
		if strings.Contains(strings.ReplaceAll(got.body, url.QueryEscape(r.query), ""), mark) {
			t.Errorf("%s shows beta what is alpha's: %s", what, got.body)
		}
		if strings.Contains(r.path, "_A1") && got.status != http.StatusNotFound && got.status != http.StatusForbidden {
			t.Errorf("%s: status %d, want 404: %s", what, got.status, got.body)
		}
		if known := strings.NewReplacer("_A1", "_N1").Replace(got.body); r.method == http.MethodGet && strings.Contains(r.path+r.query, "_A1") && (got.status != none.status || known != none.body) {
			t.Errorf("%s differs from that of an id that nobody has: %d %s, and %d %s", what, got.status, got.body, none.status, none.body)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(f.check.document["paths"].(map[string]any))) {
		path = strings.NewReplacer("{endpoint_id}", alphaIDs.endpoint, "{event_id}", alphaIDs.event, "{replay_id}", alphaIDs.replay).Replace(path)
		for _, method := range []string{"PUT", "OPTIONS", "QUERY", "PROPFIND", "HEAD"} {
			if got := f.stranger(beta, walkRequest{method: method, path: path}); got.status < 400 && strings.Contains(path, "_A1") || strings.Contains(got.body, mark) {
				t.Errorf("%s %s: status %d: %s", method, path, got.status, got.body)
			}
		}
	}
	if after := f.everything(); after != before {
		t.Errorf("beta has changed what is alpha's:\nbefore %s\nafter  %s", before, after)
	}

	// The same requests show alpha what is alpha's, so the test above can fail.
	shown := 0
	for _, r := range f.walk(alphaIDs, nil) {
		if r.method != http.MethodGet || strings.Contains(r.path, "overview") || strings.Contains(r.path, "terms") {
			continue
		}
		if got := f.stranger(alpha, r); strings.Contains(got.body, mark) {
			shown++
		} else if strings.Contains(r.path, "_A1") && !strings.HasSuffix(r.path, "/stats") {
			t.Errorf("%s %s?%s does not show alpha what is alpha's: %d %s", r.method, r.path, r.query, got.status, got.body)
		}
	}
	if shown < 10 {
		t.Errorf("only %d requests show alpha's rows", shown)
	}
}

// fillMore gives alpha a second row, so that its first page of one row has a cursor.
func (f *fixture) fillMore(path string) {
	f.Helper()
	switch path {
	case "/api/v1/endpoints":
		f.env.Exec(f, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_A2', 'alpha', 'https://alphamark.example.com/2', '{alphamark.*}', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')`)
	case "/api/v1/deliveries":
		f.env.Exec(f, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_A0', 'ep_A1', 'alpha', 'alphamark.made', 'missed', now() - interval '1 hour')`)
	case "/api/v1/replays":
		f.env.Exec(f, `insert into webhooks.replays (id, endpoint_id, statuses) values ('rep_A0', 'ep_A1', '{failed}')`)
	}
}
