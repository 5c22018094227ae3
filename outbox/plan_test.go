package outbox

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// TestHotQueries_UseTheirIndex examines the plans over a log of 100,000 deliveries of 50 endpoints.
// Statements are prepared, and after some executions PostgreSQL may choose a generic plan for them.
// So both kinds of plan must be right.
func TestHotQueries_UseTheirIndex(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	_, env := openDB(t)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
	    select 'evt_' || i, 'ep_' || i % 50, 'venue_a', 'lead.created', s, case when s = 'pending' then now() + make_interval(secs => i % 7200 - 3600) end,
	           now() - make_interval(secs => i)
	    from (select i, (array['succeeded', 'succeeded', 'succeeded', 'failed', 'pending', 'missed'])[i / 50 % 6 + 1] s from generate_series(1, 100000) i) x`)
	env.Exec(t, `vacuum analyze webhooks.deliveries`)
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	defer closeConn(conn)

	for _, test := range []struct{ name, sql, arguments, index string }{
		{"selectDueRows", selectDueRows, `(array['ep_1', 'ep_2'], array[256, 256], now(), array[now() - interval '1 day', null])`, "deliveries_pending"},
		{"selectDue", selectDue, ``, "deliveries_pending"},
		{"missPending", missPending, `(array['ep_1', 'ep_2'], array['removed', 'removed'], array['ep_1'], array['evt_1'], 250)`, "deliveries_pending"},
		{"requeueRange", requeueRange, `('ep_1', '{succeeded}', now(), now() - interval '20 hours', '', 500, 'rpl_1')`, "deliveries_endpoint_created"},
		{"selectLooked", selectLooked, `('ep_1', now() - interval '20 hours', '')`, "deliveries_endpoint_created"},
		{"requeueEvents", requeueEvents, `('ep_1', '{missed}', array['evt_1', 'evt_2'], 'epoch', '', 500, 'rpl_1')`, "deliveries_pkey"},
		{"restoreBack", restoreBack, `('ep_1', 'rpl_1', array['evt_1'], 500, now(), '', 10000)`, "deliveries_endpoint_created"},
		{"restoreNamed", restoreNamed, `('ep_1', 'rpl_1', array['evt_1'], 500, array['evt_1', 'evt_2'])`, "deliveries_pkey"},
		{"leaveRange", leaveRange, `('ep_1', '{succeeded}', now(), now() - interval '20 hours', '', 500)`, "deliveries_endpoint_created"},
		{"leaveEvents", leaveEvents, `('ep_1', '{missed}', array['evt_1', 'evt_2'], 'epoch', '', 500)`, "deliveries_pkey"},
		{"selectUnfitEvents", selectUnfitEvents, `('ep_1', '{missed}', array['evt_1', 'evt_2'])`, "deliveries_pkey"},
		{"selectRecorded", selectRecorded, `(array['evt_1', 'evt_2'], array['ep_1', 'ep_2'])`, "deliveries_pkey"},
	} {
		_, err := conn.Exec(t.Context(), "prepare "+test.name+" as "+test.sql)
		must(t, err)
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			_, err := conn.Exec(t.Context(), "set plan_cache_mode = "+mode)
			must(t, err)
			rows, err := conn.Query(t.Context(), "explain execute "+test.name+test.arguments)
			must(t, err)
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			must(t, err)
			plan := strings.Join(lines, "\n")
			if strings.Contains(plan, "Seq Scan on deliveries") || !strings.Contains(plan, test.index) {
				t.Errorf("%s, %s: want index %s:\n%s", test.name, mode, test.index, plan)
			}
		}
	}
}

// The outbox has 200,000 events of a month, and all of them were delivered.
func TestComparison_ReadsNoMoreThanItsPart(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	db, env, conn := openMonth(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) select 'ep_' || i, 'venue_' || i, 'https://example.com', '{*}', 's' from generate_series(2, 2000) i`)
	env.Exec(t, `vacuum analyze webhooks.endpoints`)
	h, err := db.configured().Horizon(t.Context())
	must(t, err)
	last := h
	last.At = h.At.Add(-time.Hour)
	all, err := db.configured().walkPlaces(t.Context(), db.configured().comparison(lastHorizon{}, h, false))
	must(t, err)
	all.next = all.end / 2
	latest, err := db.configured().walkLatest(t.Context(), db.configured().comparison(last.last(), h, true))
	must(t, err)
	c := all.comparison
	for _, test := range []struct {
		name, sql string
		args      []any
		want      []string
		pages     int // it may read, at most
	}{
		{"a part of all", all.sql, all.params(all.next + all.pace.step), []string{"Tid Range Scan on outbox o", "deliveries_pkey"}, 64 + 64*150*4},
		{"the latest", latest.sql, latest.params(latest.end), []string{"outbox_created"}, 2000},
		{"give rows", all.mapping.giveSQL("true"), c.args(values{"relations": []uint32{all.relations[0], all.relations[0]}, "places": []string{"(0,1)", "(0,2)"}, "after": "", "limit": giveLimit}),
			[]string{"TID Cond: (ctid = l.place)", "endpoints_venue_id on endpoints"}, 100},
	} {
		plan := explain(t, conn, test.sql, test.args...)
		for _, want := range test.want {
			if !strings.Contains(plan, want) {
				t.Errorf("%s: no %q in\n%s", test.name, want, plan)
			}
		}
		if seq := regexp.MustCompile(`Seq Scan on (outbox|deliveries)`).FindString(plan); seq != "" {
			t.Errorf("%s: %s in\n%s", test.name, seq, plan)
		}
		var pages int
		if _, err := fmt.Sscan(regexp.MustCompile(`shared hit=(\d+)`).FindStringSubmatch(plan)[1], &pages); err != nil || pages > test.pages {
			t.Errorf("%s reads %d pages (%v), want %d at most\n%s", test.name, pages, err, test.pages, plan)
		}
	}
}

// month has 200,000 events of a month in the outbox and in the log, all delivered to ep_1.
var month = testenv.Filled{Name: "month_of_events", Fill: func(ctx context.Context, url string) error {
	for _, sql := range []string{
		`insert into webhooks.outbox (id, type, venue, data, created)
		    select 'evt_' || lpad(i::text, 7, '0'), 'lead.created', 'venue_a', '{}', now() - interval '32 days' + make_interval(secs => i * 12.96) from generate_series(1, 200000) i`,
		`insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created, finished)
		    select id, 'ep_1', venue, type, 'succeeded', 1, created, created from webhooks.outbox`,
		`insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code) select id, 'ep_1', 1, created, 500 from webhooks.outbox`,
		`vacuum analyze`,
	} {
		if err := testenv.ExecSQL(ctx, url, sql); err != nil {
			return err
		}
	}
	return nil
}}

// openMonth opens a new database with the month of events. It also returns a connection for plans.
func openMonth(t *testing.T) (*DB, *testenv.DB, *pgx.Conn) {
	t.Helper()
	env := month.NewDB(t)
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	t.Cleanup(func() { closeConn(conn) })
	return open(t, env), env, conn
}

// explain runs a statement and returns its plan, with the rows that each part of the plan has read.
func explain(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	rows, err := conn.Query(t.Context(), "explain (analyze, buffers, timing off) "+sql, args...)
	must(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	return strings.Join(lines, "\n")
}

func TestPruning_ReadsOnlyWhatItDeletes(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	db, env, conn := openMonth(t)
	p := newPruning(t, db, env)
	// The trigger would take five seconds, and fill in nothing.
	env.Exec(t, `alter table webhooks.replays disable trigger replays_before_write`)
	env.Exec(t, `insert into webhooks.replays (endpoint_id, venue, state, finished) select 'ep_1', venue, 'done', created from webhooks.outbox`)
	env.Exec(t, `alter table webhooks.replays enable always trigger replays_before_write`)
	env.Exec(t, `vacuum analyze webhooks.replays`)
	must(t, p.Begin(t.Context()))
	settleHorizon(t, db, env)
	mapping, err := p.slot.mapping(t.Context())
	must(t, err)
	listEvents := mapping.listEventsSQL()
	var tables []uint32
	var events, deliveries []string
	for _, list := range []struct {
		sql  string
		rows *[]string
	}{{listEvents, &events}, {listDeliveries, &deliveries}} {
		listed, err := p.list(t.Context(), list.sql, beginning)
		must(t, err)
		for _, at := range listed[:pruneBatch] {
			*list.rows = append(*list.rows, at.row)
			tables = append(tables, at.table)
		}
	}
	for _, test := range []struct {
		name, sql string
		args      values
		want      []string
		pages     int // it may read, at most
	}{
		{"list events", listEvents, beginning.values(p.cutoff), []string{"outbox_created on outbox"}, 600},
		{"list deliveries", listDeliveries, beginning.values(p.cutoff), []string{"deliveries_created on deliveries"}, 600},
		// A row costs a few pages of each index, however large the tables are.
		{"delete events", mapping.deleteEventsSQL(), p.values().and(values{"tables": tables[:pruneBatch], "rows": events, "outbox": db.cfg.table(), "publication": db.cfg.Publication}),
			[]string{"TID Cond: (ctid = l.place)", "deliveries_pkey on deliveries", "replays_open on replays"}, 15 * pruneBatch},
		{"delete deliveries", mapping.deleteDeliveriesSQL(), p.values().and(values{"rows": deliveries}),
			[]string{"Tid Scan on deliveries d ", "outbox_pkey on outbox", "attempts_delivery on attempts"}, 25 * pruneBatch},
		{"delete replays", deleteReplays, p.values().and(values{"limit": pruneBatch}), []string{"replays_finished on replays"}, 6 * pruneBatch},
	} {
		plan := explain(t, conn, test.sql, planAnew, test.args)
		for _, want := range test.want {
			if !strings.Contains(plan, want) {
				t.Errorf("%s: no %q in\n%s", test.name, want, plan)
			}
		}
		if seq := regexp.MustCompile(`Seq Scan on (outbox|deliveries|attempts|replays)`).FindString(plan); seq != "" {
			t.Errorf("%s: %s in\n%s", test.name, seq, plan)
		}
		var pages int
		if _, err := fmt.Sscan(regexp.MustCompile(`shared hit=(\d+)`).FindStringSubmatch(plan)[1], &pages); err != nil || pages > test.pages {
			t.Errorf("%s reads %d pages (%v), want %d at most\n%s", test.name, pages, err, test.pages, plan)
		}
	}
	// Each statement deleted everything that it was given, so the plans are those of the work
	// itself.
	for _, table := range []string{"outbox", "deliveries", "attempts", "replays"} {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.`+table); n != 200_000-pruneBatch {
			t.Errorf("%s has %d rows, want %d", table, n, 200_000-pruneBatch)
		}
	}
}
