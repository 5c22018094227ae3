package agent

import (
	"log/slog"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/agent/tracing"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// agent has what all terms of the process share.
type agent struct {
	cfg     *config.Config
	log     *slog.Logger
	holder  string
	db      *outbox.DB
	webhook *sink.Webhook
	keys    secret.Keyring
	metrics *metrics
	tracer  *tracing.Tracer     // nil unless traces are sent
	tune    func(endpoints int) // Options.Endpoints
	vitals  time.Duration       // Options.VitalsInterval
	rates   limits.Rates        // Options.Rates
	schema  int                 // Options.Schema
	counts  outbox.Counts
	local   localFaults
	feed    *feed.Feed // what is recorded, for those who look at it

	suspects suspects
	panicked sync.Map // the places of panics that are logged already
}

// outboxConfig returns the configuration of package outbox. All its users share the process's
// counters.
func (a *agent) outboxConfig() outbox.Config {
	c := a.cfg.OutboxConfig()
	c.Counts, c.Caught, c.Schema = &a.counts, a.caught, a.schema
	return c
}

// caught counts a panic, and logs it when it is the first at its place. Any goroutine may call it.
func (a *agent) caught(p *panics.Error) {
	a.metrics.panics.Inc()
	if x, known := p.Subject.(outbox.Subject); known {
		a.suspects.add(x)
	}
	if _, logged := a.panicked.LoadOrStore(p.Place, true); !logged {
		a.log.Error("a fault of the agent itself; please report it. More panics at this place are only counted",
			"place", p.Place, "panic", p.What, "stack", p.Stack)
	}
}

// setAside reports whether the tailer is to skip a change. It logs and counts a change that is
// skipped.
func (a *agent) setAside(x outbox.Subject) bool {
	aside := a.suspects.aside(x)
	if aside {
		a.metrics.setAside.WithLabelValues("change").Inc()
		a.log.Error("a change in the stream is passed over: the agent failed to read it again and again by a fault of its own; the comparison with the outbox brings its event",
			"commit", x.Commit.String(), "change", x.Index)
	}
	return aside
}
