package lanes

import (
	"context"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// BenchmarkScheduler is the cost of one delivery in this package: it is offered, attempted and
// recorded. The attempt and the database take no time.
func BenchmarkScheduler(b *testing.B) {
	var s *Scheduler
	recorded := make(chan struct{})
	d := config.Default().Delivery
	s = New(b.Context(), Config{
		Concurrency: d.Concurrency, EndpointConcurrency: d.EndpointConcurrency, DisableAfter: d.DisableAfter, Retries: d.Retries,
		QueueBytes: int(d.QueueMemory), Leads: func() bool { return true }, Now: time.Now, Meter: noMeter{}, Log: slog.New(slog.DiscardHandler),
		Attempt: func(context.Context, *outbox.Delivery, sink.Request) sink.Result { return sink.Result{Code: 200} },
		Write: func(_ context.Context, entries ...outbox.Entry) error {
			s.Committed([]*outbox.Record{entries[0].(*outbox.Record)})
			recorded <- struct{}{}
			return nil
		},
	})
	l, _ := s.Load(outbox.EndpointState{Endpoint: &outbox.Endpoint{ID: "ep", Venue: "v", Generation: 1}}, nil, "", time.Time{})
	ids := make([]string, 1024)
	for i := range ids {
		ids[i] = "evt_" + strconv.Itoa(i)
	}
	body := []byte("{}")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Offer([]Offer{{l, &outbox.Delivery{EventID: ids[i%len(ids)], EndpointID: "ep", Venue: "v", Body: body}}})
		<-recorded
	}
	s.Stop(b.Context())
}
