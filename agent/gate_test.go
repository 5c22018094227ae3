package agent

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
)

const testToken = "0123456789abcdef0123456789abcdef"

// askAdmin asks the admin listener of an agent that is not ready.
func askAdmin(t *testing.T, cfg AdminConfig, host, authorization, path string) *http.Response {
	t.Helper()
	a := &agent{}
	a.metrics = newMetrics("test", a.source())
	problem := "sentinel-table is missing"
	a.problem.Store(&problem)
	request := httptest.NewRequest(http.MethodGet, path, nil)
	request.Host = host
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	a.adminRoutes(newGate(cfg)).ServeHTTP(w, request)
	return w.Result()
}

func TestGate_TellsNamesApart(t *testing.T) {
	cfg := AdminConfig{Hosts: []string{"agent.internal"}}
	for host, want := range map[string]int{
		"127.0.0.1:8480": 200, "127.0.0.1": 200, "[::1]:8480": 200, "[::1]": 200, "10.1.2.3:8480": 200, "localhost:8480": 200, "LOCALHOST": 200,
		"agent.internal:8480": 200, "Agent.Internal.": 200,
		"evil.example:8480": 421, "evil.example": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "[": 421, "": 200,
	} {
		if got := askAdmin(t, cfg, host, "", "/healthz").StatusCode; got != want {
			t.Errorf("Host %q: status %d, want %d", host, got, want)
		}
	}
}

func TestGate_AsksForTheTokenWhereThereIsOne(t *testing.T) {
	open, closed := AdminConfig{}, AdminConfig{Token: secret.New(testToken)}
	for _, c := range []struct {
		cfg                       AdminConfig
		host, authorization, path string
		want                      int
	}{
		{open, "127.0.0.1", "", "/metrics", 200},
		{open, "127.0.0.1", "Bearer wrong", "/metrics", 200},
		{closed, "127.0.0.1", "", "/metrics", 401},
		{closed, "127.0.0.1", "Bearer", "/metrics", 401},
		{closed, "127.0.0.1", "Bearer " + testToken[1:], "/metrics", 401},
		{closed, "127.0.0.1", "Bearer " + testToken + "x", "/metrics", 401},
		{closed, "127.0.0.1", "Basic " + testToken, "/metrics", 401},
		{closed, "127.0.0.1", testToken, "/metrics", 401},
		{closed, "127.0.0.1", "Bearer " + testToken, "/metrics", 200},
		{closed, "127.0.0.1", "bearer  " + testToken, "/metrics", 200},
		{closed, "127.0.0.1", "", "/healthz", 200},
		{closed, "127.0.0.1", "", "/nosuch", 404},
		{open, "evil.example", "Bearer ", "/metrics", 421}, // the token that is not set is no token
		{closed, "evil.example", "", "/metrics", 421},
		{closed, "agent.monitoring.svc:8480", "Bearer " + testToken, "/metrics", 200},
	} {
		got := askAdmin(t, c.cfg, c.host, c.authorization, c.path)
		if got.StatusCode != c.want {
			t.Errorf("%s of %s with %q: status %d, want %d", c.path, c.host, c.authorization, got.StatusCode, c.want)
		}
		if challenge := got.Header.Get("WWW-Authenticate"); (challenge != "") != (c.want == 401) {
			t.Errorf("%s: WWW-Authenticate %q with status %d", c.path, challenge, got.StatusCode)
		}
		for _, header := range []string{"Cache-Control", "Content-Security-Policy", "X-Content-Type-Options"} {
			if got.Header.Get(header) == "" {
				t.Errorf("%s: no %s", c.path, header)
			}
		}
	}
}

func TestGate_GivesReasonsOnlyToWhoIsTrusted(t *testing.T) {
	closed := AdminConfig{Token: secret.New(testToken)}
	for _, c := range []struct {
		cfg           AdminConfig
		authorization string
		shown         bool
	}{{AdminConfig{}, "", true}, {closed, "", false}, {closed, "Bearer x", false}, {closed, "Bearer " + testToken, true}} {
		got := askAdmin(t, c.cfg, "127.0.0.1", c.authorization, "/readyz")
		var body strings.Builder
		if err := got.Write(&body); err != nil {
			t.Fatal(err)
		}
		if shown := strings.Contains(body.String(), "sentinel"); shown != c.shown || got.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("authorization %q: status %d, the reason is shown: %t, want %t", c.authorization, got.StatusCode, shown, c.shown)
		}
	}
}
