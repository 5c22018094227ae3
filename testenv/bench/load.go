package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/testenv"
)

// load says how to write events.
type load struct {
	venues  int   // how many venues get events in turn
	fanout  int64 // how many endpoints of each venue answer at once
	rows    int   // events in a transaction
	writers int   // how many transactions run at a time
	// lead is how many events the writers may be ahead of the receiver; 0 means any number.
	lead   int64
	rate   float64       // events a second; 0 for as many as lead allows
	length time.Duration // no transaction begins after this time
	events int64         // how many are written at most; 0 for any number
	times  bool          // keep the time of each commit
}

// full returns a load that keeps the agent busy but leaves nothing to the delivery log: no event
// waits for a second.
func (b *bench) full(venues int, fanout int64) load {
	return load{venues: venues, fanout: fanout, rows: 50, writers: 2, lead: max(200, 2000/fanout), length: b.stretch}
}

// written is the result of a load.
type written struct {
	events       int64
	transactions int64
	commits      map[string]time.Time // when COMMIT returned, by event
}

const insertEvents = `
insert into webhooks.outbox (type, venue, data) select $1, v, $2::text::json from unnest($3::text[]) v returning id`

// writing is a load that several writers are writing.
type writing struct {
	d        *database
	load     load
	began    time.Time
	answered int64        // how many requests the customers had answered before it began
	begun    atomic.Int64 // how many events were begun

	mu      sync.Mutex // guards written
	written written
}

// write writes events. It returns when every event that was begun is committed.
func (d *database) write(ctx context.Context, l load) (written, error) {
	w := &writing{d: d, load: l, began: time.Now(), answered: d.b.customers.answered.Load()}
	w.written.commits = map[string]time.Time{}
	var writers errgroup.Group
	for range l.writers {
		writers.Go(func() error { return w.run(ctx) })
	}
	if err := writers.Wait(); err != nil {
		return w.written, fmt.Errorf("write events: %w", err)
	}
	return w.written, nil
}

// run is one writer. It writes transactions until the load has no more.
func (w *writing) run(ctx context.Context) (err error) {
	conn, err := pgx.Connect(ctx, w.d.b.cluster.URL(w.d.name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	venues := make([]string, w.load.rows)
	for time.Since(w.began) < w.load.length || w.load.length == 0 {
		first := w.begun.Add(int64(w.load.rows)) - int64(w.load.rows)
		if w.load.events > 0 && first >= w.load.events {
			return nil
		}
		w.await(ctx, first)
		for i := range venues {
			venues[i] = venue(int(first+int64(i)) % w.load.venues)
		}
		rows, err := conn.Query(ctx, insertEvents, eventType, data, venues)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		w.committed(ids)
	}
	return nil
}

// await waits until the event with this number may be written. The load limits the rate, and how
// far the writers may be ahead.
func (w *writing) await(ctx context.Context, number int64) {
	if w.load.rate > 0 {
		time.Sleep(time.Until(w.began.Add(time.Duration(float64(number) / w.load.rate * float64(time.Second)))))
	}
	if w.load.lead == 0 {
		return
	}
	for number-(w.d.b.customers.answered.Load()-w.answered)/w.load.fanout > w.load.lead && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
}

// committed records a transaction whose COMMIT has just returned.
func (w *writing) committed(ids []string) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written.transactions++
	w.written.events += int64(len(ids))
	if w.load.times {
		for _, id := range ids {
			w.written.commits[id] = now
		}
	}
}

// delivered is the result of a load with an agent.
type delivered struct {
	written
	deliveries int64
	took       time.Duration // from the first INSERT until all was recorded
	processors processors    // meanwhile
	lag        lag
	arrivals   []arrival // only if the load keeps times
}

func (d delivered) rate() float64 { return float64(d.deliveries) / d.took.Seconds() }

// deliver writes events and waits until the agent has recorded all deliveries to endpoints that
// answer.
func (d *database) deliver(ctx context.Context, l load) (r delivered, err error) {
	before, err := d.recorded(ctx)
	if err != nil {
		return r, err
	}
	used := measureProcessors()
	watch := d.watchLag(ctx)
	d.b.customers.keepArrivals(l.times)
	began := time.Now()
	if r.written, err = d.write(ctx, l); err != nil {
		return r, errors.Join(err, watch.stop(&r.lag))
	}
	r.deliveries = r.events * l.fanout
	err = d.await(ctx, patience, "all events are recorded", func() (bool, error) {
		n, err := d.recorded(ctx)
		return n-before >= r.deliveries, err
	})
	r.took = time.Since(began)
	r.arrivals = d.b.customers.keepArrivals(false)
	r.processors = used()
	return r, errors.Join(err, watch.stop(&r.lag))
}

// processors says how much of this machine's processors was used, by all programs together, and how
// much a hypervisor took for others. Both are shares, and NaN where the system does not say: only
// Linux does, and nothing is judged by them.
type processors struct{ busy, stolen float64 }

func (p processors) String() string {
	return fmt.Sprintf("processors busy %.0f %%, stolen %.1f %%", 100*p.busy, 100*p.stolen)
}

// measureProcessors begins a measurement. The function that it returns ends it.
func measureProcessors() (end func() processors) {
	began := time.Now()
	idle, stolen, err := testenv.Processors()
	return func() processors {
		idleNow, stolenNow, errNow := testenv.Processors()
		if err != nil || errNow != nil {
			return processors{math.NaN(), math.NaN()}
		}
		whole := time.Since(began).Seconds() * float64(runtime.NumCPU())
		taken := (stolenNow - stolen).Seconds() / whole
		return processors{busy: 1 - (idleNow-idle).Seconds()/whole - taken, stolen: taken}
	}
}

// lag is the furthest that the slot was behind.
type lag struct {
	age   time.Duration // of the oldest part of the stream that was not recorded
	bytes int64         // between what the server had sent and what was confirmed
}

func (l *lag) add(other lag) { l.age, l.bytes = max(l.age, other.age), max(l.bytes, other.bytes) }

// lagWatch watches how far the slot is behind, until it is stopped.
type lagWatch struct {
	end  context.CancelFunc
	done chan error // the goroutine of watchLag sends once
	most lag        // valid once done was received from
}

const (
	lagInterval = 250 * time.Millisecond
	selectLag   = `
select greatest(0, coalesce(r.sent_lsn - s.confirmed_flush_lsn, 0))::bigint
from pg_replication_slots s left join pg_stat_replication r on r.pid = s.active_pid where s.slot_name = $1`
)

// watchLag starts to watch. Its goroutine ends with stop.
func (d *database) watchLag(ctx context.Context) *lagWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &lagWatch{end: cancel, done: make(chan error, 1)}
	go func() { w.done <- d.look(ctx, &w.most) }()
	return w
}

func (d *database) look(ctx context.Context, most *lag) (err error) {
	conn, err := pgx.Connect(context.WithoutCancel(ctx), d.b.cluster.URL(d.name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	for tick := time.NewTicker(lagInterval); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return nil
		}
		var now lag
		if err := conn.QueryRow(context.WithoutCancel(ctx), selectLag, d.slot()).Scan(&now.bytes); err != nil {
			return err
		}
		m, err := d.metrics(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		now.age = time.Duration(m["webhook_agent_slot_lag_seconds"] * float64(time.Second))
		most.add(now)
	}
}

func (w *lagWatch) stop(most *lag) error {
	w.end()
	err := <-w.done
	*most = w.most
	return err
}

// latencies returns the times from the return of COMMIT to the arrival of each request, in rising
// order. A time is negative if an event arrives before its writer has the answer to COMMIT.
func (d delivered) latencies() []time.Duration {
	latencies := make([]time.Duration, 0, len(d.arrivals))
	for _, a := range d.arrivals {
		if commit, ok := d.commits[a.id]; ok {
			latencies = append(latencies, a.at.Sub(commit))
		}
	}
	slices.Sort(latencies)
	return latencies
}

// quantile returns the smallest value that a share q of all values does not exceed, or zero if
// there are none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// median returns the middle value, and of two the higher one.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
