package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// mostDeliveries is how many deliveries of one event have spans of their own.
const mostDeliveries = 50

// Config configures a Tracer.
type Config struct {
	// Endpoint is the URL of the collector, with the path to which traces are posted.
	Endpoint string
	// Headers are sent with each request. Each is a name and a value with a colon between them.
	Headers []secret.Text
	// Sample is the share of the events without a traceparent that is traced, 0 to 1.
	Sample float64
	// Version and Instance name the program and this process.
	Version, Instance string
	// Now returns the time by the database's clock.
	Now func() time.Time
	Log *slog.Logger
	// Dropped is called with numbers of spans that are not sent. Any goroutine may call it.
	Dropped func(spans int)
}

// Tracer makes the spans of events and sends them. Any goroutine may call its methods, but for Run,
// which is called once.
type Tracer struct {
	cfg     Config
	sampler sdktrace.Sampler
	tracer  trace.Tracer
	sender  *sender
	close   func(context.Context) error // of the exporter
}

// New returns a Tracer. It starts nothing and connects to nothing.
func New(cfg Config) (*Tracer, error) {
	headers := map[string]string{}
	for _, h := range cfg.Headers {
		name, value, _ := strings.Cut(h.Reveal(), ":")
		headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	exporter, err := otlptracehttp.New(context.Background(), otlptracehttp.WithEndpointURL(cfg.Endpoint), otlptracehttp.WithHeaders(headers),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression), otlptracehttp.WithTimeout(exportTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: exportTimeout / 20, MaxInterval: exportTimeout / 4, MaxElapsedTime: exportTimeout}))
	if err != nil {
		return nil, fmt.Errorf("prepare the sending of traces to %s: %w", cfg.Endpoint, err)
	}
	s := newSender(exporter, cfg.Dropped, cfg.Log)
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithIDGenerator(generator{}), sdktrace.WithSpanProcessor(s),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "webhook-agent"),
			attribute.String("service.version", cfg.Version), attribute.String("service.instance.id", cfg.Instance))))
	return &Tracer{
		cfg: cfg, sampler: sdktrace.TraceIDRatioBased(cfg.Sample), tracer: provider.Tracer("github.com/quintago/webhook-agent"),
		sender: s, close: exporter.Shutdown,
	}, nil
}

// Run sends spans until ctx ends, and what is left then for a few seconds at most.
func (t *Tracer) Run(ctx context.Context) error {
	t.sender.run(ctx)
	_ = t.close(context.WithoutCancel(ctx)) // there is nothing to wait for
	return nil
}

// samples returns the ids of an event, and whether the event is traced.
func (t *Tracer) samples(s subject) (of ids, traced bool) {
	if s.traceparent != "" {
		if !s.traceparent.Sampled() {
			return ids{}, false
		}
		return idsOf(s), true
	}
	of = idsOf(s)
	return of, t.sampler.ShouldSample(sdktrace.SamplingParameters{TraceID: of.trace}).Decision == sdktrace.RecordAndSample
}

// child starts a span. parent need not be a span of this process.
func (t *Tracer) child(parent trace.SpanContext, name string, start time.Time, kind trace.SpanKind, attributes ...attribute.KeyValue) trace.Span {
	_, span := t.tracer.Start(trace.ContextWithSpanContext(context.Background(), parent), name,
		trace.WithTimestamp(start), trace.WithSpanKind(kind), trace.WithAttributes(attributes...))
	return span
}

// Event is the trace of an event on its way from the stream to the first rows of its deliveries. A
// nil Event is one that is not traced.
type Event struct {
	tracer   *Tracer
	span     trace.Span
	open     atomic.Int32 // deliveries that are neither skipped nor recorded
	followed int          // deliveries with spans of their own; owned by the router
}

// Event starts the trace of an event that was committed and read at the given times and that so
// many endpoints want. It returns nil if the event is not traced. Skip or Follow must be called for
// each of the endpoints.
func (t *Tracer) Event(e *outbox.Event, committed, read time.Time, endpoints int) *Event {
	s := subjectOfEvent(e)
	of, traced := t.samples(s)
	if !traced {
		return nil
	}
	ctx := context.WithValue(context.Background(), idsKey{}, of)
	if s.traceparent != "" {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parentOf(s.traceparent))
	}
	// The database's clock is known to half a round trip, so read may seem to be before committed.
	began := committed
	if read.Before(began) {
		began = read
	}
	_, span := t.tracer.Start(ctx, "event", trace.WithTimestamp(began), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("webhook.event.id", e.ID), attribute.String("webhook.event.type", e.Type), attribute.String("webhook.venue", e.Venue),
		attribute.Int("webhook.endpoints", endpoints)))
	now := t.cfg.Now()
	t.child(span.SpanContext(), "match", read, trace.SpanKindInternal).End(trace.WithTimestamp(now))
	traces := &Event{tracer: t, span: span}
	traces.open.Store(int32(endpoints))
	if endpoints == 0 {
		span.End(trace.WithTimestamp(now))
	}
	return traces
}

// Skip says that an endpoint does not get the event after all.
func (e *Event) Skip() {
	if e != nil {
		e.close()
	}
}

// Follow sets the Trace of a delivery of the event, before it is offered.
func (e *Event) Follow(d *outbox.Delivery) {
	if e == nil {
		return
	}
	f := &delivery{event: e, parent: e.span.SpanContext(), waits: e.tracer.cfg.Now()}
	if e.followed++; e.followed > mostDeliveries {
		f.parent = trace.SpanContext{}
	}
	d.Trace = f
}

// close ends the span event with its last delivery.
func (e *Event) close() {
	if e.open.Add(-1) == 0 {
		e.span.End(trace.WithTimestamp(e.tracer.cfg.Now()))
	}
}

// delivery is the trace of a delivery (outbox.Delivery.Trace). It is handed on with the delivery.
type delivery struct {
	event  *Event            // nil once the delivery has a row
	parent trace.SpanContext // the span event; the zero value if the delivery has no spans
	waits  time.Time         // since when it waits for its attempt; zero if that is not known
	made   time.Time         // when its last attempt ended; zero before the first
}

// Attempt is the span of an attempt.
type Attempt struct {
	tracer *Tracer
	of     *delivery
	span   trace.Span
}

// Attempt starts the span of an attempt. It returns nil if the delivery is not traced. It sets the
// traceparent of the request, if the event has one, to that of the new span.
func (t *Tracer) Attempt(d *outbox.Delivery, r *sink.Request) *Attempt {
	f, _ := d.Trace.(*delivery)
	if f == nil && d.Refilled {
		of, traced := t.samples(subjectOf(d))
		if !traced {
			return nil
		}
		f = &delivery{parent: trace.NewSpanContext(trace.SpanContextConfig{TraceID: of.trace, SpanID: of.span, TraceFlags: trace.FlagsSampled, Remote: true})}
		d.Trace = f
	}
	if f == nil || !f.parent.IsValid() {
		return nil
	}
	now := t.cfg.Now()
	endpoint := attribute.String("webhook.endpoint.id", d.EndpointID)
	if !f.waits.IsZero() {
		t.child(f.parent, "queue", f.waits, trace.SpanKindInternal, endpoint).End(trace.WithTimestamp(now))
	}
	a := &Attempt{tracer: t, of: f, span: t.child(f.parent, "attempt", now, trace.SpanKindClient, endpoint,
		attribute.String("webhook.event.id", d.EventID), attribute.String("webhook.event.type", d.Type), attribute.String("webhook.venue", d.Venue),
		attribute.Int("webhook.attempt", d.Attempts+1), attribute.String("webhook.replay.id", d.ReplayID),
		attribute.String("http.request.method", "POST"), attribute.String("server.address", r.Target.Host()))}
	if p := r.Traceparent; p != "" {
		r.Traceparent = p[:36] + a.span.SpanContext().SpanID().String() + p[52:]
	}
	return a
}

// End ends the span with what came of the attempt.
func (a *Attempt) End(r sink.Result) {
	now := a.tracer.cfg.Now()
	a.of.made, a.of.waits = now, now // an attempt that could not be made waits for the next one
	if r.Code != 0 {
		a.span.SetAttributes(attribute.Int("http.response.status_code", r.Code))
	}
	class := string(r.Class)
	if r.Outcome == sink.NotMade {
		class = string(r.Fault)
	}
	if r.Outcome != sink.Succeeded {
		a.span.SetAttributes(attribute.String("error.type", class))
		a.span.SetStatus(codes.Error, class)
	}
	a.span.End(trace.WithTimestamp(now))
}

// Recorded ends what the ledger has committed. Its goroutine calls it.
func (t *Tracer) Recorded(records []*outbox.Record) {
	for _, r := range records {
		f, _ := r.Delivery.Trace.(*delivery)
		if f == nil {
			continue
		}
		// A parked delivery still has its attempt under way.
		if !r.Parked && f.parent.IsValid() && !f.made.IsZero() {
			t.child(f.parent, "record", f.made, trace.SpanKindInternal, attribute.String("webhook.endpoint.id", r.Delivery.EndpointID),
				attribute.String("webhook.status", string(r.Status))).End(trace.WithTimestamp(t.cfg.Now()))
		}
		if e := f.event; e != nil {
			f.event = nil
			e.close()
		}
	}
}
