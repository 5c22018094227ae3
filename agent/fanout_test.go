package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// manyRows are n endpoints that want all events of leads.
func manyRows(n int) (rows []outbox.Endpoint) {
	for i := range n {
		rows = append(rows, row(fmt.Sprintf("ep%05d", i)))
	}
	return rows
}

// drained hands over all of the backlog and returns how many deliveries each piece had.
func (rt *routerTest) drained() (sizes []int) {
	rt.t.Helper()
	for len(rt.backlog.queue) > 0 {
		rt.lines = nil
		if err := rt.expand(rt.t.Context(), rt.t.Context()); err != nil {
			rt.t.Fatal(err)
		}
		sizes = append(sizes, strings.Count(rt.lines[0], ">"))
	}
	return sizes
}

func TestRouter_HandsAWideFanoutOverInPiecesBehindTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(manyRows(2500)...))
		b := transaction(event("e1"), event("e2"))
		rt.want(rt.take(b), "end 310: opens")
		rt.want(rt.take(&outbox.Batch{End: 320}), "idle 320:") // the stream goes on
		if got := rt.drained(); !slices.Equal(got, []int{1000, 1000, 1000, 1000, 1000}) {
			t.Errorf("pieces of %d deliveries, want five of 1000", got)
		}
		if !strings.HasSuffix(rt.lines[0], "last") {
			t.Error("nothing tells that the last piece is the last one")
		}
		if rt.backlog.bytes != 0 || len(rt.backlog.keys) != 0 {
			t.Errorf("the backlog counts %d bytes and %d events when it is empty", rt.backlog.bytes, len(rt.backlog.keys))
		}
	})
}

func TestRouter_AFanoutThatIsNotWideTakesNoDetour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(manyRows(wideFanout - 1)...))
		var changes []outbox.Change
		for i := range 100 {
			changes = append(changes, event(fmt.Sprint("e", i)))
		}
		rt.take(transaction(changes...))
		if len(rt.backlog.queue) > 0 {
			t.Error("the backlog holds events that few endpoints want")
		}
		rt.lookup = func(context.Context, []string, []string) (outbox.Recorded, error) { return nil, nil }
		long := transaction(changes...)
		long.End = 0
		for range 3 {
			rt.take(long)
		}
		if len(rt.backlog.queue) == 0 {
			t.Error("a long transaction of such events delays the next one")
		}
		for len(rt.backlog.queue) > 0 {
			if err := rt.expand(t.Context(), t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, line := range rt.lines {
			if n := strings.Count(line, ">"); n > pieceLength {
				t.Errorf("%d deliveries were handed over at once", n)
			}
		}
	})
}

// The state of the endpoint when the event was committed decides, also while the event waits.
func TestRouter_TheBacklogGoesByTheSubscriptionsOfTheCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rows := manyRows(1100)
		rows[3].Disabled = true
		rt.loadState(state(rows...))
		enabled, moved, disabled := rows[3], rows[5], rows[6]
		enabled.Disabled, enabled.Generation = false, 2
		moved.Venue = "venue_2"
		disabled.Disabled = true
		rt.take(transaction(event("e1"), changed(enabled), changed(moved), removed(rows[4].ID), changed(disabled), changed(row("later")), event("e2")))
		want := map[string]string{rows[3].ID: "missed", rows[4].ID: "missed", rows[5].ID: "missed", rows[6].ID: "missed", rows[7].ID: "", "later": "none"}
		got := map[string]string{}
		for len(rt.backlog.queue) > 0 {
			rt.lines = nil
			if err := rt.expand(t.Context(), t.Context()); err != nil {
				t.Fatal(err)
			}
			words := strings.Fields(rt.lines[0])
			for i, word := range words {
				if id, isFirst := strings.CutPrefix(word, "e1>"); isFirst {
					got[id] = ""
					if i+1 < len(words) && words[i+1] == "missed" {
						got[id] = "missed"
					}
				}
			}
		}
		for id, outcome := range want {
			is, there := got[id]
			if !there {
				is = "none"
			}
			if is != outcome {
				t.Errorf("the event of before the change: %s is %q, want %q", id, is, outcome)
			}
		}
	})
}

// A server of a venue with many endpoints goes down. The notices about them come in one transaction,
// and each goes to all endpoints but the one that it is about.
func TestRouter_ANoticeInTheBacklogGoesToAllButTheEndpointItIsAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rows := manyRows(120)
		for i := range rows {
			rows[i].Events = []string{"*"}
		}
		rt.loadState(state(rows...))
		const notices = 20
		var changes []outbox.Change
		for i := range notices {
			changes = append(changes, outbox.Change{Event: &outbox.Event{ID: fmt.Sprintf("notice%02d", i), Type: outbox.TypeEndpointFailing,
				Venue: "venue_1", Data: fmt.Appendf(nil, `{"endpoint_id":%q}`, rows[i].ID)}})
		}
		rt.take(transaction(changes...))
		sent := strings.Join(rt.lines, " ")
		for len(rt.backlog.queue) > 0 {
			rt.lines = nil
			if err := rt.expand(t.Context(), t.Context()); err != nil {
				t.Fatal(err)
			}
			sent += " " + strings.Join(rt.lines, " ")
		}
		words := strings.Fields(sent)
		for i := range notices {
			for about := range rows {
				if got := slices.Contains(words, fmt.Sprintf("notice%02d>%s", i, rows[about].ID)); got != (i != about) {
					t.Errorf("the notice about endpoint %d goes to endpoint %d: %t", i, about, got)
				}
			}
		}
	})
}

func TestRouter_ARowThatMovesWhileItWaitsInTheBacklogIsNotTakenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.term.Repeats = true
		rt.loadState(state(manyRows(1100)...))
		rt.take(transaction(event("e1")))
		rt.take(transaction(event("e1")))
		if n := len(rt.backlog.queue); n != 1 {
			t.Errorf("the backlog holds %d events, want the one", n)
		}
		other, another := event("e1"), event("e1") // of other venues or types: an id alone does not identify an event
		other.Event.Venue, another.Event.Type = "venue_2", "lead.updated"
		elsewhere := row("elsewhere")
		elsewhere.Venue = "venue_2"
		rt.want(rt.take(transaction(changed(elsewhere), other, another)), "end 310: e1>elsewhere opens")
		if n := len(rt.backlog.queue); n != 2 {
			t.Errorf("the backlog holds %d events, want both of venue_1", n)
		}
	})
}

// After a restart in the middle of a transaction, the router looks up the rows of one piece at a
// time.
func TestRouter_LooksPiecesUpUntilTheDatabaseAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(manyRows(2500)...))
		most, fails := 0, 3
		rt.lookup = func(_ context.Context, events, _ []string) (outbox.Recorded, error) {
			if fails--; fails >= 0 {
				return nil, errors.New("the database is away")
			}
			most = max(most, len(events))
			return nil, nil
		}
		b := transaction(event("e1"))
		b.Commit = 150
		rt.take(b)
		if got := rt.drained(); !slices.Equal(got, []int{1000, 1000, 500}) {
			t.Errorf("pieces of %d", got)
		}
		if most != pieceLength {
			t.Errorf("%d deliveries were looked up at once, want %d", most, pieceLength)
		}
		stopped, stop := context.WithCancel(t.Context())
		stop()
		fails = 1
		rt.take(b)
		if err := rt.expand(stopped, t.Context()); err == nil {
			t.Error("a piece was handed over that could not be looked up")
		}
	})
}

func TestBacklog_HasHalfOfTheTimeWhileTheStreamHasMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backlog
		if b.due() {
			t.Error("an empty backlog is due")
		}
		b.add(&matched{event: &outbox.Event{ID: "e"}}, make([]*subscription, 3000), &outbox.Hold{})
		if !b.due() {
			t.Error("the first piece waits")
		}
		b.pieceEnded, b.pieceTook = time.Now(), time.Second
		agenttest.Pass(999 * time.Millisecond)
		if b.due() {
			t.Error("the stream has less time than the last piece took")
		}
		agenttest.Pass(time.Millisecond)
		if !b.due() {
			t.Error("the stream has more time than the last piece took")
		}
	})
}
