package outbox

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// wantAll asks for the due deliveries of an endpoint. Memory holds none of them.
func wantAll(endpointID string, limit int) Want {
	return Want{EndpointID: endpointID, Limit: limit, Skip: func(string) bool { return false }}
}

// addPending writes an event and its pending delivery, which is due so many seconds after at.
func addPending(t *testing.T, env *testenv.DB, eventID, endpointID string, at time.Time, seconds int) {
	t.Helper()
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_a', '{}') on conflict do nothing`, eventID)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, created)
	    values ($1, $2, 'venue_a', 'lead.created', 'pending', 2, $3, (select created from webhooks.outbox where id = $1))`, eventID, endpointID, at.Add(time.Duration(seconds)*time.Second))
}

// deliveredIDs returns the event ids of deliveries.
func deliveredIDs(deliveries []*Delivery) (ids []string) {
	for _, d := range deliveries {
		ids = append(ids, d.EventID)
	}
	return ids
}

// lostIDs returns the event ids of lost deliveries.
func lostIDs(lost []Lost) (ids []string) {
	for _, l := range lost {
		ids = append(ids, l.EventID)
	}
	return ids
}

// An endpoint was removed, and another one registered under its id. The new one gets what is left
// pending only where the delivery may be its own.
func TestDue_TellsTheRowsOfAFormerEndpoint(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	now := time.Now().Truncate(time.Microsecond)
	for _, row := range []struct {
		id                            string
		created, firstAttempt, dueAgo int // seconds before now; no attempt where that is zero
	}{
		{"evt_1_never_tried", 600, 0, 300},
		{"evt_2_tried_before", 600, 500, 0},
		{"evt_3_of_a_long_transaction", 600, 30, 0},
		{"evt_4_never_tried_of_a_long_transaction", 600, 0, 10},
		{"evt_5_younger", 20, 0, 10},
	} {
		addPending(t, env, row.id, "ep_1", now, -row.dueAgo)
		env.Exec(t, `with o as (update webhooks.outbox set created = $2 where id = $1) update webhooks.deliveries set created = $2 where event_id = $1`,
			row.id, now.Add(-time.Duration(row.created)*time.Second))
		if row.firstAttempt > 0 {
			env.Exec(t, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms) values ($1, 'ep_1', 1, $2, 500, 'http_status', 'failed', 3)`,
				row.id, now.Add(-time.Duration(row.firstAttempt)*time.Second))
		}
	}
	former := []string{"evt_1_never_tried", "evt_2_tried_before"}
	for _, test := range []struct {
		name       string
		registered time.Time
		former     []string
	}{
		{"a minute ago", now.Add(-time.Minute), former},
		{"before all", now.Add(-time.Hour), nil},
		{"at a time that is still to come", now.Add(time.Hour), nil},
		{"at no time", time.Time{}, nil},
	} {
		want := wantAll("ep_1", 10)
		want.Registered = test.registered
		refills, err := db.configured().Due(t.Context(), []Want{want}, now, 1<<20)
		must(t, err)
		r := refills["ep_1"]
		got := deliveredIDs(r.Former)
		slices.Sort(got)
		if !slices.Equal(got, test.former) || len(r.Deliveries) != 5-len(test.former) || len(r.Lost) != 0 {
			t.Errorf("registered %s: of a former one are %q, want %q; %d are delivered, %d lost", test.name, got, test.former, len(r.Deliveries), len(r.Lost))
		}
	}
}

func TestDue_ComesInTheOrderOfDueTimes(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	now := time.Now().Truncate(time.Microsecond)
	for i, seconds := range []int{-1, -5, 0, -3, 60, 30} {
		addPending(t, env, fmt.Sprintf("evt_%d", i), "ep_1", now, seconds)
	}
	addPending(t, env, "evt_0", "ep_2", now, -1)
	addDelivery(t, env, "evt_9", "ep_1", "venue_a", "lead.created", Failed, 1)
	for _, test := range []struct {
		name string
		want Want
		ids  []string
		more bool
	}{
		{"all", wantAll("ep_1", 10), []string{"evt_1", "evt_3", "evt_0", "evt_2"}, false},
		{"limit", wantAll("ep_1", 2), []string{"evt_1", "evt_3"}, true},
		{"held in memory", Want{EndpointID: "ep_1", Limit: 3, Skip: func(id string) bool { return id != "evt_0" }}, []string{"evt_0"}, true},
	} {
		refills, err := db.configured().Due(t.Context(), []Want{test.want, wantAll("ep_2", 10), wantAll("ep_3", 10)}, now, 1<<20)
		must(t, err)
		r := refills["ep_1"]
		if got := deliveredIDs(r.Deliveries); !slices.Equal(got, test.ids) || r.More != test.more {
			t.Errorf("%s: got %q, more %t; want %q, %t", test.name, got, r.More, test.ids, test.more)
		}
		if want := now.Add(30 * time.Second); !r.Next.Equal(want) {
			t.Errorf("%s: next is %v, want %v", test.name, r.Next, want)
		}
		if got := deliveredIDs(refills["ep_2"].Deliveries); !slices.Equal(got, []string{"evt_0"}) {
			t.Errorf("%s: the other endpoint got %q", test.name, got)
		}
		if r := refills["ep_3"]; r == nil || r.More || len(r.Deliveries) > 0 || !r.Next.IsZero() {
			t.Errorf("%s: the endpoint without deliveries got %+v", test.name, r)
		}
	}
}

func TestDue_BringsBackWhatARowHolds(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	now := time.Now().Truncate(time.Microsecond)
	addPending(t, env, "evt_1", "ep_1", now, 0)
	env.Exec(t, `update webhooks.deliveries set replay_id = 'rpl_1', created = $1`, now)
	env.Exec(t, `update webhooks.outbox set created = $1`, now)
	refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, now, 1<<20)
	must(t, err)
	d := refills["ep_1"].Deliveries[0]
	if d.Attempts != 2 || d.ReplayID != "rpl_1" || d.Venue != "venue_a" || d.Type != "lead.created" || !d.Created.Equal(now) || !d.Committed.IsZero() {
		t.Errorf("got %+v", d)
	}
	if !d.recorded {
		t.Error("a delivery from the database counts as not recorded")
	}
}

func TestDue_StopsAtTheByteBudgetButNotBeforeOne(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	now := time.Now()
	for i := range 4 {
		addPending(t, env, fmt.Sprintf("evt_%d", i), "ep_1", now, i-10)
	}
	env.Exec(t, `update webhooks.outbox set data = json_build_object('x', (select string_agg(md5(random()::text), '') from generate_series(1, 40)))`) // 1.3 kB each
	for maxBytes, want := range map[int][]string{0: {"evt_0"}, 4000: {"evt_0", "evt_1"}, 1 << 20: {"evt_0", "evt_1", "evt_2", "evt_3"}} {
		refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, now, maxBytes)
		must(t, err)
		r := refills["ep_1"]
		if got := deliveredIDs(r.Deliveries); !slices.Equal(got, want) || r.More != (len(want) < 4) {
			t.Errorf("%d bytes: got %q, more %t; want %q", maxBytes, got, r.More, want)
		}
	}
}

func TestDue_TellsLostEvents(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	now := time.Now()
	addPending(t, env, "evt_1", "ep_1", now, -2)
	addPending(t, env, "evt_2", "ep_1", now, -1)
	env.Exec(t, `delete from webhooks.outbox where id = 'evt_1'`)
	// While a transaction of another test might still make the event visible, the event is not lost
	// yet.
	testenv.Eventually(t, patience, func() error {
		refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, now, 1<<20)
		must(t, err)
		r := refills["ep_1"]
		if lost, found := lostIDs(r.Lost), deliveredIDs(r.Deliveries); !slices.Equal(lost, []string{"evt_1"}) || !slices.Equal(found, []string{"evt_2"}) || r.More {
			return fmt.Errorf("lost %q, found %q, more %t", lost, found, r.More)
		}
		return nil
	})
}

func TestDue_KeepsAnEventThatIsNotVisibleYet(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	tx := begin(t, env)
	addEvent(t, tx, "evt_1")
	now := time.Now()
	var created time.Time
	must(t, tx.QueryRow(t.Context(), `select created from webhooks.outbox`).Scan(&created))
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Pending, 0)
	env.Exec(t, `update webhooks.deliveries set created = $1`, created)
	refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, now.Add(time.Second), 1<<20)
	must(t, err)
	if r := refills["ep_1"]; len(r.Lost) > 0 || len(r.Deliveries) > 0 || r.Next.IsZero() {
		t.Errorf("while its transaction is open: %+v", r)
	}
	must(t, tx.Commit(t.Context()))
	refills, err = db.configured().Due(t.Context(), []Want{wantAll("ep_1", 10)}, now.Add(time.Second), 1<<20)
	must(t, err)
	if got := deliveredIDs(refills["ep_1"].Deliveries); !slices.Equal(got, []string{"evt_1"}) {
		t.Errorf("after its commit: %q", got)
	}
}

func TestLookup_FindsWhatIsRecordedOfTheSameEvent(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	created := time.Date(2026, 1, 1, 0, 0, 0, 123_456_000, time.UTC)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values
	    ('evt_1', 'ep_1', 'venue_a', 't', 'succeeded', $1), ('evt_2', 'ep_2', 'venue_a', 't', 'pending', $1)`, created)
	recorded, err := db.configured().Lookup(t.Context(), []string{"evt_1", "evt_2", "evt_9"}, []string{"ep_1", "ep_1", "ep_1"})
	must(t, err)
	event := func(change func(*Event)) *Event {
		e := &Event{ID: "evt_1", Venue: "venue_a", Type: "t", Created: created}
		change(e)
		return e
	}
	for _, test := range []struct {
		name   string
		change func(*Event)
		want   bool
	}{
		{"the same event", func(*Event) {}, true},
		{"another venue", func(e *Event) { e.Venue = "venue_b" }, false},
		{"another type", func(e *Event) { e.Type = "u" }, false},
		{"another time", func(e *Event) { e.Created = created.Add(time.Microsecond) }, false},
		{"no time of its own", func(e *Event) { e.Created, e.Undated = created.Add(time.Hour), true }, true},
		{"recorded when its time was read as UTC", func(e *Event) { e.Created, e.local = created.Add(3*time.Hour), created }, true},
		{"another id", func(e *Event) { e.ID = "evt_9" }, false},
	} {
		if got := recorded.Has(event(test.change), "ep_1"); got != test.want {
			t.Errorf("%s: recorded %t, want %t", test.name, got, test.want)
		}
	}
	if recorded.Has(event(func(*Event) {}), "ep_2") || Recorded(nil).Has(event(func(*Event) {}), "ep_1") {
		t.Error("an event without a row for the endpoint counts as recorded")
	}
}

// openMapped returns a database with an outbox table of the app's: other names, uuid ids, jsonb, a
// time without zone, and nulls. The server's time zone is not UTC.
func openMapped(t *testing.T) (*DB, *testenv.DB) {
	t.Helper()
	env := testenv.NewDB(t)
	env.Exec(t, `alter database `+env.Name+` set timezone = 'America/New_York'`)
	env.Exec(t, `create table public."App Events" (key uuid primary key default gen_random_uuid(), what text, place text, "body" jsonb, at timestamp)`)
	cfg := testConfig(env.URL, env.Slot)
	cfg.Table = "public.App Events"
	cfg.Columns = Columns{ID: "key", Type: "what", Venue: "place", Data: "body", Created: "at"}
	cfg.Publication = "mapped"
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	return db, env
}

func TestMappedOutbox_IsTheSameFromTheStreamAndFromARefill(t *testing.T) {
	t.Parallel()
	db, env := openMapped(t)
	f := follow(t, db)
	env.Exec(t, `insert into public."App Events" (what, place, body, at) values ('lead.created', 'venue_a', '{"b": 1.0,   "a": 2}', '2025-05-10 14:32:00.7')`)
	env.Exec(t, `insert into public."App Events" (what, place, body, at) values (null, null, null, null)`)
	compareWithRefill(t, db, env, f, 2)
}
