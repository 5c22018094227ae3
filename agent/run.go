package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/agent/tracing"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
)

// vitalsInterval is the default of Options.VitalsInterval.
const vitalsInterval = 10 * time.Second

// Options are the parameters of Run.
type Options struct {
	Config  *config.Config
	Log     *slog.Logger
	Version string // of the program, for logs, metrics and User-Agent
	// Endpoints is called with the number of endpoints when a term begins and when their number has
	// changed much. It may be nil. It must not wait.
	Endpoints func(n int)
	// VitalsInterval is the time between two looks at the slot's lag, the clocks and what is
	// published. Zero means 10 s.
	VitalsInterval time.Duration
	// Resolver looks up the names of endpoints. nil means net.DefaultResolver.
	Resolver *net.Resolver
	// Rates are those of requests to the API and the pages. nil means limits.Default.
	Rates *limits.Rates
	// Schema is the schema that this agent is taken to know. Zero means outbox.SchemaVersion. Tests of
	// upgrades set it, to have an older agent.
	Schema int
}

// Run delivers until ctx ends. Then attempts under way may finish (delivery.shutdown_timeout),
// their results are recorded, and the slot is free. Run returns an error only for a problem that
// waiting does not solve, and only before it has led for the first time.
func Run(ctx context.Context, o Options) error {
	cfg, log := o.Config, o.Log
	a := &agent{cfg: cfg, log: log, tune: o.Endpoints, vitals: cmp.Or(o.VitalsInterval, vitalsInterval), keys: cfg.Keyring(), feed: feed.New(), rates: limits.Default(), schema: o.Schema}
	if o.Rates != nil {
		a.rates = *o.Rates
	}
	if a.tune == nil {
		a.tune = func(int) {}
	}
	a.local = localFaults{log: log, caught: a.caught}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the host's name: %w", err)
	}
	a.holder = fmt.Sprintf("%s/%d", host, os.Getpid())
	a.metrics = newMetrics(o.Version, &a.counts)
	db := a.outboxConfig()
	db.Watchful = true
	if a.db, err = outbox.Open(ctx, db); err != nil {
		return err
	}
	defer a.db.Close()
	if a.tracer, err = a.newTracer(o.Version); err != nil {
		return err
	}
	files := OpenFilesFor(cfg.Delivery.Concurrency)
	if files.concurrency < cfg.Delivery.Concurrency {
		bounded := *cfg
		bounded.Delivery.Concurrency = files.concurrency
		a.cfg = &bounded
	}
	if a.webhook, err = a.newWebhook(ctx, o, files.idle); err != nil {
		if ctx.Err() != nil {
			return nil // it was asked to end before it began
		}
		return err
	}
	defer a.webhook.Close()
	pages, err := outbox.Open(ctx, a.outboxConfig().ForPages())
	if err != nil {
		return err
	}
	defer pages.Close()
	c := newCandidate(a, a.db.Slot(cfg.Outbox.Slot))
	listeners, err := c.listen(ctx, o.Version, pages)
	if err != nil {
		return err
	}
	if f := files.Finding(); f.Level != outbox.LevelOK {
		log.Warn(f.Reason, "remedy", f.Remedy)
	}
	for _, warning := range cfg.Warnings {
		log.Warn(warning)
	}
	starts := []any{"version", o.Version, "admin", listeners[0].listener.Addr().String(), "slot", cfg.Outbox.Slot}
	if len(listeners) > 1 {
		starts = append(starts, "console", listeners[1].listener.Addr().String())
	}
	log.Info("webhook-agent starts", starts...)

	a.metrics.registry.MustRegister(newCollector(c))
	// The listeners end after the last term, so that /readyz shows the draining.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(panics.Guard(a.caught, func() error { return c.serve(adminCtx, listeners) }))
	g.Go(panics.Guard(a.caught, func() error { return c.watchSlot(adminCtx) }))
	if a.tracer != nil {
		g.Go(panics.Guard(a.caught, func() error { return a.tracer.Run(adminCtx) }))
	}
	g.Go(panics.Guard(a.caught, func() error {
		defer stopAdmin()
		return c.lead(ctx)
	}))
	err = g.Wait()
	if err == nil {
		log.Info("webhook-agent ends")
	}
	return err
}

// newWebhook makes the Webhook, which needs the addresses of the database. It waits until its name
// can be resolved: in a cluster that starts, the name may come after the agent.
func (a *agent) newWebhook(ctx context.Context, o Options, idle int) (webhook *sink.Webhook, err error) {
	trouble := backoff.Trouble{Log: a.log, Level: slog.LevelError, Begins: "cannot find the database; trying again", Ends: "the database's name is resolved"}
	useless := func(err error) bool {
		_, unresolved := errors.AsType[*net.DNSError](err)
		return !unresolved
	}
	err = backoff.Retry(ctx, backoff.New(), &trouble, useless, func(ctx context.Context) error {
		webhook, err = a.cfg.NewWebhook(ctx, o.Version, idle, o.Resolver)
		return err
	})
	return webhook, err
}

// newTracer returns the Tracer of the configuration, or nil if no traces are sent.
func (a *agent) newTracer(version string) (*tracing.Tracer, error) {
	c := a.cfg.Tracing
	if c.Endpoint == "" {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	return tracing.New(tracing.Config{
		Endpoint: c.URL(), Headers: c.Headers, Sample: c.Sample, Version: version, Instance: a.holder, Now: a.db.Clock().Now, Log: a.log,
		Dropped: func(spans int) { a.metrics.spansDropped.Add(float64(spans)) },
	})
}
