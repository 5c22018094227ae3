package outbox

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

// traces returns what removed endpoints have left.
func traces(t *testing.T, env *testenv.DB) string {
	t.Helper()
	return testenv.QueryOne[string](t, env, `select coalesce(string_agg(concat_ws(' ', venue, id, host), ', ' order by venue, id), '') from webhooks.removed_endpoints`)
}

func TestRemovedEndpoint_LeavesItsHostAndNothingElseOfItsURL(t *testing.T) {
	_, env := openDB(t)
	for id, url := range map[string]string{
		"ep_1": "https://user:pass@shop.example:8443/hooks/hidden?token=hidden", "ep_2": "HTTPS://shop.example", "ep_3": "no URL hidden",
		"ep_4": "https://shop.example?hidden@x", "ep_5": "https://us@er:hidden@shop.example/",
	} {
		env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, 'venue_a', $2, '{*}', 'hidden')`, id, url)
	}
	env.Exec(t, `delete from webhooks.endpoints`)
	want := "venue_a ep_1 shop.example:8443, venue_a ep_2 shop.example, venue_a ep_3 , venue_a ep_4 shop.example, venue_a ep_5 shop.example"
	if diff := cmp.Diff(want, traces(t, env)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if all := testenv.QueryOne[string](t, env, `select string_agg(r::text, ' ') from webhooks.removed_endpoints r`); strings.Contains(all, "hidden") || strings.Contains(all, "pass") {
		t.Errorf("a trace holds more: %s", all)
	}
}

func TestRemovedEndpoint_LeavesATraceHoweverItGoes(t *testing.T) {
	_, env := openDB(t)
	for _, step := range []struct{ name, sql, want string }{
		{"removed", `delete from webhooks.endpoints where id = 'ep_1'`, "venue_a ep_1 h.example"},
		{"inserted again", `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_a', 'https://h.example/', '{*}', 's')`, ""},
		{"of another venue", `update webhooks.endpoints set venue = 'venue_b' where id = 'ep_1'`, "venue_a ep_1 h.example"},
		{"of the former venue again", `update webhooks.endpoints set venue = 'venue_a' where id = 'ep_1'`, "venue_b ep_1 h.example"},
		{"changed", `update webhooks.endpoints set description = 'x'`, "venue_b ep_1 h.example"},
		{"truncated", `truncate webhooks.endpoints`, "venue_a ep_1 h.example, venue_b ep_1 h.example"},
	} {
		if step.name == "removed" {
			env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_a', 'https://h.example/', '{*}', 's')`)
		}
		env.Exec(t, step.sql)
		if got := traces(t, env); got != step.want {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
}

// The app's role has rights on endpoints alone.
func TestRemovedEndpoint_NeedsNoRightOfTheApps(t *testing.T) {
	_, env := openDB(t)
	role := env.Name + "_app"
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `create role `+role))
	t.Cleanup(func() {
		must(t, testenv.ExecSQL(context.Background(), env.SuperuserURL, `drop owned by `+role+`; drop role `+role))
	})
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `grant usage on schema webhooks to `+role+`; grant select, insert, update, delete, truncate on webhooks.endpoints to `+role))
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_a', 'https://h.example/', '{*}', 's');
	    set role `+role+`; delete from webhooks.endpoints; reset role`))
	if got, want := traces(t, env), "venue_a ep_1 h.example"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPruner_ForgetsARemovedEndpointAfterItsLog(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := newPruning(t, db, env)
	env.Exec(t, `insert into webhooks.removed_endpoints (venue, id, host, created, removed)
	    select 'venue_a', id, '', now(), now() - make_interval(days => days)
	    from (values ('ep_done', 40), ('ep_logged', 40), ('ep_young', 20), ('ep_moved', 40), ('ep_moved_logged', 40)) r (id, days)`)
	for _, id := range []string{"ep_moved", "ep_moved_logged"} { // are venue_b's now
		env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, 'venue_b', 'https://h.example/', '{*}', 's')`, id)
		addDelivery(t, env, "evt_new", id, "venue_b", "lead.created", Succeeded, 5)
	}
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    select 'evt_old', id, 'venue_a', 'lead.created', 'pending', now() - interval '41 days' from unnest(array['ep_logged', 'ep_moved_logged']) id`)
	must(t, p.Begin(t.Context()))
	pruned, _, err := p.table(t, PrunedRemoved)
	must(t, err)
	left := strings.Fields(testenv.QueryOne[string](t, env, `select string_agg(id, ' ' order by id) from webhooks.removed_endpoints`))
	if want := []string{"ep_logged", "ep_moved_logged", "ep_young"}; !slices.Equal(left, want) || pruned[PrunedRemoved] != 2 {
		t.Errorf("%v are left after %v were deleted, want %v", left, pruned, want)
	}
	env.Exec(t, `insert into webhooks.removed_endpoints (venue, id, host, created, removed)
	    select 'venue_' || i % 7, 'ep_many_' || i, '', now(), now() - interval '40 days' from generate_series(1, $1::int) i`, 2*pruneBatch+5)
	must(t, p.Begin(t.Context()))
	if pruned, steps, err := p.table(t, PrunedRemoved); err != nil || pruned[PrunedRemoved] != 2*pruneBatch+5 || steps != 3 {
		t.Errorf("%v in %d steps, %v", pruned, steps, err)
	}
	env.Exec(t, `update webhooks.removed_endpoints set removed = now() - interval '40 days' where id = 'ep_young'; update webhooks.checkpoint set epoch = epoch + 1`)
	must(t, p.Begin(t.Context()))
	if pruned, _, err := p.table(t, PrunedRemoved); err != nil || pruned[PrunedRemoved] != 0 {
		t.Errorf("a former leader deleted %v, %v", pruned, err)
	}
}
