package console

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const (
	operatorToken = "sentinel-operator-0123456789abcdef0123"
	venueKey      = "sentinel-shared-key-0123456789abcdef"
	appOrigin     = "https://app.example.com"
)

// shown is what fakePages were asked to show.
type shown struct {
	Page   string `json:"page"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

// fakePages answer with JSON.
type fakePages struct{}

func (fakePages) refuse(w http.ResponseWriter, _ *http.Request, status int, reason, remedy string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(shown{"refusal", reason, remedy})
}

func (fakePages) render(w http.ResponseWriter, _ *http.Request, status int, page string, data any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(shown{page, fmt.Sprintf("%+v", data), ""})
}

// house is a door with pages behind it that say who sees them.
type house struct {
	t      *testing.T
	door   *door
	keys   access.Keys
	server *httptest.Server // by TLS
	log    *agenttest.Buffer
	clock  *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// newHouse returns the house of the listener for operators, or of that for venues.
func newHouse(t *testing.T, operators bool) *house {
	t.Helper()
	keys, err := access.NewKeys([]secret.Text{secret.New(venueKey)})
	if err != nil {
		t.Fatal(err)
	}
	operator := secret.New(operatorToken)
	h := &house{t: t, keys: keys, log: &agenttest.Buffer{}, clock: &clock{now: time.Now()}}
	cfg := doorConfig{
		verifier: access.NewVerifier(operator, keys), sessions: access.NewSessions(operator, []secret.Text{secret.New(venueKey)}),
		operators: operators, hasToken: operators, origins: []string{appOrigin, "http://localhost:3000"}, life: time.Hour,
		log: slog.New(slog.NewTextHandler(h.log, nil)), now: h.clock.Now,
	}
	if !operators {
		cfg.verifier = access.NewVerifier(secret.Text{}, keys)
	}
	h.door = newDoor(cfg, fakePages{})
	mux := http.NewServeMux()
	h.door.register(mux)
	page := func(w http.ResponseWriter, r *http.Request) {
		p, err := h.door.principal(r, r.PathValue("venue"))
		if err != nil {
			h.door.turnAway(w, r, r.PathValue("venue"))
			return
		}
		_, _ = fmt.Fprintf(w, "%s %q", p.Role(), p.Venue())
	}
	mux.HandleFunc("/console/v/{venue}/", page)
	mux.HandleFunc("/console/{page...}", page)
	h.server = httptest.NewTLSServer(h.door.guard(mux))
	t.Cleanup(h.server.Close)
	return h
}

// visitor is a browser with its cookies. It follows no redirect.
type visitor struct {
	h      *house
	client *http.Client
}

func (h *house) visitor() *visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	client := *h.server.Client()
	client.Jar = jar
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &visitor{h, &client}
}

// answer is what a visitor got.
type answer struct {
	status   int
	location string
	body     string
	header   http.Header
	cookies  []*http.Cookie
}

func (v *visitor) ask(method, path string, form url.Values, header ...string) answer {
	v.h.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(v.h.t.Context(), method, v.h.server.URL+path, body)
	if err != nil {
		v.h.t.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Add(header[i], header[i+1])
	}
	response, err := v.client.Do(r)
	if err != nil {
		v.h.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		v.h.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header.Get("Location"), string(text), response.Header, response.Cookies()}
}

func (v *visitor) get(path string, header ...string) answer {
	v.h.t.Helper()
	return v.ask(http.MethodGet, path, nil, header...)
}

// token returns a token of a venue that the app signed.
func (h *house) token(venue string, scope access.Scope, life time.Duration) string {
	h.t.Helper()
	text, err := h.keys.Mint(venue, scope, life, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	return text.Reveal()
}

// open posts the form of the app's page.
func (v *visitor) open(token, next string, header ...string) answer {
	v.h.t.Helper()
	if len(header) == 0 {
		header = []string{"Origin", appOrigin, "Sec-Fetch-Site", "same-site"}
	}
	return v.ask(http.MethodPost, "/console/session", url.Values{"token": {token}, "next": {next}}, header...)
}

func (v *visitor) signIn(token, next string) answer {
	v.h.t.Helper()
	return v.ask(http.MethodPost, "/console/signin", url.Values{"token": {token}, "next": {next}}, "Sec-Fetch-Site", "same-origin")
}

// enters signs the operator in.
func (v *visitor) enters() *visitor {
	v.h.t.Helper()
	if a := v.signIn(operatorToken, ""); a.status != http.StatusSeeOther || a.location != "/console/" {
		v.h.t.Fatalf("signing in is answered %d %q: %s", a.status, a.location, a.body)
	}
	return v
}

// checkLog fails the test if the log has a secret.
func (h *house) checkLog(wants ...string) {
	h.t.Helper()
	log := h.log.String()
	if strings.Contains(log, "sentinel") || strings.Contains(log, "eyJ") {
		h.t.Errorf("the log shows a secret:\n%s", log)
	}
	for _, want := range wants {
		if !strings.Contains(log, want) {
			h.t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}
