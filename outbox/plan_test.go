package outbox

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestHotQueries_UseTheirIndex looks at the plans over a log of 100,000 deliveries of 50 endpoints. Statements are prepared, and PostgreSQL may choose a
// generic plan for them after some executions, so both kinds must be right.
func TestHotQueries_UseTheirIndex(t *testing.T) {
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
		{"selectDueRows", selectDueRows, `(array['ep_1', 'ep_2'], array[256, 256], now())`, "deliveries_pending"},
		{"selectNextDue", selectNextDue, `(array['ep_1', 'ep_2'], now())`, "deliveries_pending"},
		{"selectDue", selectDue, ``, "deliveries_pending"},
		{"missPending", missPending, `('ep_1', 'removed', array['evt_1'], 500)`, "deliveries_pending"},
		{"requeueRange", requeueRange, `('ep_1', '{missed}', 'rpl_1', now(), now() - interval '20 hours', '', 500)`, "deliveries_endpoint_created"},
		{"requeueEvents", requeueEvents, `('ep_1', '{missed}', 'rpl_1', array['evt_1', 'evt_2'], 'epoch', '', 500)`, "deliveries_pkey"},
		{"selectRecorded", selectRecorded, `(array['evt_1', 'evt_2'])`, "deliveries_pkey"},
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

// TestPeriodicComparison_ReadsTheLatestRowsOnly looks at the plan over an outbox of 200,000 events of a month.
func TestPeriodicComparison_ReadsTheLatestRowsOnly(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created)
	    select 'evt_' || lpad(i::text, 7, '0'), 'lead.created', 'venue_a', '{}', now() - interval '30 days' + make_interval(secs => i * 12.96) from generate_series(1, 200000) i`)
	env.Exec(t, `vacuum analyze webhooks.outbox`)
	must(t, db.loadIDType(t.Context()))
	conn, err := pgx.Connect(t.Context(), env.URL)
	must(t, err)
	defer closeConn(conn)
	_, err = conn.Exec(t.Context(), "prepare find (text, oid[], text, text, timestamptz, timestamptz, bigint, bigint) as "+db.findSQL(true))
	must(t, err)
	rows, err := conn.Query(t.Context(), "explain execute find ('1:1:', null, '9:9:', '1:1:', now() - interval '1 hour', now(), 1, 8)")
	must(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	if plan := strings.Join(lines, "\n"); strings.Contains(plan, "Seq Scan on outbox") || !strings.Contains(plan, "outbox_created") {
		t.Errorf("want index outbox_created:\n%s", plan)
	}
}
