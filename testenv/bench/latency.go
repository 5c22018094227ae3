package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// latency measures the time from the return of COMMIT to the arrival at the receiver: for single
// events, at 100 a second in turn with the bare reader, and at half of the agent's highest rate.
func (b *bench) latency(ctx context.Context, d *database) (err error) {
	if err := d.warm(ctx, b.full(1, 1)); err != nil {
		return err
	}
	most, err := d.deliver(ctx, b.full(1, 1))
	if err != nil {
		return err
	}
	at := func(rate float64, rows int) load {
		return load{venues: 1, fanout: 1, rows: rows, writers: 4, rate: rate, length: b.stretchFor(rate), times: true}
	}
	idle, err := d.deliver(ctx, at(2, 1))
	if err != nil {
		return err
	}
	b.reportLatency("latency, 2 events a second", idle.latencies())

	var agent, bare []time.Duration
	var p99s, ratios []float64
	for range b.rounds {
		r, err := d.deliver(ctx, at(100, 1))
		if err != nil {
			return err
		}
		if err := d.stop(); err != nil {
			return err
		}
		other, err := d.bare(ctx, at(100, 1))
		if err != nil {
			return err
		}
		if err := d.start(ctx); err != nil {
			return err
		}
		if err := d.caughtUp(ctx); err != nil {
			return err
		}
		mine := r.latencies()
		agent, bare = append(agent, mine...), append(bare, other...)
		p99s = append(p99s, float64(quantile(mine, 0.99)))
		ratios = append(ratios, float64(quantile(mine, 0.99))/float64(quantile(other, 0.99)))
		b.say("  at 100 a second: agent p99 %s, bare reader %s", milliseconds(quantile(mine, 0.99)), milliseconds(quantile(other, 0.99)))
	}
	slices.Sort(agent)
	slices.Sort(bare)
	p99, ratio := time.Duration(median(p99s)), median(ratios)
	b.report.add(row{
		scenario: "latency, 100 events a second", value: quantiles(agent), compared: "bare reader " + quantiles(bare), ratio: fmt.Sprintf("%.2f", ratio),
		goal: fmt.Sprintf("p99 at most %s, %.0f x the bare reader", milliseconds(goalP99), goalBare), reached: p99 <= goalP99 && ratio <= goalBare,
	})

	return b.latencyAtHalf(ctx, d, at(most.rate()/2, 10))
}

// latencyAtHalf measures the latency at half of the highest rate, after a warm-up at that rate: the
// agent was started a moment ago.
func (b *bench) latencyAtHalf(ctx context.Context, d *database, l load) error {
	if _, err := d.deliver(ctx, l); err != nil {
		return err
	}
	var (
		all  []time.Duration
		p99s []float64
		most lag
	)
	for range b.rounds {
		r, err := d.deliver(ctx, l)
		if err != nil {
			return err
		}
		mine := r.latencies()
		all, p99s = append(all, mine...), append(p99s, float64(quantile(mine, 0.99)))
		most.add(r.lag)
		b.say("  at half of the most: %s, %s", quantiles(mine), r.processors)
	}
	slices.Sort(all)
	p99 := time.Duration(median(p99s))
	b.report.add(row{
		scenario: fmt.Sprintf("latency, %.0f events a second (half of the most), %d in a transaction", l.rate, l.rows), value: quantiles(all),
		compared: "median of the rounds: p99 " + milliseconds(p99),
		goal:     "p99 at most " + milliseconds(goalHalfP99), reached: p99 <= goalHalfP99,
	})
	b.reportLag("latency, half of the most", most)
	return nil
}

// stretchFor returns how long to measure at a rate.
func (b *bench) stretchFor(rate float64) time.Duration {
	if rate > 100 {
		return b.config.stretch
	}
	return b.config.size.latency
}

func quantiles(sorted []time.Duration) string {
	return fmt.Sprintf("p50 %s, p99 %s, p99.9 %s", milliseconds(quantile(sorted, 0.5)), milliseconds(quantile(sorted, 0.99)), milliseconds(quantile(sorted, 0.999)))
}

func (b *bench) reportLatency(scenario string, sorted []time.Duration) {
	b.report.add(row{scenario: scenario, value: quantiles(sorted)})
	b.say("  %s: %s", scenario, quantiles(sorted))
}

const selectBehind = `
select exists (select from webhooks.outbox o where not exists (select from webhooks.deliveries d where d.event_id = o.id and d.status = 'succeeded'))`

// caughtUp waits until everything is delivered, including what was written while the agent was
// away.
func (d *database) caughtUp(ctx context.Context) error {
	return d.await(ctx, patience, "what was written before is delivered", func() (bool, error) {
		var behind bool
		err := d.conn.QueryRow(ctx, selectBehind).Scan(&behind)
		return !behind, err
	})
}

const selectStreaming = `
select exists (select from pg_replication_slots where slot_name = $1 and active)`

// bare returns the latencies of the bare reader, which runs instead of the agent.
func (d *database) bare(ctx context.Context, l load) ([]time.Duration, error) {
	task := bareTask{
		URL: d.b.cluster.URL(d.name), Slot: d.name + "_bare", Publication: "webhooks_outbox",
		Endpoint: d.b.customers.url(sound, 0), Concurrency: 16,
	}
	reading, end := context.WithCancel(ctx)
	defer end()
	done := make(chan error, 1) // the goroutine below sends once; it ends when reading ends
	go func() {
		_, err := ask[struct{}](reading, bareRole, task)
		done <- err
	}()
	for streaming := false; !streaming; {
		if err := d.conn.QueryRow(ctx, selectStreaming, task.Slot).Scan(&streaming); err != nil {
			return nil, err
		}
		select {
		case err := <-done:
			return nil, fmt.Errorf("the bare reader has ended: %w", err)
		case <-time.After(poll):
		}
	}
	// The first event takes longer, because of a new connection and a new plan.
	if _, err := d.write(ctx, load{venues: 1, fanout: 1, rows: 1, writers: 1, events: 100}); err != nil {
		return nil, err
	}
	d.b.customers.keepArrivals(true)
	w, err := d.write(ctx, l)
	if err != nil {
		return nil, err
	}
	time.Sleep(200 * time.Millisecond) // let the last ones arrive
	r := delivered{written: w, arrivals: d.b.customers.keepArrivals(false)}
	end()
	if err := <-done; err != nil {
		return nil, err
	}
	if len(r.arrivals) < int(w.events) {
		return nil, fmt.Errorf("the bare reader has delivered %d of %d events", len(r.arrivals), w.events)
	}
	return r.latencies(), nil
}
