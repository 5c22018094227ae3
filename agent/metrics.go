package agent

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// metrics are what /metrics shows. No label has a value that a customer can choose.
type metrics struct {
	registry *prometheus.Registry

	events       prometheus.Counter
	attempts     *prometheus.CounterVec // by outcome and error class
	deliveries   *prometheus.CounterVec // by status
	parked       prometheus.Counter
	notMade      *prometheus.CounterVec // by fault
	disabled     *prometheus.CounterVec // by reason
	swept        prometheus.Counter
	pruned       *prometheus.CounterVec // by table
	sealed       prometheus.Counter
	panics       prometheus.Counter
	late         prometheus.Counter
	setAside     *prometheus.CounterVec // by kind
	api          *prometheus.CounterVec // by operation and code
	spansDropped prometheus.Counter
	latency      prometheus.Histogram
	commitToAck  prometheus.Histogram
	groupSize    prometheus.Histogram
	vitals       vitalsMetrics

	// The series of what nearly every attempt and delivery is, so that they are not looked up by
	// their labels each time.
	attemptSucceeded  prometheus.Counter
	deliverySucceeded prometheus.Counter
}

// vitalsMetrics are read from the database every Options.VitalsInterval, and retainedBytes also
// while this agent does not lead.
type vitalsMetrics struct {
	lagBytes, retainedBytes, pending, clockSkew prometheus.Gauge
}

const namespace = "webhook_agent"

// newMetrics returns the metrics of the process. version is that of the agent; counts are the
// counters of package outbox. newCollector has the metrics that are read from a term.
func newMetrics(version string, counts *outbox.Counts) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
		m.registry.MustRegister(h)
		return h
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	seconds := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30, 60}

	m.events = counter("events_total", "Events read from the outbox.")
	m.attempts = counters("attempts_total", "Attempts by outcome (succeeded, failed, gone) and class of error.", "outcome", "class")
	m.deliveries = counters("deliveries_total", "Deliveries recorded as ended, by status.", "status")
	m.parked = counter("deliveries_parked_total", "Deliveries recorded as pending because they had not ended within a second or did not fit into memory.")
	m.notMade = counters("attempts_not_made_total", "Attempts that could not be made for a fault of this host or its resolver, by fault.", "fault")
	m.disabled = counters("endpoints_disabled_total", "Endpoints that the agent disabled, by reason.", "reason")
	m.swept = counter("recovered_deliveries_total", "Deliveries of events that had passed the stream unseen and were found in the outbox.")
	m.pruned = counters("pruned_rows_total", "Rows deleted because they were older than outbox.retention, by table.", "table")
	m.sealed = counter("sealed_endpoints_total", "Endpoints whose secrets were sealed with the first of security.keys.")
	m.late = counter("late_deliveries_total", "Deliveries left out since the event was written once more, or long after its created, and the endpoint has wanted it later than that.")
	m.panics = counter("panics_total", "Panics, which are faults of the agent itself.")
	m.spansDropped = counter("trace_spans_dropped_total", "Spans of traces that were not sent, because the collector did not take them in time.")
	m.setAside = counters("set_aside_total", "Changes, events and endpoints not handled because the agent panics over them again and again, by kind.", "kind")
	m.api = counters("api_requests_total", "Requests to the HTTP API, by operation (empty where a request did not come to one) and HTTP status.", "operation", "code")
	m.latency = histogram("attempt_duration_seconds", "Duration of attempts.", seconds)
	m.commitToAck = histogram("commit_to_delivery_seconds", "From the commit of an event to the end of its first attempt.", seconds)
	m.groupSize = histogram("ledger_group_size", "Results recorded by one transaction.", prometheus.ExponentialBuckets(1, 4, 7))
	m.vitals = vitalsMetrics{
		lagBytes:      gauge("slot_lag_bytes", "WAL between the slot's confirmed position and the server's."),
		retainedBytes: gauge("slot_retained_bytes", "WAL that the slot keeps on the server's disk, also while this agent does not lead."),
		pending:       gauge("pending_deliveries", "Deliveries recorded as pending; counted up to 100000."),
		clockSkew:     gauge("clock_skew_seconds", "The database's clock minus this host's."),
	}
	counted := func(name, help string, n *atomic.Int64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help},
			func() float64 { return float64(n.Load()) }))
	}
	counted("events_filtered_total", "Events read from the outbox whose type outbox.types does not ask for.", &counts.Filtered)
	counted("reused_ids_total", "Deliveries of events whose id the delivery log had for another event.", &counts.Reused)
	counted("deliveries_set_aside_total", "Deliveries that PostgreSQL refused to record.", &counts.SetAside)

	m.begin()
	m.attemptSucceeded = m.attempts.WithLabelValues("succeeded", "")
	m.deliverySucceeded = m.deliveries.WithLabelValues(string(outbox.Succeeded))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info", Help: "The version that runs."}, []string{"version"})
	info.WithLabelValues(version).Set(1)
	m.registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// begin makes the series of labels whose values are known. Prometheus sees no increase from nothing
// to one, so an alert would miss the first fault.
func (m *metrics) begin() {
	for _, fault := range sink.Faults {
		m.notMade.WithLabelValues(string(fault))
	}
	for _, reason := range []string{outbox.ReasonFailures, outbox.ReasonGone} {
		m.disabled.WithLabelValues(reason)
	}
	for _, status := range []outbox.Status{outbox.Succeeded, outbox.Failed, outbox.Missed} {
		m.deliveries.WithLabelValues(string(status))
	}
	for _, kind := range []string{"change", "event", "endpoint", "passed over"} {
		m.setAside.WithLabelValues(kind)
	}
}

// Attempted implements lanes.Meter.
func (m *metrics) Attempted(d *outbox.Delivery, r sink.Result, now time.Time) {
	switch r.Outcome {
	case sink.Succeeded:
		m.attemptSucceeded.Inc()
	case sink.Gone:
		m.attempts.WithLabelValues("gone", string(r.Class)).Inc()
	default:
		m.attempts.WithLabelValues("failed", string(r.Class)).Inc()
	}
	m.latency.Observe(r.Latency.Seconds())
	if d.Attempts == 0 && !d.Committed.IsZero() {
		m.commitToAck.Observe(now.Sub(d.Committed).Seconds())
	}
}

// NotMade implements lanes.Meter.
func (m *metrics) NotMade(fault sink.Fault) { m.notMade.WithLabelValues(string(fault)).Inc() }

// EndpointDisabled implements lanes.Meter.
func (m *metrics) EndpointDisabled(reason string) { m.disabled.WithLabelValues(reason).Inc() }

// recorded counts the records that a transaction of the ledger has committed.
func (m *metrics) recorded(results []*outbox.Record) {
	m.groupSize.Observe(float64(len(results)))
	succeeded := 0
	for _, r := range results {
		switch {
		case r.Status == outbox.Succeeded:
			succeeded++
		case r.Status != outbox.Pending:
			m.deliveries.WithLabelValues(string(r.Status)).Inc()
		case r.Attempt == nil:
			m.parked.Inc()
		}
	}
	m.deliverySucceeded.Add(float64(succeeded))
}

func (m *metrics) observe(v outbox.Vitals) {
	m.vitals.lagBytes.Set(float64(v.LagBytes))
	m.vitals.retainedBytes.Set(float64(v.RetainedBytes))
	m.vitals.pending.Set(float64(v.Pending))
	m.vitals.clockSkew.Set(v.ClockSkew.Seconds())
}
