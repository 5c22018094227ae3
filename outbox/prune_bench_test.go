package outbox

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// The benchmarks of this file are what the means of retention were chosen by (see the history of migration 004): what an index on
// created costs the app, and what partitions would cost the agent. They report bytes of WAL beside the time, which is that of one
// connection that does not wait for the disk.

// benchDB returns a database of a durable cluster, and a connection to it.
func benchDB(b *testing.B) (*testenv.DB, *pgx.Conn) {
	b.Helper()
	cluster := testenv.NewCluster(b, testenv.Options{Durable: true,
		// Often enough for minutes that stand for months.
		Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "8GB", "autovacuum_naptime": "1s"}})
	env := cluster.NewDB(b)
	conn, err := pgx.Connect(b.Context(), env.URL)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { closeConn(conn) })
	if _, err := conn.Exec(b.Context(), `set synchronous_commit = off`); err != nil {
		b.Fatal(err)
	}
	return env, conn
}

// backendCPU returns the processor time that the server's process behind conn has used. Unlike the time that passes it says the same
// beside other work.
func backendCPU(b *testing.B, conn *pgx.Conn) time.Duration {
	b.Helper()
	own, _, err := testenv.CPU(int(conn.PgConn().PID()))
	if err != nil {
		b.Fatal(err)
	}
	return own
}

// reportCosts runs loop on conn and reports what each of the rows that it returns has cost.
func reportCosts(b *testing.B, env *testenv.DB, conn *pgx.Conn, loop func() (rows int)) {
	b.Helper()
	env.Exec(b, `vacuum analyze`)
	if err := testenv.ExecSQL(context.Background(), env.SuperuserURL, `checkpoint`); err != nil {
		b.Fatal(err)
	}
	const position = `select (pg_current_wal_insert_lsn() - '0/0')::bigint`
	before := testenv.QueryOne[int64](b, env, position)
	began := backendCPU(b, conn)
	rows := loop()
	took := backendCPU(b, conn) - began
	b.ReportMetric(float64(testenv.QueryOne[int64](b, env, position)-before)/float64(rows), "walB/row")
	b.ReportMetric(float64(took.Nanoseconds())/float64(rows), "cpu-ns/row")
}

func BenchmarkOutboxInsert(b *testing.B) {
	for _, index := range []string{"none", "using brin (created) with (autosummarize = on)", "(created)", "(created, id)"} {
		b.Run(index, func(b *testing.B) {
			env, conn := benchDB(b)
			env.Exec(b, `drop index webhooks.outbox_created`)
			if index != "none" {
				env.Exec(b, `create index outbox_created on webhooks.outbox `+index)
			}
			env.Exec(b, `insert into webhooks.outbox (type, venue, data, created)
			    select 'lead.created', 'venue_01JZX0V7E3M8R', '{"lead":{"id":"lead_01HX","stage":"new"}}', now() - make_interval(secs => 120 + (300000 - i) / 100)
			    from generate_series(1, 300000) i`)
			reportCosts(b, env, conn, func() (rows int) {
				for b.Loop() {
					if _, err := conn.Exec(b.Context(), `insert into webhooks.outbox (type, venue, data)
					    values ('lead.created', 'venue_01JZX0V7E3M8R', '{"lead":{"id":"lead_01HX","stage":"new"}}')`); err != nil {
						b.Fatal(err)
					}
					rows++
				}
				return rows
			})
		})
	}
}

// partitionedLog makes a delivery log of a partition for each day by the time in the event ids.
func partitionedLog(b *testing.B, env *testenv.DB) {
	env.Exec(b, `create table webhooks.log (like webhooks.deliveries including all) partition by range (event_id)`)
	for day := range 33 {
		env.Exec(b, fmt.Sprintf(`create table webhooks.log_%d partition of webhooks.log for values from ('evt_%08d') to ('evt_%08d')`,
			day, day*100000, (day+1)*100000))
	}
	env.Exec(b, `create table webhooks.log_default partition of webhooks.log default`)
	env.Exec(b, `drop table webhooks.deliveries`)
	env.Exec(b, `alter table webhooks.log rename to deliveries`)
}

func BenchmarkGroupInsert(b *testing.B) {
	const group = 200
	for _, layout := range []string{"none", "using brin (created) with (autosummarize = on)", "(created)", "(created, event_id)", "partitions"} {
		b.Run(layout, func(b *testing.B) {
			env, conn := benchDB(b)
			switch layout {
			case "partitions":
				partitionedLog(b, env)
			default:
				env.Exec(b, `drop index webhooks.deliveries_created`)
				if layout != "none" {
					env.Exec(b, `create index deliveries_created on webhooks.deliveries `+layout)
				}
			}
			env.Exec(b, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created, last_code, last_latency_ms, finished)
			    select 'evt_' || lpad((i * 5)::text, 8, '0') || '0123456789abcdefgh', 'ep_' || lpad((i % 50)::text, 26, '0'),
			           'venue_01JZX0V7E3M8R', 'lead.created', 'succeeded', 1, now() - interval '30 days' + make_interval(secs => i * 4.32), 200, 12, now()
			    from generate_series(1, 600000) i`)
			next := 3000000
			reportCosts(b, env, conn, func() (rows int) {
				for b.Loop() {
					g := newGroup()
					for range group {
						next++
						d := &Delivery{EventID: fmt.Sprintf("evt_%08d0123456789abcdefgh", next), EndpointID: fmt.Sprintf("ep_%026d", next%50),
							Venue: "venue_01JZX0V7E3M8R", Type: "lead.created", Created: time.Now()}
						g.add(success(d))
					}
					if err := pgx.BeginFunc(b.Context(), conn, func(tx pgx.Tx) error { return g.write(b.Context(), tx.Conn()) }); err != nil {
						b.Fatal(err)
					}
					rows += group
				}
				return rows
			})
		})
	}
}

// fillMonths writes n events a month for some months up to now, each with a delivery, every tenth with a failed attempt.
func fillMonths(b *testing.B, env *testenv.DB, n, months int) {
	env.Exec(b, `insert into webhooks.outbox (type, venue, data, created)
	    select 'lead.created', 'venue_01JZX0V7E3M8R', '{"lead":{"id":"lead_01HX","stage":"new"}}',
	    now() - make_interval(days => 30 * $2) + make_interval(secs => i * 2592000.0 / $1) from generate_series(1, $1::int * $2::int) i`, n, months)
	env.Exec(b, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created, last_code, last_latency_ms, finished)
	    select id, 'ep_' || lpad((row_number() over () % 50)::text, 26, '0'), venue, type, 'succeeded', 1, created, 200, 12, created
	    from webhooks.outbox order by created`)
	env.Exec(b, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, error, response)
	    select event_id, endpoint_id, 1, created, 500, 'status 500', repeat('x', 200) from webhooks.deliveries where right(event_id, 1) in ('0', '1', '2')`)
}

// BenchmarkPrune deletes half of the rows; its figures are for each row of the table.
func BenchmarkPrune(b *testing.B) {
	env, _ := benchDB(b)
	fillMonths(b, env, 200_000, 2)
	db, err := Open(b.Context(), testConfig(env.URL, env.Slot))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(db.Close)
	db.cfg.Retention = 30 * 24 * time.Hour
	env.Exec(b, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database, horizon, relations)
	    values ($2, '0/0', 1, '', '', 0, '', pg_current_snapshot(), `+relationsOf("$1::text", "$3::text")+`)`, db.cfg.table(), env.Slot, db.cfg.Publication)
	env.Exec(b, `vacuum analyze`)
	p := db.configured().NewPruner(Term{Epoch: 1})
	if err := p.Begin(b.Context()); err != nil {
		b.Fatal(err)
	}
	pooled, err := db.pool.Acquire(b.Context()) // all steps use it in turn
	if err != nil {
		b.Fatal(err)
	}
	conn := pooled.Conn()
	pooled.Release()
	for _, table := range []PrunedTable{PrunedOutbox, PrunedDeliveries} {
		b.Run(string(table), func(b *testing.B) {
			reportCosts(b, env, conn, func() (rows int) {
				began := time.Now()
				for done := false; !done; {
					var pruned Pruned
					if pruned, done, err = p.Step(b.Context(), table); err != nil {
						b.Fatal(err)
					}
					rows += int(pruned[table])
				}
				b.ReportMetric(float64(rows)/time.Since(began).Seconds(), "rows/s")
				b.ReportMetric(float64(rows), "rows")
				return rows
			})
		})
	}
}

// BenchmarkPeriods writes and prunes for some periods with autovacuum on and tells how large the tables are after each, and how many pages
// are read to find the latest and the oldest hundredth of the rows in the end, by each kind of index. One run is enough (-benchtime 1x).
func BenchmarkPeriods(b *testing.B) {
	const period, step, periods, perSecond = 200_000, 1000, 4, 5000
	env, _ := benchDB(b)
	db, err := Open(b.Context(), testConfig(env.URL, env.Slot))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(db.Close)
	db.cfg.Retention = 30 * 24 * time.Hour
	env.Exec(b, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database) values ($1, '0/0', 1, '', '', 0, '')`, env.Slot)
	env.Exec(b, `create index outbox_brin on webhooks.outbox using brin (created) with (autosummarize = on)`)
	p := db.configured().NewPruner(Term{Epoch: 1})
	base := time.Now().Add(-1000 * 24 * time.Hour).Truncate(time.Second)
	second := func(n int) time.Time { return base.Add(time.Duration(n) * time.Second) }
	tick := time.NewTicker(time.Second * step / perSecond)
	defer tick.Stop()
	for n := 0; n < period*(periods+1); n += step {
		env.Exec(b, `with e as (
		        insert into webhooks.outbox (id, type, venue, data, created)
		        select 'evt_' || lpad(i::text, 26, '0'), 'lead.created', 'venue_01JZX0V7E3M8R', '{"lead":{"id":"lead_01HX","stage":"new"}}',
		               $1::timestamptz + make_interval(secs => i - $2::int)
		        from generate_series($2::int + 1, $2::int + $3::int) i returning *)
		    insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created, finished)
		    select id, 'ep_' || lpad((right(id, 6)::int % 50)::text, 26, '0'), venue, type, 'succeeded', 1, created, created from e`,
			second(n), n, step)
		env.Exec(b, `update webhooks.checkpoint set horizon = pg_current_snapshot(), relations = `+relationsOf("$1::text", "$2::text"), db.cfg.table(), db.cfg.Publication)
		if err := p.Begin(b.Context()); err != nil {
			b.Fatal(err)
		}
		p.cutoff = second(n + step - period)
		for _, table := range []PrunedTable{PrunedOutbox, PrunedDeliveries} {
			for done := false; !done; {
				if _, done, err = p.Step(b.Context(), table); err != nil {
					b.Fatal(err)
				}
			}
		}
		if (n+step)%period == 0 {
			b.Logf("period %d: %s", (n+step)/period, testenv.QueryOne[string](b, env, `
			    select string_agg(format('%s %s MB heap %s MB indexes', relname, round(pg_relation_size(oid) / 1e6, 1), round(pg_indexes_size(oid) / 1e6, 1)),
			                      ', ' order by relname)
			    from pg_class where oid in ('webhooks.outbox'::regclass, 'webhooks.deliveries'::regclass)`))
		}
		<-tick.C
	}
	latest := second(period*(periods+1) - period/100)
	env.Exec(b, `vacuum analyze webhooks.outbox`)
	for _, index := range []string{"outbox_created", "outbox_brin"} { // the planner takes the first while it is there
		for what, condition := range map[string]string{"latest hundredth": "created >= $1", "oldest hundredth": "created < $1"} {
			at := latest
			if strings.HasPrefix(what, "oldest") {
				at = second(period*periods + period/100)
			}
			plan := testenv.QueryAll[string](b, env, `explain (analyze, buffers, timing off) select from webhooks.outbox where `+condition, at)
			b.Logf("index %s, %s: %s", index, what, strings.Join(plan, " / "))
		}
		env.Exec(b, `drop index webhooks.`+index)
	}
}
