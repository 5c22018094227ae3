package agent

import (
	"context"
	"net"
	"net/http"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/admin"
	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/console"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
)

// served is a listener with what it serves.
type served struct {
	listener net.Listener
	handler  http.Handler
}

// listen opens the listeners of the configuration: that for operators, and that for venues where
// there is one. The handlers work with db, which has a pool of its own.
func (c *candidate) listen(ctx context.Context, version string, db *outbox.DB) ([]served, error) {
	shared := limits.New(c.rates)
	pages, err := console.New(console.Config{
		Config: c.cfg, DB: db, Webhook: c.webhook, Log: c.log, Version: version, Feed: c.feed, Limits: shared, Terms: c.terms,
	})
	if err != nil {
		return nil, err
	}
	config := api.Config{
		Config: c.cfg, DB: db, Webhook: c.webhook, Log: c.log, Version: version, Feed: c.feed, Limits: shared, Terms: c.terms,
		Answered: func(operation string, status int) {
			c.metrics.api.WithLabelValues(operation, strconv.Itoa(status)).Inc()
		},
	}
	all, err := api.New(config, access.NewVerifier(c.cfg.Admin.Token, c.cfg.ConsoleKeys()))
	if err != nil {
		return nil, err
	}
	listener, err := admin.Listen(ctx, "admin.listen", c.cfg.Admin.Listen)
	if err != nil {
		return nil, err
	}
	list := []served{{listener, admin.Operators(admin.Config{
		Admin: c.cfg.Admin, Console: c.cfg.Console, Ready: c.ready, Metrics: c.metrics.registry, API: all, Pages: pages, Caught: c.caught,
	})}}
	if c.cfg.Console.Listen == "" {
		return list, nil
	}
	venues := all.For(access.NewVerifier(secret.Text{}, c.cfg.ConsoleKeys()))
	if listener, err = admin.Listen(ctx, "console.listen", c.cfg.Console.Listen); err != nil {
		_ = list[0].listener.Close()
		return nil, err
	}
	return append(list, served{listener, admin.Venues(admin.VenueConfig{Console: c.cfg.Console, API: venues, Pages: pages.Venues(), Caught: c.caught})}), nil
}

// serve answers requests on all listeners until ctx ends.
func (c *candidate) serve(ctx context.Context, list []served) error {
	var g errgroup.Group
	for _, s := range list {
		g.Go(panics.Guard(c.caught, func() error { return admin.Serve(ctx, s.listener, s.handler, c.caught) }))
	}
	return g.Wait()
}

// terms describes what this agent does with its slot.
func (c *candidate) terms() []api.TermInfo {
	t := api.TermInfo{Slot: c.cfg.Outbox.Slot, State: "waiting"}
	state, err := c.ready()
	switch {
	case err != nil:
		t.Problem = err.Error()
	case c.standby.Load():
		t.State = "standby"
	default:
		t.State = "leading"
	}
	t.Detail = state
	return []api.TermInfo{t}
}
