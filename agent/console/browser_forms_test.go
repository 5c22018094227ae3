//go:build browser

package console

import (
	"errors"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/browser"
)

func TestBrowser_AReplayOfNoStatusCannotBeStarted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	p := s.venueTab("venue-1")
	p.Open(s.server.URL + basePath("venue-1") + "/replays/new?event=evt_venue-1_0003")
	p.WaitGone("[data-recount]")
	if browser.Eval[bool](p, "document.querySelector('[data-start]').disabled") {
		t.Error("the replay that the form proposes cannot be started")
	}
	for _, status := range []string{"missed", "failed", "succeeded"} {
		p.Click("text=" + status)
	}
	p.WaitFor("text=Choose at least one.")
	testenv.Eventually(t, browser.Patience, func() error {
		if !browser.Eval[bool](p, "document.querySelector('[data-start]').disabled") {
			return errors.New("a replay of nothing can be started")
		}
		return nil
	})
	if got := p.Text("[data-counted]"); got != "0 deliveries" {
		t.Errorf("the count is %q", got)
	}
	p.Click("text=succeeded")
	p.WaitGone(".wrong")
	testenv.Eventually(t, browser.Patience, func() error {
		if browser.Eval[bool](p, "document.querySelector('[data-start]').disabled") {
			return errors.New("a replay of what has succeeded cannot be started")
		}
		return nil
	})
}

func TestBrowser_ADoubleClickSendsAFormOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	p := s.venueTab("venue-1")
	base := s.server.URL + basePath("venue-1")
	twice := func(selector string) {
		t.Helper()
		p.WaitGone("[data-recount]") // the module is there
		heldBack := browser.Eval[string](p, `(b => {
			const heldBack = [];
			addEventListener("submit", (event) => heldBack.push(event.defaultPrevented));
			b.click();
			b.click();
			return heldBack.join();
		})(document.querySelector("`+selector+`"))`)
		if heldBack != "false,true" {
			t.Errorf("two clicks on %s are held back: %s", selector, heldBack)
		}
	}
	p.Open(base + "/replays/new?endpoint=ep_venue-1_2")
	twice("[data-start]")
	p.WaitFor("text=The replay has begun.")

	p.Open(base + "/endpoints/new")
	p.Fill("#url", "https://new.example.com/hook")
	p.Click("text=All events")
	twice("main button.primary")
	p.WaitFor("text=it is not shown again")
	p.Back()
	p.WaitFor("main button.primary:enabled")

	// The name of the button that was clicked is sent.
	p.Open(base + "/endpoints/ep_venue-1_3")
	twice("[name=replay]")
	p.WaitFor("text=what it missed is on its way")
	if n := testenv.QueryOne[int64](t, s.env, `select count(*) from webhooks.replays where id <> 'rpl_venue-1'`); n != 2 {
		t.Errorf("two double clicks have made %d replays", n)
	}
}
