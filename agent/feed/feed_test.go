package feed

import (
	"strconv"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// record is a record of a delivery that succeeded.
func record(venue, event string) *outbox.Record {
	return &outbox.Record{Delivery: &outbox.Delivery{Venue: venue, EventID: event, EndpointID: "ep_1", Type: "lead.created"}, Status: outbox.Succeeded}
}

func events(rows []outbox.DeliveryInfo) (ids []string) {
	for _, r := range rows {
		ids = append(ids, r.EventID)
	}
	return ids
}

// follow returns the tail of a venue.
func follow(t *testing.T, f *Feed, filter outbox.DeliveryFilter, position int64) Tail {
	t.Helper()
	tail, err := f.Tail(filter, position)
	if err != nil {
		t.Fatal(err)
	}
	return tail
}

func TestTail_HasWhatWasRecordedSinceTheCallBefore(t *testing.T) {
	f := New()
	f.Recorded([]*outbox.Record{record("a", "before")}) // while nobody looks
	a, all := outbox.DeliveryFilter{Venue: "a"}, outbox.DeliveryFilter{}
	first, firstAll := follow(t, f, a, -1), follow(t, f, all, -1)
	f.Recorded([]*outbox.Record{record("a", "1"), record("b", "2")})
	f.Recorded([]*outbox.Record{{Delivery: &outbox.Delivery{Venue: "a", EventID: "taken"}, Taken: true}, record("a", "3")})
	if got := follow(t, f, a, first.Position); len(got.Rows) != 2 || got.Rows[0].EventID != "1" || got.Rows[1].EventID != "3" || got.LeftOut != 0 {
		t.Errorf("the venue's page gets %q, %d left out", events(got.Rows), got.LeftOut)
	}
	if got := follow(t, f, all, firstAll.Position); len(got.Rows) != 3 {
		t.Errorf("the operator's page gets %q", events(got.Rows))
	}
	if got := follow(t, f, outbox.DeliveryFilter{Venue: "a", EventID: "3"}, first.Position); len(got.Rows) != 1 {
		t.Errorf("the filter lets %q through", events(got.Rows))
	}
	if got := follow(t, f, outbox.DeliveryFilter{Venue: "c"}, 0); len(got.Rows) != 0 {
		t.Errorf("another venue's page gets %q", events(got.Rows))
	}
	if _, err := f.Tail(outbox.DeliveryFilter{Type: "lead*"}, 0); err == nil {
		t.Error("a type that is no pattern has no error")
	}
}

func TestTail_SaysHowManyRowsWereTooMany(t *testing.T) {
	f := New()
	filter := outbox.DeliveryFilter{Venue: "a"}
	position := follow(t, f, filter, -1).Position
	for i := range tailRows + 10 {
		f.Recorded([]*outbox.Record{record("a", strconv.Itoa(i))})
	}
	got := follow(t, f, filter, position)
	if first := strconv.Itoa(tailRows + 10 - mostRows); len(got.Rows) != mostRows || got.LeftOut != tailRows+10-mostRows || got.Rows[0].EventID != first {
		t.Errorf("it has %d rows from %s on, and %d left out", len(got.Rows), got.Rows[0].EventID, got.LeftOut)
	}
}

func TestTail_IsForgottenWhenNoPageAsks(t *testing.T) {
	f := New()
	now := time.Now()
	f.now = func() time.Time { return now }
	follow(t, f, outbox.DeliveryFilter{Venue: "a"}, -1)
	now = now.Add(tailIdle + time.Second)
	f.Recorded(nil)
	if len(f.tails) != 0 || f.looking.Load() {
		t.Error("a tail that nobody asks for is kept")
	}
	for i := range maxTails + 5 {
		follow(t, f, outbox.DeliveryFilter{Venue: strconv.Itoa(i)}, -1)
	}
	if len(f.tails) != maxTails {
		t.Errorf("there are %d tails", len(f.tails))
	}
}

func TestTail_HasWhatAnotherAgentHasRecorded(t *testing.T) {
	f := New()
	position := follow(t, f, outbox.DeliveryFilter{Venue: "a"}, -1).Position
	f.Seen([]outbox.DeliveryInfo{{Venue: "a", EventID: "1"}, {Venue: "b", EventID: "2"}})
	if got := follow(t, f, outbox.DeliveryFilter{Venue: "a"}, position); len(got.Rows) != 1 || got.Rows[0].EventID != "1" {
		t.Errorf("it gets %q", events(got.Rows))
	}
}

func TestSubscription_WaitsForNobody(t *testing.T) {
	f := New()
	s, err := f.Subscribe(outbox.DeliveryFilter{Venue: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range queue + 5 {
		f.Recorded([]*outbox.Record{record("a", strconv.Itoa(i)), record("b", "other")})
	}
	if len(s.Rows) != queue || s.LeftOut() != 5 || s.LeftOut() != 0 {
		t.Errorf("%d rows wait, want %d and 5 left out once", len(s.Rows), queue)
	}
	s.Close()
	if f.looking.Load() {
		t.Error("a subscription that was closed still looks")
	}
}

func TestRates_CountByMinute(t *testing.T) {
	f := New()
	now := time.Date(2026, 11, 29, 12, 0, 30, 0, time.UTC)
	f.now = func() time.Time { return now }
	failed := record("a", "1")
	failed.Status, failed.Attempt = outbox.Pending, &outbox.Attempt{}
	f.Recorded([]*outbox.Record{record("a", "1"), failed, {Delivery: &outbox.Delivery{}, Status: outbox.Pending}})
	now = now.Add(2 * time.Minute)
	f.Recorded([]*outbox.Record{{Delivery: &outbox.Delivery{}, Status: outbox.Missed}, {Delivery: &outbox.Delivery{}, Status: outbox.Failed}})
	rates := f.Rates()
	if last := rates[RateMinutes-1]; last != (Minute{Missed: 1, Failed: 1}) {
		t.Errorf("the minute that runs has %+v", last)
	}
	if before := rates[RateMinutes-3]; before != (Minute{Succeeded: 1, Retried: 1}) || rates[RateMinutes-2] != (Minute{}) {
		t.Errorf("two minutes before it are %+v and %+v", before, rates[RateMinutes-2])
	}
	now = now.Add(RateMinutes * time.Minute)
	for _, m := range f.Rates() {
		if m != (Minute{}) {
			t.Errorf("an hour later it still has %+v", m)
		}
	}
}

func TestNews_HasEachStateOfARowOnce(t *testing.T) {
	var n News
	row := func(event string, attempts int) outbox.DeliveryInfo {
		return outbox.DeliveryInfo{EventID: event, EndpointID: "ep_1", Status: outbox.Pending, Attempts: attempts}
	}
	if got := events(n.Of([]outbox.DeliveryInfo{row("2", 0), row("1", 0)})); len(got) != 2 || got[0] != "1" {
		t.Errorf("the first look has %q, want the oldest first", got)
	}
	if got := events(n.Of([]outbox.DeliveryInfo{row("3", 0), row("2", 1), row("1", 0)})); len(got) != 2 || got[0] != "2" || got[1] != "3" {
		t.Errorf("the second look has %q, want what has changed and what is new", got)
	}
	if got := n.Of([]outbox.DeliveryInfo{row("3", 0)}); len(got) != 0 {
		t.Errorf("the third look has %q", events(got))
	}
}
