package tracing

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/quintago/webhook-agent/outbox"
)

// exporter is a collector within the process.
type exporter struct {
	export func(context.Context) error
	sent   atomic.Int64
}

func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.export(ctx)
	if err == nil {
		e.sent.Add(int64(len(spans)))
	}
	return err
}

func (e *exporter) Shutdown(context.Context) error { return nil }

// The collector hangs until the request is given up. What has no room is dropped at once, and the
// end comes after stopTimeout.
func TestSender_IsBoundedWhereTheCollectorHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &exporter{export: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		var dropped atomic.Int64
		s := newSender(e, func(n int) { dropped.Add(int64(n)) }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.run(ctx) }()
		const spans = 3 * queueLength
		began := time.Now()
		for range spans {
			s.OnEnd(tracetest.SpanStub{}.Snapshot())
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the spans were taken in %s", took)
		}
		time.AfterFunc(gatherFor+time.Second, cancel) // while a request is under way
		<-done
		if took := time.Since(began); took > gatherFor+time.Second+stopTimeout {
			t.Errorf("it ended after %s", took)
		}
		if n := dropped.Load(); n != spans {
			t.Errorf("%d spans were counted as dropped, want %d", n, spans)
		}
	})
}

func TestSender_CountsWhatTheCollectorRefusesAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuses := atomic.Bool{}
		refuses.Store(true)
		e := &exporter{export: func(context.Context) error {
			if refuses.Load() {
				return errors.New("refused")
			}
			return nil
		}}
		var dropped atomic.Int64
		s := newSender(e, func(n int) { dropped.Add(int64(n)) }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.run(ctx) }()
		send := func() {
			for range 10 {
				s.OnEnd(tracetest.SpanStub{}.Snapshot())
			}
		}
		send()
		<-time.After(gatherFor + time.Second)
		refuses.Store(false)
		send()
		<-time.After(gatherFor + time.Second)
		send() // these are sent when it ends
		synctest.Wait()
		cancel()
		<-done
		if dropped.Load() != 10 || e.sent.Load() != 20 {
			t.Errorf("%d dropped and %d sent, want 10 and 20", dropped.Load(), e.sent.Load())
		}
	})
}

// The agent ends while a request is under way, which ends the request. Its spans are sent again.
func TestSender_SendsAgainWhatTheEndHasInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := atomic.Bool{}
		hangs.Store(true)
		e := &exporter{export: func(ctx context.Context) error {
			if hangs.Swap(false) {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		var dropped atomic.Int64
		s := newSender(e, func(n int) { dropped.Add(int64(n)) }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.run(ctx) }()
		s.OnEnd(tracetest.SpanStub{}.Snapshot())
		<-time.After(gatherFor + time.Second)
		s.OnEnd(tracetest.SpanStub{}.Snapshot())
		cancel()
		<-done
		if dropped.Load() != 0 || e.sent.Load() != 2 {
			t.Errorf("%d dropped and %d sent, want none and 2", dropped.Load(), e.sent.Load())
		}
	})
}

func TestTracer_SamplesAnEventAlwaysOrNever(t *testing.T) {
	tracer, err := New(Config{Endpoint: "http://127.0.0.1:1/v1/traces", Sample: 0.25, Now: time.Now, Log: slog.New(slog.DiscardHandler), Dropped: func(int) {}})
	if err != nil {
		t.Fatal(err)
	}
	traced := 0
	for i := range 10_000 {
		e := &outbox.Event{ID: "evt_1", Type: "lead.created", Venue: "venue_1", Created: time.UnixMicro(int64(i))}
		of, is := tracer.samples(subjectOfEvent(e))
		again, still := tracer.samples(subjectOf(e.Delivery("ep_1", time.Time{}, nil)))
		if of != again || is != still || of.trace.IsValid() != of.span.IsValid() {
			t.Fatalf("event %d: %v, %t and then %v, %t", i, of, is, again, still)
		}
		if is {
			traced++
		}
	}
	if traced < 2300 || traced > 2700 {
		t.Errorf("%d of 10,000 events are traced, want a quarter", traced)
	}
	for flags, want := range map[string]bool{"00": false, "01": true} {
		e := &outbox.Event{Traceparent: outbox.Traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-" + flags)}
		if _, got := tracer.samples(subjectOfEvent(e)); got != want {
			t.Errorf("a producer with flags %s: traced %t", flags, got)
		}
	}
}

// The span of an event ends with the last of its deliveries, however each one ends.
func TestEvent_EndsWithItsLastDelivery(t *testing.T) {
	tracer, err := New(Config{Endpoint: "http://127.0.0.1:1/v1/traces", Sample: 1, Now: time.Now, Log: slog.New(slog.DiscardHandler), Dropped: func(int) {}})
	if err != nil {
		t.Fatal(err)
	}
	ended := func() (names []string) {
		for len(tracer.sender.spans) > 0 {
			names = append(names, (<-tracer.sender.spans).Name())
		}
		return names
	}
	event := &outbox.Event{ID: "evt_1", Created: time.Now()}
	e := tracer.Event(event, time.Now(), time.Now(), 3)
	one, two := event.Delivery("ep_1", time.Now(), nil), event.Delivery("ep_2", time.Now(), nil)
	e.Follow(one)
	e.Follow(two)
	e.Skip()
	tracer.Recorded([]*outbox.Record{{Delivery: one, Status: outbox.Pending, Parked: true}})
	tracer.Recorded([]*outbox.Record{{Delivery: one, Status: outbox.Succeeded}})
	if got := ended(); len(got) != 1 || got[0] != "match" {
		t.Errorf("%v have ended with a delivery open", got)
	}
	tracer.Recorded([]*outbox.Record{{Delivery: two, Status: outbox.Missed}})
	if got := ended(); len(got) != 1 || got[0] != "event" {
		t.Errorf("%v have ended with the last delivery", got)
	}
	tracer.Event(event, time.Now(), time.Now(), 0)
	if got := ended(); len(got) != 2 {
		t.Errorf("%v have ended of an event that nobody wants", got)
	}
}

// The database's clock is an estimate, by which an event may be read before its commit.
func TestEvent_BeginsBeforeItsParts(t *testing.T) {
	tracer, err := New(Config{Endpoint: "http://127.0.0.1:1/v1/traces", Sample: 1, Now: time.Now, Log: slog.New(slog.DiscardHandler), Dropped: func(int) {}})
	if err != nil {
		t.Fatal(err)
	}
	read := time.Now()
	for _, committed := range []time.Time{read.Add(-time.Millisecond), read.Add(20 * time.Millisecond)} {
		tracer.Event(&outbox.Event{ID: "evt_1", Created: read}, committed, read, 0)
		match, event := <-tracer.sender.spans, <-tracer.sender.spans
		if match.StartTime().Before(event.StartTime()) || event.EndTime().Before(event.StartTime()) {
			t.Errorf("the event is from %s to %s, and its match begins at %s", event.StartTime(), event.EndTime(), match.StartTime())
		}
	}
}
