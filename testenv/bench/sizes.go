package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// The scenarios of this file have the sizes that the agent is planned for. Meanwhile a bystander,
// the one sound endpoint of another venue, gets an event now and then. The result is the longest
// time that one of its events takes.

const (
	largeVenue      = "venue_large"
	bystanderRate   = 20 // events a second
	bystanderWait   = time.Minute
	farLead         = 2 * time.Minute
	sizesTimeout    = 10 * time.Minute
	changeRounds    = 3
	endpointBytes   = 3 << 9 // of the agent's memory for each endpoint (agent/cli/memory.go)
	insertEndpoints = `
insert into webhooks.endpoints (id, venue, url, events, secret)
select $1 || i, $2 || case when $3 then i::text else '' end, $4, '{*}', $5 from generate_series(1, $6::int) i`
)

// bystander is the first venue while it gets events.
type bystander struct {
	d       *database
	end     context.CancelFunc
	done    chan error           // the goroutine of newBystander sends once
	commits map[string]time.Time // by event; valid once done was received from
}

// newBystander starts to write events for the first venue. Its goroutine ends with stop.
func (d *database) newBystander(ctx context.Context) *bystander {
	ctx, cancel := context.WithCancel(ctx)
	w := &bystander{d: d, end: cancel, done: make(chan error, 1), commits: map[string]time.Time{}}
	d.b.customers.keepArrivals(true)
	go func() { w.done <- w.write(ctx) }()
	return w
}

func (w *bystander) write(ctx context.Context) (err error) {
	conn, err := pgx.Connect(context.WithoutCancel(ctx), w.d.b.cluster.URL(w.d.name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	tick := time.NewTicker(time.Second / bystanderRate)
	defer tick.Stop()
	for {
		var id string
		if err := conn.QueryRow(context.WithoutCancel(ctx), insertEvents, eventType, data, []string{venue(0)}).Scan(&id); err != nil {
			return fmt.Errorf("write an event: %w", err)
		}
		w.commits[id] = time.Now()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// stop ends the writing, waits until the last event has arrived, and returns the longest time that
// an event took.
func (w *bystander) stop(ctx context.Context) (slowest time.Duration, err error) {
	w.end()
	if err := <-w.done; err != nil {
		return 0, err
	}
	var arrivals []arrival
	err = w.d.await(ctx, bystanderWait, "the bystander's events arrive", func() (bool, error) {
		arrivals = append(arrivals, w.d.b.customers.keepArrivals(true)...)
		return len(arrivals) >= len(w.commits), nil
	})
	w.d.b.customers.keepArrivals(false)
	latencies := delivered{written: written{commits: w.commits}, arrivals: arrivals}.latencies()
	return quantile(latencies, 1), err
}

// endpoints registers n endpoints of the large venue, or of venues of their own.
func (d *database) endpoints(ctx context.Context, n int, apart bool) error {
	_, err := d.conn.Exec(ctx, insertEndpoints, "ep_large_", largeVenue, apart, d.b.customers.url(bulk, 0), secret, n)
	if err != nil {
		return fmt.Errorf("register %d endpoints: %w", n, err)
	}
	return nil
}

// reportSize adds the result of a scenario to the report.
func (b *bench) reportSize(d *database, scenario, value string, slowest time.Duration, endpoints int) error {
	memory, err := testenv.PeakMemory(d.agent.PID)
	if err != nil {
		return err
	}
	limit := int64(goalMemory + endpoints*endpointBytes)
	b.report.add(row{
		scenario: scenario, value: value + "; agent " + mebibytes(memory), compared: "slowest event of a bystander " + milliseconds(slowest),
		goal: fmt.Sprintf("at most %s, below %s", goalBystander, mebibytes(limit)), reached: slowest <= goalBystander && memory < limit,
	})
	return nil
}

// largeFanout delivers one transaction of events that thousands of endpoints of one venue want.
func (b *bench) largeFanout(ctx context.Context, d *database) error {
	if err := d.endpoints(ctx, b.size.fanout, false); err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	w := d.newBystander(ctx)
	began := time.Now()
	if _, err := d.conn.Exec(ctx, insertBurst, eventType, largeVenue, data, b.imported); err != nil {
		return err
	}
	deliveries := b.size.fanout * b.imported
	err := d.await(ctx, sizesTimeout, "the import is delivered", func() (bool, error) {
		// The bystander's deliveries also count here, but they are few.
		n, err := d.recorded(ctx)
		return n >= int64(deliveries), err
	})
	took := time.Since(began)
	if err != nil {
		return err
	}
	slowest, err := w.stop(ctx)
	if err != nil {
		return err
	}
	return b.reportSize(d, fmt.Sprintf("%d events in one transaction for %d endpoints", b.imported, b.size.fanout),
		fmt.Sprintf("%.0f s, %s", took.Seconds(), perSecond(float64(deliveries)/took.Seconds())), slowest, b.size.fanout)
}

// manyChanges changes and then removes all endpoints of a venue at once. Then it has many venues
// come and go.
func (b *bench) manyChanges(ctx context.Context, d *database) error {
	n := b.size.endpoints
	if err := d.endpoints(ctx, n, false); err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	exec := func(sql string) func() error {
		return func() error {
			_, err := d.conn.Exec(ctx, sql, largeVenue)
			return err
		}
	}
	for _, s := range []struct {
		scenario string
		change   func() error
	}{
		{"UPDATE of %d endpoints' url", exec(`update webhooks.endpoints set url = url || '1' where venue = $1`)},
		{"UPDATE of %d endpoints' description", exec(`update webhooks.endpoints set description = 'changed' where venue = $1`)},
		{"DELETE of %d endpoints", exec(`delete from webhooks.endpoints where venue = $1`)},
	} {
		slowest, took, err := d.beside(ctx, s.change)
		if err != nil {
			return err
		}
		if err := b.reportSize(d, fmt.Sprintf(s.scenario, n), fmt.Sprintf("the app's SQL %.1f s", took.Seconds()), slowest, n); err != nil {
			return err
		}
	}
	var slowest, took time.Duration
	for range changeRounds {
		latency, length, err := d.beside(ctx, func() error {
			return errors.Join(d.endpoints(ctx, n/2, true), exec(`delete from webhooks.endpoints where venue like $1 || '%'`)())
		})
		if err != nil {
			return err
		}
		slowest, took = max(slowest, latency), max(took, length)
	}
	return b.reportSize(d, fmt.Sprintf("%d rounds of %d venues that come and go", changeRounds, n/2), fmt.Sprintf("the app's SQL %.1f s a round", took.Seconds()), slowest, n)
}

// beside calls do and returns the longest time that an event of a bystander took meanwhile,
// including events written just after do.
func (d *database) beside(ctx context.Context, do func() error) (slowest, took time.Duration, err error) {
	w := d.newBystander(ctx)
	began := time.Now()
	if err := do(); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	time.Sleep(5 * time.Second / bystanderRate) // write some events after do
	slowest, err = w.stop(ctx)
	return slowest, took, err
}

const insertDue = `
with event as (
    insert into webhooks.outbox (type, venue, data) select $1, venue, $2::text::json from webhooks.endpoints where venue like $3 || '%'
    returning id, type, venue, created
)
insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
select v.id, e.id, v.venue, v.type, 'pending', now(), v.created from event v join webhooks.endpoints e using (venue)`

// due registers n endpoints, and makes one delivery due to each.
func (d *database) due(ctx context.Context, n int) error {
	if err := d.endpoints(ctx, n, true); err != nil {
		return err
	}
	if _, err := d.conn.Exec(ctx, insertDue, eventType, data, largeVenue); err != nil {
		return fmt.Errorf("make deliveries: %w", err)
	}
	return d.settle(ctx)
}

// awaitDue waits until nothing is pending.
func (d *database) awaitDue(ctx context.Context) error {
	return d.await(ctx, sizesTimeout, "all that was due is delivered", func() (bool, error) {
		var pending bool
		err := d.conn.QueryRow(ctx, `select exists (select from webhooks.deliveries where status = 'pending' and venue like $1 || '%')`, largeVenue).Scan(&pending)
		return !pending, err
	})
}

// startBeside starts an agent and waits until done returns. It returns how long the agent took to
// lead, how long it took to finish, and the longest time that an event of a bystander took
// meanwhile.
func (d *database) startBeside(ctx context.Context, done func(context.Context) error) (led, took, slowest time.Duration, err error) {
	began := time.Now()
	if err := d.launch(ctx, readyTimeout); err != nil {
		return 0, 0, 0, err
	}
	led = time.Since(began)
	w := d.newBystander(ctx)
	if err := done(ctx); err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(began)
	slowest, err = w.stop(ctx)
	return led, took, slowest, err
}

// manyDue starts an agent while very many endpoints have a delivery due.
func (b *bench) manyDue(ctx context.Context, d *database) error {
	if err := d.due(ctx, b.size.endpoints); err != nil {
		return err
	}
	led, took, slowest, err := d.startBeside(ctx, d.awaitDue)
	if err != nil {
		return err
	}
	return b.reportSize(d, fmt.Sprintf("%d endpoints with a delivery due to each", b.size.endpoints),
		fmt.Sprintf("leads after %.1f s, all delivered after %.1f s", led.Seconds(), took.Seconds()), slowest, b.size.endpoints)
}

// farDatabase does the same as manyDue, with a delay before each answer of the database.
func (b *bench) farDatabase(ctx context.Context, d *database) (err error) {
	if err := d.due(ctx, b.size.endpoints); err != nil {
		return err
	}
	proxy, err := testenv.NewProxy(b.cluster.Addr())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	if err := d.configure(proxy.Via(b.cluster.RoleURL(testenv.AgentRole, d.name))); err != nil {
		return err
	}
	proxy.SetDelay(b.far)
	began := time.Now()
	if err := d.launch(ctx, farLead); err != nil {
		return err
	}
	led, turns := time.Since(began), proxy.Turns()
	if err := d.awaitDue(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	b.report.add(row{
		scenario: fmt.Sprintf("each answer of the database after %s, %d endpoints with a delivery due to each", b.far, b.size.endpoints),
		value:    fmt.Sprintf("leads after %.1f s (%d round trips), all delivered after %.1f s", led.Seconds(), turns, took.Seconds()),
		goal:     fmt.Sprintf("leads within %s", goalFarLead), reached: led <= goalFarLead,
	})
	proxy.SetDelay(0)
	return d.stop()
}

// lostSlot drops the slot of a large outbox whose rows no endpoint wants, and whose rows are not
// known to be recorded.
func (b *bench) lostSlot(ctx context.Context, d *database) error {
	if err := d.start(ctx); err != nil {
		return err
	}
	if err := d.stop(); err != nil {
		return err
	}
	for _, sql := range []string{`select pg_drop_replication_slot('` + d.slot() + `')`, `update webhooks.checkpoint set horizon = null`} {
		if _, err := d.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("lose the slot: %w", err)
		}
	}
	if _, err := d.conn.Exec(ctx, insertBurst, eventType, "venue_of_nobody", data, b.size.outbox); err != nil {
		return fmt.Errorf("fill the outbox: %w", err)
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	led, took, slowest, err := d.startBeside(ctx, func(ctx context.Context) error { return d.awaitRecovered(ctx, sizesTimeout) })
	if err != nil {
		return err
	}
	return b.reportSize(d, fmt.Sprintf("the slot is lost, %d rows in the outbox", b.size.outbox),
		fmt.Sprintf("leads after %.1f s, has recovered after %.1f s", led.Seconds(), took.Seconds()), slowest, 1)
}
