package console

import (
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// document is a page that was parsed.
type document struct {
	nodes []*html.Node
	ids   map[string]int
}

func parsePage(t *testing.T, what, text string) document {
	t.Helper()
	root, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	d := document{ids: map[string]int{}}
	for n := range root.Descendants() {
		if n.Type == html.ElementNode {
			d.nodes = append(d.nodes, n)
			if id := attribute(n, "id"); id != "" {
				d.ids[id]++
			}
		}
	}
	return d
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// labelled reports whether a control has a name for who does not see it.
func (d document) labelled(n *html.Node) bool {
	if attribute(n, "aria-label") != "" {
		return true
	}
	for p := n.Parent; p != nil; p = p.Parent {
		if p.Data == "label" {
			return true
		}
	}
	for _, label := range d.nodes {
		if label.Data == "label" && attribute(label, "for") == attribute(n, "id") && attribute(n, "id") != "" {
			return true
		}
	}
	return false
}

// check fails the test for what no page may have.
func (d document) check(t *testing.T, what string) {
	t.Helper()
	count := map[string]int{}
	for _, n := range d.nodes {
		count[n.Data]++
		for _, a := range n.Attr {
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") || strings.HasPrefix(a.Val, "javascript:") || strings.HasPrefix(a.Val, "#ZgotmplZ") {
				t.Errorf("%s: <%s> has %s=%q", what, n.Data, a.Key, a.Val)
			}
			if (a.Key == "href" || a.Key == "src" || a.Key == "action") && !strings.HasPrefix(a.Val, "/console/") && a.Val != "#main" {
				// A relative one would lead nowhere from the answer to a form.
				t.Errorf("%s: <%s %s=%q> is no path of the console", what, n.Data, a.Key, a.Val)
			}
		}
		switch n.Data {
		case "script":
			if attribute(n, "src") == "" || n.FirstChild != nil {
				t.Errorf("%s: a script stands in the page", what)
			}
		case "input", "select", "textarea":
			if attribute(n, "type") != "hidden" && !d.labelled(n) {
				t.Errorf("%s: <%s name=%q> has no label", what, n.Data, attribute(n, "name"))
			}
		case "th":
			if attribute(n, "scope") == "" {
				t.Errorf("%s: a heading of a table has no scope", what)
			}
		case "html":
			if l := attribute(n, "lang"); l != "en" && l != "pt" {
				t.Errorf("%s: the language is %q", what, l)
			}
		}
	}
	if count["h1"] != 1 || count["main"] != 1 || count["title"] == 0 || count["caption"] != count["table"] {
		t.Errorf("%s: it has %d h1, %d main, %d title, %d captions of %d tables", what, count["h1"], count["main"], count["title"], count["caption"], count["table"])
	}
	for id, n := range d.ids {
		if n > 1 {
			t.Errorf("%s: the id %s stands there %d times", what, id, n)
		}
	}
}

func TestPages_AreSoundInEveryState(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	s.fillMarked("alpha", "text")
	s.env.Exec(t, `delete from webhooks.outbox where id = 'evt_venue-1_0007'`)
	s.env.Exec(t, `delete from webhooks.endpoints where id = 'ep_venue-1_4'`)
	s.env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) select id, generation, 0, 'the address is not public' from webhooks.endpoints where id = 'ep_venue-1_1'`)
	operator, user, empty := s.operator(), s.user("venue-1", access.ScopeManage), s.user("venue-none", access.ScopeRead)
	paths := []string{
		"/endpoints", "/endpoints?state=disabled", "/endpoints?query=nothing-like-it", "/endpoints/new", "/endpoints/ep_venue-1_1", "/endpoints/ep_venue-1_2?window=30d", "/endpoints/ep_venue-1_3",
		"/endpoints/ep_venue-1_1/edit", "/endpoints/ep_venue-1_1/disable", "/endpoints/ep_venue-1_1/rotate", "/endpoints/ep_venue-1_1/remove", "/endpoints/none",
		"/deliveries", "/deliveries?status=failed&endpoint=ep_venue-1_2", "/deliveries?type=never.occurs", "/deliveries?type=lead*", "/deliveries?since=yesterday", "/deliveries?endpoint=ep_venue-1_4",
		"/deliveries/evt_venue-1_0000/ep_venue-1_2", "/deliveries/evt_venue-1_0010/ep_venue-1_2", "/deliveries/evt_venue-1_0004/ep_venue-1_3", "/deliveries/evt_venue-1_0007/ep_venue-1_1", "/deliveries/evt_venue-1_0003/ep_venue-1_4",
		"/events/evt_venue-1_0004", "/events/evt_venue-1_0007", "/events/none", "/replays", "/replays/new", "/replays/new?endpoint=ep_venue-1_2", "/replays/new?endpoint=ep_venue-1_3", "/replays/new?event=evt_venue-1_0004", "/replays/new?endpoint=ep_venue-1_2&since=x", "/replays/rpl_venue-1", "/find?id=ep_venue-1_1",
	}
	for _, g := range []*guest{operator, user, empty} {
		for _, language := range languages {
			for _, path := range append(paths[:len(paths):len(paths)], "/") {
				p := g.get(path, "Accept-Language", language)
				if p.status >= 500 {
					t.Errorf("%s%s: status %d\n%s", g.base, path, p.status, s.log.String())
				}
				if p.status >= 300 && p.status < 400 {
					continue
				}
				parsePage(t, g.base+path, p.body).check(t, fmt.Sprintf("%s%s in %s", g.base, path, language))
			}
		}
	}
	for path, want := range map[string]string{
		"/endpoints?query=nothing-like-it": "Nothing matches", "/deliveries?type=never.occurs": "Nothing matches", "/deliveries?type=lead*": "no event type",
		"/endpoints/ep_venue-1_3": "Enable, and send the 48 that it missed", "/deliveries/evt_venue-1_0000/ep_venue-1_2": "Attempt 3 comes next", "/deliveries/evt_venue-1_0007/ep_venue-1_1": "no longer in the outbox",
		"/deliveries/evt_venue-1_0003/ep_venue-1_4": "(removed)", "/replays/new?endpoint=ep_venue-1_3": "disabled, so nothing is sent", "/events/evt_venue-1_0004": "does not ask for",
	} {
		if p := user.get(path); !strings.Contains(p.body, want) {
			t.Errorf("%s does not say %q", path, want)
		}
	}
	if p := empty.want(http.StatusOK, "/endpoints"); !strings.Contains(p.body, "No endpoints yet") {
		t.Error("a venue without endpoints is not told what they are")
	}
}

// Who reloads the answer to a form, or presses Enter in its address, asks for the form's address.
func TestPages_OfAFormsAddressCanBeAskedFor(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.fillMarked("alpha", "text")
	operator, user := s.operator(), s.user("alpha", access.ScopeManage)
	for _, g := range []*guest{operator, user} {
		for _, r := range s.walk(g.base) {
			if r.method != http.MethodPost || strings.HasSuffix(r.path, "/check") { // which answers a script
				continue
			}
			p := g.send(http.MethodGet, r.path+"?window=7d&done=undone", nil)
			if p.status == http.StatusSeeOther {
				p = g.send(http.MethodGet, p.header.Get("Location"), nil)
			}
			if p.status != http.StatusOK || !strings.Contains(p.body, "nothing was changed") {
				t.Errorf("GET %s: status %d: %s", r.path, p.status, p.body)
			}
		}
	}
	if p := user.get("/endpoints/ep_alpha/test?window=7d"); p.header.Get("Location") != user.base+"/endpoints/ep_alpha?window=7d" {
		t.Errorf("after a test event the plot of a week is at %s", p.header.Get("Location"))
	}
}

func TestPages_SayThatTheDatabaseDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	operator := s.operator()
	operator.want(http.StatusOK, "/live")
	operator.want(http.StatusOK, "/deliveries/live?position=-1")
	s.handler.cfg.DB.Close()
	p := operator.want(http.StatusServiceUnavailable, "/endpoints")
	if !strings.Contains(p.body, "The database does not answer") || strings.Contains(p.body, "pool") {
		t.Errorf("the page says %s", p.body)
	}
	// What open pages ask for is in memory.
	for range 200 {
		operator.want(http.StatusOK, "/deliveries/live?position=-1")
		if operator.get("/live").status != http.StatusOK && strings.Contains(s.log.String(), "look") {
			t.Fatal("an open page asks the database each time")
		}
	}
}

func TestHeaders_BoundWhatAPageMayDo(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	operator, user, nobody := s.operator(), s.user("venue-1", access.ScopeManage), s.browser()
	for path, p := range map[string]reply{
		"operator": operator.want(http.StatusOK, "/endpoints"), "venue": user.want(http.StatusOK, "/endpoints"), "absent": operator.get("/nothing"), "sign in": nobody.get("/signin"),
		"expired": nobody.send("GET", "/console/v/venue-1/endpoints", nil, "Sec-Fetch-Dest", "iframe", "Sec-Fetch-Mode", "navigate"),
	} {
		ancestors := "'none'"
		if path == "venue" || path == "expired" {
			ancestors = testOrigin
		}
		policy := p.header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "require-trusted-types-for 'script'", "trusted-types 'none'", "base-uri 'none'", "form-action 'self'", "frame-ancestors " + ancestors} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: the policy lacks %q: %s", path, want, policy)
			}
		}
		if strings.Contains(policy, "unsafe") || p.header.Get("Referrer-Policy") != "same-origin" || p.header.Get("X-Content-Type-Options") != "nosniff" || p.header.Get("Cache-Control") != "no-store" ||
			(p.header.Get("X-Frame-Options") == "DENY") != (ancestors == "'none'") {
			t.Errorf("%s: the headers are %v", path, p.header)
		}
	}
	hashed, err := assetURL("console.css")
	if err != nil {
		t.Fatal(err)
	}
	if p := nobody.send("GET", hashed, nil); p.status != http.StatusOK || !strings.Contains(p.header.Get("Cache-Control"), "immutable") {
		t.Errorf("the style sheet: status %d, %v", p.status, p.header)
	}
	if p := nobody.send("GET", staticPath+"0123456789ab/console.css", nil); strings.Contains(p.header.Get("Cache-Control"), "immutable") {
		t.Error("a style sheet under another version's name is kept for ever")
	}
	for accepted, want := range map[string]string{"gzip": "gzip", "br, gzip;q=0.5": "gzip", "gzip;q=0": "", "identity": ""} {
		p := operator.get("/endpoints", "Accept-Encoding", accepted)
		if got := p.header.Get("Content-Encoding"); got != want {
			t.Errorf("Accept-Encoding %q: the answer is %q", accepted, got)
		}
		if want == "gzip" {
			z, err := gzip.NewReader(strings.NewReader(p.body))
			if err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(z); err != nil || !strings.Contains(string(text), "</html>") {
				t.Errorf("the compressed page has %d bytes (%v)", len(text), err)
			}
		}
	}
}

func TestOperators_SeeDataOnlyAfterAClickThatIsLogged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_alpha', 'alpha', 'https://example.com/pathmark', '{*}', $1)`, agenttest.Secret)
	s.env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_alpha', 'lead.created', 'alpha', '{"name": "datamark"}')`)
	s.env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_code, created, finished) select id, 'ep_alpha', venue, type, 'succeeded', 1, 200, created, now() from webhooks.outbox`)
	s.env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses) values ('rpl_alpha', 'ep_alpha', '{failed}')`)
	operator := s.operator()
	for _, base := range []string{Prefix, basePath("alpha")} {
		for _, r := range s.walk(base) {
			if r.method != http.MethodGet {
				continue
			}
			p := operator.send(r.method, r.path, nil)
			for _, mark := range []string{"datamark", "pathmark", agenttest.Secret} {
				if strings.Contains(p.body, mark) {
					t.Errorf("%s shows an operator %s", r.path, mark)
				}
			}
		}
		for _, path := range []string{"/events/evt_alpha", "/deliveries/evt_alpha/ep_alpha"} {
			if p := operator.post(base + path); !strings.Contains(p.body, "datamark") || strings.Contains(p.body, "pathmark") {
				t.Errorf("after a click %s shows: %s", base+path, p.body)
			}
		}
	}
	log := s.log.String()
	if n := strings.Count(log, "an operator looks at the data of an event"); n != 4 || !strings.Contains(log, "by=operator") || !strings.Contains(log, "event=evt_alpha") {
		t.Errorf("the log has %d lines about it: %s", n, log)
	}
	for _, mark := range []string{"datamark", "pathmark", agenttest.Secret, testToken} {
		if strings.Contains(log, mark) {
			t.Errorf("the log has %s", mark)
		}
	}
	if p := s.user("alpha", access.ScopeRead).want(http.StatusOK, "/events/evt_alpha"); !strings.Contains(p.body, "datamark") {
		t.Error("a venue does not see its own data")
	}
}

func TestRequests_ThatAreForgedAreRefusedWithAPage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	user := s.user("venue-1", access.ScopeManage)
	long := strings.Repeat("x", 3000)
	for _, path := range []string{
		"/deliveries?before=forged", "/deliveries?before=" + url.QueryEscape("AAAA\x00"), "/endpoints?after=%00", "/endpoints?after=" + long, "/replays?before=forged", "/endpoints/%00", "/endpoints/%ff%fe", "/endpoints/a%2Fb", "/endpoints/%2e%2e",
		"/endpoints/" + long, "/events/%1b%5b31m", "/deliveries/%0a/%0d", "/deliveries/live?position=x", "/deliveries/live?type=lead*", "/deliveries/live?position=9223372036854775807", "/replays/count?endpoint=%00", "/replays/count?since=x", "/find?id=%e2%80%ae",
		"/endpoints?query=%25%5f'%22%3Cscript%3E", "/?lang=//evil.example", "/endpoints?lang=pt&next=//evil.example", "/endpoints?theme=%22", "/deliveries?status=x&status=failed&since=9999-12-31T23:59", "/deliveries?since=0001-01-01",
	} {
		p := user.get(path)
		if p.status >= 500 {
			t.Errorf("%s: status %d\n%s", path, p.status, s.log.String())
		}
		if at := p.header.Get("Location"); strings.Contains(at, "//evil") || at != "" && !strings.HasPrefix(at, "/console/") {
			t.Errorf("%s leads to %s", path, at)
		}
		if strings.Contains(p.body, "<script>") || strings.Contains(p.body, "\u202e") {
			t.Errorf("%s has an unescaped text", path)
		}
	}
	if p := user.post(user.base+"/endpoints", "url", strings.Repeat("x", 1<<20)); p.status != http.StatusBadRequest {
		t.Errorf("a form of a MiB: status %d", p.status)
	}
	if p := user.send("PUT", user.base+"/endpoints", nil); p.status != http.StatusMethodNotAllowed && p.status != http.StatusNotFound {
		t.Errorf("PUT: status %d", p.status)
	}
}

// TestCurl_SendsTheBytesOfTheBody runs the commands in a shell, with a body and a URL that try to be
// more than texts.
func TestCurl_SendsTheBytesOfTheBody(t *testing.T) {
	t.Parallel()
	type arrived struct{ path, signature, body string }
	requests := make(chan arrived, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // the test compares it
		requests <- arrived{r.URL.RequestURI(), r.Header.Get("X-Quintago-Signature"), string(body)}
	}))
	defer server.Close()
	const secret = "put the secret of the endpoint here"
	for _, body := range []string{
		`{"a": 1}`, `{"a": "it's $(touch /tmp/never) ` + "`id`" + ` \"quoted\" \\ $HOME %s !! "}`, "{\n\t\"a\": \"'; rm -rf x; '\"\n}", `{"a": "` + "\u202e\u00e9\U0001f470" + `"}`, `{"a": "'"'"'"}`,
	} {
		r := &manage.Request{Method: "POST", URL: server.URL + "/hook?a='$(id)'&b=;", Body: body}
		text := curl(r, []header{{"Content-Type", "application/json"}, {"Webhook-Id", "evt_'$(id)"}})
		out, err := exec.CommandContext(t.Context(), "sh", "-c", text).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s\n%s", err, out, text)
		}
		got := <-requests
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(body))
		if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); got.body != body || got.signature != want || !strings.Contains(got.path, "$(id)") {
			t.Errorf("what arrived is %+v, want %q with %s", got, body, want)
		}
	}
}

func TestPages_FollowWhatIsRecorded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	user := s.user("venue-1", access.ScopeRead)
	user.want(http.StatusOK, "/deliveries/live?position=-1")
	for _, venue := range []string{"venue-1", "venue-2"} {
		s.feed.Recorded([]*outbox.Record{{Delivery: &outbox.Delivery{EventID: "evt_" + venue, EndpointID: "ep_1", Venue: venue, Type: "lead.created"}, Status: outbox.Failed}})
	}
	p := user.want(http.StatusOK, "/deliveries/live?position=0")
	if !strings.Contains(p.body, "evt_venue-1") || strings.Contains(p.body, "venue-2") {
		t.Errorf("the live log is %s", p.body)
	}
	// Where another agent leads, the newest rows come from the database, once for all pages.
	s.state = "standby"
	user.want(http.StatusOK, "/deliveries/live?position=0")
	s.handler.log.at = s.handler.log.at.Add(-2 * logPause)
	s.env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created) values ('evt_other', 'ep_venue-1_1', 'venue-1', 'lead.created', 'pending', 1, now())`)
	if p := user.want(http.StatusOK, "/deliveries/live?position=1"); !strings.Contains(p.body, "evt_other") {
		t.Errorf("the live log of an agent that stands by is %s", p.body)
	}
}
