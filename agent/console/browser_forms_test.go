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
