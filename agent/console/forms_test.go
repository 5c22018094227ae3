package console

import (
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// What the form proposes is for who comes to it. Who has taken all of it away, and sends the form or
// has it count, wants none of it.
func TestReplays_OfNoStatusSendNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	user := s.user("venue-1", access.ScopeManage)
	for _, query := range []string{"endpoint=ep_venue-1_2", "event=evt_venue-1_0003"} {
		p := user.want(http.StatusOK, "/replays/new?"+query)
		if !strings.Contains(p.body, `value="failed" checked`) || strings.Contains(p.body, "Choose at least one") {
			t.Errorf("the form of %s proposes nothing: %s", query, p.body)
		}
		// Without a script, the button that counts sends the form as the query of its page.
		if p := user.want(http.StatusUnprocessableEntity, "/replays/new?key=K&"+query); strings.Contains(p.body, " checked") || !strings.Contains(p.body, "Choose at least one") ||
			!strings.Contains(p.body, "<b data-counted>0 deliveries") {
			t.Errorf("counting none of %s shows: %s", query, p.body)
		}
		if p := user.want(http.StatusOK, "/replays/count?key=K&"+query); p.body != `{"text":"0 deliveries","count":0,"errors":{"status":"choose at least one"}}` {
			t.Errorf("the count of none of %s is %s", query, p.body)
		}
		name, value, _ := strings.Cut(query, "=")
		if p := user.post(user.base+"/replays", "key", "K", name, value); p.status != http.StatusUnprocessableEntity || strings.Contains(p.body, " checked") || !strings.Contains(p.body, "Choose at least one") {
			t.Errorf("sending none of %s: status %d: %s", query, p.status, p.body)
		}
	}
	if n := testenv.QueryOne[int64](t, s.env, `select count(*) from webhooks.replays where id <> 'rpl_venue-1'`); n != 0 {
		t.Errorf("forms without a status have made %d replays", n)
	}
}

func TestForms_SentTwiceMakeOneThing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	user := s.user("venue-1", access.ScopeManage)
	form := []string{"key", "ONE", "url", "https://new.example.com/x", "events", "lead.created", "others", "lead.creatd"}
	first, second := user.post(user.base+"/endpoints", form...), user.post(user.base+"/endpoints", form...)
	secret := testenv.QueryOne[string](t, s.env, `select secret from webhooks.endpoints where url like '%new.example%'`)
	if !strings.Contains(html.UnescapeString(first.body), secret) || !strings.Contains(first.body, "did you mean lead.created?") {
		t.Errorf("the page after the form is: %s", first.body)
	}
	if strings.Contains(html.UnescapeString(second.body), secret) || !strings.Contains(second.body, "The form was sent twice") || strings.Contains(second.body, "was shown") || strings.Contains(s.log.String(), secret) {
		t.Errorf("the page after the second form is: %s", second.body)
	}
	if !strings.Contains(second.body, "/rotate") || strings.Contains(first.body, "/rotate") {
		t.Errorf("the page after the second form leads to no new secret: %s", second.body)
	}
	for range 2 {
		if p := user.post(user.base+"/replays", "key", "TWO", "endpoint", "ep_venue-1_2", "status", "failed", "per_second", "5"); p.status != http.StatusSeeOther {
			t.Errorf("starting a replay: status %d", p.status)
		}
	}
	if n := testenv.QueryOne[int64](t, s.env, `select count(*) from webhooks.replays where per_second = 5`); n != 1 {
		t.Errorf("two forms have made %d replays", n)
	}
}

// The second click comes when the deliveries of the first are on their way, or the endpoint takes
// nothing more. It leads to the replay that the first has made.
func TestForms_SentTwiceLeadToTheSameReplay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	user := s.user("venue-1", access.ScopeManage)
	forms := [][]string{
		{"key", "RANGE", "endpoint", "ep_venue-1_2", "status", "failed"},
		{"key", "EVENT", "endpoint", "ep_venue-1_1", "event", "evt_venue-1_0003", "status", "succeeded"},
	}
	first := map[string]string{}
	for _, form := range forms {
		p := user.post(user.base+"/replays", form...)
		if first[form[1]] = p.header.Get("Location"); p.status != http.StatusSeeOther || !strings.Contains(first[form[1]], "/replays/rpl_") {
			t.Fatalf("the first %s: status %d, %s", form[1], p.status, p.body)
		}
	}
	for _, meanwhile := range []string{
		`update webhooks.deliveries set status = 'pending', finished = null where status in ('failed', 'succeeded')`,
		`update webhooks.endpoints set disabled_at = now(), disabled_reason = 'manual'`,
	} {
		s.env.Exec(t, meanwhile)
		for _, form := range forms {
			if p := user.post(user.base+"/replays", form...); p.status != http.StatusSeeOther || p.header.Get("Location") != first[form[1]] {
				t.Errorf("the second %s: status %d, %s: %s", form[1], p.status, p.header.Get("Location"), p.body)
			}
		}
	}

	// The same page with another content is another form: a browser may have kept the page.
	s.env.Exec(t, `update webhooks.endpoints set disabled_at = null, disabled_reason = null`)
	s.env.Exec(t, `update webhooks.deliveries set status = 'failed', finished = now() where status = 'pending'`)
	if p := user.post(user.base+"/replays", append(forms[0], "per_second", "5")...); p.status != http.StatusSeeOther || p.header.Get("Location") == first["RANGE"] {
		t.Errorf("another form of the same page: status %d, %s", p.status, p.header.Get("Location"))
	}
}

// What was typed stays, what the endpoint is now stands beside it, and saving again is a decision.
func TestForms_OfAnEndpointThatHasChangedShowWhatItIsNow(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	operator, user := s.operator(), s.user("venue-1", access.ScopeManage)
	for _, g := range []*guest{user, operator} {
		stamp := func(body string) string {
			_, rest, _ := strings.Cut(body, `name="updated" value="`)
			value, _, _ := strings.Cut(rest, `"`)
			return html.UnescapeString(value)
		}
		old := stamp(g.want(http.StatusOK, "/endpoints/ep_venue-1_1/edit").body)
		s.env.Exec(t, `update webhooks.endpoints set description = 'Of the other tab', url = 'https://other.example.com/secretpath', events = '{visit.booked}' where id = 'ep_venue-1_1'`)
		form := []string{"description", "Of this tab", "url", "https://this.example.com/x", "events", "lead.created", "updated"}
		p := g.post(g.base+"/endpoints/ep_venue-1_1", append(form, old)...)
		if p.status != http.StatusPreconditionFailed || strings.Contains(p.body, "ETag") {
			t.Errorf("a form of before is answered %d: %s", p.status, p.body)
		}
		for _, want := range []string{`value="Of this tab"`, `value="https://this.example.com/x"`, `value="lead.created" checked`, "Of the other tab", "other.example.com", "visit.booked", "Save it again"} {
			if !strings.Contains(p.body, want) {
				t.Errorf("the page after a form of before lacks %q", want)
			}
		}
		if strings.Contains(p.body, "secretpath") != (g == user) {
			t.Errorf("an operator sees the URL, or the venue does not")
		}
		if p := g.post(g.base+"/endpoints/ep_venue-1_1", append(form, stamp(p.body))...); p.status != http.StatusSeeOther {
			t.Errorf("saving it again is answered %d: %s", p.status, p.body)
		}
		if got := testenv.QueryOne[string](t, s.env, `select description from webhooks.endpoints where id = 'ep_venue-1_1'`); got != "Of this tab" {
			t.Errorf("the description is %q", got)
		}
		if p := g.send(http.MethodPost, g.base+"/endpoints/ep_venue-1_1", map[string][]string{"updated": {old}, "url": {"https://x.example"}, "events": {"*"}}, "Accept-Language", "pt"); !strings.Contains(p.body, "foi alterado") || strings.Contains(p.body, "Leia-o") {
			t.Errorf("in Portuguese the page is: %s", p.body)
		}
	}
}

// A filter that cannot be read is not left out: the page would show everything under the address of a
// part.
func TestQueries_ThatCannotBeReadAreRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	operator, user := s.operator(), s.user("venue-1", access.ScopeManage)
	for _, g := range []*guest{operator, user} {
		for _, path := range []string{
			"/deliveries?status=failed%", "/deliveries?status=failed;type=lead.created", "/deliveries?status=failed%&lang=pt", "/deliveries/live?status=%zz", "/endpoints?state=%", "/endpoints/ep_venue-1_1?window=%",
			"/replays?endpoint=%", "/replays/new?endpoint=%", "/replays/count?endpoint=ep_venue-1_2&status=%", "/find?id=%",
		} {
			if p := g.get(path); p.status != http.StatusBadRequest || !strings.Contains(p.body, "The address of this page cannot be read") {
				t.Errorf("%s: status %d", path, p.status)
			}
		}
	}
	if p := user.want(http.StatusUnprocessableEntity, "/endpoints?state=enabeld"); !strings.Contains(p.body, "enabled, disabled or unusable") {
		t.Errorf("a state that is not known shows %s", p.body)
	}
	for _, path := range []string{"/deliveries?status=faild", "/deliveries?status=failed&status=faild"} {
		if p := user.get(path); !strings.Contains(p.body, "no status") || strings.Contains(p.body, "data-key") {
			t.Errorf("%s shows %s", path, p.body)
		}
	}
}

// options returns the texts of a form's choices of an endpoint, by their values.
func options(t *testing.T, page string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, n := range parsePage(t, "a form", page).nodes {
		if n.Data == "option" && n.Parent != nil && attribute(n.Parent, "name") == "endpoint" && attribute(n, "value") != "" {
			found[attribute(n, "value")] = n.FirstChild.Data
		}
	}
	return found
}

func TestForms_NameEachEndpointByAnotherName(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret, description)
		select 'ep_01K5ABCDEFGHJKMNPQRST' || n || 'XYZ', 'venue-1', 'https://hooks.example.com/' || n, '{*}', $1, case when n < 3 then '' when n < 5 then 'CRM' else 'ERP' end from generate_series(1, 5) n`, agenttest.Secret)
	user, operator := s.user("venue-1", access.ScopeManage), s.operator()
	for _, page := range []string{user.want(http.StatusOK, "/deliveries").body, user.want(http.StatusOK, "/replays/new").body, operator.want(http.StatusOK, "/replays/new").body} {
		byText := map[string]string{}
		for id, text := range options(t, page) {
			byText[text] = id
		}
		if len(byText) != 5 || byText["hooks.example.com · ERP"] == "" || byText["hooks.example.com · CRM · ep_01K5ABC…QRST3XYZ"] == "" {
			t.Errorf("five endpoints have the names %v", byText)
		}
	}

	// Where there are too many for a list, none of them is left out.
	s.env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) select 'ep_' || n, 'venue-1', 'https://hooks.example.com/' || n, '{*}', $1 from generate_series(1000, 1250) n`, agenttest.Secret)
	for _, g := range []*guest{user, operator} {
		if p := g.want(http.StatusOK, "/replays/new"); len(options(t, p.body)) != 0 || !strings.Contains(p.body, `<input id="endpoint" name="endpoint"`) {
			t.Errorf("of many endpoints the form offers %d", len(options(t, p.body)))
		}
		if p := g.want(http.StatusOK, "/replays/new?endpoint=ep_1250"); !strings.Contains(p.body, "would be sent again") {
			t.Errorf("the form of the last endpoint is %s", p.body)
		}
	}
}

// Enabling and sending what was missed are one wish: what is refused changes nothing, and what fails
// afterwards is said as it is.
func TestForms_EnableNothingWhoseReplayIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id := "ep_venue-1_3"
	s.seedVenue("venue-1")
	user := s.user("venue-1", access.ScopeManage)
	enabled := func() bool {
		return testenv.QueryOne[bool](t, s.env, `select disabled_at is null from webhooks.endpoints where id = $1`, id)
	}
	s.env.Exec(t, `update webhooks.endpoint_health set unusable = 'the URL must begin with https://' where endpoint_id = $1`, id)
	p := user.post(user.base+"/endpoints/"+id+"/enable", "replay", "missed")
	if enabled() || p.status != http.StatusConflict || !strings.Contains(p.body, "Nothing was changed") {
		t.Errorf("an endpoint that cannot be sent to: enabled %t, status %d: %s", enabled(), p.status, p.body)
	}
	s.env.Exec(t, `update webhooks.endpoint_health set unusable = null where endpoint_id = $1`, id)

	s.env.Exec(t, `create function broken() returns trigger language plpgsql as $$ begin raise 'broken'; end $$`)
	s.env.Exec(t, `create trigger broken before insert on webhooks.replays for each row execute function broken()`)
	p = user.post(user.base+"/endpoints/"+id+"/enable", "replay", "missed")
	if !enabled() || p.status != http.StatusSeeOther {
		t.Fatalf("a replay that cannot be written: enabled %t, status %d: %s", enabled(), p.status, p.body)
	}
	if p = user.send(http.MethodGet, p.header.Get("Location"), nil); !strings.Contains(p.body, "What it missed is not on its way") || !strings.Contains(s.log.String(), "broken") {
		t.Errorf("the page does not say what was not done: %s\n%s", p.body, s.log.String())
	}
	s.env.Exec(t, `drop trigger broken on webhooks.replays`)
	s.env.Exec(t, `update webhooks.endpoints set disabled_at = now(), disabled_reason = 'manual' where id = $1`, id)
	if p = user.post(user.base+"/endpoints/"+id+"/enable", "replay", "missed"); !enabled() || !strings.HasSuffix(p.header.Get("Location"), "?done=enabled-replay") {
		t.Errorf("enabled %t, status %d, %s", enabled(), p.status, p.header.Get("Location"))
	}
}
