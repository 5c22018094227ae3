package tracing

import (
	"context"
	"log/slog"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/quintago/webhook-agent/backoff"
)

const (
	// queueLength is how many spans may wait to be sent. A span takes about 1 KiB.
	queueLength = 4096
	// batchLength is how many spans one request has at most.
	batchLength = 512
	// gatherFor is how long the first span of a batch waits for others.
	gatherFor = 2 * time.Second
	// exportTimeout is the time for one batch, with what the library repeats.
	exportTimeout = 10 * time.Second
	// stopTimeout is the time for what is left when the agent stops.
	stopTimeout = 3 * time.Second
)

// sender sends the spans that have ended. It implements sdktrace.SpanProcessor; the library's own
// processor does not count what it drops.
type sender struct {
	exporter sdktrace.SpanExporter
	// OnEnd sends to it and does not wait; run receives. It is never closed.
	spans   chan sdktrace.ReadOnlySpan
	dropped func(spans int)
	trouble backoff.Trouble
}

func newSender(exporter sdktrace.SpanExporter, dropped func(int), log *slog.Logger) *sender {
	return &sender{
		exporter: exporter, spans: make(chan sdktrace.ReadOnlySpan, queueLength), dropped: dropped,
		trouble: backoff.Trouble{Log: log, Level: slog.LevelWarn, Begins: "traces cannot be sent; they are dropped, and deliveries go on", Ends: "traces are sent again"},
	}
}

// OnStart is a part of sdktrace.SpanProcessor.
func (s *sender) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd takes a span in, or drops it. Any goroutine may call it. It does not wait.
func (s *sender) OnEnd(span sdktrace.ReadOnlySpan) {
	select {
	case s.spans <- span:
	default:
		s.dropped(1)
	}
}

// Shutdown is a part of sdktrace.SpanProcessor. run ends with its context.
func (s *sender) Shutdown(context.Context) error { return nil }

// ForceFlush is a part of sdktrace.SpanProcessor.
func (s *sender) ForceFlush(context.Context) error { return nil }

// run sends spans until ctx ends, and then what is left, for stopTimeout at most.
func (s *sender) run(ctx context.Context) {
	var batch []sdktrace.ReadOnlySpan
	for ctx.Err() == nil {
		batch = s.gather(ctx)
		if ctx.Err() == nil && s.send(ctx, batch) {
			batch = nil
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	for batch = append(batch, s.rest(batchLength-len(batch))...); len(batch) > 0; batch = s.rest(batchLength) {
		if !s.send(last, batch) {
			s.dropped(len(batch) + len(s.spans))
			return
		}
	}
}

// gather waits for a span, and then a moment for others. It returns what it has when ctx ends.
func (s *sender) gather(ctx context.Context) (batch []sdktrace.ReadOnlySpan) {
	select {
	case span := <-s.spans:
		batch = append(batch, span)
	case <-ctx.Done():
		return nil
	}
	enough := time.NewTimer(gatherFor)
	defer enough.Stop()
	for len(batch) < batchLength {
		select {
		case span := <-s.spans:
			batch = append(batch, span)
		case <-enough.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// rest returns spans of the queue, at most n, without waiting.
func (s *sender) rest(n int) (batch []sdktrace.ReadOnlySpan) {
	for len(batch) < n {
		select {
		case span := <-s.spans:
			batch = append(batch, span)
		default:
			return batch
		}
	}
	return batch
}

// send sends a batch. It returns false if ctx ended first: the batch may then be sent again.
// Otherwise a batch that cannot be sent is dropped.
func (s *sender) send(ctx context.Context, batch []sdktrace.ReadOnlySpan) bool {
	sending, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	err := s.exporter.ExportSpans(sending, batch)
	if err != nil && ctx.Err() != nil {
		return false
	}
	s.trouble.Note(err)
	if err != nil {
		s.dropped(len(batch))
	}
	return true
}
