package agent

import (
	"log/slog"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// agent is the process: what all terms share.
type agent struct {
	cfg     *config.Config
	log     *slog.Logger
	holder  string
	db      *outbox.DB
	webhook *sink.Webhook
	keys    secret.Keyring
	metrics *metrics
	tune    func(endpoints int) // Options.Endpoints
	vitals  time.Duration       // Options.VitalsInterval
	counts  outbox.Counts
	local   localFaults

	suspects suspects
	panicked sync.Map // places of panics that were logged
}

// outboxConfig returns the configuration of package outbox for the parts of the process, which count together.
func (a *agent) outboxConfig() outbox.Config {
	c := a.cfg.OutboxConfig()
	c.Counts, c.Caught = &a.counts, a.caught
	return c
}

// caught takes note of a panic: it is counted, and logged where it is the first of its place.
func (a *agent) caught(p *panics.Error) {
	a.metrics.panics.Inc()
	if x, known := p.Subject.(outbox.Subject); known {
		a.suspects.add(x)
	}
	if _, told := a.panicked.LoadOrStore(p.Place, true); !told {
		a.log.Error("a fault of the agent itself; please report it. More panics at this place are only counted",
			"place", p.Place, "panic", p.What, "stack", p.Stack)
	}
}

// setAside reports whether the tailer is to pass over a change.
func (a *agent) setAside(x outbox.Subject) bool {
	aside := a.suspects.aside(x)
	if aside {
		a.metrics.setAside.WithLabelValues("change").Inc()
		a.log.Error("a change in the stream is passed over: the agent failed to read it again and again by a fault of its own; the comparison with the outbox brings its event",
			"commit", x.Commit.String(), "change", x.Index)
	}
	return aside
}
