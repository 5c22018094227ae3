package outbox

import (
	"encoding/base64"
	"slices"
	"testing"
)

const (
	ulidEvent    = "evt_01KB5Z8Q3W9XKJ7M2N4P6R8T0V"
	ulidEndpoint = "ep_01K5M2AAAAAAAABAAAAAAAQ8ZC"
)

func TestCursor_ComesBackAsItWasAndIsShort(t *testing.T) {
	for _, test := range []struct {
		given  cursor
		length int
	}{
		{cursor{"2026-11-29 08:41:50.123456+00", ulidEvent, ulidEndpoint, 0}, 58},
		{cursor{"2026-11-29 08:41:50+00", "rpl_7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "", 0}, 36},
		{cursor{"2026-11-29 08:41:50+00", "", "", maxSkip}, 22},
		{cursor{"2026-11-29 08:41:50+00", "4711", ulidEndpoint, 0}, 42},
		{cursor{"infinity", "evt_8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "ep_01k5m2aaaaaaaabaaaaaaaq8zc", 0}, 98},
		{cursor{"294276-12-31 23:59:59.999999+00", ulidEvent, "ü", 1}, 80},
		{cursor{"0044-03-15 12:00:00+00 BC", "evt_", "", 0}, 46},
	} {
		text := test.given.String()
		got, err := parseCursor(text)
		if err != nil || *got != test.given || len(text) > test.length {
			t.Errorf("%+v: %s of %d characters, want %d: %+v, %v", test.given, text, len(text), test.length, got, err)
		}
	}
	if _, err := parseCursor(cursor{"2026-11-29 08:41:50+00", "a", "b", 0}.String() + "AAAA"); err == nil {
		t.Error("a cursor with more behind it is taken")
	}
	east := cursor{"2026-11-29 13:11:50.1+04:30", ulidEvent, ulidEndpoint, 0}
	utc := cursor{"2026-11-29 08:41:50.1+00", ulidEvent, ulidEndpoint, 0}
	if east.String() != utc.String() {
		t.Error("the same moment in another zone of the session is another cursor")
	}
}

func TestDeliveries_PageByTheIDsOfEvents(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    select 'evt_' || e, 'ep_' || i, 'venue_a', 'lead.created', 'missed', timestamptz '2026-11-29 08:00+00' + make_interval(secs => e / 2)
	    from generate_series(1, 6) e, generate_series(1, 2) i`)
	var got []string
	filter := DeliveryFilter{Limit: 2}
	for range 6 {
		page, err := db.AllVenues().Deliveries(t.Context(), filter)
		must(t, err)
		got, filter.BeforeEvent = append(got, keys(page.Deliveries)...), page.NextEvent
	}
	want := []string{"evt_6/ep_2", "evt_6/ep_1", "evt_5/ep_2", "evt_5/ep_1", "evt_4/ep_2", "evt_4/ep_1", "evt_3/ep_2", "evt_3/ep_1", "evt_2/ep_2", "evt_2/ep_1",
		"evt_1/ep_2", "evt_1/ep_1"}
	if !slices.Equal(got, want) || filter.BeforeEvent != "" {
		t.Errorf("the pages hold %v and go on at %q, want %v", got, filter.BeforeEvent, want)
	}
	page, err := db.AllVenues().Deliveries(t.Context(), DeliveryFilter{Limit: 3})
	if must(t, err); page.NextEvent != "" || page.Next == "" {
		t.Errorf("a page that ends within an event goes on at the event %q", page.NextEvent)
	}
	_, err = db.AllVenues().Deliveries(t.Context(), DeliveryFilter{BeforeEvent: "evt_none", Limit: 3})
	wantProblem(t, err, `event "evt_none"`, "the delivery log does not have it")
	if IsCursor(ulidEvent) || IsCursor("evt_1") || !IsCursor(page.Next) {
		t.Error("an id is taken for a cursor, or a cursor for none")
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{3, 9, 'i', 'n', 'f', 'i', 'n', 'i', 't', 'y', 2})
	for _, c := range []cursor{{"2026-11-29 08:41:50+00", ulidEvent, ulidEndpoint, 7}, {"infinity", "a", "b", 0}} {
		b, err := base64.RawURLEncoding.DecodeString(c.String())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCursor(base64.RawURLEncoding.EncodeToString(b))
		if err != nil {
			return
		}
		again, err := parseCursor(c.String())
		if err != nil || *again != *c {
			t.Errorf("%+v came back as %+v, %v", c, again, err)
		}
	})
}
