//go:build browser

package console_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
	"github.com/quintago/webhook-agent/testenv/browser"
)

// flowToken is the operator's token of the agents here.
const flowToken = "operator-0123456789abcdef0123456789"

// signIn opens the console as an operator does.
func signIn(p *browser.Page, console string) {
	p.Open(console)
	p.Fill("#token", flowToken)
	p.Click("main button")
	p.WaitFor("text=Behind the database")
}

// startAgent runs an agent, and returns the address of its console.
func startAgent(t *testing.T, env *testenv.DB) (console string) {
	t.Helper()
	cfg := agenttest.Config(env)
	cfg.Admin.Token = secret.New(flowToken)
	cfg.Delivery.DisableAfter = 5
	cfg.Delivery.Retries = []time.Duration{20 * time.Millisecond}
	a := agenttest.Start(t, cfg, func(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
		// A test goes on quicker than a person, and a request takes long where the machine is busy.
		rates := limits.Unlimited
		return agent.Run(ctx, agent.Options{Config: cfg, Log: log, Version: "test", Rates: &rates})
	})
	return a.AdminURL() + "/console/"
}

// A customer's endpoint from its registration to its recovery, as an operator sees it.
func TestBrowser_FollowsAnEndpointThroughItsLife(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	receiver := testenv.StartReceiver(t, agenttest.Secret)
	console := startAgent(t, env)
	p := browser.New(t)

	signIn(p, console)

	// The form says what is wrong when the field is left.
	p.Click("text=Endpoints")
	p.Click("text=New endpoint")
	p.Fill("#venue", "venue_1")
	p.Fill("#url", "gopher://x")
	p.Click("#description")
	p.WaitFor("#url-error .wrong")
	p.Fill("#url", receiver.URL+"/hook")
	p.Fill("#others", "lead.creatd")
	p.Click("#description")
	p.WaitFor("text=did you mean lead.created?")
	p.WaitGone("#url-error .wrong")
	p.Fill("#others", "lead.*")
	p.Fill("#description", "Our CRM")
	p.Click("text=Create the endpoint")

	// The secret is shown once.
	p.WaitFor("text=it is not shown again")
	made := p.Text("#secret")
	if !strings.HasPrefix(made, "whsec_") {
		t.Fatalf("the secret is %q", made)
	}
	receiver.SetSecret("/hook", made)
	p.Click("text=Send a test event")
	p.WaitFor("text=The test event has arrived.")
	if received := receiver.Wait(t, 1, browser.Patience); received[0].SignatureErr != nil {
		t.Error(received[0].SignatureErr)
	}
	p.Open(console + "endpoints")
	p.Click("text=" + agenttest.HostOf(t, receiver.URL))
	p.WaitFor("text=No event has been sent to it yet.")
	if strings.Contains(browser.Eval[string](p, "document.documentElement.outerHTML"), made) {
		t.Error("the page of the endpoint has the secret")
	}
	endpoint := p.URL()

	// A test event that fails counts for nothing.
	receiver.SetAnswer("/hook", testenv.Script(testenv.Answer{Status: 503, Body: "<b>closed</b>"}))
	p.Click("text=Send a test event")
	p.WaitFor("text=The test event has not arrived.")
	p.WaitFor("text=<b>closed</b>")
	p.WaitFor("text=0 / 5")

	// Failures fill the gauge, and the last one disables the endpoint.
	id := endpoint[strings.LastIndex(endpoint, "/")+1:]
	first := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"n": 1}`)
	agenttest.WaitStatus(t, env, first, id, "failed")
	p.Open(endpoint)
	p.WaitFor("text=2 / 5")
	p.WaitFor("text=After 5 in a row the endpoint is disabled.")
	for n := range 2 {
		agenttest.AddEvent(t, env, "venue_1", "lead.created", fmt.Sprintf(`{"n": %d}`, n+2))
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		if !testenv.QueryOne[bool](t, env, `select bool_or(disabled_at is not null) from webhooks.endpoints`) {
			return errors.New("the endpoint is not disabled")
		}
		return nil
	})
	p.Reload()
	p.WaitFor("text=Nothing is sent to this endpoint.")
	p.WaitFor("text=too many failures in a row")
	p.WaitFor("text=5 / 5")

	// What it misses can be sent when it is enabled again.
	const missed = 1200
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{"n": 0}' from generate_series(1, $1::int)`, missed)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*)::int from webhooks.deliveries where status = 'missed'`); n < missed {
			return fmt.Errorf("%d are missed", n)
		}
		return nil
	})
	p.Reload()
	receiver.SetAnswer("/hook", testenv.Script(testenv.Answer{Status: http.StatusOK, Delay: 500 * time.Millisecond}))
	p.WaitFor("text=Only enable")
	all := testenv.QueryOne[int](t, env, `select count(*)::int from webhooks.deliveries where status = 'missed'`)
	if got := strings.ReplaceAll(p.Text("[name=replay]"), " ", ""); !strings.Contains(got, fmt.Sprint(all)) {
		t.Errorf("the button says %q, want %d", got, all)
	}
	p.Click("[name=replay]")
	p.WaitFor("text=The endpoint is enabled")

	// The replay can be held, goes on, and is canceled.
	p.Click("text=Replays")
	p.Click("tbody a")
	p.WaitFor("text=have been sent")
	p.Fill("#per_second", "50")
	p.Click("text=Set the pace")
	p.WaitFor("text=The pace was changed.")
	p.Click("text=Pause")
	p.WaitFor("text=The replay is paused.")
	p.WaitFor(".state.paused")
	p.Click("text=Resume")
	p.WaitFor("text=The replay goes on.")
	p.WaitFor("text=Pause")
	// The page may be loading anew at this moment, since the state has changed.
	done := func() int {
		return browser.Eval[int](p, "parseInt(document.querySelector('[data-replay-done]')?.textContent.replace(/\\D/g, '') ?? '0')")
	}
	before := done()
	testenv.Eventually(t, browser.Patience, func() error {
		if now := done(); now <= before {
			return fmt.Errorf("the page shows %d deliveries, as before", now)
		}
		return nil
	})
	p.Click("text=Cancel the replay")
	p.WaitFor("text=The replay is canceled.")
	p.WaitFor(".state.canceled")

	// A further one counts before it begins.
	p.Click("text=Replays")
	p.Click("text=New replay")
	if p.Count("select#endpoint") > 0 {
		p.Click("text=Go on")
	}
	p.WaitFor("text=would be sent again")
	p.WaitGone("[data-recount]")
	counted := func() string { return p.Text("[data-counted]") }
	total := counted()
	p.Fill("#since", "2099-01-01T00:00")
	testenv.Eventually(t, browser.Patience, func() error {
		if got := counted(); got == total || got == "…" {
			return fmt.Errorf("the count is %s", got)
		}
		return nil
	})
	if got := browser.Eval[bool](p, "document.querySelector('[data-start]').disabled"); !got {
		t.Errorf("a replay of %s can be started", counted())
	}
}

// The button of the mouse goes down, which ends the typing in a field. The answer to the check of
// that field comes before the button goes up.
func TestBrowser_ALineThatAppearsMovesNoButtonFromUnderThePointer(t *testing.T) {
	t.Parallel()
	console := startAgent(t, testenv.NewDB(t))
	p := browser.New(t)
	signIn(p, console)
	p.Open(console + "endpoints/new")
	p.Fill("#url", "ftp://x")
	p.Fill("#others", "lead.creatd")
	p.ClickSlowly("main button.primary", func() {
		testenv.Eventually(t, browser.Patience, func() error {
			if n := browser.Eval[int](p, `performance.getEntriesByType('resource').filter(e => e.name.endsWith('/endpoints/check') && e.responseEnd > 0).length`); n < 2 {
				return fmt.Errorf("%d fields are checked", n)
			}
			return nil
		})
		browser.Eval[bool](p, `document.body.offsetHeight > 0`) // what the answer shows is laid out
	})
	p.WaitFor("[role=alert]")
}

// Nothing here needs a mouse: each step is a key, and each element on the way shows its focus.
func TestBrowser_WorksByTheKeyboardAlone(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	receiver := testenv.StartReceiver(t, agenttest.Secret)
	console := startAgent(t, env)
	p := browser.New(t)
	p.Open(console)
	p.Press(flowToken, "Enter") // the field has the focus
	p.WaitFor("text=Behind the database")

	p.TabTo("a.skip")
	p.TabTo("text=Endpoints")
	p.Press("Enter")
	p.WaitFor("text=No endpoints yet")
	p.TabTo("text=New endpoint")
	p.Press("Enter")
	p.WaitFor("#venue")
	p.TabTo("#venue")
	p.Press("venue_1")
	p.TabTo("#url")
	p.Press(receiver.URL + "/hook")
	p.TabTo("[data-all]")
	p.Press("Space")
	p.TabTo("text=Create the endpoint")
	p.Press("Enter")
	p.WaitFor("text=it is not shown again")
	receiver.SetSecret("/hook", p.Text("#secret"))
	p.TabTo("text=Send a test event")
	p.Press("Enter")
	p.WaitFor("text=The test event has arrived.")
	p.TabTo("text=Disable")
	p.Press("Enter")
	p.WaitFor("text=Disable the endpoint?")
	p.TabTo("main button")
	p.Press("Enter")
	p.WaitFor("text=Nothing is sent to this endpoint.")
	p.TabTo("main button")
	p.Press("Enter")
	p.WaitFor("text=The endpoint is enabled.")

	// The search, and the rows of tables, which are links.
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"n": 1}`)
	agenttest.WaitStatus(t, env, event, testenv.QueryOne[string](t, env, `select id from webhooks.endpoints`), "succeeded")
	p.TabTo("#find")
	p.Press(event, "Enter")
	p.WaitFor("text=Who got it, and who did not")
	p.TabTo("a.row")
	p.Press("Enter")
	p.WaitFor("text=What happened")
	p.TabTo("text=Show the body")
	p.Press("Enter")
	p.WaitFor("#body")
	p.TabTo("text=Check a signature")
	p.Press("Enter")
	p.TabTo("#verify-secret")
	p.Press("whsec_wrong")
	p.TabTo("#verify-signature")
	p.Press("sha256=00")
	p.TabTo("text=Check")
	p.Press("Enter")
	p.WaitFor("text=The signature is not that of this body and secret.")
}

func TestBrowser_WorksWithoutJavaScript(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	receiver := testenv.StartReceiver(t, agenttest.Secret)
	console := startAgent(t, env)
	p := browser.New(t)
	p.DisableJavaScript()
	signIn(p, console)
	p.Click("text=Endpoints")
	p.Click("text=New endpoint")
	p.Fill("#venue", "venue_1")
	p.Fill("#url", "nonsense")
	p.Click("text=All events")
	p.Click("text=Create the endpoint")
	p.WaitFor("#url-error .wrong")
	if got := p.Text("#venue"); got != "venue_1" {
		t.Errorf("the form has forgotten the venue: %q", got)
	}
	p.Fill("#url", receiver.URL+"/hook")
	p.Click("text=Create the endpoint")
	p.WaitFor("text=it is not shown again")
	receiver.SetSecret("/hook", p.Text("#secret"))
	p.Click("text=Send a test event")
	p.WaitFor("text=The test event has arrived.")
	p.Click("text=Rotate the secret")
	p.Click("text=Make a new secret")
	p.WaitFor("text=The new secret")
	p.Click("text=To the endpoint")
	p.Click("text=Disable")
	p.Click("main button")
	p.WaitFor("text=Nothing is sent to this endpoint.")

	id := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints`)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"n": 1}`)
	agenttest.WaitStatus(t, env, event, id, "missed")
	p.Click("text=Deliveries")
	p.Click("text=missed")
	p.Click("text=Filter")
	p.WaitFor("text=Show all")
	p.Click("tbody a")
	p.WaitFor("text=It was not sent")
	p.Click("text=The event")
	p.WaitFor("text=Who got it, and who did not")
	p.Click("text=Show the data")
	p.WaitFor("pre")
	p.Click("text=Endpoints")
	p.Click("tbody a")
	p.Click("text=Only enable")
	p.WaitFor("text=The endpoint is enabled.")
	p.Click("text=Replay")
	p.WaitFor("text=would be sent again")
	p.Click("text=succeeded")
	p.Click("text=Count again")
	p.WaitFor("text=would be sent again")
	p.Click("text=Start the replay")
	p.WaitFor("text=The replay has begun.")
	agenttest.WaitStatus(t, env, event, id, "succeeded")
	p.Reload()
	p.WaitFor(".state.done")
	p.Click("text=Português")
	p.WaitFor("html[lang=pt]")
	p.Click("a[href*='theme=dark']")
	if got := browser.Eval[string](p, "document.documentElement.dataset.theme"); got != "dark" {
		t.Errorf("the theme is %q", got)
	}
}
