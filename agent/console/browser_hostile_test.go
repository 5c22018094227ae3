//go:build browser

package console

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv/agenttest"
	"github.com/quintago/webhook-agent/testenv/browser"
)

// hostileTexts are what customers, receivers and producers may write. Each one that runs opens a
// dialog, which fails the test, as a violation of the policy does.
var hostileTexts = []string{
	`<script>alert('script')</script>'><svg/onload=alert('svg')>`,
	`"><img src=x onerror=alert('img')></title></textarea></pre></script><iframe srcdoc="<script>alert(1)</script>">`,
	`javascript:alert('url')//{{printf "%s" .}}<!--<style>*{display:none}</style>`,
	`" autofocus onfocus=alert('focus') style="position:fixed;inset:0`,
	"a\u202egnp.exe\u2066\u200b\u0301\u0085\ufeffline\nline\ttab\r\x1b[31mred\x07\x7f",
	strings.Repeat("W", 10000),
	strings.Repeat("https://evil.example/", 400),
}

// seedHostile gives a venue whose id is a hostile text one endpoint, event and delivery for each of
// the others. It returns the paths of their pages below the venue's.
func (s *site) seedHostile(venue string) (paths []string) {
	s.Helper()
	short := func(text string) string { return text[:min(len(text), 400)] } // an id has at most 512 bytes
	for i, text := range hostileTexts {
		endpoint, event := fmt.Sprintf("%d%s", i, short(text)), fmt.Sprintf("e%d%s", i, short(text))
		data, err := json.Marshal(map[string]string{text: text, "</pre>": text})
		if err != nil {
			s.Fatal(err)
		}
		address := "https://evil" + fmt.Sprint(i) + ".example/" + text
		if i%2 == 1 {
			address = text
		}
		disabled := time.Now().Add(-time.Hour)
		var at *time.Time
		if i%3 == 1 {
			at = &disabled
		}
		s.env.Exec(s, `insert into webhooks.endpoints (id, venue, url, events, secret, description, created, disabled_at) values ($1, $2, $3, $4, $5, $6, now() - interval '2 days', $7)`,
			endpoint, venue, address, []string{"*", text, "lead.*"}, agenttest.Secret, text, at)
		s.env.Exec(s, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, last_failure_at, last_error, unusable)
			select id, generation, 99, now(), $2, $3 from webhooks.endpoints where id = $1`, endpoint, text, map[bool]*string{true: &text}[i%3 == 2])
		s.env.Exec(s, `insert into webhooks.outbox (id, type, venue, data) values ($1, $2, $3, $4::json)`, event, text, venue, string(data))
		s.env.Exec(s, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_code, last_class, last_error, last_latency_ms, created, finished)
			values ($1, $2, $3, $4, 'failed', 1, null, 'other', $4, 12, now(), now())`, event, endpoint, venue, text)
		s.env.Exec(s, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response) values ($1, $2, 1, now(), null, 'other', $3, 12, $3)`, event, endpoint, text)
		s.env.Exec(s, `insert into webhooks.replays (id, endpoint_id, state, error, total, finished) values ($1, $2, 'failed', $3, 1, now())`, "r"+endpoint, endpoint, text)
		s.env.Exec(s, `insert into webhooks.event_types (name, description, example) values ($1, $2, $3::json) on conflict do nothing`, text, text, string(data))
		e, d, r := url.PathEscape(endpoint), url.PathEscape(event), url.PathEscape("r"+endpoint)
		paths = append(paths, "/endpoints/"+e, "/deliveries/"+d+"/"+e, "/events/"+d, "/replays/"+r)
	}
	return append(paths, "/endpoints", "/deliveries", "/replays", "/endpoints/new",
		"/endpoints?query="+url.QueryEscape(hostileTexts[1]), "/deliveries?type="+url.QueryEscape(hostileTexts[1])+"&endpoint="+url.QueryEscape(hostileTexts[3]),
		"/replays/new?endpoint="+url.QueryEscape("0"+hostileTexts[0]), "/find?id="+url.QueryEscape(hostileTexts[0]), "/endpoints?done="+url.QueryEscape(hostileTexts[1]))
}

func TestBrowser_HostileTextsAreTextsAlone(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const venue = `"><img src=x onerror=alert('venue')>`
	paths := s.seedHostile(venue)

	user := s.venueTab(venue)
	base := s.server.URL + basePath(venue)
	for _, path := range paths {
		user.Open(base + path)
		browser.Eval[any](user, "document.querySelectorAll('details').forEach(d => { d.open = true })")
		for _, width := range []int64{1280, 360} {
			user.Viewport(width, 800)
			user.Layout()
		}
		if faults := user.Faults(); len(faults) > 0 {
			t.Errorf("%s: %q", path, faults)
		}
	}
	user.SetScheme("dark")
	for _, path := range []string{paths[0], paths[1], paths[2], "/endpoints", "/deliveries"} {
		user.Open(base + path)
		user.Axe()
	}

	operator := s.tab()
	for _, path := range append([]string{"/"}, paths[:8]...) {
		operator.Open(s.server.URL + Prefix + path)
		if operator.Count("form.reveal button") > 0 {
			operator.Click("form.reveal button")
			operator.WaitGone("form.reveal button")
		}
		operator.Layout()
		if faults := operator.Faults(); len(faults) > 0 {
			t.Errorf("%s: %q", path, faults)
		}
	}
}

// The rows of the live log are made by a script.
func TestBrowser_HostileTextsAreTextsAloneInTheLiveLog(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.tab()
	p.Open(s.server.URL + Prefix + "/deliveries")
	p.Click("text=Follow live")
	p.WaitFor("[aria-pressed=true]")
	// The script asks once before anything is passed on to it.
	shown := 0
	for i := 0; shown < len(hostileTexts); i++ {
		if i > 200 {
			t.Fatalf("%d of %d rows are shown", shown, len(hostileTexts))
		}
		var records []*outbox.Record
		for n, text := range hostileTexts {
			records = append(records, &outbox.Record{Status: outbox.Failed, Attempt: &outbox.Attempt{Error: text}, Delivery: &outbox.Delivery{
				EventID: fmt.Sprint(n) + text, EndpointID: text, Venue: text, Type: text, Created: time.Now()}})
		}
		s.feed.Recorded(records)
		shown = browser.Eval[int](p, "new Promise(done => setTimeout(() => done(document.querySelectorAll('[data-rows] tr').length), 100))")
	}
	p.Viewport(360, 800)
	p.Layout()
	p.Axe()
	if got := p.Attribute("[data-rows] tr a", "href"); !strings.HasPrefix(got, "/console/deliveries/") {
		t.Errorf("a row leads to %s", got)
	}
}
