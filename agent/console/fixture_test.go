package console

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const (
	testToken  = "operator-0123456789abcdef0123456789"
	testKey    = "signing-key-0123456789abcdef0123456789"
	testOrigin = "https://app.example.com"
)

// site is the console on a database of its own, without an agent that delivers.
type site struct {
	testing.TB
	env     *testenv.DB
	cfg     *config.Config
	handler *Handler
	feed    *feed.Feed
	server  *httptest.Server
	log     *agenttest.Buffer
	state   string // of the term
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{TB: t, env: testenv.NewDB(t), feed: feed.New(), log: &agenttest.Buffer{}, state: "leading"}
	s.cfg = agenttest.Config(s.env)
	s.cfg.Admin.Token = secret.New(testToken)
	s.cfg.Console.Keys = []secret.Text{secret.New(testKey)}
	s.cfg.Console.Origins = []string{testOrigin}
	db, webhook := agenttest.Parts(t, s.cfg)
	var err error
	s.handler, err = New(Config{
		Config: s.cfg, DB: db, Webhook: webhook, Version: "test", Feed: s.feed, Limits: limits.New(limits.Unlimited),
		Log:   slog.New(slog.NewTextHandler(s.log, nil)),
		Terms: func() []api.TermInfo { return []api.TermInfo{{Slot: s.cfg.Outbox.Slot, State: s.state}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.server = httptest.NewServer(s.handler)
	t.Cleanup(s.server.Close)
	return s
}

// guest is a browser with a session.
type guest struct {
	*site
	client *http.Client
	base   string // of the paths of its pages
}

// browser returns a browser without a session.
func (s *site) browser() *guest {
	s.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.Fatal(err)
	}
	v := &guest{site: s, base: Prefix, client: &http.Client{Jar: &plainJar{jar}}}
	v.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return v
}

// plainJar keeps secure cookies for http://127.0.0.1, as browsers do.
type plainJar struct{ jar http.CookieJar }

func (j *plainJar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	j.jar.SetCookies(secured(u), cookies)
}
func (j *plainJar) Cookies(u *url.URL) []*http.Cookie { return j.jar.Cookies(secured(u)) }

func secured(u *url.URL) *url.URL {
	c := *u
	c.Scheme = "https"
	return &c
}

// operator returns a browser in which an operator has signed in.
func (s *site) operator() *guest {
	s.Helper()
	v := s.browser()
	if p := v.post("/console/signin", "token", testToken); p.status != http.StatusSeeOther {
		s.Fatalf("signing in: status %d: %s", p.status, p.body)
	}
	return v
}

// user returns a browser with a session of a venue.
func (s *site) user(venue string, scope access.Scope) *guest {
	s.Helper()
	v := s.browser()
	token, err := s.cfg.ConsoleKeys().Mint(venue, scope, 5*time.Minute, time.Now())
	if err != nil {
		s.Fatal(err)
	}
	p := v.send("POST", "/console/session", url.Values{"token": {token.Reveal()}}, "Origin", testOrigin, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Dest", "iframe")
	if p.status != http.StatusSeeOther {
		s.Fatalf("opening a session of %s: status %d: %s", venue, p.status, p.body)
	}
	v.base = basePath(venue)
	return v
}

// reply is an answer.
type reply struct {
	status int
	header http.Header
	body   string
}

// get asks for a page below the visitor's base.
func (v *guest) get(path string, headers ...string) reply {
	v.Helper()
	return v.send("GET", v.base+path, nil, headers...)
}

// want is get for a page of a status.
func (v *guest) want(status int, path string) reply {
	v.Helper()
	p := v.get(path)
	if p.status != status {
		v.Fatalf("GET %s: status %d, want %d: %s\n%s", path, p.status, status, p.body, v.log.String())
	}
	return p
}

// post sends a form. path is whole. Each pair is a name and a value.
func (v *guest) post(path string, pairs ...string) reply {
	v.Helper()
	form := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		form.Add(pairs[i], pairs[i+1])
	}
	return v.send("POST", path, form)
}

// send sends a request as a browser does.
func (v *guest) send(method, path string, form url.Values, headers ...string) reply {
	v.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(v.Context(), method, v.server.URL+path, body)
	if err != nil {
		v.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := v.client.Do(r)
	if err != nil {
		v.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		v.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, string(text)}
}

// seedVenue gives a venue endpoints in every state and a log. It returns the id of its first endpoint.
func (s *site) seedVenue(venue string) string {
	s.Helper()
	for i, e := range []struct {
		host, description, events string
		disabled                  bool
		failures                  int
	}{
		{"crm.quinta-das-flores.example", "Our CRM", "{lead.*,proposal.signed,payment.received}", false, 0},
		{"hooks.zapier.example", "Mailing list", "{lead.created}", false, 37},
		{"erp.quinta-das-flores.example", "Accounting", "{payment.received}", true, 100},
		{"warehouse.example.net", "", "{*}", false, 0},
	} {
		id := fmt.Sprintf("ep_%s_%d", venue, i+1)
		s.env.Exec(s, `insert into webhooks.endpoints (id, venue, url, events, secret, description, created, disabled_at, disabled_reason) values ($1, $2, $3, $4, $5, $6, now() - interval '40 days', $7, $8)`,
			id, venue, "https://"+e.host+"/quintago/hook-"+venue, e.events, agenttest.Secret, e.description, nullTime(e.disabled), nullText(e.disabled, "failures"))
		if e.failures > 0 {
			s.env.Exec(s, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, first_failure_at, last_failure_at, last_error)
				select id, generation, $2, now() - interval '3 hours', now() - interval '1 minute', 'the server answered 503 Service Unavailable' from webhooks.endpoints where id = $1`, id, e.failures)
		}
	}
	s.env.Exec(s, seedLog, venue)
	s.env.Exec(s, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response)
		select event_id, endpoint_id, n, created + n * n * interval '5 seconds', 503, 'status', 'the server answered 503 Service Unavailable', 120 + n, '{"error": "maintenance <b>now</b>"}'
		from webhooks.deliveries, generate_series(1, 6) n where venue = $1 and n <= attempts - (status = 'succeeded')::int`, venue)
	s.env.Exec(s, `insert into webhooks.replays (id, endpoint_id, statuses, since) values ('rpl_' || $1, 'ep_' || $1 || '_2', '{failed}', now() - interval '2 days')`, venue)
	return "ep_" + venue + "_1"
}

func nullTime(set bool) *time.Time {
	if !set {
		return nil
	}
	at := time.Now().Add(-26 * time.Hour)
	return &at
}

func nullText(set bool, text string) *string {
	if !set {
		return nil
	}
	return &text
}

// seedLog writes events of the last day with their deliveries: the endpoint that fails has every
// second one failed, the one that is disabled has missed all.
const seedLog = `
with types (kind, name) as (values (0, 'lead.created'), (1, 'lead.updated'), (2, 'lead.stage_changed'), (3, 'proposal.signed'), (4, 'payment.received')),
inserted as (
    insert into webhooks.outbox (id, type, venue, data, created)
    select 'evt_' || $1 || '_' || lpad(n::text, 4, '0'), t.name, $1,
           json_build_object('lead', json_build_object('id', 'lead_' || n, 'name', 'Ana & Pedro Silva', 'email', 'ana@example.com', 'phone', '+351912345678', 'guests', 80 + n)),
           now() - n * interval '6 minutes' - interval '20 seconds'
    from generate_series(0, 239) n join types t on t.kind = n % 5
    returning id, type, venue, created
), events as (
    select *, right(id, 4)::int as n from inserted
)
insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, last_code, last_class, last_error, last_latency_ms, created, finished)
select e.id, p.id, e.venue, e.type, s.status, case s.status when 'missed' then 0 when 'failed' then 6 when 'pending' then 2 else 1 + (e.n % 23 = 0)::int end,
       case when s.status = 'pending' then now() + interval '90 seconds' end,
       case s.status when 'succeeded' then 200 when 'missed' then null else 503 end, case s.status when 'succeeded' then null when 'missed' then null else 'status' end,
       case s.status when 'succeeded' then null when 'missed' then 'the endpoint was disabled' else 'the server answered 503 Service Unavailable' end,
       case s.status when 'missed' then null else (40 + 300 * random() ^ 4 * (1 + (e.n % 37 = 0)::int * 4))::int end, e.created,
       case when s.status = 'pending' then null else e.created + interval '400 milliseconds' end
from events e join webhooks.endpoints p on p.venue = e.venue and (p.events && array['*', e.type, split_part(e.type, '.', 1) || '.*'])
cross join lateral (select case when p.disabled_at is not null then 'missed' when p.description = 'Mailing list' then case when e.n < 3 then 'pending' when e.n % 2 = 0 then 'failed' else 'succeeded' end
    when e.n % 41 = 0 then 'failed' else 'succeeded' end as status) s`
