package console

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/secret"
)

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

func TestDoor_EndsSessions(t *testing.T) {
	h := newHouse(t, true)
	operator, venue := h.visitor().enters(), h.visitor()
	venue.open(h.token("venue_1", access.ScopeManage, time.Minute), "")
	h.clock.advance(time.Hour - 2*time.Second)
	if a := venue.get("/console/v/venue_1/"); a.status != 200 {
		t.Errorf("before its end a venue's session shows %d", a.status)
	}
	h.clock.advance(2 * time.Second)
	if a := venue.get("/console/v/venue_1/?type=lead.created", "Sec-Fetch-Dest", "iframe"); a.status != http.StatusUnauthorized || !strings.Contains(a.body, `"page":"expired"`) || !strings.Contains(a.body, "Origins:"+appOrigin+" http://localhost:3000 Next:/console/v/venue_1/?type=lead.created Undone:false}") {
		t.Errorf("after it: %d %s", a.status, a.body)
	}
	if a := venue.ask(http.MethodPost, "/console/v/venue_1/endpoints/ep_1/enable", url.Values{}, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", "iframe"); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "Next:/console/v/venue_1/endpoints?done=undone Undone:true}") {
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

// The app opens the page that is named to it, and a form that was sent has no page of its own.
func TestDoor_AFormAfterTheSessionLeadsBackToItsPage(t *testing.T) {
	for _, operators := range []bool{true, false} {
		h := newHouse(t, operators)
		for referrer, want := range map[string]string{
			h.server.URL + "/console/v/venue_1/replays/new?endpoint=ep_1&since=2026-11-29T14%3A30&done=changed": "replays/new?done=undone&endpoint=ep_1&since=2026-11-29T14%3A30",
			h.server.URL + "/console/v/venue_1/endpoints/ep_1/edit":                                             "endpoints/ep_1/edit?done=undone",
			h.server.URL + "/console/v/venue_1/endpoints/a%2Fb":                                                 "endpoints/a%2Fb?done=undone",
			// None of the venue's pages.
			h.server.URL + "/console/v/venue_2/endpoints/new":          "endpoints?done=undone",
			h.server.URL + "/console/v/venue_1/../venue_2/replays/new": "endpoints?done=undone",
			h.server.URL + "/console/v/venue_1/":                       "endpoints?done=undone",
			h.server.URL:                                               "endpoints?done=undone",
			"https://evil.example//evil.example/console/v/venue_1/x":   "endpoints?done=undone",
			"http://[": "endpoints?done=undone",
			"":         "endpoints?done=undone",
		} {
			a := h.visitor().ask(http.MethodPost, "/console/v/venue_1/endpoints", url.Values{}, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe", "Referer", referrer)
			if a.status != http.StatusUnauthorized || !strings.Contains(a.body, "Next:/console/v/venue_1/"+strings.ReplaceAll(want, "&", `\u0026`)+" Undone:true") {
				t.Errorf("a form of %s: %d %s", referrer, a.status, a.body)
			}
		}
	}
	// An operator's form on a page of a venue is one in a tab.
	h := newHouse(t, true)
	if a := h.visitor().ask(http.MethodPost, "/console/v/venue_1/endpoints", url.Values{}, "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "sign in again") {
		t.Errorf("an operator's form: %d %s", a.status, a.body)
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
