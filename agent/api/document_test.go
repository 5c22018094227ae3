package api

import (
	"bytes"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
)

var update = flag.Bool("update", false, "write testdata/openapi.json anew")

func TestDocument_ChangesOnlyOnPurpose(t *testing.T) {
	s, err := New(Config{Config: config.Default(), Log: slog.New(slog.DiscardHandler), Version: "test"}, access.NewVerifier(secret.Text{}, access.Keys{}))
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "openapi.json")
	if *update {
		if err := os.WriteFile(golden, s.document, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.document, want) {
		t.Errorf("the document differs from %s; see the change with: go test ./agent/api -update; git diff", golden)
	}
}

// TestDocument_DescribesWhatTheServerAnswers has the answers that are no plain success or failure: each
// of them is validated against the document (fixture.ask).
func TestDocument_DescribesWhatTheServerAnswers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fillVenue("venue_1", alphaIDs, "text")
	token := f.token("venue_1", access.ScopeManage)
	described := func(text string) string {
		return `{"url": "https://example.com/", "events": ["*"], "description": "` + text + `"}`
	}
	for _, r := range []struct {
		want               int
		method, path, body string
		key                string
	}{
		{201, "POST", "/endpoints", newHook, "k"},
		{200, "POST", "/endpoints", newHook, "k"},
		{202, "POST", "/replays", `{"endpoint_id": "ep_A1"}`, "k"},
		{200, "POST", "/replays", `{"endpoint_id": "ep_A1"}`, "k"},
		{200, "POST", "/replays/plan", `{"endpoint_id": "ep_A1"}`, ""},
		{200, "POST", "/replays/plan", `{"event_ids": ["evt_A1"]}`, ""},
		{404, "POST", "/replays/plan", `{"endpoint_id": "ep_none"}`, ""},
		{404, "POST", "/replays", `{"endpoint_id": "ep_none"}`, ""},
		{404, "POST", "/replays", `{"event_ids": ["evt_none"]}`, ""},
		{404, "GET", "/deliveries?endpoint_id=ep_none", "", ""},
		{404, "GET", "/deliveries/stream?endpoint_id=ep_none", "", ""},
		{200, "GET", "/replays?endpoint_id=ep_none", "", ""},
		{404, "POST", "/endpoints/ep_none/enable", "", ""},
		// What is an integer for JSON Schema is one for the server.
		{202, "POST", "/replays", `{"endpoint_id": "ep_A1", "per_second": 1e1}`, ""},
		{200, "PATCH", "/replays/rep_A1", `{"per_second": 10.0}`, ""},
		{422, "PATCH", "/replays/rep_A1", `{"per_second": 1.5}`, ""},
		{422, "PATCH", "/replays/rep_A1", `{"per_second": 1e9}`, ""},
		{400, "PATCH", "/replays/rep_A1", `{"per_second": 4711e4711}`, ""},
		{400, "POST", "/replays/plan", `{"endpoint_id": 4711`, ""},
		// A length is counted in characters.
		{201, "POST", "/endpoints", described(strings.Repeat("ü", 1000)), ""},
		{422, "POST", "/endpoints", described(strings.Repeat("ü", 1001)), ""},
		{409, "PATCH", "/endpoints/ep_A1", `{"events": ["*"]}`, ""},
	} {
		if r.want == http.StatusConflict {
			f.env.Exec(t, `update webhooks.endpoints set managed_by = 'file'`)
		}
		headers := []string{}
		if r.key != "" {
			headers = []string{"Idempotency-Key", r.key}
		}
		got := f.ask(token, r.method, "/api/v1"+r.path, r.body, headers...)
		if got.status != r.want {
			t.Errorf("%s %s %s: status %d, want %d: %s", r.method, r.path, r.body, got.status, r.want, got.body)
		}
		for _, leak := range []string{"4711", "json:", "Go ", "parsing time"} {
			if strings.Contains(got.body, leak) {
				t.Errorf("%s %s %s: the answer has %q: %s", r.method, r.path, r.body, leak, got.body)
			}
		}
	}
	if pace := f.want(http.StatusOK, token, "GET", "/api/v1/replays/rep_A1", "").value(t, "per_second"); pace != 10.0 {
		t.Errorf("the pace 10.0 is %v", pace)
	}
}
