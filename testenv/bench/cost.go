package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// counters are the totals of a database and its server.
type counters struct {
	wal          int64 // bytes
	transactions int64 // of the database
	rows         int64 // written to the agent's tables
	dead         int64 // tuples in the agent's tables now
	server       time.Duration
	agent        time.Duration
}

// selectCounters leaves out the outbox, because the app writes its rows.
const selectCounters = `
select pg_current_wal_insert_lsn() - '0/0'::pg_lsn,
       (select xact_commit + xact_rollback from pg_stat_database where datname = current_database()),
       (select sum(n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_user_tables where schemaname = 'webhooks' and relname <> 'outbox')::bigint,
       (select sum(n_dead_tup) from pg_stat_user_tables where schemaname = 'webhooks' and relname <> 'outbox')::bigint`

// count reads the counters. PostgreSQL may report those of tables and transactions late, by up to
// size.statistics.
func (d *database) count(ctx context.Context) (c counters, err error) {
	if err := d.conn.QueryRow(ctx, selectCounters).Scan(&c.wal, &c.transactions, &c.rows, &c.dead); err != nil {
		return c, fmt.Errorf("read the counters: %w", err)
	}
	if c.server, err = d.b.cluster.CPU(); err != nil {
		return c, err
	}
	if d.agent != nil {
		c.agent, _, err = testenv.CPU(d.agent.PID)
	}
	return c, err
}

func (c counters) minus(o counters) counters {
	return counters{c.wal - o.wal, c.transactions - o.transactions, c.rows - o.rows, c.dead, c.server - o.server, c.agent - o.agent}
}

// cost measures what the agent costs the database: the cost of a load with it, less that of the
// same load without it.
func (b *bench) cost(ctx context.Context, d *database) (err error) {
	if _, err := d.conn.Exec(ctx, `alter table webhooks.deliveries set (autovacuum_enabled = off); alter table webhooks.checkpoint set (autovacuum_enabled = off)`); err != nil {
		return err
	}
	l := b.full(1, 1)
	l.length, l.events = 0, int64(b.costOver)
	alone := l
	alone.lead = 0
	app, appWritten, err := d.costOf(ctx, func() (w written, err error) { return d.write(ctx, alone) })
	if err != nil {
		return err
	}
	if _, err := d.conn.Exec(ctx, `truncate webhooks.outbox`); err != nil {
		return err
	}
	if err := d.warm(ctx, b.full(1, 1)); err != nil {
		return err
	}
	var took time.Duration
	both, bothWritten, err := d.costOf(ctx, func() (written, error) {
		r, err := d.deliver(ctx, l)
		took = r.took
		return r.written, err
	})
	if err != nil {
		return err
	}
	task := floorTask{URLs: []string{b.customers.url(sound, 0)}, Concurrency: 16, Length: b.stretch, CAFile: d.file("ca")}
	floor, err := ask[floorResult](ctx, floorRole, task)
	if err != nil {
		return err
	}
	task.Client = true
	client, err := ask[floorResult](ctx, floorRole, task)
	if err != nil {
		return err
	}
	n := float64(bothWritten.events)
	// share is how much of the app's cost to subtract.
	share := float64(bothWritten.events) / float64(appWritten.events)
	rows := float64(both.rows) / n
	b.report.add(row{scenario: "rows written for an event that is delivered at once", value: fmt.Sprintf("%.3f", rows), goal: "1", reached: rows < goalRows+0.05})
	wal := (float64(both.wal) - share*float64(app.wal)) / n
	b.report.add(row{
		scenario: "WAL for each of them", value: fmt.Sprintf("%.0f bytes", wal),
		compared: fmt.Sprintf("the app's INSERT %.0f bytes", float64(app.wal)/float64(appWritten.events)),
		goal:     fmt.Sprintf("at most %d", goalWAL), reached: wal <= goalWAL,
	})
	b.report.add(row{scenario: "transactions a second of the agent at full rate", value: fmt.Sprintf("%.0f, for %s deliveries", float64(both.transactions-bothWritten.transactions)/took.Seconds(), perSecond(n/took.Seconds()))})
	b.report.add(row{scenario: fmt.Sprintf("dead tuples after %.0f deliveries, without autovacuum", n), value: fmt.Sprint(both.dead)})
	per := 100_000 / n
	agent, server := both.agent.Seconds()*per, (both.server-time.Duration(share*float64(app.server))).Seconds()*per
	b.report.add(row{
		scenario: "processor time for 100,000 deliveries",
		value:    fmt.Sprintf("agent %.1f s, PostgreSQL %.1f s", agent, server),
		goal:     fmt.Sprintf("%.1f s together", goalProcessor.Seconds()), reached: agent+server <= goalProcessor.Seconds(),
		compared: fmt.Sprintf("the app's INSERTs %.1f s, the floor %.1f s, with the agent's client %.1f s", app.server.Seconds()*100_000/float64(appWritten.events),
			floor.CPU.Seconds()*100_000/float64(floor.Requests), client.CPU.Seconds()*100_000/float64(client.Requests)),
	})
	return nil
}

// costOf does work and returns how much the counters have risen.
func (d *database) costOf(ctx context.Context, work func() (written, error)) (cost counters, w written, err error) {
	time.Sleep(d.b.statistics)
	before, err := d.count(ctx)
	if err != nil {
		return cost, w, err
	}
	if w, err = work(); err != nil {
		return cost, w, err
	}
	busy, err := d.count(ctx)
	if err != nil {
		return cost, w, err
	}
	time.Sleep(d.b.statistics)
	after, err := d.count(ctx)
	cost = after.minus(before)
	// These counters are not late, and the idle time after the work should not count.
	cost.wal, cost.server, cost.agent = busy.wal-before.wal, busy.server-before.server, busy.agent-before.agent
	return cost, w, err
}

// atRest measures an agent that has nothing to do.
func (b *bench) atRest(ctx context.Context, d *database) (err error) {
	if err := testenv.ExecSQL(ctx, b.cluster.URL(d.name), `alter role `+testenv.AgentRole+` set log_statement = 'all'`); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, testenv.ExecSQL(context.WithoutCancel(ctx), b.cluster.URL(d.name), `alter role `+testenv.AgentRole+` reset log_statement`))
	}()
	if err := d.warm(ctx, load{venues: 1, fanout: 1, rows: 1, writers: 1, events: 10}); err != nil {
		return err
	}
	time.Sleep(b.config.idle / 2) // let it come to rest first
	queries, err := b.agentStatements()
	if err != nil {
		return err
	}
	before, err := d.count(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	time.Sleep(b.config.idle)
	took := time.Since(began)
	after, err := d.count(ctx)
	if err != nil {
		return err
	}
	later, err := b.agentStatements()
	if err != nil {
		return err
	}
	core, rate := after.minus(before).agent.Seconds()/took.Seconds(), float64(later-queries)/took.Seconds()
	b.report.add(row{
		scenario: "idle", value: fmt.Sprintf("%.2f %% of a core, %.2f queries a second, %d bytes of WAL in %s", core*100, rate, after.wal-before.wal, took.Round(time.Second)),
		goal: "below 0.5 %, at most 1 a second", reached: core < goalCore && rate <= goalQueries,
	})
	return nil
}

// agentStatements counts the statements of agents in the server's log.
func (b *bench) agentStatements() (int, error) {
	log, err := os.ReadFile(filepath.Join(b.cluster.Folder(), "log"))
	if err != nil {
		return 0, fmt.Errorf("read the server's log: %w", err)
	}
	n := 0
	for line := range bytes.Lines(log) {
		if bytes.Contains(line, []byte(" webhook-agent ")) && (bytes.Contains(line, []byte("LOG:  execute ")) || bytes.Contains(line, []byte("LOG:  statement: "))) {
			n++
		}
	}
	return n, nil
}
