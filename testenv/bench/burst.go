package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	selectWalsender = `
select active_pid from pg_replication_slots where slot_name = $1 and active`

	insertBurst = `
insert into webhooks.outbox (type, venue, data) select $1, $2, $3::text::json from generate_series(1, $4::int)`
)

// burst delivers one transaction with very many events.
func (b *bench) burst(ctx context.Context, d *database) (err error) {
	if err := d.start(ctx); err != nil {
		return err
	}
	before, err := d.recorded(ctx)
	if err != nil {
		return err
	}
	watch := d.watchLag(ctx)
	if _, err := d.conn.Exec(ctx, insertBurst, eventType, venue(0), data, b.config.burst); err != nil {
		return errors.Join(err, watch.stop(new(lag)))
	}
	began := time.Now()
	err = d.await(ctx, 15*time.Minute, "the burst is delivered", func() (bool, error) {
		n, err := d.recorded(ctx)
		return n-before >= int64(b.config.burst), err
	})
	took := time.Since(began)
	var most lag
	if err = errors.Join(err, watch.stop(&most)); err != nil {
		return err
	}
	var walsender int
	if err := d.conn.QueryRow(ctx, selectWalsender, d.slot()).Scan(&walsender); err != nil {
		return err
	}
	agent, err := testenv.PeakMemory(d.agent.PID)
	if err != nil {
		return err
	}
	server, err := testenv.PeakMemory(walsender)
	if err != nil {
		return err
	}
	b.report.add(row{
		scenario: fmt.Sprintf("burst, %d events in one transaction", b.config.burst),
		value:    fmt.Sprintf("%.0f s, %s; agent %s, walsender %s (shared buffers included)", took.Seconds(), perSecond(float64(b.config.burst)/took.Seconds()), mebibytes(agent), mebibytes(server)),
		goal:     "agent below " + mebibytes(goalMemory), reached: agent < goalMemory,
	})
	b.report.add(row{
		scenario: "slot lag: burst", value: fmt.Sprintf("%.1f s, %s", most.age.Seconds(), mebibytes(most.bytes)),
		compared: "a slot cannot advance within a transaction", goal: "at most 2 s", reached: most.age <= goalLag,
	})
	return nil
}
