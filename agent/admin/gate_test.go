package admin

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const testToken = "0123456789abcdef0123456789abcdef"

// askAdmin asks the admin listener of an agent that is not ready.
func askAdmin(t *testing.T, cfg config.Admin, host, authorization, path string) *http.Response {
	t.Helper()
	request := httptest.NewRequest(http.MethodGet, path, nil)
	request.Host = host
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	Operators(Config{
		Admin: cfg, Metrics: prometheus.NewRegistry(), API: http.NotFoundHandler(), Pages: http.NotFoundHandler(),
		Ready: func() (string, error) { return "", errors.New("sentinel-table is missing") },
	}).ServeHTTP(w, request)
	return w.Result()
}

func TestGate_TellsNamesApart(t *testing.T) {
	cfg := config.Admin{Hosts: []string{"agent.internal"}}
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
	open, closed := config.Admin{}, config.Admin{Token: secret.New(testToken)}
	for _, c := range []struct {
		cfg                       config.Admin
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
		{open, "evil.example", "Bearer ", "/metrics", 421}, // no token is set, so the empty one does not count as given
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
	closed := config.Admin{Token: secret.New(testToken)}
	for _, c := range []struct {
		cfg           config.Admin
		authorization string
		shown         bool
	}{{config.Admin{}, "", true}, {closed, "", false}, {closed, "Bearer x", false}, {closed, "Bearer " + testToken, true}} {
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

func TestGate_ShowsNoToken(t *testing.T) {
	const sentinel = "sentinel-0123456789abcdef0123456789"
	g := newGate(config.Admin{Token: secret.New(sentinel)})
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", g, g, g), fmt.Sprintf("%v %+v %#v", *g, *g, *g)} {
		if strings.Contains(text, "sentinel") {
			t.Errorf("it shows its token: %s", text)
		}
	}
}

func TestAdmin_APanicOfAHandlerIsToldAndItsValueIsNotLogged(t *testing.T) {
	log := &agenttest.Buffer{}
	var told atomic.Int64
	server := httptest.NewUnstartedServer(countPanics(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		panic("sentinel")
	}), func(*panics.Error) { told.Add(1) }))
	server.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(log, nil), slog.LevelError)
	server.Start()
	defer server.Close()
	for _, path := range []string{"/", "/abort"} {
		if resp, err := http.Get(server.URL + path); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s was answered %s", path, resp.Status)
		}
	}
	if n := told.Load(); n != 1 || strings.Contains(log.String(), "sentinel") {
		t.Errorf("%v panics were told of, want 1; log:\n%s", n, log)
	}
}
