//go:build browser

package console

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/testenv/browser"
)

// app is an app with a Settings page that shows a venue's pages in a frame. Its script is that of
// the demo, which docs/settings-page.md has as well.
type app struct {
	*site
	origin  string // of the app
	console string // the origin of the console
}

// newApp serves the console and an app by TLS under these names.
func newApp(t *testing.T, consoleName, appName string, allowed bool) *app {
	t.Helper()
	a := &app{site: newSite(t)}
	script, err := os.ReadFile("../../testenv/demo/settings/webhooks.js")
	if err != nil {
		t.Fatal(err)
	}
	console := httptest.NewTLSServer(a.handler)
	t.Cleanup(console.Close)
	a.console = "https://" + consoleName + ":" + port(t, console.URL)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/webhooks.js":
			w.Header().Set("Content-Type", "text/javascript")
			_, _ = w.Write(script)
		case "/token":
			token, err := a.cfg.ConsoleKeys().Mint(r.FormValue("venue"), access.ScopeManage, time.Minute, time.Now())
			if err != nil {
				t.Error(err)
			}
			fmt.Fprint(w, token.Reveal())
		case "/": // without the script, for who has a session already
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(w, `<!doctype html><html lang="en"><title>App</title><link rel="icon" href="data:,"><iframe title="Webhooks" src="%s/console/v/%s/endpoints"></iframe>`,
				a.console, url.PathEscape(r.FormValue("venue")))
		case "/settings":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Security-Policy", "default-src 'self'; img-src data:; frame-src "+a.console+"; form-action 'self' "+a.console)
			fmt.Fprintf(w, `<!doctype html><html lang="en"><title>Settings</title><link rel="icon" href="data:,"><h1>Settings</h1>
				<form id="webhooks" method="post" action="%s/console/session" target="webhooks-frame" data-sign="/token?venue=%s" hidden>
				<input type="hidden" name="token"><input type="hidden" name="next"></form>
				<p id="webhooks-problem" role="alert" hidden>Your browser keeps no session.</p>
				<iframe name="webhooks-frame" title="Webhooks" width="1000" height="700"></iframe>
				<script type="module" src="/webhooks.js"></script>`, a.console, url.QueryEscape(r.FormValue("venue")))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	a.origin = "https://" + appName + ":" + port(t, server.URL)
	a.cfg.Console.Origins = nil
	if allowed {
		a.cfg.Console.Origins = []string{a.origin}
	}
	a.handler.open(true) // which reads the origins
	return a
}

func port(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}

func (a *app) settings(venue string) string { return a.origin + "/settings?venue=" + url.QueryEscape(venue) }

func TestBrowser_TheAppShowsAVenuesPages(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, console, app string }{
		{"of the same site", "webhooks.quintago.test", "app.quintago.test"},
		{"of another site", "webhooks.test", "app.test"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, test.console, test.app, true)
			a.seedVenue("quinta")
			p := browser.New(t)
			p.Open(a.settings("quinta"))
			f := p.Frame("iframe")
			f.WaitFor("text=crm.quinta-das-flores.example")
			if strings.Contains(f.URL(), "eyJ") || !strings.HasPrefix(f.URL(), a.console+"/console/v/quinta/endpoints") {
				t.Errorf("the frame shows %s", f.URL())
			}
			f.Axe()
			// Forms are posted with the session as well.
			f.Click("text=New endpoint")
			f.Fill("#url", "http://127.0.0.1:9/hook")
			f.Click("text=All events")
			f.Click("text=Create the endpoint")
			f.WaitFor("text=it is not shown again.")
			f.Click("text=To the endpoint")
			f.WaitFor("text=No event has been sent to it yet.")
		})
	}
}

func TestBrowser_NoOtherOriginShowsAVenuesPages(t *testing.T) {
	t.Parallel()
	a := newApp(t, "webhooks.quintago.test", "evil.test", false)
	a.seedVenue("quinta")
	p := browser.New(t)
	for _, text := range []string{"frame-ancestors", "status of 403", "status of 401"} {
		p.ExpectFault(text)
	}
	p.Open(a.settings("quinta"))
	refused := func() {
		t.Helper()
		f := p.Frame("iframe")
		f.WaitFor("text=refused")
		if url := f.URL(); strings.HasPrefix(url, a.console) {
			t.Errorf("the frame shows %s", url)
		}
	}
	refused()

	// Nor does it with a session that the user has.
	v := a.user2(p, "quinta")
	v.Open(a.console + "/console/v/quinta/endpoints")
	v.WaitFor("text=crm.quinta-das-flores.example")
	p.Open(a.origin + "/?venue=quinta")
	refused()
}

// user2 opens a tab beside another one with a session of a venue.
func (a *app) user2(p *browser.Page, venue string) *browser.Page {
	a.Helper()
	a.cfg.Console.Origins = []string{testOrigin}
	a.handler.open(true)
	guest := a.user(venue, access.ScopeManage)
	a.cfg.Console.Origins = nil
	a.handler.open(true)
	address, err := url.Parse(a.server.URL)
	if err != nil {
		a.Fatal(err)
	}
	for _, c := range guest.client.Jar.Cookies(address) {
		p.SetCookie(a.console, c.Name, c.Value)
	}
	return p.NewTab()
}

func TestBrowser_TwoVenuesInTwoTabsDoNotMix(t *testing.T) {
	t.Parallel()
	a := newApp(t, "webhooks.quintago.test", "app.quintago.test", true)
	for _, venue := range []string{"one", "two"} {
		a.env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_' || $1, $1, 'https://' || $1 || '.example/hook', '{*}', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw')`, venue)
	}
	p := browser.New(t)
	tab := p.NewTab()
	p.Open(a.settings("one"))
	p.Frame("iframe").WaitFor("text=one.example")
	tab.Open(a.settings("two"))
	tab.Frame("iframe").WaitFor("text=two.example")
	for page, venue := range map[*browser.Page]string{p: "one", tab: "two"} {
		f := page.Frame("iframe")
		f.Click("text=" + venue + ".example")
		f.WaitFor("text=Settings")
		f.Click("text=Endpoints")
		f.WaitFor("text=New endpoint")
		if n := f.Count("tbody tr"); n != 1 || !strings.Contains(f.Text("tbody"), venue+".example") {
			t.Errorf("the tab of %s shows %d endpoints: %s", venue, n, f.Text("tbody"))
		}
	}
}

func TestBrowser_TheAppLearnsThatASessionHasEnded(t *testing.T) {
	t.Parallel()
	a := newApp(t, "webhooks.quintago.test", "app.quintago.test", true)
	a.seedVenue("quinta")
	clock := &clock{now: time.Now()}
	a.handler.door.now = clock.Now
	p := browser.New(t)
	p.Open(a.settings("quinta"))
	f := p.Frame("iframe")
	f.WaitFor("text=crm.quinta-das-flores.example")
	clock.advance(2 * time.Hour)
	// The app's script takes a session that ends within seconds for one that was not kept.
	browser.Eval[any](p, "void (performance.now = (now => () => now() + 60_000)(performance.now.bind(performance)))")
	before := a.log.String()
	browser.Eval[any](p, `void addEventListener('message', e => { document.title = e.origin + ' ' + JSON.stringify(e.data) })`)
	f.Click("text=Deliveries")
	f.WaitFor("text=evt_quinta")
	if got, want := browser.Eval[string](p, "document.title"), a.console+` {"type":"webhooks:expired","next":"`; !strings.HasPrefix(got, want) || !strings.Contains(got, "deliveries") {
		t.Errorf("the app got %s, want %s", got, want)
	}
	if !strings.HasPrefix(f.URL(), a.console+"/console/v/quinta/deliveries") {
		t.Errorf("the frame shows %s", f.URL())
	}
	if after := strings.TrimPrefix(a.log.String(), before); !strings.Contains(after, "a venue's user opened the console") {
		t.Errorf("no session was opened anew: %s", after)
	}
}
