package outbox

import (
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

func TestIDs_AnyUnambiguousBeginningStandsForTheWhole(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	for _, id := range []string{"ep_01AA", "ep_01AB", "ep_01ABC", "ep_02", "ep-01AA0", "EP_01AA1"} {
		addEndpoint(t, env, id, "venue_a", "*")
	}
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) select 'ep_many_' || i, 'venue_a', 'https://h.example/', '{*}', 's' from generate_series(1, 9) i`)
	addEndpoint(t, env, "ep_gone", "venue_a", "*")
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    select 'evt_logged', 'ep_gone_' || i, 'venue_a', 'lead.created', 'succeeded', now() from generate_series(1, 300) i`)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_both', 'ep_gone', 'venue_a', 'lead.created', 'succeeded', now())`)
	env.Exec(t, `delete from webhooks.endpoints where id = 'ep_gone'`)
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_both', 'lead.created', 'venue_a', '{}'), ('evt_alone', 'lead.created', 'venue_a', '{}')`)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id) values ('rpl_1', 'ep_02'), ('rpl_12', 'ep_02')`)
	all := db.AllVenues()
	endpoint := func(given string) (string, error) { return all.EndpointID(t.Context(), given, false) }
	inLog := func(given string) (string, error) { return all.EndpointID(t.Context(), given, true) }
	event := func(given string) (string, error) { return all.EventID(t.Context(), given) }
	replay := func(given string) (string, error) { return all.ReplayID(t.Context(), given) }
	for _, test := range []struct {
		look        func(string) (string, error)
		given, want string // want is an error where it has a colon
	}{
		{endpoint, "ep_02", "ep_02"},
		{endpoint, "ep_0", `endpoint "ep_0": several ids begin so: ep_01AA, ep_01AB, ep_01ABC, ep_02; write more of the id`},
		{endpoint, "ep_01AA", "ep_01AA"},
		{endpoint, "ep_01AB", "ep_01AB"}, // whole, although another begins so
		{endpoint, "ep_01ABC", "ep_01ABC"},
		{endpoint, "ep_many", `endpoint "ep_many": several ids begin so: ep_many_1, ep_many_2, ep_many_3, ep_many_4, ep_many_5 and more; write more of the id`},
		{endpoint, "ep-", "ep-01AA0"},
		{endpoint, "nope", "nope"},
		{endpoint, "", ""},
		{endpoint, "ep_g", "ep_g"}, // it was removed
		{inLog, "ep_g", "ep_gone"},
		{event, "evt_l", "evt_logged"},
		{event, "evt_b", "evt_both"}, // of the log and of the outbox
		{event, "evt_a", "evt_alone"},
		{event, "evt_", `event "evt_": several ids begin so: evt_both, evt_logged, evt_alone; write more of the id`},
		{replay, "rpl_12", "rpl_12"},
		{replay, "rpl_1", "rpl_1"},
		{replay, "rpl", `replay "rpl": several ids begin so: rpl_1, rpl_12; write more of the id`},
	} {
		got, err := test.look(test.given)
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%q: got %s, want %s", test.given, got, test.want)
		}
	}
	if _, err := (AllVenues{}).EndpointID(t.Context(), "ep", false); err == nil {
		t.Error("a view that was not made finds ids")
	}
}

func TestIDs_OfAnOutboxOfTheApp(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ idType, id, given, want string }{
		{"uuid", "0193a5f2-1111-7000-8000-000000000001", "0193a5f2-1", "0193a5f2-1111-7000-8000-000000000001"},
		{"uuid", "0193a5f2-1111-7000-8000-000000000001", "0193a5f21", "0193a5f21"},
		{"uuid", "0193a5f2-1111-7000-8000-000000000001", "evt", "evt"},
		{"bigint", "1234", "12", "12"}, // numbers are given whole
		{"varchar(30)", "order/77", "order", "order/77"},
		{"char(9)", "order/77", "order", "order/77"},
	} {
		db, env := openTable(t, `id `+test.idType+` primary key, type text, venue text, data json, created timestamptz)`)
		env.Exec(t, `insert into ob values ('`+test.id+`', 'lead.created', 'venue_a', '{}', now())`)
		got, err := db.AllVenues().EventID(t.Context(), test.given)
		must(t, err)
		if got != test.want {
			t.Errorf("%s, %q: got %q, want %q", test.idType, test.given, got, test.want)
		}
	}
}

func TestIDs_AreFoundByTheirIndexes(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	db, env, conn := openMonth(t)
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) select 'ep_' || i, 'venue_a', 'https://h.example/', '{*}', 's' from generate_series(1, 20000) i`)
	env.Exec(t, `alter table webhooks.replays disable trigger replays_before_write`)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, state, finished) select 'rpl_' || i, 'ep_1', 'done', now() from generate_series(1, 20000) i`)
	env.Exec(t, `insert into webhooks.removed_endpoints (id, venue, host, created) select id, venue, '', now() from webhooks.endpoints`)
	env.Exec(t, `vacuum analyze`)
	m, err := db.configured().mapping(t.Context())
	must(t, err)
	for _, test := range []struct{ sql, given, index string }{
		{walkEndpoints, "ep_777", "endpoints_pkey on endpoints"},
		{walkRemoved, "ep_777", "removed_endpoints_id on removed_endpoints"},
		{walkReplays, "rpl_777", "replays_pkey on replays"},
		{walkLog, "evt_0077777", "deliveries_pkey on deliveries"},
		{walkIDs(m.cfg.table(), quoteIdent("id"), "text"), "evt_0077777", "outbox_pkey on outbox"},
	} {
		plan := explain(t, conn, test.sql, test.given, test.given, prefixWalk, shownCandidates+1)
		if !strings.Contains(plan, test.index) || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s: want %s in\n%s", test.given, test.index, plan)
		}
		if n := pages(t, plan); n > 5*prefixWalk {
			t.Errorf("%s reads %d pages:\n%s", test.given, n, plan)
		}
	}
}
