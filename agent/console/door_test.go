package console

import (
	"bytes"
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
	log    *buffer
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

type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newHouse returns the house of the listener for operators, or of that for venues.
func newHouse(t *testing.T, operators bool) *house {
	t.Helper()
	keys, err := access.NewKeys([]secret.Text{secret.New(venueKey)})
	if err != nil {
		t.Fatal(err)
	}
	operator := secret.New(operatorToken)
	h := &house{t: t, keys: keys, log: &buffer{}, clock: &clock{now: time.Now()}}
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

func TestDoor_LetsTheOperatorIn(t *testing.T) {
	h := newHouse(t, true)
	v := h.visitor()
	if a := v.get("/console/deliveries?status=failed"); a.status != http.StatusSeeOther || a.location != "/console/signin?next="+url.QueryEscape("/console/deliveries?status=failed") {
		t.Fatalf("without a session: %d %q", a.status, a.location)
	}
	if a := v.get("/console/signin?next=%2Fconsole%2Fdeliveries%3Fstatus%3Dfailed"); a.status != 200 || !strings.Contains(a.body, "Next:/console/deliveries?status=failed") {
		t.Fatalf("the form is %d: %s", a.status, a.body)
	}
	a := v.signIn(" "+operatorToken+"\n", "/console/deliveries?status=failed")
	if a.status != http.StatusSeeOther || a.location != "/console/deliveries?status=failed" || len(a.cookies) != 1 {
		t.Fatalf("signing in is answered %d %q with %d cookies", a.status, a.location, len(a.cookies))
	}
	c := a.cookies[0]
	if c.Name != operatorCookie || !c.HttpOnly || !c.Secure || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteStrictMode || c.MaxAge != 8*60*60 || c.Partitioned {
		t.Errorf("the cookie is %s", c)
	}
	for _, path := range []string{"/console/deliveries", "/console/v/venue_1/endpoints"} {
		if a := v.get(path); a.body != `operator ""` {
			t.Errorf("%s shows %q", path, a.body)
		}
	}
	if a := v.get("/console/signin"); a.status != http.StatusSeeOther || a.location != "/console/" {
		t.Errorf("the form of who has signed in is %d %q", a.status, a.location)
	}
	if a := v.ask(http.MethodPost, "/console/signout", url.Values{}, "Sec-Fetch-Site", "same-origin"); a.status != http.StatusSeeOther || a.location != "/console/signin" {
		t.Errorf("signing out is answered %d %q", a.status, a.location)
	}
	if a := v.get("/console/deliveries"); a.status != http.StatusSeeOther {
		t.Errorf("after signing out: %d %s", a.status, a.body)
	}
	h.checkLog("an operator signed in to the console", "how=form", "an operator signed out")
}

func TestDoor_OpensAVenueWithinThePageOfTheApp(t *testing.T) {
	h := newHouse(t, false)
	for site, want := range map[string]struct {
		site        http.SameSite
		partitioned bool
	}{"same-site": {http.SameSiteStrictMode, false}, "same-origin": {http.SameSiteStrictMode, false}, "cross-site": {http.SameSiteNoneMode, true}, "": {http.SameSiteNoneMode, true}} {
		v := h.visitor()
		a := v.open(h.token("venue/1 ü", access.ScopeManage, time.Minute), "", "Origin", appOrigin, "Sec-Fetch-Site", site)
		if a.status != http.StatusSeeOther || a.location != "/console/v/venue%2F1%20%C3%BC/endpoints" || len(a.cookies) != 1 {
			t.Fatalf("from %q: %d %q %s", site, a.status, a.location, a.body)
		}
		c := a.cookies[0]
		if c.SameSite != want.site || c.Partitioned != want.partitioned || !c.HttpOnly || !c.Secure || c.Path != "/" || c.Domain != "" || c.MaxAge != 60*60 || !strings.HasPrefix(c.Name, "__Host-wh-") || strings.Contains(c.Name, "venue") {
			t.Errorf("from %q the cookie is %s", site, c)
		}
		if a := v.get(a.location); a.body != `venue "venue/1 ü"` {
			t.Errorf("the page shows %d %q", a.status, a.body)
		}
	}
	h.checkLog("a venue's user opened the console", `venue="venue/1 ü"`, "origin="+appOrigin, "user=")
}

func TestDoor_NeverMixesTwoVenues(t *testing.T) {
	h := newHouse(t, true)
	v := h.visitor()
	one := v.open(h.token("venue_1", access.ScopeManage, time.Minute), "")
	if a := v.get("/console/v/venue_2/endpoints", "Sec-Fetch-Dest", "iframe"); a.status != http.StatusUnauthorized {
		t.Errorf("the session of venue_1 shows venue_2: %d %s", a.status, a.body)
	}
	if a := v.get("/console/deliveries"); a.status != http.StatusSeeOther {
		t.Errorf("the session of venue_1 shows the operators' pages: %d %s", a.status, a.body)
	}
	v.open(h.token("venue_2", access.ScopeManage, time.Minute), "")
	for _, venue := range []string{"venue_1", "venue_2"} {
		if a := v.get("/console/v/" + venue + "/endpoints"); a.body != fmt.Sprintf("venue %q", venue) {
			t.Errorf("beside another venue, %s shows %q", venue, a.body)
		}
	}
	// The session of one venue under the name of the other's cookie.
	thief := h.visitor()
	for _, name := range []string{venueCookie("venue_2"), operatorCookie} {
		if a := thief.get("/console/v/venue_2/endpoints", "Cookie", name+"="+one.cookies[0].Value, "Sec-Fetch-Dest", "iframe"); a.status != http.StatusUnauthorized {
			t.Errorf("as %s it shows %d %s", name, a.status, a.body)
		}
		if a := thief.get("/console/deliveries", "Cookie", name+"="+one.cookies[0].Value); a.status != http.StatusSeeOther {
			t.Errorf("as %s it shows the operators' pages: %d %s", name, a.status, a.body)
		}
	}
}

func TestDoor_AVenuesSessionGoesBeforeTheOperators(t *testing.T) {
	h := newHouse(t, true)
	v := h.visitor().enters()
	v.open(h.token("venue_1", access.ScopeRead, time.Minute), "")
	if a := v.get("/console/v/venue_1/endpoints"); a.body != `venue "venue_1"` {
		t.Errorf("it shows %q", a.body)
	}
	// Within a frame the operator's session does not count.
	for _, dest := range []string{"iframe", "frame", "object", "embed"} {
		if a := v.get("/console/v/venue_2/endpoints", "Sec-Fetch-Dest", dest); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "expired") {
			t.Errorf("in %s: %d %s", dest, a.status, a.body)
		}
	}
	if a := v.get("/console/v/venue_2/endpoints", "Sec-Fetch-Dest", "document"); a.body != `operator ""` {
		t.Errorf("in a tab: %q", a.body)
	}
}

func TestDoor_TakesSessionsOfVenuesFromKnownPagesAlone(t *testing.T) {
	h := newHouse(t, true)
	good := h.token("venue_1", access.ScopeManage, time.Minute)
	for name, header := range map[string][]string{
		"another origin":              {"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"},
		"another port":                {"Origin", appOrigin + ":8443", "Sec-Fetch-Site", "same-site"},
		"another scheme":              {"Origin", "http://app.example.com", "Sec-Fetch-Site", "cross-site"},
		"another case":                {"Origin", "https://APP.example.com", "Sec-Fetch-Site", "cross-site"},
		"an origin with more":         {"Origin", appOrigin + ".evil.example", "Sec-Fetch-Site", "cross-site"},
		"an origin with a path":       {"Origin", appOrigin + "/", "Sec-Fetch-Site", "cross-site"},
		"the origin null":             {"Origin", "null", "Sec-Fetch-Site", "cross-site"},
		"no origin":                   {"Sec-Fetch-Site", "cross-site"},
		"no origin, no field at all":  {"X-None", "1"},
		"an empty origin":             {"Origin", "", "Sec-Fetch-Site", "cross-site"},
		"two origins":                 {"Origin", appOrigin, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"},
		"a list of origins":           {"Origin", appOrigin + " https://evil.example", "Sec-Fetch-Site", "cross-site"},
		"the console's own":           {"Origin", h.server.URL, "Sec-Fetch-Site", "same-origin"},
		"the right one as a referrer": {"Referer", appOrigin + "/settings", "Sec-Fetch-Site", "cross-site"},
	} {
		if a := h.visitor().open(good, "", header...); a.status != http.StatusForbidden || len(a.cookies) > 0 {
			t.Errorf("%s: %d, %d cookies: %s", name, a.status, len(a.cookies), a.body)
		}
	}
	for name, token := range map[string]string{
		"no token":                "",
		"garbage":                 "x",
		"the operator's token":    operatorToken,
		"an ended token":          h.token("venue_1", access.ScopeManage, -time.Minute),
		"a token that lasts long": h.token("venue_1", access.ScopeManage, time.Hour),
		"another key's token":     strings.TrimSuffix(good, good[len(good)-6:]) + "AAAAAA",
		"a venue of dots":         h.token("..", access.ScopeManage, time.Minute),
	} {
		a := h.visitor().open(token, "")
		if a.status != http.StatusForbidden || len(a.cookies) > 0 || strings.Contains(a.body, "sentinel") || strings.Contains(a.body, "expired") {
			t.Errorf("%s: %d, %d cookies: %s", name, a.status, len(a.cookies), a.body)
		}
	}
	// A token in the address does not count: it would be in logs.
	if a := h.visitor().ask(http.MethodPost, "/console/session?token="+good, url.Values{}, "Origin", appOrigin, "Sec-Fetch-Site", "same-site"); a.status != http.StatusForbidden || len(a.cookies) > 0 {
		t.Errorf("a token in the address: %d %s", a.status, a.body)
	}
	if a := h.visitor().get("/console/session?token="+good, "Origin", appOrigin, "Sec-Fetch-Site", "same-site"); a.status == http.StatusSeeOther && !strings.HasPrefix(a.location, "/console/signin") || len(a.cookies) > 0 {
		t.Errorf("a session by GET: %d %s", a.status, a.body)
	}
	long := url.Values{"token": {good}, "next": {strings.Repeat("a", maxForm)}}
	if a := h.visitor().ask(http.MethodPost, "/console/session", long, "Origin", appOrigin, "Sec-Fetch-Site", "same-site"); a.status != http.StatusBadRequest || len(a.cookies) > 0 {
		t.Errorf("a long form: %d %s", a.status, a.body)
	}
	h.checkLog("not of an origin in console.origins", "the token has ended", "the token is the operator's")
}

func TestDoor_SignsInNobodyElse(t *testing.T) {
	h := newHouse(t, true)
	for name, token := range map[string]string{
		"no token": "", "cut": operatorToken[1:], "longer": operatorToken + "x", "the key": venueKey, "a venue's token": h.token("venue_1", access.ScopeManage, time.Minute),
	} {
		a := h.visitor().signIn(token, "/console/deliveries")
		if a.status != http.StatusForbidden || len(a.cookies) > 0 || !strings.Contains(a.body, `"page":"signin"`) || !strings.Contains(a.body, "Next:/console/deliveries") || strings.Contains(a.body, "sentinel") || strings.Contains(a.body, "eyJ") {
			t.Errorf("%s: %d, %d cookies: %s", name, a.status, len(a.cookies), a.body)
		}
	}
	v := h.visitor()
	for name, a := range map[string]answer{
		"by GET":                v.get("/console/signin?token=" + operatorToken),
		"by the address":        v.ask(http.MethodPost, "/console/signin?token="+operatorToken, url.Values{}, "Sec-Fetch-Site", "same-origin"),
		"by a field":            v.get("/console/", "Authorization", "Bearer "+operatorToken),
		"by a cookie":           v.get("/console/", "Cookie", operatorCookie+"="+operatorToken),
		"by JSON":               v.ask(http.MethodPost, "/console/signin", nil, "Content-Type", "application/json", "Sec-Fetch-Site", "same-origin"),
		"by a cookie's prefix":  v.get("/console/", "Cookie", "wh-operator="+operatorToken),
		"by a token of a venue": v.get("/console/v/venue_1/", "Authorization", "Bearer "+h.token("venue_1", access.ScopeManage, time.Minute)),
	} {
		if len(a.cookies) > 0 || strings.HasPrefix(a.body, "operator") || strings.HasPrefix(a.body, "venue") {
			t.Errorf("%s: %d, %d cookies: %s", name, a.status, len(a.cookies), a.body)
		}
	}
	h.checkLog("not the operator's token", "how=form", "the token is a venue's", "paste the token")
}

func TestDoor_BoundsGuesses(t *testing.T) {
	h := newHouse(t, true)
	v := h.visitor()
	statuses := map[int]int{}
	for range 30 {
		statuses[v.signIn("guess", "").status]++
	}
	if statuses[http.StatusForbidden] != 10 || statuses[http.StatusTooManyRequests] != 20 {
		t.Errorf("30 guesses at once are answered %v", statuses)
	}
	if a := v.signIn(operatorToken, ""); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("the right guess among them: %d", a.status)
	}
	// A link opens the door meanwhile.
	if a := h.visitor().get(h.link()); a.status != http.StatusSeeOther {
		t.Errorf("a link is answered %d", a.status)
	}
	h.clock.advance(2 * time.Second)
	v.enters()
	for range 200 {
		v.open("x", "", "Origin", "https://evil.example")
	}
	if n := strings.Count(h.log.String(), "refuses somebody"); n > 70 {
		t.Errorf("a flood fills the log with %d lines", n)
	}
	h.clock.advance(time.Minute)
	v.open("x", "", "Origin", "https://evil.example")
	h.checkLog("unlogged=")
}

func TestDoor_EndsSessions(t *testing.T) {
	h := newHouse(t, true)
	operator, venue := h.visitor().enters(), h.visitor()
	venue.open(h.token("venue_1", access.ScopeManage, time.Minute), "")
	h.clock.advance(time.Hour - 2*time.Second)
	if a := venue.get("/console/v/venue_1/"); a.status != 200 {
		t.Errorf("before its end a venue's session shows %d", a.status)
	}
	h.clock.advance(2 * time.Second)
	if a := venue.get("/console/v/venue_1/?type=lead.created", "Sec-Fetch-Dest", "iframe"); a.status != http.StatusUnauthorized || !strings.Contains(a.body, `"page":"expired"`) || !strings.Contains(a.body, "Origins:"+appOrigin+" http://localhost:3000 Next:/console/v/venue_1/?type=lead.created}") {
		t.Errorf("after it: %d %s", a.status, a.body)
	}
	if a := venue.ask(http.MethodPost, "/console/v/venue_1/endpoints/ep_1/enable", url.Values{}, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", "iframe"); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "Next:}") {
		t.Errorf("a form after it: %d %s", a.status, a.body)
	}
	h.clock.advance(7*time.Hour - 2*time.Second)
	if a := operator.get("/console/"); a.status != 200 {
		t.Errorf("before its end the operator's session shows %d", a.status)
	}
	h.clock.advance(2 * time.Second)
	if a := operator.get("/console/"); a.status != http.StatusSeeOther {
		t.Errorf("after it: %d", a.status)
	}
	// What a script asks for is not led to a form.
	if a := operator.get("/console/live", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"); a.status != http.StatusUnauthorized {
		t.Errorf("a script is answered %d", a.status)
	}
	if a := operator.ask(http.MethodPost, "/console/endpoints", url.Values{}, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate"); a.status != http.StatusUnauthorized {
		t.Errorf("a form is answered %d", a.status)
	}
}

func TestDoor_ForgedCookiesOpenNothing(t *testing.T) {
	h := newHouse(t, true)
	a := h.visitor().signIn(operatorToken, "")
	good := a.cookies[0].Value
	foreign, err := access.NewVerifier(secret.New(strings.Repeat("x", 32)), access.Keys{}).VerifyToken(strings.Repeat("x", 32))
	if err != nil {
		t.Fatal(err)
	}
	other, err := access.NewSessions(secret.New(strings.Repeat("x", 32)), nil).Seal(foreign, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, cookie := range map[string]string{
		"cut": operatorCookie + "=" + good[1:], "longer": operatorCookie + "=" + good + "AA", "of another agent": operatorCookie + "=" + other, "empty": operatorCookie + "=",
		"without the prefix": "wh-operator=" + good, "under another name": venueCookie("venue_1") + "=" + good, "in another case": strings.ToUpper(operatorCookie) + "=" + good,
		"a word": operatorCookie + "=operator", "very long": operatorCookie + "=" + strings.Repeat("A", 8000),
	} {
		for _, path := range []string{"/console/", "/console/v/venue_1/endpoints"} {
			if a := h.visitor().get(path, "Cookie", cookie); a.status == http.StatusOK {
				t.Errorf("%s at %s: %s", name, path, a.body)
			}
		}
	}
	// A bad one of the same name does not hide the good one.
	if a := h.visitor().get("/console/", "Cookie", operatorCookie+"=x; "+operatorCookie+"="+good); a.status != http.StatusOK {
		t.Errorf("two cookies of one name: %d", a.status)
	}
}

func TestDoor_TheListenerForVenuesKnowsNoOperator(t *testing.T) {
	operators, venues := newHouse(t, true), newHouse(t, false)
	cookie := operators.visitor().signIn(operatorToken, "").cookies[0]
	v := venues.visitor()
	for _, path := range []string{"/console/", "/console/deliveries", "/console/v/venue_1/endpoints"} {
		if a := v.get(path, "Cookie", operatorCookie+"="+cookie.Value); a.status != http.StatusNotFound && a.status != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for _, path := range []string{"/console/signin", "/console/link"} {
		a := v.ask(http.MethodPost, path, url.Values{"token": {operatorToken}}, "Authorization", "Bearer "+operatorToken)
		if len(a.cookies) > 0 || strings.Contains(a.body, "/console/link/") || a.status == http.StatusSeeOther || a.status == http.StatusOK {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	// A venue's session is good at both.
	own := v.open(venues.token("venue_1", access.ScopeManage, time.Minute), "").cookies[0]
	if a := operators.visitor().get("/console/v/venue_1/", "Cookie", own.Name+"="+own.Value); a.body != `venue "venue_1"` {
		t.Errorf("at the other listener: %d %q", a.status, a.body)
	}
}

func TestDoor_GoesOnlyToPagesOfItsOwn(t *testing.T) {
	h := newHouse(t, true)
	for _, next := range []string{
		"//evil.example", `\\evil.example`, `/\evil.example`, "https://evil.example/console/", "javascript:alert(1)", "/console//evil.example", "/\t/evil.example", "/console/\r\nSet-Cookie: a=b",
		"/console/\x00", "/console/../metrics", "/console/./x", "/console/%2e%2e/metrics", "/console/%2E%2E%2Fmetrics", "/console/..%5Cmetrics", `/console/..\metrics`, "/api/v1/endpoints", "/consoleevil", "console/deliveries",
		"/console", "", " /console/", "/console/ü", "///evil.example/console/", "http:/console/", "/console/%0d%0aSet-Cookie:x", "/console/x;\x7f", "@evil.example/console/", "//user@/console/", "//evil.example/console/", "//evil.example/console/v/venue_1/endpoints", "//evil.example/endpoints", "https://evil.example/console/v/venue_1/x", "/console/" + strings.Repeat("a", maxNext), "/console/%zz",
	} {
		h.clock.advance(time.Minute)
		if a := h.visitor().signIn(operatorToken, next); a.status != http.StatusSeeOther || a.location != "/console/" {
			t.Errorf("signing in with next %q leads to %d %q", next, a.status, a.location)
		}
		a := h.visitor().open(h.token("venue_1", access.ScopeManage, time.Minute), next)
		if u, err := url.Parse(a.location); a.status != http.StatusSeeOther || err != nil || u.Host != "" || !strings.HasPrefix(a.location, "/console/v/venue_1/") || strings.Contains(a.location, "..") {
			t.Errorf("opening a venue with next %q leads to %d %q", next, a.status, a.location)
		}
		if a := h.visitor().get("/console/signin?next=" + url.QueryEscape(next)); a.status != http.StatusOK || !strings.Contains(a.body, "Next: ") {
			t.Errorf("the form with next %q is %d: %s", next, a.status, a.body)
		}
	}
	h.clock.advance(time.Minute)
	for next, want := range map[string]string{
		"/console/v/venue_1/deliveries?status=failed&lang=pt#top": "/console/v/venue_1/deliveries?status=failed&lang=pt",
		"/console/endpoints/ep_1":                                 "/console/endpoints/ep_1",
		"/console/v/a%2Fb/endpoints":                              "/console/v/a%2Fb/endpoints",
	} {
		if a := h.visitor().signIn(operatorToken, next); a.location != want {
			t.Errorf("signing in with next %q leads to %q", next, a.location)
		}
	}
	for next, want := range map[string]string{
		"": "/console/v/venue_1/endpoints", "deliveries": "/console/v/venue_1/deliveries", "/deliveries?status=failed": "/console/v/venue_1/deliveries?status=failed",
		"/console/v/venue_1/endpoints/ep_1": "/console/v/venue_1/endpoints/ep_1", "/console/v/venue_1/": "/console/v/venue_1/endpoints",
	} {
		if a := h.visitor().open(h.token("venue_1", access.ScopeManage, time.Minute), next); a.location != want {
			t.Errorf("opening a venue with next %q leads to %q", next, a.location)
		}
	}
}

func TestDoor_RefusesWhatPagesOfOtherOriginsSend(t *testing.T) {
	h := newHouse(t, true)
	v := h.visitor().enters()
	link := h.link()
	for name, header := range map[string][]string{
		"another site":         {"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"},
		"the app":              {"Sec-Fetch-Site", "same-site", "Origin", appOrigin},
		"another port":         {"Sec-Fetch-Site", "same-site", "Origin", "https://127.0.0.1:1"},
		"an old browser":       {"Origin", "https://evil.example"},
		"a page without a URL": {"Origin", "null"},
	} {
		for _, path := range []string{"/console/signin", "/console/signout", "/console/endpoints", "/console/v/venue_1/endpoints", "/console/session/", "/console/link"} {
			a := v.ask(http.MethodPost, path, url.Values{"token": {operatorToken}}, header...)
			if a.status != http.StatusForbidden || len(a.cookies) > 0 {
				t.Errorf("%s at %s: %d %s", name, path, a.status, a.body)
			}
		}
	}
	if a := v.get("/console/"); a.status != http.StatusOK {
		t.Errorf("another page has signed the operator out: %d", a.status)
	}
	if a := h.visitor().get(link); a.status != http.StatusSeeOther {
		t.Errorf("another page has used up a link: %d", a.status)
	}
}

// link asks for a link as the command does, and returns its path.
func (h *house) link() string {
	h.t.Helper()
	a := h.visitor().ask(http.MethodPost, "/console/link", nil, "Authorization", "Bearer "+operatorToken)
	var l Link
	if err := json.Unmarshal([]byte(a.body), &l); err != nil || a.status != http.StatusOK {
		h.t.Fatalf("a link is answered %d: %s", a.status, a.body)
	}
	path, ok := strings.CutPrefix(l.URL, h.server.URL)
	if !ok || l.Expires.Sub(h.clock.Now()) > time.Minute || l.Expires.Before(h.clock.Now().Add(58*time.Second)) {
		h.t.Fatalf("the link is %+v", l)
	}
	return path
}

func TestDoor_ALinkWorksOnce(t *testing.T) {
	h := newHouse(t, true)
	link := h.link()
	for _, header := range [][]string{{"Sec-Purpose", "prefetch"}, {"Sec-Purpose", "prefetch;prerender"}, {"Purpose", "prefetch"}, {"X-Moz", "prefetch"}} {
		if a := h.visitor().get(link, header...); a.status == http.StatusSeeOther || len(a.cookies) > 0 {
			t.Errorf("%v opens the door: %d", header, a.status)
		}
	}
	if a := h.visitor().ask(http.MethodHead, link, nil); a.status == http.StatusSeeOther || len(a.cookies) > 0 {
		t.Errorf("HEAD opens the door: %d", a.status)
	}
	v := h.visitor()
	if a := v.get(link, "Sec-Fetch-Site", "none"); a.status != http.StatusSeeOther || a.location != "/console/" || len(a.cookies) != 1 || a.cookies[0].SameSite != http.SameSiteStrictMode {
		t.Fatalf("the link is answered %d %q", a.status, a.location)
	}
	if a := v.get("/console/"); a.body != `operator ""` {
		t.Errorf("it shows %q", a.body)
	}
	if a := h.visitor().get(link); a.status != http.StatusGone || len(a.cookies) > 0 {
		t.Errorf("the second time it is answered %d", a.status)
	}
	late := h.link()
	h.clock.advance(time.Minute)
	for _, path := range []string{late, "/console/link/x", "/console/link/" + strings.Repeat("A", 43)} {
		if a := h.visitor().get(path); a.status != http.StatusGone || len(a.cookies) > 0 {
			t.Errorf("%s is answered %d", path, a.status)
		}
	}
	h.checkLog("a link to the console was made", "how=link", "the link was used, or has ended")
	if strings.Contains(h.log.String(), strings.TrimPrefix(link, "/console/link/")) {
		t.Error("the log shows a ticket")
	}
}

func TestDoor_ALinkIsForOneOfManyBrowsers(t *testing.T) {
	h := newHouse(t, true)
	link := h.link()
	var wait sync.WaitGroup
	opened := make(chan bool, 20)
	for range cap(opened) {
		wait.Go(func() { opened <- h.visitor().get(link).status == http.StatusSeeOther })
	}
	wait.Wait()
	close(opened)
	n := 0
	for one := range opened {
		if one {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it opened the door %d times", n)
	}
}

func TestDoor_GivesLinksToTheOperatorAlone(t *testing.T) {
	h := newHouse(t, true)
	for _, authorization := range []string{"", "Bearer x", "Bearer " + h.token("venue_1", access.ScopeManage, time.Minute), "Basic " + operatorToken} {
		a := h.visitor().ask(http.MethodPost, "/console/link", nil, "Authorization", authorization)
		if a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" || strings.Contains(a.body, "/console/link/") {
			t.Errorf("%q is answered %d %s", authorization, a.status, a.body)
		}
	}
	// A cookie is no token here: a page could not read the answer, but would fill the list.
	if a := h.visitor().enters().ask(http.MethodPost, "/console/link", nil); a.status != http.StatusUnauthorized {
		t.Errorf("a session gets a link: %d", a.status)
	}
	for range maxLinks {
		h.link()
	}
	if a := h.visitor().ask(http.MethodPost, "/console/link", nil, "Authorization", "Bearer "+operatorToken); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("the %dth link is answered %d", maxLinks+1, a.status)
	}
	h.clock.advance(time.Minute)
	h.link()
}

// A browser sends a Strict cookie neither with a link on a page of another site nor with the
// redirect that follows. The page that asks once more is of this site.
func TestDoor_AsksOnceMoreAfterALinkOnAnotherSite(t *testing.T) {
	h := newHouse(t, true)
	v := h.visitor()
	a := v.get("/console/deliveries?type=%22%3E%3Cb%3E", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")
	if a.status != http.StatusOK || a.header.Get("Refresh") != "0; url=/console/deliveries?type=%22%3E%3Cb%3E" || strings.Contains(a.body, `"><b`) {
		t.Errorf("a page: %d %q %s", a.status, a.header.Get("Refresh"), a.body)
	}
	if a := v.get("/console/%5Cevil", "Sec-Fetch-Site", "cross-site"); a.header.Get("Refresh") != "0; url=/console/" {
		t.Errorf("an unusual path: %d %q", a.status, a.header.Get("Refresh"))
	}
	if a := v.get("/console/deliveries", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate"); a.status != http.StatusSeeOther {
		t.Errorf("it asks for ever: %d", a.status)
	}
	if a := v.get(h.link(), "Sec-Fetch-Site", "cross-site"); a.status != http.StatusOK || a.header.Get("Refresh") != "0; url=/console/" || len(a.cookies) != 1 {
		t.Errorf("a link: %d %q", a.status, a.header.Get("Refresh"))
	}
}

func TestDoor_SaysWhereABrowserWouldLoseTheSession(t *testing.T) {
	h := newHouse(t, true)
	h.door.url = "https://webhooks.example.com"
	link := h.link()
	ask := func(method, path, host string, form url.Values, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), method, "http://"+host+path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		mux := http.NewServeMux()
		h.door.register(mux)
		h.door.guard(mux).ServeHTTP(w, r)
		return w
	}
	for host, kept := range map[string]bool{
		"127.0.0.1:8480": true, "localhost:8480": true, "LOCALHOST.": true, "[::1]:8480": true, "127.1.2.3": true, "agent.localhost:8480": true, "webhooks.example.com": true,
		"db.internal:8480": false, "10.1.2.3:8480": false, "localhost.evil.example": false, "webhooks.example.com:8480": false, "[2001:db8::1]:8480": false,
	} {
		w := ask(http.MethodGet, "/console/signin", host, nil)
		if (w.Code == http.StatusOK) != kept || !kept && (w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "tunnel")) {
			t.Errorf("the form at %s: %d %s", host, w.Code, w.Body)
		}
		if w := ask(http.MethodPost, "/console/signin", host, url.Values{"token": {operatorToken}}); (w.Code == http.StatusSeeOther) != kept || (w.Header().Get("Set-Cookie") != "") != kept {
			t.Errorf("signing in at %s: %d %s", host, w.Code, w.Body)
		}
		if kept {
			continue
		}
		if w := ask(http.MethodPost, "/console/session", host, url.Values{"token": {h.token("venue_1", access.ScopeRead, time.Minute)}}, "Origin", appOrigin); w.Code != http.StatusForbidden || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("opening a venue at %s: %d %s", host, w.Code, w.Body)
		}
		if w := ask(http.MethodGet, link, host, nil); w.Code != http.StatusForbidden {
			t.Errorf("a link at %s: %d %s", host, w.Code, w.Body)
		}
	}
	// A browser sends this field only from pages whose cookies it keeps: a proxy with TLS is in
	// front.
	if w := ask(http.MethodPost, "/console/signin", "db.internal", url.Values{"token": {operatorToken}}, "Sec-Fetch-Site", "same-origin"); w.Code != http.StatusSeeOther {
		t.Errorf("behind a proxy: %d", w.Code)
	}
	if a := h.visitor().get(link); a.status != http.StatusSeeOther {
		t.Errorf("the link was used up: %d", a.status)
	}
}

func TestDoor_SaysThatThereIsNoToken(t *testing.T) {
	h := newHouse(t, true)
	h.door.hasToken = false
	for _, a := range []answer{h.visitor().get("/console/signin"), h.visitor().signIn(operatorToken, "")} {
		if a.status != http.StatusForbidden || !strings.Contains(a.body, "admin.token is not set") || len(a.cookies) > 0 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
}

// Whatever next is, a browser stays on this origin.
func FuzzPathBelow(f *testing.F) {
	for _, next := range []string{"/console/x?y=z#a", "//evil", `/\evil`, "//evil/console/x", "/console/%2e%2e/x", "/console/\t//x", "/console/v/a%2Fb/endpoints", "/console/a:b"} {
		f.Add(next)
	}
	f.Fuzz(func(t *testing.T, next string) {
		got, ok := pathBelow(next, "/console/")
		if ok != (got != "") {
			t.Fatalf("%q, %t", got, ok)
		}
		if !ok {
			return
		}
		base, err := url.Parse("https://webhooks.example.com/console/signin")
		if err != nil {
			t.Fatal(err)
		}
		u, err := base.Parse(got)
		if err != nil || u.Host != base.Host || u.Scheme != "https" || !strings.HasPrefix(u.EscapedPath(), "/console/") || strings.ContainsAny(got, "\\\r\n\t \x00") || strings.Contains(u.Path, "/../") {
			t.Fatalf("%q leads to %q (%v)", next, u, err)
		}
		if again, ok := pathBelow(got, "/console/"); !ok || again != got {
			t.Fatalf("%q becomes %q, and then %q", next, got, again)
		}
	})
}
