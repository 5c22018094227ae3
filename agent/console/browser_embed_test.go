//go:build browser

package console

import (
	"fmt"
	"html/template"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/testenv/browser"
)

// demoSettings has the files of the demo's Settings page, whose script docs/settings-page.md has too.
const demoSettings = "../../testenv/demo/settings/"

// app is an app with a Settings page that shows a venue's pages in a frame.
type app struct {
	*site
	origin  string // of the app
	console string // the origin of the console
}

// newApp serves the console and an app by TLS under these names.
func newApp(t *testing.T, consoleName, appName string, allowed bool) *app {
	t.Helper()
	a := &app{site: newSite(t)}
	page, err := template.ParseFiles(demoSettings + "page.html")
	if err != nil {
		t.Fatal(err)
	}
	console := httptest.NewTLSServer(a.handler)
	t.Cleanup(console.Close)
	a.console = "https://" + consoleName + ":" + port(t, console.URL)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.FormValue("venue")
		switch r.URL.Path {
		case "/assets/webhooks.js", "/assets/app.css", "/assets/logo.svg":
			http.ServeFile(w, r, demoSettings+strings.TrimPrefix(r.URL.Path, "/assets/"))
		case "/settings/webhooks/token":
			token, err := a.cfg.ConsoleKeys().Mint(name, access.ScopeManage, time.Minute, time.Now())
			if err != nil {
				t.Error(err)
			}
			fmt.Fprint(w, token.Reveal())
		case "/": // without the script, for who has a session already
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprintf(w, `<!doctype html><html lang="en"><title>App</title><link rel="icon" href="data:,"><iframe title="Webhooks" src="%s/console/v/%s/endpoints"></iframe>`,
				a.console, url.PathEscape(name))
		case "/settings/webhooks":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Security-Policy", "default-src 'self'; frame-src "+a.console+"; form-action 'self' "+a.console)
			type item struct{ Path, Name string }
			venue := map[string]string{"ID": name, "Name": "Quinta das Flores", "Initials": "QF", "Place": "Sintra"}
			if err := page.Execute(w, map[string]any{"Title": "Webhooks", "Path": "webhooks", "Webhooks": true, "Agent": a.console, "Venue": venue, "Venues": []any{venue},
				"Areas": []item{{"leads", "Leads"}, {"visits", "Visits"}, {"proposals", "Proposals"}},
				"Groups": []any{map[string]any{"Name": "Venue", "Items": []item{{"profile", "Profile"}, {"team", "Team"}}},
					map[string]any{"Name": "Developers", "Items": []item{{"webhooks", "Webhooks"}, {"keys", "API keys"}}}},
			}); err != nil {
				t.Error(err)
			}
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	a.origin = "https://" + appName + ":" + port(t, server.URL)
	if allowed {
		a.cfg.Console.Origins = append(a.cfg.Console.Origins, a.origin)
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

func (a *app) settings(venue string) string {
	return a.origin + "/settings/webhooks?venue=" + url.QueryEscape(venue)
}

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
			p.Axe()
			p.Layout()
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
	address, err := url.Parse(a.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range a.user("quinta", access.ScopeManage).client.Jar.Cookies(address) {
		p.SetCookie(a.console, c.Name, c.Value)
	}
	tab := p.NewTab()
	tab.Open(a.console + "/console/v/quinta/endpoints")
	tab.WaitFor("text=crm.quinta-das-flores.example")
	p.Open(a.origin + "/?venue=quinta")
	refused()
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
	later := func() {
		browser.Eval[any](p, "void (performance.now = (now => () => now() + 60_000)(performance.now.bind(performance)))")
	}
	later()
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
	// Who has sent a form learns that it was not done, on the page of the form.
	f.Click("text=Endpoints")
	f.Click("text=New endpoint")
	f.Fill("#url", "https://new.example.com/hook")
	f.Click("text=All events")
	clock.advance(2 * time.Hour)
	later()
	f.Click("text=Create the endpoint")
	f.WaitFor("text=Your session had ended, so nothing was changed.")
	if !strings.HasPrefix(f.URL(), a.console+"/console/v/quinta/endpoints/new") {
		t.Errorf("after the form the frame shows %s", f.URL())
	}
	if after := strings.TrimPrefix(a.log.String(), before); !strings.Contains(after, "a venue's user opened the console") {
		t.Errorf("no session was opened anew: %s", after)
	}
}
