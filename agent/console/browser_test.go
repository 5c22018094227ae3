//go:build browser

package console

import (
	"net/url"
	"testing"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/browser"
)

// The tests in the files browser*_test.go look at the pages in Chromium (package testenv/browser).

// tab returns a browser in which an operator has signed in.
func (s *site) tab() *browser.Page {
	s.Helper()
	p := browser.New(s)
	s.enter(p, s.operator())
	return p
}

// venueTab returns a browser with a session of a venue that may change something.
func (s *site) venueTab(venue string) *browser.Page {
	s.Helper()
	p := browser.New(s)
	s.enter(p, s.user(venue, access.ScopeManage))
	return p
}

// enter gives a browser the cookies of a guest.
func (s *site) enter(p *browser.Page, v *guest) {
	s.Helper()
	address, err := url.Parse(s.server.URL)
	if err != nil {
		s.Fatal(err)
	}
	for _, c := range v.client.Jar.Cookies(address) {
		p.SetCookie(s.server.URL, c.Name, c.Value)
	}
}

// delivery returns the path of the newest delivery of a venue in a status.
func (s *site) delivery(venue, status string) string {
	s.Helper()
	return testenv.QueryOne[string](s, s.env, `select '/deliveries/' || event_id || '/' || endpoint_id from webhooks.deliveries
		where venue = $1 and status = $2 order by created desc limit 1`, venue, status)
}

// seedStates adds what seedVenue leaves out: an endpoint that cannot be used, one of the
// configuration file, a replay in each state.
func (s *site) seedStates(venue string) {
	s.Helper()
	s.env.Exec(s, `insert into webhooks.endpoints (id, venue, url, events, secret, managed_by) values
		('ep_unusable', $1, 'https://10.0.0.1/hook', '{*}', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', null),
		('ep_managed', $1, 'https://reports.example.org/hook', '{payment.*}', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'file')`, venue)
	s.env.Exec(s, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable)
		select id, generation, 0, 'the address 10.0.0.1 is not public' from webhooks.endpoints where id = 'ep_unusable'`)
	s.env.Exec(s, `insert into webhooks.replays (id, endpoint_id, statuses, state, total, done, unsent, error, finished) values
		('rpl_running', $1, '{missed,failed}', 'running', 4000, 1250, 3, null, null),
		('rpl_paused', $1, '{missed}', 'paused', 4000, 2500, 0, null, null),
		('rpl_done', $1, '{failed}', 'done', 12, 12, 0, null, now()),
		('rpl_failed', $1, '{failed}', 'failed', 12, 10, 2, '2 events are no longer in the outbox', now())`, "ep_"+venue+"_1")
}

// sight is a page as a test looks at it.
type sight struct {
	name, path string
	do         func(p *browser.Page) // leads to what is to be seen; may be nil
}

// operatorSights are the pages of operators in each of their states.
func (s *site) operatorSights(venue string) []sight {
	first := "/endpoints/ep_" + venue
	return []sight{
		{"the overview", "/", nil},
		{"the endpoints", "/endpoints", nil},
		{"endpoints that match nothing", "/endpoints?query=nowhere", nil},
		{"the form of an endpoint", "/endpoints/new", nil},
		{"a form with faults", "/endpoints/new", func(p *browser.Page) {
			p.Fill("#url", "ftp://x")
			p.Fill("#others", "lead.creatd")
			p.Click("main button.primary")
			p.WaitFor("[role=alert]")
		}},
		{"an endpoint", first + "_1", nil},
		{"an endpoint that fails", first + "_2?window=7d", nil},
		{"an endpoint that is disabled", first + "_3", nil},
		{"an endpoint that cannot be used", "/endpoints/ep_unusable", nil},
		{"an endpoint of the file", "/endpoints/ep_managed", nil},
		{"the question before disabling", first + "_1/disable", nil},
		{"the question before rotating", first + "_1/rotate", nil},
		{"the question before removing", first + "_1/remove", nil},
		{"the deliveries", "/deliveries", nil},
		{"deliveries that match nothing", "/deliveries?type=no.such&status=failed", nil},
		{"a filter with a fault", "/deliveries?since=never&type=no.such", nil},
		{"a delivery that has succeeded", s.delivery(venue, "succeeded"), nil},
		{"a delivery that is pending", s.delivery(venue, "pending"), nil},
		{"a delivery that has failed, opened", s.delivery(venue, "failed"), func(p *browser.Page) {
			p.Click("main form.reveal button")
			p.WaitFor("#body")
			browser.Eval[any](p, "document.querySelectorAll('details').forEach(d => { d.open = true })")
		}},
		{"an event", "/events/evt_" + venue + "_0003", nil},
		{"the replays", "/replays", nil},
		{"the form of a replay", "/replays/new?endpoint=ep_" + venue + "_2", nil},
		{"the form of a replay of nothing", "/replays/new?key=K&endpoint=ep_" + venue + "_2", nil},
		{"a replay that runs", "/replays/rpl_running", nil},
		{"a replay that has ended", "/replays/rpl_failed", nil},
		{"a page that is not there", "/nothing", nil},
	}
}

// venueSights are the pages of a venue that differ from those of operators, and of one without
// anything.
func (s *site) venueSights(venue string) []sight {
	return []sight{
		{"the endpoints of a venue", "/endpoints", nil},
		{"an endpoint of a venue", "/endpoints/ep_" + venue + "_1", nil},
		{"the form of an endpoint of a venue", "/endpoints/ep_" + venue + "_1/edit", nil},
		{"the form of an endpoint that was changed meanwhile", "/endpoints/ep_" + venue + "_3/edit", func(p *browser.Page) {
			s.env.Exec(s, `update webhooks.endpoints set description = description || '.' where id = $1`, "ep_"+venue+"_3")
			p.Click("main button.primary")
			p.WaitFor(".note.warn")
		}},
		{"the page of a form that was not done", "/endpoints/new?done=undone", nil},
		{"a delivery of a venue", s.delivery(venue, "failed"), nil},
		{"a new secret", "/endpoints/ep_" + venue + "_4/rotate", func(p *browser.Page) {
			p.Click("main button.primary")
			p.WaitFor("#secret")
		}},
	}
}

func emptySights() []sight {
	return []sight{
		{"no endpoints", "/endpoints", nil},
		{"no deliveries", "/deliveries", nil},
		{"no replays", "/replays", nil},
		{"a replay of nothing", "/replays/new", nil},
	}
}

// inspect looks at pages in both sizes and schemes. Each rule is tried in the wide light page and, in
// the other language, in the narrow dark one. In the other scheme of both, the rules about colours
// are tried: nothing else depends on it, and all rules in all of them would take minutes.
func inspect(p *browser.Page, base, language string, sights []sight) {
	p.SetLanguage(language)
	for _, sight := range sights {
		p.Viewport(1280, 900)
		p.SetScheme("light")
		p.Open(base + sight.path)
		if sight.do != nil {
			sight.do(p)
		}
		p.Layout()
		if language == "en" {
			p.Axe()
			p.SetScheme("dark")
			p.AxeColours()
			p.Viewport(360, 800)
			p.Layout()
		} else {
			p.Viewport(360, 800)
			p.Layout()
			p.SetScheme("dark")
			p.Axe()
			p.SetScheme("light")
			p.AxeColours()
		}
	}
}

func TestBrowser_EveryPageIsAccessibleAndFits(t *testing.T) {
	const venue = "quinta-das-flores"
	s := newSite(t)
	s.seedVenue(venue)
	s.seedStates(venue)
	for _, language := range []string{"en", "pt"} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			here := *s
			here.TB = t
			inspect(here.tab(), s.server.URL+Prefix, language, here.operatorSights(venue))
			inspect(here.venueTab(venue), s.server.URL+Prefix+"/v/"+venue, language, here.venueSights(venue))
			inspect(here.venueTab("empty"), s.server.URL+Prefix+"/v/empty", language, emptySights())
			p := browser.New(t)
			inspect(p, s.server.URL+Prefix, language, []sight{{"the form to sign in", "/signin", nil}})
		})
	}
}
