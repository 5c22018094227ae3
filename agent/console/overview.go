package console

import (
	"time"

	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/outbox"
)

// overviewPage is where the agent stands.
type overviewPage struct {
	outbox.Overview
	Terms   []api.TermInfo
	Leads   bool
	Minutes []feed.Minute
	// Rate is deliveries a second in the last full minute, as this agent has recorded them.
	Rate     float64
	LastHour feed.Minute
	Rows     []endpointRow // which nothing is sent to
}

func (h *Handler) overviewPage(v *visit) (overviewPage, error) {
	found, err := h.status.read(v.ctx(), h.cfg.DB)
	if err != nil {
		return overviewPage{}, err
	}
	page := overviewPage{Overview: found, Terms: h.cfg.Terms(), Leads: h.leads(), Minutes: h.cfg.Feed.Rates()}
	for _, m := range page.Minutes {
		page.LastHour.Succeeded += m.Succeeded
		page.LastHour.Failed += m.Failed
		page.LastHour.Missed += m.Missed
		page.LastHour.Retried += m.Retried
	}
	last := page.Minutes[len(page.Minutes)-2]
	page.Rate = float64(last.Succeeded+last.Failed+last.Missed) / 60
	for _, e := range found.NotSending {
		page.Rows = append(page.Rows, v.row(e))
	}
	return page, nil
}

func (h *Handler) overview(v *visit) error {
	page, err := h.overviewPage(v)
	if err != nil {
		return err
	}
	return v.show("overview", page)
}

// overviewLive answers the script of open pages with the texts that change, by their names.
func (h *Handler) overviewLive(v *visit) error {
	page, err := h.overviewPage(v)
	if err != nil {
		return err
	}
	t := h.pages.texts[languageOf(v.r)]
	live := map[string]string{
		"rate": t.rate(page.Rate), "pending": t.upTo(page.Deliveries.Pending, page.Deliveries.Capped), "lag": "–",
		"enabled": t.number(page.Endpoints.Enabled), "disabled": t.number(page.Endpoints.Disabled), "unusable": t.number(page.Endpoints.Unusable),
		"succeeded": t.number(page.LastHour.Succeeded), "failed": t.number(page.LastHour.Failed), "missed": t.number(page.LastHour.Missed), "retried": t.number(page.LastHour.Retried),
		"oldest": "–",
	}
	if page.Slot != nil {
		live["lag"] = t.bytes(page.Slot.LagBytes)
	}
	if at := page.Deliveries.OldestPending; at != nil {
		live["oldest"] = t.distance(time.Since(*at))
	}
	return v.json(live)
}
