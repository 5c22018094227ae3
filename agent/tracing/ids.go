package tracing

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"go.opentelemetry.io/otel/trace"

	"github.com/quintago/webhook-agent/outbox"
)

// ids are the trace of an event and its span event.
type ids struct {
	trace trace.TraceID
	span  trace.SpanID
}

// subject is what identifies an event.
type subject struct {
	id, venue, typ string
	created        int64 // microseconds since 1970
	traceparent    outbox.Traceparent
}

func subjectOfEvent(e *outbox.Event) subject {
	return subject{e.ID, e.Venue, e.Type, e.Created.UnixMicro(), e.Traceparent}
}

func subjectOf(d *outbox.Delivery) subject {
	return subject{d.EventID, d.Venue, d.Type, d.Created.UnixMicro(), d.Traceparent}
}

// idsOf derives the ids of an event. They are the same in each process. The trace is the
// producer's if the event has a traceparent.
func idsOf(s subject) (of ids) {
	b := make([]byte, 0, 256)
	for _, text := range [...]string{s.id, s.venue, s.typ} {
		b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(s.created)))
	copy(of.trace[:], sum[:16])
	copy(of.span[:], sum[16:])
	if s.traceparent != "" {
		_, _ = hex.Decode(of.trace[:], []byte(s.traceparent.TraceID())) // outbox has checked the form
	}
	return of
}

// parentOf returns the producer's span, which must exist.
func parentOf(t outbox.Traceparent) trace.SpanContext {
	of := trace.SpanContextConfig{TraceFlags: trace.FlagsSampled, Remote: true}
	_, _ = hex.Decode(of.TraceID[:], []byte(t.TraceID()))
	_, _ = hex.Decode(of.SpanID[:], []byte(t.SpanID()))
	return trace.NewSpanContext(of)
}

// generator gives a span the ids in its context, and random ones if there are none. It implements
// sdktrace.IDGenerator.
type generator struct{}

type idsKey struct{}

// NewIDs returns the ids of a span without a parent.
func (g generator) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if of, given := ctx.Value(idsKey{}).(ids); given {
		return of.trace, of.span
	}
	var id trace.TraceID
	binary.BigEndian.PutUint64(id[:], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64()|1) // never zero
	return id, g.NewSpanID(ctx, id)
}

// NewSpanID returns the id of a span with a parent.
func (generator) NewSpanID(ctx context.Context, _ trace.TraceID) (id trace.SpanID) {
	if of, given := ctx.Value(idsKey{}).(ids); given {
		return of.span
	}
	binary.BigEndian.PutUint64(id[:], rand.Uint64()|1)
	return id
}
