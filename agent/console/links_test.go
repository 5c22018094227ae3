package console

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
)

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
