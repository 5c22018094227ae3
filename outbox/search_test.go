package outbox

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// wideVenue gives venue_wide one endpoint more than a search goes by, and 60 rows of the log among
// 45,000 of another venue. Two in three of all rows have the same time, as those of one transaction.
func wideVenue(t *testing.T, env *testenv.DB) {
	t.Helper()
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret)
	    select 'ep_wide_' || i, 'venue_wide', 'https://wide.example/', '{*}', 's' from generate_series(0, $1::int) i`, searchEndpoints)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    select 'evt_' || lpad(i::text, 6, '0') || case when own then '_wide' else '_foreign' end, case when own then 'ep_wide_' else 'ep_foreign_' end || i % 100,
	           case when own then 'venue_wide' else 'venue_foreign' end, 'lead.created', 'succeeded',
	           timestamptz '2026-05-01' - case when i < 5000 then make_interval(secs => -i / 7.0) when i < 35000 then '0' else make_interval(secs => i / 7.0) end
	    from generate_series(1, 45000) i cross join lateral (select i % 750 = 0 as own) x`)
	env.Exec(t, `analyze webhooks.deliveries`)
}

func TestDeliveries_OfAVenueWithVeryManyEndpoints_AreAllFound(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	db, env := openDB(t)
	wideVenue(t, env)
	for _, limit := range []int{7, 100} {
		seen := map[string]int{}
		f := DeliveryFilter{Limit: limit}
		for n := 0; ; n++ {
			page, err := db.Venue("venue_wide").Deliveries(t.Context(), f)
			must(t, err)
			for _, d := range page.Deliveries {
				seen[d.EventID]++
			}
			text, err := base64.RawURLEncoding.DecodeString(page.Next)
			must(t, err)
			if shown := fmt.Sprintf("%+v %s", page, text); strings.Contains(shown, "foreign") {
				t.Fatalf("a page shows what is another venue's: %s", shown)
			}
			if page.Complete() {
				break
			}
			if f.Before = page.Next; n > 20 {
				t.Fatal("the list does not end")
			}
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("%s was listed %d times", id, n)
			}
		}
		if len(seen) != 60 {
			t.Errorf("%d deliveries were listed, want 60", len(seen))
		}
	}
}

func TestDeliveries_SayHowFarTheyLooked(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	db, env := openDB(t)
	wideVenue(t, env)
	page, err := db.AllVenues().Deliveries(t.Context(), DeliveryFilter{Type: "venue.closed", Limit: 10})
	must(t, err)
	if len(page.Deliveries) != 0 || page.Complete() || page.SearchedTo == nil {
		t.Fatalf("a search that found nothing within its bound: %+v", page)
	}
	pages := 1
	for ; !page.Complete() && pages < 10; pages++ {
		page, err = db.AllVenues().Deliveries(t.Context(), DeliveryFilter{Type: "venue.closed", Limit: 10, Before: page.Next})
		must(t, err)
	}
	if pages != 6 || page.SearchedTo != nil {
		t.Errorf("45,000 rows were looked at in %d pages, want 6; at the end: %+v", pages, page)
	}
}

func TestDeliveries_RefuseTheCursorOfAnotherList(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	for _, at := range []cursor{
		{Created: "2026-05-01 00:00:00+00", Skip: -1},
		{Created: "2026-05-01 00:00:00+00", Skip: maxSkip + 1},
		{Created: "2026-05-01 00:00:00+00", Skip: 5}, // of a search by time
	} {
		_, err := db.Venue("venue_a").Deliveries(t.Context(), DeliveryFilter{Before: at.String(), Limit: 10})
		wantProblem(t, err, "the cursor", "not one of this list")
	}
}

// TestDeliveries_OfAllVenuesWithAStatusAreFoundByFewEndpointsAndByMany lists what is pending,
// failed and missed, while few endpoints have such rows, and while very many have.
func TestDeliveries_OfAllVenuesWithAStatusAreFoundByFewEndpointsAndByMany(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    select 'evt_' || lpad(i::text, 6, '0'), 'ep_' || i % $1, 'venue_a', 'lead.created', 'succeeded', now() - make_interval(secs => i) from generate_series(1, 20000) i`, 3*searchEndpoints)
	list := func(statuses ...Status) (ids []string, pages int) {
		f := DeliveryFilter{Statuses: statuses, Limit: 40}
		for pages = 1; pages < 30; pages++ {
			page, err := db.AllVenues().Deliveries(t.Context(), f)
			must(t, err)
			for _, d := range page.Deliveries {
				ids = append(ids, d.EventID)
			}
			if f.Before = page.Next; page.Complete() {
				break
			}
		}
		return ids, pages
	}
	for _, test := range []struct{ endpoints, pages int }{{1, 2}, {searchEndpoints, 6}, {searchEndpoints + 1, 12}} {
		// Half of them are the oldest rows.
		env.Exec(t, `update webhooks.deliveries set status = 'succeeded'`)
		for _, status := range []Status{Pending, Failed, Missed} {
			env.Exec(t, `update webhooks.deliveries d set status = $1 from generate_series(0, $2 - 1) i
			    where d.endpoint_id = 'ep_' || i and d.event_id = 'evt_' || lpad((case when i % 2 = 1 then 600 when i = 0 then 600 else 19200 end + i)::text, 6, '0')`, status, test.endpoints)
			if got, pages := list(status); len(got) != test.endpoints || !slices.IsSorted(got) || pages > test.pages {
				t.Errorf("%s of %d endpoints: %d deliveries in %d pages", status, test.endpoints, len(got), pages)
			}
		}
	}
	if got, pages := list(Pending); len(got) != 0 || pages > 12 {
		t.Errorf("nothing is pending: %d deliveries in %d pages", len(got), pages)
	}
	env.Exec(t, `update webhooks.deliveries set status = 'succeeded'`)
	if got, pages := list(Failed, Missed); len(got) != 0 || pages != 1 {
		t.Errorf("nothing failed: %d deliveries in %d pages", len(got), pages)
	}
}

// The planner would walk all rows of an endpoint in their order for the few that are pending.
func TestDeliveries_ThatArePendingAreFoundHoweverManyThereAre(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, next_attempt_at)
	    select 'evt_' || lpad(i::text, 6, '0'), 'ep_1', 'venue_a', 'lead.created', 'pending', now() - make_interval(secs => i), now() from generate_series(1, $1::int) i`, searchPending+500)
	for _, want := range []int{searchPending + 500, 40} {
		env.Exec(t, `delete from webhooks.deliveries where event_id > 'evt_' || lpad($1::int::text, 6, '0')`, want)
		got, f := 0, DeliveryFilter{Statuses: []Status{Pending}, Limit: 1000}
		for n := 0; n < 10; n++ {
			page, err := db.Venue("venue_a").Deliveries(t.Context(), f)
			must(t, err)
			got += len(page.Deliveries)
			if f.Before = page.Next; page.Complete() {
				break
			}
		}
		if got != want {
			t.Errorf("%d of %d pending deliveries were listed", got, want)
		}
	}
}
