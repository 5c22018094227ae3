package outbox

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// BenchmarkRecovery_OfALargeOutbox lets a leader take over an outbox about which nothing is known,
// and recover a tenth of its events. Meanwhile, deliveries are recorded one after the other, as the
// stream would bring them. It reports how long nothing is delivered (takeover-ms), how long the
// recovery takes (recovery-s), and how long it took meanwhile to record a delivery (record-p99-ms,
// record-max-ms).
func BenchmarkRecovery_OfALargeOutbox(b *testing.B) {
	for _, rows := range []int{200_000, 2_000_000} {
		b.Run(fmt.Sprint(rows), func(b *testing.B) {
			env, conn := benchDB(b)
			if _, err := conn.Exec(b.Context(), `insert into webhooks.endpoints (id, venue, url, events, secret, created)
			    values ('ep_1', 'venue_0', 'https://example.com', '{*}', 's', now() - interval '1 year')`); err != nil {
				b.Fatal(err)
			}
			if _, err := conn.Exec(b.Context(), `insert into webhooks.outbox (id, type, venue, data, created)
			    select 'evt_' || lpad(i::text, 12, '0'), 'lead.created', 'venue_' || i % 10, '{"lead":{"id":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","stage":"new"}}',
			           now() - make_interval(secs => i) from generate_series(1, $1::int) i`, rows); err != nil {
				b.Fatal(err)
			}
			env.Exec(b, `vacuum analyze webhooks.outbox`)
			cfg := testConfig(env.URL, env.Slot)
			cfg.URL = secret.New(env.URL)
			db, err := Open(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(db.Close)
			var recorded []time.Duration
			for b.Loop() {
				env.Exec(b, `truncate webhooks.deliveries`)
				env.Exec(b, `delete from webhooks.checkpoint`)
				recorded = recoverBeside(b, db, rows/10)
			}
			slices.Sort(recorded)
			b.ReportMetric(float64(recorded[len(recorded)*99/100].Microseconds())/1000, "record-p99-ms")
			b.ReportMetric(float64(recorded[len(recorded)-1].Microseconds())/1000, "record-max-ms")
		})
	}
}

// recoverBeside makes one recovery, which must add so many rows. It returns how long each recording
// took.
func recoverBeside(b *testing.B, db *DB, want int) (recorded []time.Duration) {
	b.Helper()
	tailer := NewTailer(db.cfg, testLog(b))
	if err := tailer.Connect(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer tailer.Close()
	if _, err := db.configured().PrepareSlot(b.Context(), tailer, "bench", asItIs, func(error) {}); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	term, err := db.configured().TakeOver(b.Context(), tailer, "bench")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "takeover-ms")
	committed := make(chan struct{}, 1)
	book := keepBook(b, db.cfg, term, func(_ *book, lc *LedgerConfig) { lc.Committed = func([]*Record) { committed <- struct{}{} } })
	h, err := db.configured().Horizon(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	began = time.Now()
	go func() { // the goroutine ends with the recovery
		defer close(done)
		if added, err := db.configured().Reconcile(b.Context(), book.Ledger, h, true); err != nil || added != int64(want) {
			b.Errorf("recovered %d of %d: %v", added, want, err)
		}
		b.ReportMetric(time.Since(began).Seconds(), "recovery-s")
	}()
	for n := 0; ; n++ {
		select {
		case <-done:
			return recorded
		default:
		}
		sent := time.Now()
		if err := book.Write(b.Context(), success(newDelivery(fmt.Sprintf("new_%d", n), "ep_2"))); err != nil {
			b.Fatal(err)
		}
		<-committed
		recorded = append(recorded, time.Since(sent))
	}
}
