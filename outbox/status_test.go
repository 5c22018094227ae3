package outbox

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

func TestOverview_OfANewDatabaseIsEmpty(t *testing.T) {
	db, _ := openDB(t)
	o, err := db.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Leader != nil || o.Slot != nil || o.Deliveries != (DeliveryCounts{}) || o.Endpoints != (EndpointCounts{}) || len(o.NotSending) != 0 {
		t.Errorf("not empty: %+v", o)
	}
}

func TestOverview_TellsLeaderSlotAndCounts(t *testing.T) {
	db, env := openDB(t)
	env.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, env.Slot)
	env.Exec(t, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
	    values ($1, '0/16B3748', 3, 'host-1', '1', 1, current_database())`, env.Slot)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_a", "*")
	addEndpoint(t, env, "ep_3", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now(), disabled_reason = 'gone' where id = 'ep_2'`)
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) values ('ep_3', 1, 0, 'no')`)
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Pending, 600) // pending counts however old it is
	addDelivery(t, env, "evt_2", "ep_1", "venue_a", "lead.created", Pending, 5)
	addDelivery(t, env, "evt_3", "ep_1", "venue_a", "lead.created", Failed, 5)
	addDelivery(t, env, "evt_4", "ep_1", "venue_a", "lead.created", Failed, 600)
	addDelivery(t, env, "evt_5", "ep_1", "venue_a", "lead.created", Missed, 5)
	addDelivery(t, env, "evt_6", "ep_1", "venue_a", "lead.created", Succeeded, 5)

	o, err := db.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if l := o.Leader; l == nil || l.Holder != "host-1" || l.Epoch != 3 || l.LSN != "0/16B3748" {
		t.Errorf("leader: %+v", l)
	}
	if s := o.Slot; s == nil || s.Name != env.Slot || s.Active || s.WALStatus != "reserved" || s.LagBytes <= 0 || s.ConfirmedLSN == "" {
		t.Errorf("slot: %+v", s)
	}
	d := o.Deliveries
	if d.Pending != 2 || d.Failed != 1 || d.Missed != 1 || d.Succeeded != 1 || d.Capped {
		t.Errorf("deliveries: %+v", d)
	}
	if d.OldestPending == nil || time.Since(*d.OldestPending) < 9*time.Hour {
		t.Errorf("the oldest pending delivery is from %v, want ten hours ago", d.OldestPending)
	}
	if o.Endpoints != (EndpointCounts{Enabled: 1, Disabled: 1, Unusable: 1}) {
		t.Errorf("endpoints: %+v", o.Endpoints)
	}
	if len(o.NotSending) != 2 {
		t.Errorf("not sending: %+v, want ep_2 and ep_3", o.NotSending)
	}
}

// explained is a statement whose plan is looked at.
type explained struct {
	sql  string
	args []any
}

// logQuery is a statement of a search.
func logQuery(sql string, f DeliveryFilter, at *cursor) explained {
	return explained{sql, []any{f.values(at).and(values{"endpoints": []string{"ep_7", "ep_8"}, "rows": 51, "limit": 51}).of(sql)}}
}

// TestCommands_ReadALargeLogByItsIndexes keeps what people ask from reading the whole log.
func TestCommands_ReadALargeLogByItsIndexes(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, next_attempt_at)
	    select 'evt_' || n, 'ep_' || n % 1000, 'venue_a', 'lead.created', case when n % 100 = 0 then 'pending' else 'succeeded' end,
	           now() - make_interval(secs => n), case when n % 100 = 0 then now() end
	    from generate_series(1, 100000) n`)
	env.Exec(t, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at) select 'evt_' || n, 'ep_1', 1, now() from generate_series(1, 10000) n`)
	env.Exec(t, `insert into webhooks.replays (endpoint_id, venue, created) select 'ep_' || n, 'venue_' || n % 50, now() - make_interval(secs => n) from generate_series(1, 20000) n`)
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) select 'ep_' || n, 'venue_' || n % 100, 'https://h.example/', '{*}', 's' from generate_series(1, 20000) n`)
	env.Exec(t, `analyze webhooks.deliveries, webhooks.attempts, webhooks.replays, webhooks.endpoints`)
	none, hour := (*time.Time)(nil), minutesAgo(60)
	for name, query := range map[string]explained{
		"newest":            logQuery(selectAllLog, DeliveryFilter{}, &cursor{}),
		"next page":         logQuery(selectAllLog, DeliveryFilter{}, &cursor{Created: hour.Format(time.RFC3339Nano), EventID: "evt_3600", EndpointID: "ep_600"}),
		"since an hour":     logQuery(selectAllLog, DeliveryFilter{Since: hour, Statuses: []Status{Failed}}, &cursor{}),
		"of an endpoint":    logQuery(selectEndpointsAny, DeliveryFilter{EndpointID: "ep_7"}, &cursor{}),
		"its next page":     logQuery(selectEndpointsAny, DeliveryFilter{EndpointID: "ep_7"}, &cursor{Created: hour.Format(time.RFC3339Nano), EventID: "evt_3600", EndpointID: "ep_7"}),
		"unsuccessful":      logQuery(selectEndpointsUnsuccessful, DeliveryFilter{EndpointID: "ep_7", Statuses: []Status{Failed, Missed}}, &cursor{}),
		"pending of one":    logQuery(selectEndpointsPending, DeliveryFilter{EndpointID: "ep_7", Statuses: []Status{Pending}}, &cursor{}),
		"log of an event":   logQuery(selectEventLog, DeliveryFilter{EventID: "evt_77"}, &cursor{}),
		"place of an event": {selectPlace, []any{"evt_77"}},
		"venues":            {selectVenues, []any{"venue_1", 10}},
		"known endpoint":    {endpointKnown, []any{"ep_7"}},
		"stats":             {selectStats, []any{"ep_7", 60.0, statsBuckets - 1, statsRows}},
		"candidates":        {selectCandidates, []any{"evt_77", "venue_a", "lead.created", maxDetails}},
		"replays":           {selectReplayList, []any{"", []string{}, (*string)(nil), "", 50, ""}},
		"of an event":       {selectEventDeliveries, []any{"evt_77", "", maxDetails}},
		"attempts":          {selectAttempts, []any{"evt_77", "ep_1", maxDetails}},
		"pending":           {selectPending, []any{MaxOverviewCount}},
		"last hour":         {selectRecent, []any{MaxOverviewCount}},
		"replay of a range": {countReplay, []any{"ep_7", []string{"failed", "missed"}, hour, none, MaxReplayCount}},
		"replay of events":  {selectReplayEvents, []any{[]string{"evt_1", "evt_2"}, "", []string{"failed"}, 10}},
	} {
		for _, v := range []view{db.AllVenues().view, db.Venue("venue_a").view} {
			sql, args := query.sql, query.args
			if strings.Contains(sql, "@venue") {
				var err error
				sql, args, err = v.narrow(sql, args)
				must(t, err)
			}
			rows, err := queryRows(t.Context(), db.pool, "explain "+sql, pgx.RowTo[string], args...)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if plan := strings.Join(rows, "\n"); strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s reads a whole table:\n%s", name, plan)
			}
		}
	}
}
