package console

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
)

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
