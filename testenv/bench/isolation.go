package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// tenth is an endpoint that makes trouble beside nine sound ones.
type tenth struct {
	name   string
	url    string // "" for none
	parked int    // deliveries that wait for it when the measurement begins
}

func (b *bench) besideHanging(ctx context.Context) error {
	return b.beside(ctx, tenth{name: "hangs", url: b.customers.url(silent, 1)})
}

func (b *bench) besideRefusing(ctx context.Context) error {
	port, err := closedPort()
	if err != nil {
		return err
	}
	return b.beside(ctx, tenth{name: "refuses", url: fmt.Sprintf("http://127.0.0.1:%d/", port)})
}

func (b *bench) besideLate(ctx context.Context) error {
	return b.beside(ctx, tenth{name: "answers after 10 s", url: b.customers.url(late, 1)})
}

func (b *bench) besideBacklog(ctx context.Context) error {
	return b.beside(ctx, tenth{
		name: fmt.Sprintf("hangs, with %d deliveries waiting for it", b.parked), url: b.customers.url(silent, 2), parked: b.parked,
	})
}

// closedPort returns a port that refuses connections.
func closedPort() (int, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

// beside measures nine sound endpoints in turn with and without a tenth that makes trouble.
func (b *bench) beside(ctx context.Context, troubled tenth) error {
	var (
		rates, ratios    []float64
		p99s, others     []float64
		most             lag
		name             = "9 sound endpoints, the tenth " + troubled.name
		quiet, disturbed []time.Duration
	)
	for range b.rounds {
		reference, err := b.nine(ctx, tenth{})
		if err != nil {
			return err
		}
		r, err := b.nine(ctx, troubled)
		if err != nil {
			return err
		}
		rates, ratios = append(rates, r.rate()), append(ratios, r.rate()/reference.rate())
		quiet, disturbed = reference.latencies(), r.latencies()
		p99s, others = append(p99s, float64(quantile(disturbed, 0.99))), append(others, float64(quantile(quiet, 0.99)))
		most.add(r.lag)
		b.say("  %s: %s, without it %s, ratio %.2f; p99 %s, without it %s; lag %s", name, perSecond(r.rate()), perSecond(reference.rate()),
			r.rate()/reference.rate(), milliseconds(quantile(disturbed, 0.99)), milliseconds(quantile(quiet, 0.99)), r.lag.age.Round(time.Millisecond))
	}
	ratio := median(ratios)
	b.report.add(row{
		scenario: name, value: fmt.Sprintf("%s, p99 %s", perSecond(median(rates)), milliseconds(time.Duration(median(p99s)))),
		compared: fmt.Sprintf("without it p99 %s", milliseconds(time.Duration(median(others)))), ratio: fmt.Sprintf("%.2f", ratio),
		goal: fmt.Sprintf("at least %.2f", goalBeside), reached: ratio >= goalBeside,
	})
	b.reportLag(name, most)
	return nil
}

const insertParked = `
with event as (
    insert into webhooks.outbox (type, venue, data) select $1, $5, $2::text::json from generate_series(1, $3::int) returning id, type, venue, created
)
insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
select id, $4, venue, type, 'pending', now(), created from event`

// nine measures nine sound endpoints beside t.
func (b *bench) nine(ctx context.Context, t tenth) (r delivered, err error) {
	d, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	if t.url != "" {
		if err := d.endpoint(ctx, "ep_tenth", venue(0), t.url); err != nil {
			return r, err
		}
	}
	if t.parked > 0 {
		if _, err := d.conn.Exec(ctx, insertParked, eventType, data, t.parked, "ep_tenth", venue(0)); err != nil {
			return r, fmt.Errorf("park deliveries: %w", err)
		}
		if err := d.settle(ctx); err != nil {
			return r, err
		}
	}
	// The nine are registered after the parked events, so they get none of these.
	for i := range 9 {
		if err := d.endpoint(ctx, fmt.Sprintf("ep_%d", i), venue(0), b.customers.url(sound, i)); err != nil {
			return r, err
		}
	}
	l := b.full(1, 9)
	if err := d.warm(ctx, l); err != nil {
		return r, err
	}
	l.times = true
	return d.deliver(ctx, l)
}
