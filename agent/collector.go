package agent

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/panics"
)

// lookInterval is the greatest age of the counts over the lanes that /metrics shows. Counting goes
// through all lanes and holds their mutex.
const lookInterval = time.Second

const readyName, readyHelp = "ready", "1 while /readyz answers with 200: this agent delivers or stands by."

// gauges are the metrics that are read from the term when /metrics is asked for. They are zero
// while there is no term.
var gauges = []struct {
	name, help string
	read       func(*term, lanes.Stats) float64
}{
	{"leading", "1 while this agent holds the slot, 0 while it stands by.", func(*term, lanes.Stats) float64 { return 1 }},
	{"recovering", "1 while events may have passed the stream unseen and the outbox has not been compared with the log completely.",
		func(t *term, _ lanes.Stats) float64 { return oneIf(t.recovery.isOpen()) }},
	{"slot_lag_seconds", "How long the oldest part of the stream that is not recorded completely has been read.",
		func(t *term, _ lanes.Stats) float64 { return t.ledger.Stats().Lag.Seconds() }},
	{"attempts_in_flight", "Attempts under way.", func(_ *term, s lanes.Stats) float64 { return float64(s.InFlight) }},
	{"lane_queue_length", "Deliveries that wait in memory, all lanes together.", func(_ *term, s lanes.Stats) float64 { return float64(s.Queued) }},
	{"lane_queue_bytes", "Bodies in memory, waiting or being sent, all lanes together.", func(_ *term, s lanes.Stats) float64 { return float64(s.Bytes) }},
	{"lanes_active", "Endpoints with deliveries in memory.", func(_ *term, s lanes.Stats) float64 { return float64(s.Active) }},
	{"endpoints_held", "Endpoints to which no attempt starts for a while: they keep failing, or their server asked for it (Retry-After). Waits of 2 s or less are left out, and the count may be a second old.",
		func(_ *term, s lanes.Stats) float64 { return float64(s.Held) }},
	{"endpoints_not_sending", "Endpoints that are disabled or unusable.", func(_ *term, s lanes.Stats) float64 { return float64(s.Off) }},
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// collector reads the gauges. It implements prometheus.Collector. Several goroutines may use it.
type collector struct {
	candidate *candidate
	descs     []*prometheus.Desc // of gauges
	ready     *prometheus.Desc

	mu     sync.Mutex // guards the rest
	stats  lanes.Stats
	of     *term
	looked time.Time
}

func newCollector(c *candidate) *collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, nil, nil)
	}
	k := &collector{candidate: c, ready: desc(readyName, readyHelp)}
	for _, g := range gauges {
		k.descs = append(k.descs, desc(g.name, g.help))
	}
	return k
}

// Describe implements prometheus.Collector.
func (k *collector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range k.descs {
		descs <- d
	}
	descs <- k.ready
}

// Collect implements prometheus.Collector. A goroutine of the library calls it, so it catches
// panics itself.
func (k *collector) Collect(metrics chan<- prometheus.Metric) {
	values := make([]float64, len(gauges))
	ready := 0.0
	err := panics.Catch(func() error {
		_, unready := k.candidate.ready()
		ready = oneIf(unready == nil)
		if t := k.candidate.term.Load(); t != nil {
			stats := k.look(t)
			for i, g := range gauges {
				values[i] = g.read(t, stats)
			}
		}
		return nil
	})
	if p, is := errors.AsType[*panics.Error](err); is {
		k.candidate.caught(p)
	}
	for i, d := range k.descs {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, values[i])
	}
	metrics <- prometheus.MustNewConstMetric(k.ready, prometheus.GaugeValue, ready)
}

// look returns the counts over the lanes of a term, which are at most lookInterval old.
func (k *collector) look(t *term) lanes.Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); k.of != t || now.Sub(k.looked) >= lookInterval {
		k.stats, k.of, k.looked = t.lanes.Stats(), t, now
	}
	return k.stats
}
