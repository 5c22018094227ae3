package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// The scenarios of this file are about events with much data. The result is the most memory that
// the agent has used.

const (
	bodiesTimeout = 15 * time.Minute // those to endpoints that hang go in turns
	largestBody   = "128MiB"         // the most that delivery.max_body allows
	wantBodies    = 4                // the most endpoints that want each event
	insertBody    = `insert into webhooks.outbox (type, venue, data) values ($1, $2, to_json(repeat('x', $3::int)))`
)

// largeBodies delivers events of each size to one endpoint and to several, and then sends events
// that are too large.
func (b *bench) largeBodies(ctx context.Context) error {
	for _, size := range b.bodies {
		for endpoints := 1; endpoints <= wantBodies; endpoints *= wantBodies {
			if err := b.bodiesOf(ctx, agentOptions{MaxBody: largestBody}, size, b.bodyEvents, endpoints, "succeeded"); err != nil {
				return err
			}
		}
	}
	for events := 1; events <= b.bodyEvents; events += max(1, b.bodyEvents-1) {
		if err := b.bodiesOf(ctx, agentOptions{}, b.bodies[len(b.bodies)-1], events, wantBodies, "failed"); err != nil {
			return err
		}
	}
	return nil
}

// bodiesOf writes events with size bytes of data each. It waits until all deliveries have the
// status.
func (b *bench) bodiesOf(ctx context.Context, options agentOptions, size, events, endpoints int, status string) (err error) {
	d, err := b.newDatabase(ctx, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	for i := range endpoints {
		if err := d.endpoint(ctx, fmt.Sprintf("ep_%d", i), largeVenue, b.customers.url(bulk, i)); err != nil {
			return err
		}
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	before, err := testenv.PeakMemory(d.agent.PID)
	if err != nil {
		return err
	}
	began := time.Now()
	for range events {
		if _, err := d.conn.Exec(ctx, insertBody, eventType, largeVenue, size); err != nil {
			return fmt.Errorf("write an event of %d bytes: %w", size, err)
		}
	}
	wrote := time.Since(began)
	err = d.await(ctx, bodiesTimeout, "the large events are "+status, func() (bool, error) {
		m, err := d.metrics(ctx)
		return m[`webhook_agent_deliveries_total{status="`+status+`"}`] >= float64(events*endpoints), err
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	most, err := testenv.PeakMemory(d.agent.PID)
	if err != nil {
		return err
	}
	what := "to"
	if status == "failed" {
		what = "that are more than max_body, for"
	}
	b.report.add(row{
		scenario: fmt.Sprintf("%d events of %s %s %d endpoints", events, mebibytes(int64(size)), what, endpoints),
		value:    fmt.Sprintf("agent %s at most; written in %.1f s, all %s after %.1f s", mebibytes(most), wrote.Seconds(), status, took.Seconds()),
		compared: mebibytes(before) + " before the first",
	})
	return nil
}

// hangingBodies makes many endpoints hang. Each gets an event of its own that is as large as the
// default allows.
func (b *bench) hangingBodies(ctx context.Context) (err error) {
	const size = 4<<20 - 1<<10
	d, err := b.newDatabase(ctx, agentOptions{Timeout: b.hang})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	for i := range b.hanging {
		if err := d.endpoint(ctx, fmt.Sprintf("ep_%d", i), venue(i), b.customers.url(silent, i)); err != nil {
			return err
		}
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	for i := range b.hanging {
		if _, err := d.conn.Exec(ctx, insertBody, eventType, venue(i), size); err != nil {
			return fmt.Errorf("write an event of %d bytes: %w", size, err)
		}
	}
	err = d.await(ctx, bodiesTimeout, "all large events have been attempted", func() (bool, error) {
		var attempted int
		err := d.conn.QueryRow(ctx, `select count(*) from webhooks.deliveries where attempts > 0`).Scan(&attempted)
		return attempted >= b.hanging, err
	})
	if err != nil {
		return err
	}
	most, err := testenv.PeakMemory(d.agent.PID)
	if err != nil {
		return err
	}
	b.report.add(row{
		scenario: fmt.Sprintf("an event of %s to each of %d endpoints that hang", mebibytes(size), b.hanging),
		value:    fmt.Sprintf("agent %s at most", mebibytes(most)),
		goal:     "below " + mebibytes(goalMemory), reached: most < goalMemory,
	})
	return nil
}
