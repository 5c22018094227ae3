package outbox

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

// addDelivery writes a row of the delivery log, created some minutes ago.
func addDelivery(t *testing.T, env *testenv.DB, event, endpoint, venue, eventType string, status Status, minutesAgo int) {
	t.Helper()
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, next_attempt_at)
	    values ($1, $2, $3, $4, $5, coalesce((select created from webhooks.outbox where id = $1), now() - make_interval(mins => $6)), case when $5 = 'pending' then now() end)`,
		event, endpoint, venue, eventType, string(status), minutesAgo)
	// What a removed endpoint leaves.
	env.Exec(t, `insert into webhooks.removed_endpoints (venue, id, host, created) select $1, $2, '', now()
	    where not exists (select from webhooks.endpoints where id = $2) on conflict do nothing`, venue, endpoint)
}

func minutesAgo(n int) *time.Time {
	at := time.Now().Add(-time.Duration(n) * time.Minute)
	return &at
}

func TestDeliveries_FilterAndOrder(t *testing.T) {
	db, env := openDB(t)
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Succeeded, 50)
	addDelivery(t, env, "evt_2", "ep_1", "venue_a", "lead.updated", Failed, 40)
	addDelivery(t, env, "evt_3", "ep_1", "venue_a", "payment.received", Missed, 30)
	addDelivery(t, env, "evt_3", "ep_2", "venue_a", "payment.received", Pending, 30)
	addDelivery(t, env, "evt_4", "ep_3", "venue_b", "leads.created", Failed, 10)

	for _, test := range []struct {
		name   string
		filter DeliveryFilter
		want   []string
	}{
		{"all, newest first", DeliveryFilter{}, []string{"evt_4/ep_3", "evt_3/ep_2", "evt_3/ep_1", "evt_2/ep_1", "evt_1/ep_1"}},
		{"limit", DeliveryFilter{Limit: 2}, []string{"evt_4/ep_3", "evt_3/ep_2"}},
		{"endpoint", DeliveryFilter{EndpointID: "ep_1"}, []string{"evt_3/ep_1", "evt_2/ep_1", "evt_1/ep_1"}},
		{"venue", DeliveryFilter{Venue: "venue_b"}, []string{"evt_4/ep_3"}},
		{"status", DeliveryFilter{Statuses: []Status{Failed, Missed}}, []string{"evt_4/ep_3", "evt_3/ep_1", "evt_2/ep_1"}},
		{"type", DeliveryFilter{Type: "lead.created"}, []string{"evt_1/ep_1"}},
		{"family of types", DeliveryFilter{Type: "lead.*"}, []string{"evt_2/ep_1", "evt_1/ep_1"}},
		{"since", DeliveryFilter{Since: minutesAgo(35)}, []string{"evt_4/ep_3", "evt_3/ep_2", "evt_3/ep_1"}},
		{"until", DeliveryFilter{Until: minutesAgo(35)}, []string{"evt_2/ep_1", "evt_1/ep_1"}},
		{"together", DeliveryFilter{Venue: "venue_a", Statuses: []Status{Failed}, Since: minutesAgo(45), Until: minutesAgo(35)}, []string{"evt_2/ep_1"}},
	} {
		if test.filter.Limit == 0 {
			test.filter.Limit = 100
		}
		found, err := db.AllVenues().Deliveries(t.Context(), test.filter)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, keys(found.Deliveries)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func keys(deliveries []DeliveryInfo) (keys []string) {
	for _, d := range deliveries {
		keys = append(keys, d.EventID+"/"+d.EndpointID)
	}
	return keys
}

func TestDeliveries_PagesMeetWithoutGapOrOverlap(t *testing.T) {
	db, env := openDB(t)
	// Equal times, so that the ids have to tell the pages apart.
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    select 'evt_' || e, 'ep_' || p, 'venue_a', 'lead.created', 'succeeded', '2026-01-31 09:00:00.123456+00'
	    from generate_series(1, 5) e, generate_series(1, 3) p`)
	all, err := db.AllVenues().Deliveries(t.Context(), DeliveryFilter{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var paged []string
	filter := DeliveryFilter{Limit: 4}
	for range 10 {
		page, err := db.AllVenues().Deliveries(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		paged = append(paged, keys(page.Deliveries)...)
		if page.Next == "" {
			break
		}
		filter.Before = page.Next
	}
	if diff := cmp.Diff(keys(all.Deliveries), paged); diff != "" || len(paged) != 15 {
		t.Errorf("the pages differ from the whole of %d rows (-whole +pages):\n%s", len(all.Deliveries), diff)
	}
	for _, cursor := range []string{"nonsense!", "bnVsbA", "e30x"} {
		_, err = db.AllVenues().Deliveries(t.Context(), DeliveryFilter{Before: cursor, Limit: 1})
		wantProblem(t, err, "cursor")
	}
}

func TestDeliveries_WithoutAFiniteTimePageAsTheOthers(t *testing.T) {
	db, env := openDB(t)
	for i, created := range []string{"-infinity", "2026-01-31 09:00+00", "20000-01-01 00:00+00", "infinity", "infinity"} {
		env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, next_attempt_at, finished)
		    values ('evt_' || $1::int, 'ep_1', 'venue_a', 'lead.created', 'pending', $2::text::timestamptz, 'infinity', '-infinity')`, i, created)
	}
	var got []string
	filter := DeliveryFilter{Limit: 1}
	for range 5 {
		page, err := db.AllVenues().Deliveries(t.Context(), filter)
		if err != nil || len(page.Deliveries) != 1 {
			t.Fatalf("after %v: %d deliveries, %v", got, len(page.Deliveries), err)
		}
		if d := page.Deliveries[0]; d.NextAttemptAt != nil || d.Finished != nil || (d.Created != nil) != (d.EventID == "evt_1") {
			t.Errorf("%+v", d)
		}
		got, filter.Before = append(got, keys(page.Deliveries)...), page.Deliveries[0].Cursor
	}
	if want := []string{"evt_4/ep_1", "evt_3/ep_1", "evt_2/ep_1", "evt_1/ep_1", "evt_0/ep_1"}; !slices.Equal(got, want) {
		t.Errorf("the pages hold %v, want %v", got, want)
	}
	if _, err := db.Overview(t.Context()); err != nil {
		t.Errorf("the overview: %v", err)
	}
}

func TestDeliveries_NameAnEndpointThatIsNotKnown(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addDelivery(t, env, "evt_1", "ep_removed", "venue_a", "lead.created", Succeeded, 50)
	for _, known := range []string{"ep_1", "ep_removed"} {
		if found, err := db.AllVenues().Deliveries(t.Context(), DeliveryFilter{EndpointID: known, Statuses: []Status{Failed}, Limit: 1}); err != nil || len(found.Deliveries) > 0 {
			t.Errorf("%s: %v, %v", known, found, err)
		}
	}
	_, err := db.AllVenues().Deliveries(t.Context(), DeliveryFilter{EndpointID: "nope", Limit: 1})
	wantProblem(t, err, `endpoint "nope": there is none with this id`)
}

func TestEventDeliveries_ShowAttemptsInOrder(t *testing.T) {
	db, env := openDB(t)
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Failed, 5)
	addDelivery(t, env, "evt_1", "ep_2", "venue_a", "lead.created", Succeeded, 5)
	env.Exec(t, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response) values
	    ('evt_1', 'ep_1', 2, now(), 500, 'http_status', 'status 500', 12, 'oops'),
	    ('evt_1', 'ep_1', 1, now() - interval '5 s', null, 'timeout', 'no answer', 15000, null)`)
	details, err := db.AllVenues().EventDeliveries(t.Context(), "evt_1", "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range details {
		for _, a := range d.FailedAttempts {
			got = append(got, fmt.Sprintf("%s %d %s %s %d %s", d.EndpointID, a.Attempt, a.Class, a.Error, *a.LatencyMS, a.Response))
		}
	}
	want := []string{"ep_1 1 timeout no answer 15000 ", "ep_1 2 http_status status 500 12 oops"}
	if diff := cmp.Diff(want, got); diff != "" || len(details) != 2 {
		t.Errorf("%d deliveries, attempts (-want +got):\n%s", len(details), diff)
	}
	if details, err = db.AllVenues().EventDeliveries(t.Context(), "evt_1", "ep_2"); err != nil || len(details) != 1 || details[0].EndpointID != "ep_2" {
		t.Errorf("one endpoint: %v, %v", details, err)
	}
}

func TestEventDeliveries_SayWhyThereIsNone(t *testing.T) {
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_1', 'lead.created', 'venue_a', '{}'), ('evt_2', 'lead.created', 'venue_a', '{}')`)
	addDelivery(t, env, "evt_2", "ep_1", "venue_a", "lead.created", Succeeded, 1)
	_, err := db.AllVenues().EventDeliveries(t.Context(), "evt_x", "")
	wantProblem(t, err, `event "evt_x"`, "neither the delivery log nor the outbox")
	_, err = db.AllVenues().EventDeliveries(t.Context(), "evt_1", "")
	wantProblem(t, err, `event "evt_1"`, `no endpoint of venue "venue_a" had asked for "lead.created"`)
	_, err = db.AllVenues().EventDeliveries(t.Context(), "evt_2", "ep_2")
	wantProblem(t, err, `event "evt_2"`, `it has no delivery to endpoint "ep_2"`)
}

func TestPlanReplay_CountsWhatARangeConcerns(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	for i, status := range []Status{Missed, Failed, Succeeded, Pending} {
		for n := range 3 {
			addDelivery(t, env, fmt.Sprintf("evt_%d%d", i, n), "ep_1", "venue_a", "lead.created", status, 10*(n+1))
		}
	}
	addDelivery(t, env, "evt_other", "ep_2", "venue_a", "lead.created", Missed, 10)
	plans, err := db.AllVenues().PlanReplay(t.Context(), ReplayRequest{EndpointID: "ep_1", Statuses: []Status{Missed, Failed}, Since: minutesAgo(25)})
	if err != nil {
		t.Fatal(err)
	}
	if len(plans) != 1 || plans[0].Deliveries != 4 || plans[0].EndpointID != "ep_1" {
		t.Errorf("since 25 minutes: %+v, want 4 deliveries of ep_1", plans)
	}
	plans, err = db.AllVenues().PlanReplay(t.Context(), ReplayRequest{EndpointID: "ep_1", Statuses: []Status{Missed}, Until: minutesAgo(25)})
	if err != nil || len(plans) != 1 || plans[0].Deliveries != 1 {
		t.Errorf("until 25 minutes ago: %+v, %v; want 1 delivery", plans, err)
	}
}

func TestPlanReplay_FindsTheEndpointsOfSingleEvents(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_a", "*")
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Failed, 1)
	addDelivery(t, env, "evt_1", "ep_2", "venue_a", "lead.created", Succeeded, 1)
	addDelivery(t, env, "evt_2", "ep_1", "venue_a", "lead.created", Missed, 1)
	addDelivery(t, env, "evt_3", "ep_1", "venue_a", "lead.created", Pending, 1)
	request := ReplayRequest{EventIDs: []string{"evt_2", "evt_1", "evt_3"}, Statuses: []Status{Failed, Missed, Succeeded}}
	plans, err := db.AllVenues().PlanReplay(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, plan := range plans {
		got = append(got, fmt.Sprint(plan.EndpointID, plan.EventIDs, plan.Deliveries))
	}
	if want := []string{"ep_1[evt_1 evt_2] 2", "ep_2[evt_1] 1"}; !slices.Equal(got, want) {
		t.Errorf("plans are %q, want %q", got, want)
	}
	request.EventIDs = append(request.EventIDs, "evt_x")
	_, err = db.AllVenues().PlanReplay(t.Context(), request)
	wantProblem(t, err, `event "evt_x"`, "the delivery log does not have it")
}

func TestPlanReplay_RefusesDisabledAndUnknownEndpoints(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	_, err := db.AllVenues().PlanReplay(t.Context(), ReplayRequest{EndpointID: "ep_1", Statuses: []Status{Missed}})
	wantProblem(t, err, `endpoint "ep_1"`, "disabled", "run webhook-agent endpoints enable ep_1")
	_, err = db.AllVenues().PlanReplay(t.Context(), ReplayRequest{EndpointID: "ep_x", Statuses: []Status{Missed}})
	wantProblem(t, err, `endpoint "ep_x"`, "there is none with this id")
}

func TestPlanReplay_LeavesOutOnlyTheEndpointsThatCannotBeSentTo(t *testing.T) {
	db, env := openDB(t)
	for _, id := range []string{"ep_1", "ep_2", "ep_3"} {
		addEndpoint(t, env, id, "venue_a", "*")
	}
	for _, id := range []string{"ep_0", "ep_1", "ep_2", "ep_3"} { // ep_0 was removed
		addDelivery(t, env, "evt_1", id, "venue_a", "lead.created", Failed, 1)
	}
	env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = 'ep_1'`)
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) values ('ep_2', 1, 0, 'the URL is bad')`)
	request := ReplayRequest{EventIDs: []string{"evt_1"}, Statuses: []Status{Failed}}
	plans, err := db.AllVenues().PlanReplay(t.Context(), request)
	must(t, err)
	refused := map[string]string{}
	for _, plan := range plans {
		refused[plan.EndpointID] = plan.Refused
	}
	want := map[string]string{
		"ep_0": `endpoint "ep_0": there is none with this id; webhook-agent endpoints list shows them`,
		"ep_1": `endpoint "ep_1": it is disabled, so nothing is sent to it; run webhook-agent endpoints enable ep_1, then replay`,
		"ep_2": `endpoint "ep_2": it is unusable, so nothing is sent to it: the URL is bad; correct it with webhook-agent endpoints update ep_2, then replay`,
		"ep_3": "",
	}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	env.Exec(t, `delete from webhooks.endpoints where id = 'ep_3'`)
	_, err = db.AllVenues().PlanReplay(t.Context(), request)
	wantProblem(t, err, "ep_0")
	if n := strings.Count(err.Error(), "\n"); n != 3 {
		t.Errorf("four refusals in %d lines: %v", n+1, err)
	}
}

func TestStartReplay_WritesWhatTheAgentReads(t *testing.T) {
	db, env := openDB(t)
	since, until := time.Now().Add(-time.Hour).Truncate(time.Microsecond), time.Now().Truncate(time.Microsecond)
	ranged, _, err := db.AllVenues().StartReplay(t.Context(), ReplayPlan{EndpointID: "ep_1", Statuses: []Status{Missed}, Since: &since, Until: &until}, ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	single, _, err := db.AllVenues().StartReplay(t.Context(), ReplayPlan{EndpointID: "ep_2", EventIDs: []string{"evt_1", "evt_2"}, Statuses: []Status{Failed, Succeeded}}, ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	read := `select concat_ws(' ', endpoint_id, coalesce(event_ids::text, '-'), statuses, state, since = $2, until = $3) from webhooks.replays where id = $1`
	if got, want := testenv.QueryOne[string](t, env, read, ranged.ID, since, until), "ep_1 - {missed} pending t t"; got != want {
		t.Errorf("range: %s, want %s", got, want)
	}
	if got, want := testenv.QueryOne[string](t, env, read, single.ID, since, until), "ep_2 {evt_1,evt_2} {failed,succeeded} pending"; got != want {
		t.Errorf("single events: %s, want %s", got, want)
	}
	env.Exec(t, `update webhooks.replays set state = 'running', total = 7, done = 3 where id = $1`, ranged.ID)
	env.Exec(t, `update webhooks.replays set state = 'failed', error = 'the endpoint is disabled', finished = now() from `+agentEnds+` where id = $1`, single.ID)
	replays, err := db.AllVenues().Replays(t.Context(), []string{single.ID, ranged.ID})
	if err != nil || len(replays) != 2 {
		t.Fatalf("%v, %v", replays, err)
	}
	slices.SortFunc(replays, func(a, b ReplayInfo) int { return int(a.Total - b.Total) })
	if r := replays[0]; r.ID != single.ID || r.State != "failed" || r.Error != "the endpoint is disabled" || !r.Ended() {
		t.Errorf("the refused replay: %+v", r)
	}
	if r := replays[1]; r.ID != ranged.ID || r.State != "running" || r.Total != 7 || r.Done != 3 || r.Ended() {
		t.Errorf("the running replay: %+v", r)
	}
}
