package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	insertGrown = `
insert into webhooks.endpoints (id, venue, url, events, secret)
select 'ep_grown_' || lpad(i::text, 7, '0'), 'grown_' || lpad(i::text, 7, '0'), $1 || i, '{lead.*,payment.received}', $2 from generate_series(1, $3::int) i`

	// insertLog fills the log as thirty days of work would. Each event is for one of the endpoints.
	insertLog = `
insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_code, last_latency_ms, created, finished)
select 'evt_' || lpad(i::text, 26, '0'), 'ep_grown_' || lpad(n::text, 7, '0'), 'grown_' || lpad(n::text, 7, '0'), 'lead.updated', 'succeeded', 1, 200, 30, at, at
from generate_series($1::bigint, $2::bigint) i,
     lateral (select 1 + (i * 7919) % $3::bigint as n, now() - interval '30 days' * (1 - i::float8 / $4) as at) x`

	logStep = 500_000
)

// growth measures in turn a database with a large log and many endpoints, and a new one.
func (b *bench) growth(ctx context.Context) (err error) {
	empty, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, empty.drop(ctx)) }()
	grown, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, grown.drop(ctx)) }()
	if err := grown.grow(ctx); err != nil {
		return err
	}
	var (
		rates, ratios, p99s, others []float64
		most                        lag
	)
	measure := func(d *database) (r delivered, p99 time.Duration, err error) {
		if err := d.warm(ctx, b.full(1, 1)); err != nil {
			return r, 0, err
		}
		if r, err = d.deliver(ctx, b.full(1, 1)); err != nil {
			return r, 0, err
		}
		calm, err := d.deliver(ctx, load{venues: 1, fanout: 1, rows: 1, writers: 4, rate: 100, length: b.stretch, times: true})
		return r, quantile(calm.latencies(), 0.99), errors.Join(err, d.stop())
	}
	for _, d := range []*database{empty, grown} {
		if err := d.endpoint(ctx, "ep_1", venue(0), b.customers.url(sound, 0)); err != nil {
			return err
		}
	}
	for range b.rounds {
		reference, other, err := measure(empty)
		if err != nil {
			return err
		}
		r, p99, err := measure(grown)
		if err != nil {
			return err
		}
		rates, ratios = append(rates, r.rate()), append(ratios, r.rate()/reference.rate())
		p99s, others = append(p99s, float64(p99)), append(others, float64(other))
		most.add(r.lag)
		b.say("  grown %s, empty %s, ratio %.2f; p99 %s, empty %s", perSecond(r.rate()), perSecond(reference.rate()), r.rate()/reference.rate(), milliseconds(p99), milliseconds(other))
	}
	name, ratio := fmt.Sprintf("growth, %d rows in the log and %d endpoints", b.log, b.grown), median(ratios)
	b.report.add(row{
		scenario: name, value: fmt.Sprintf("%s, p99 at 100/s %s", perSecond(median(rates)), milliseconds(time.Duration(median(p99s)))),
		compared: "empty p99 " + milliseconds(time.Duration(median(others))), ratio: fmt.Sprintf("%.2f", ratio),
		goal: fmt.Sprintf("at least %.2f", goalGrown), reached: ratio >= goalGrown,
	})
	b.reportLag(name, most)
	return nil
}

// grow fills the log and registers endpoints.
func (d *database) grow(ctx context.Context) error {
	if _, err := d.conn.Exec(ctx, insertGrown, d.b.customers.url(sound, 0), secret, d.b.config.grown); err != nil {
		return fmt.Errorf("register endpoints: %w", err)
	}
	total := d.b.config.log
	for first := 1; first <= total; first += logStep {
		if _, err := d.conn.Exec(ctx, insertLog, first, min(first+logStep-1, total), d.b.config.grown, float64(total)); err != nil {
			return fmt.Errorf("fill the log: %w", err)
		}
	}
	return d.settle(ctx)
}
