package outbox

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// skewedLog fills the log with 210,000 deliveries of a month. Endpoint ep_big has 100,000 of them, of
// which 100 failed and 5 are pending, all at its beginning. venue_many has 100 endpoints, venue_wide
// 300, each with a hundred rows. ep_few has 30 rows of a month ago. The others have 60,000 together.
func skewedLog(t *testing.T, env *testenv.DB) {
	t.Helper()
	env.Exec(t, `create function pg_temp.fill(prefix text, venue text, endpoints int, n int, since interval, until interval) returns void language sql as $$
	    insert into webhooks.endpoints (id, venue, url, events, secret, description)
	    select prefix || case when endpoints > 1 then '_' || lpad(i::text, 5, '0') else '' end,
	           venue || case when venue = 'venue_other' then '_' || i % 600 else '' end, 'https://' || prefix || i || '.example/', '{*}', 's', 'books'
	    from generate_series(0, endpoints - 1) i;
	    insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, last_latency_ms, created, finished)
	    select 'evt_' || prefix || '_' || lpad(i::text, 7, '0'), e.id, e.venue, 'lead.updated', 'succeeded', 1, i % 100, at, at
	    from generate_series(1, n) i cross join lateral (select now() - since + (since - until) * (i::float8 / n) as at) x
	    join webhooks.endpoints e on e.id = prefix || case when endpoints > 1 then '_' || lpad((i % endpoints)::text, 5, '0') else '' end
	$$;
	select pg_temp.fill('ep_big', 'venue_big', 1, 100000, '30 days', '0'), pg_temp.fill('ep_many', 'venue_many', 100, 20000, '30 days', '0'),
	       pg_temp.fill('ep_wide', 'venue_wide', 300, 30000, '30 days', '0'), pg_temp.fill('ep_few', 'venue_few', 1, 30, '30 days', '29 days'),
	       pg_temp.fill('ep_other', 'venue_other', 1500, 60000, '30 days', '0');
	update webhooks.deliveries set status = case when created < now() - interval '29 days 23 hours' then 'failed' else 'missed' end
	where endpoint_id = 'ep_big' and event_id <= 'evt_ep_big_0000100' or event_id like '%777' and endpoint_id <> 'ep_big';
	update webhooks.deliveries set status = 'pending', next_attempt_at = now()
	where endpoint_id = 'ep_big' and event_id between 'evt_ep_big_0000101' and 'evt_ep_big_0000105'`)
	env.Exec(t, `cluster webhooks.deliveries using deliveries_created`) // the rows came in the order of time
	env.Exec(t, `vacuum analyze`)
}

// planned notes the plans of the queries that it runs.
type planned struct {
	querier
	t     *testing.T
	plans *[]string
}

func (p planned) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	lines, err := queryRows(ctx, p.querier, "explain (analyze, buffers, timing off) "+sql, pgx.RowTo[string], slices.Clone(args)...)
	must(p.t, err)
	*p.plans = append(*p.plans, strings.Join(lines, "\n"))
	return p.querier.Query(ctx, sql, args...)
}

// walksAll matches what reads all rows of an endpoint or of the log.
var walksAll = regexp.MustCompile(`(Seq|Bitmap Heap) Scan on deliveries`)

var pagesRead = regexp.MustCompile(`Buffers: shared( hit=(\d+))?( read=(\d+))?`)

// pages returns how many pages a plan has read. The first line about them is of the whole plan.
func pages(t *testing.T, plan string) (n int) {
	t.Helper()
	found := pagesRead.FindStringSubmatch(plan)
	if found == nil {
		t.Fatalf("no pages in\n%s", plan)
	}
	for _, text := range []string{found[2], found[4]} {
		var some int
		_, _ = fmt.Sscan(text, &some)
		n += some
	}
	return n
}

// checkPlans fails the test unless the plans use an index, walk no table, and read a bounded number of pages together.
func checkPlans(t *testing.T, plans []string, index string, most int) {
	t.Helper()
	all, read := strings.Join(plans, "\n\n"), 0
	for _, plan := range plans {
		read += pages(t, plan)
	}
	if !regexp.MustCompile(index).MatchString(all) || walksAll.MatchString(all) || read > most {
		t.Errorf("%d pages were read, at most %d may be; want %s:\n%s", read, most, index, all)
	}
}

func TestSearches_ReadABoundedPartOfTheLog(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	db, env := openDB(t)
	skewedLog(t, env)
	ago := func(days float64) *time.Time {
		at := time.Now().Add(-time.Duration(days * 24 * float64(time.Hour)))
		return &at
	}
	const created, endpoint, unsuccessful = "deliveries_created on", "deliveries_endpoint_created on", "deliveries_unsuccessful on"
	for _, test := range []struct {
		name   string
		venue  string // "" for all
		filter DeliveryFilter
		index  string
		pages  int
	}{
		{"all", "", DeliveryFilter{}, created, 400},
		{"all, a time in the middle", "", DeliveryFilter{Until: ago(15)}, created, 400},
		{"all, failed", "", DeliveryFilter{Statuses: []Status{Failed}}, unsuccessful, 2500},
		{"all, failed and missed", "", DeliveryFilter{Statuses: []Status{Failed, Missed}}, unsuccessful, 2500},
		{"all, pending", "", DeliveryFilter{Statuses: []Status{Pending}}, "deliveries_pending on", 100},
		{"all, a type that is not there", "", DeliveryFilter{Type: "venue.closed"}, created, searchRows},
		{"an event", "", DeliveryFilter{EventID: "evt_ep_big_0000777"}, "deliveries_pkey", 20},
		{"an event of a venue", "venue_big", DeliveryFilter{EventID: "evt_ep_big_0000777"}, "deliveries_pkey", 20},
		{"an endpoint", "", DeliveryFilter{EndpointID: "ep_big"}, endpoint, 400},
		{"an endpoint, a time in the middle", "", DeliveryFilter{EndpointID: "ep_big", Until: ago(15)}, endpoint, 400},
		{"an endpoint, failed and missed", "", DeliveryFilter{EndpointID: "ep_big", Statuses: []Status{Failed, Missed}}, unsuccessful, 400},
		{"an endpoint, failed", "", DeliveryFilter{EndpointID: "ep_big", Statuses: []Status{Failed}}, unsuccessful, 400},
		{"an endpoint, pending", "", DeliveryFilter{EndpointID: "ep_big", Statuses: []Status{Pending}}, "deliveries_pending on", 50},
		{"an endpoint, a type that is not there", "", DeliveryFilter{EndpointID: "ep_big", Type: "venue.closed"}, endpoint, searchRows},
		{"a venue with few rows", "venue_few", DeliveryFilter{}, endpoint, 300},
		{"a venue with few rows, failed", "venue_few", DeliveryFilter{Statuses: []Status{Failed, Missed}}, unsuccessful, 100},
		{"a venue with a large endpoint", "venue_big", DeliveryFilter{}, endpoint, 400},
		{"a venue with a large endpoint, failed", "venue_big", DeliveryFilter{Statuses: []Status{Failed, Missed}}, unsuccessful, 400},
		{"a venue with a large endpoint, a type", "venue_big", DeliveryFilter{Type: "venue.closed"}, endpoint, searchRows},
		{"a venue of the operator's", "", DeliveryFilter{Venue: "venue_few"}, endpoint, 300},
		{"a venue with 100 endpoints", "venue_many", DeliveryFilter{}, endpoint, 1500},
		{"a venue with 100 endpoints, succeeded", "venue_many", DeliveryFilter{Statuses: []Status{Succeeded}}, endpoint, 2000},
		{"a venue with 100 endpoints, failed", "venue_many", DeliveryFilter{Statuses: []Status{Failed, Missed}}, unsuccessful, 1000},
		{"a venue with 100 endpoints, pending", "venue_many", DeliveryFilter{Statuses: []Status{Pending}}, "deliveries_pending on", 1000},
		{"a venue with 300 endpoints", "venue_wide", DeliveryFilter{}, created, searchRows},
		{"a venue with 300 endpoints, failed", "venue_wide", DeliveryFilter{Statuses: []Status{Failed}}, created, searchRows},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := db.AllVenues().view
			if test.venue != "" {
				v = db.Venue(test.venue).view
			}
			test.filter.Limit = 50
			before := ""
			for range 3 { // pages
				var plans []string
				at := &cursor{}
				if before != "" {
					var err error
					at, err = parseCursor(before)
					must(t, err)
				}
				err := db.look(t.Context(), "search", func(tx pgx.Tx) error {
					s := search{q: narrowed{planned{unprepared{tx}, t, &plans}, v}, filter: test.filter, values: test.filter.values(at)}
					page, err := s.run(t.Context())
					before = page.Next
					return err
				})
				must(t, err)
				checkPlans(t, plans, test.index, test.pages)
				if before == "" {
					return
				}
			}
		})
	}
}
