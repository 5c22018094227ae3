package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// notes records the calls of the ledger's functions, one line for each call.
type notes struct {
	lines    []string
	unusable map[string]string // why, of the endpoints whose health was written
	missing  []string          // endpoints whose pending deliveries are to be missed, and why
}

// note replaces Ledger.Track.
func (n *notes) note(_ context.Context, b *outbox.Tracked) error {
	line := fmt.Sprintf("end %d:", b.End)
	if b.Idle {
		line = fmt.Sprintf("idle %d:", b.End)
	}
	for _, d := range b.Deliveries {
		line += " " + d.EventID + ">" + d.EndpointID
		if i := slices.IndexFunc(b.Records, func(r *outbox.Record) bool { return r.Delivery == d }); i >= 0 {
			line += " " + string(b.Records[i].Status)
		}
	}
	if b.Opens != nil {
		line += " opens"
	}
	if b.Last {
		line += " last"
	}
	n.lines = append(n.lines, line)
	return nil
}

// write replaces Ledger.Write.
func (n *notes) write(_ context.Context, entries ...outbox.Entry) error {
	for _, e := range entries {
		switch e := e.(type) {
		case outbox.Replay:
			n.lines = append(n.lines, "replay "+e.ID)
		case *outbox.Health:
			n.unusable[e.EndpointID] = e.Unusable
		case outbox.Missing:
			n.missing = append(n.missing, e.EndpointID+": "+e.Reason)
		}
	}
	return nil
}

// routerTest is a router over lanes that are stalled, so that nothing is attempted.
type routerTest struct {
	*router
	*notes
	t *testing.T
}

func newRouterTest(t *testing.T) *routerTest {
	n := &notes{unusable: map[string]string{}}
	m, log := newMetrics("test", &outbox.Counts{}), slog.New(slog.DiscardHandler)
	d := config.Default().Delivery
	stalled := lanes.New(t.Context(), lanes.Config{
		Concurrency: d.Concurrency, EndpointConcurrency: d.EndpointConcurrency, DisableAfter: d.DisableAfter, Retries: d.Retries,
		QueueBytes: int(d.QueueMemory), Leads: func() bool { return true }, Now: time.Now, Write: n.write, Meter: m, Log: log,
	})
	stalled.Stall(true)
	t.Cleanup(func() { stalled.Stop(t.Context()) })
	webhook := newWebhook(t)
	return &routerTest{&router{
		subs: newSubscriptions(), lanes: stalled, track: n.note, write: n.write, metrics: m, log: log,
		lookup: func(context.Context, []string, []string) (outbox.Recorded, error) {
			return nil, errors.New("unexpected lookup")
		},
		target: func(e *outbox.Endpoint) (*sink.Target, error) {
			target := webhook.Target(e.URL.Reveal(), secret.New("key"))
			err := target.Err()
			return target, err
		},
		seal: func(*outbox.Endpoint) {}, removed: func(string) {}, tune: func(int) {},
		term: outbox.Term{LSN: 100, LookupUntil: 200},
	}, n, t}
}

// loadState loads endpoints in a state that a snapshot of all transactions below 50 has seen.
func (rt *routerTest) loadState(state outbox.State) {
	rt.t.Helper()
	var err error
	if state.Snapshot, err = outbox.ParseSnapshot("50:50:"); err != nil {
		rt.t.Fatal(err)
	}
	if state.Due == nil {
		state.Due = map[string]time.Time{}
	}
	if err := rt.load(rt.t.Context(), state); err != nil {
		rt.t.Fatal(err)
	}
}

// take routes a transaction and returns the calls of the ledger.
func (rt *routerTest) take(b *outbox.Batch) []string {
	rt.t.Helper()
	rt.lines = nil
	if err := rt.route(rt.t.Context(), rt.t.Context(), b); err != nil {
		rt.t.Fatal(err)
	}
	return rt.lines
}

// transaction is one that no snapshot of loadState has seen, at a position that belongs to the
// term.
func transaction(changes ...outbox.Change) *outbox.Batch {
	return &outbox.Batch{Changes: changes, XID: 60, Commit: 300, End: 310, Committed: time.Unix(2000, 0)}
}

func event(id string) outbox.Change {
	return outbox.Change{Event: &outbox.Event{ID: id, Type: "lead.created", Venue: "venue_1", Data: []byte("{}")}}
}

// row is an enabled endpoint of venue_1 for lead.*.
func row(id string) outbox.Endpoint {
	return outbox.Endpoint{ID: id, Venue: "venue_1", URL: secret.New("https://hook.example"), Events: []string{"lead.*"}, Generation: 1, Created: time.Unix(1000, 0)}
}

func changed(e outbox.Endpoint) outbox.Change {
	return outbox.Change{Endpoint: &outbox.EndpointChange{ID: e.ID, Endpoint: &e}}
}

var truncated = outbox.Change{Endpoint: &outbox.EndpointChange{AllRemoved: true}}

func removed(id string) outbox.Change {
	return outbox.Change{Endpoint: &outbox.EndpointChange{Removed: true, ID: id}}
}

func state(rows ...outbox.Endpoint) (s outbox.State) {
	for _, e := range rows {
		s.Endpoints = append(s.Endpoints, outbox.EndpointState{Endpoint: &e})
	}
	return s
}

func (rt *routerTest) want(got []string, want ...string) {
	rt.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		rt.t.Errorf("the ledger was told (-want +got):\n%s", diff)
	}
}

// TestRouter_SubscriptionChangesTakeEffectInCommitOrder shows P10 within one transaction.
func TestRouter_SubscriptionChangesTakeEffectInCommitOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(row("old")))
		moved, disabled := row("new"), row("new")
		moved.Events = []string{"payment.*"}
		disabled.Disabled = true
		got := rt.take(transaction(
			event("e1"), changed(row("new")), event("e2"), changed(disabled), event("e3"), changed(moved), event("e4"),
			removed("old"), event("e5"), removed("unknown"), changed(row("old")), event("e6")))
		rt.want(got, "end 0: e1>old", "end 0: e2>old e2>new", "end 0: e3>old e3>new missed", "end 0: e4>old", "end 310: e6>old")
	})
}

func TestRouter_KeepsEventsOfAnUnusableEndpointAsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		wrongURL, wrongEvents := row("url"), row("events")
		wrongURL.URL = secret.New("bad")
		wrongEvents.Events = []string{"lead.created", "lead*"}
		rt.loadState(state(wrongURL, wrongEvents))
		rt.want(rt.take(transaction(event("e1"), changed(row("url")), changed(row("events")), event("e2"))),
			"end 0: e1>events missed e1>url missed", "end 310: e2>url e2>events")
	})
}

func TestRouter_DoesNotApplyAgainWhatTheLoadedStateContains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(row("loaded")))
		stale := row("loaded")
		stale.Disabled = true
		b := transaction(changed(stale), removed("loaded"), changed(row("gone since")), outbox.Change{Replay: &outbox.Replay{ID: "r1"}}, event("e1"))
		b.XID = 40
		rt.want(rt.take(b), "end 310: e1>loaded")
		b.XID = 50
		rt.want(rt.take(b), "replay r1", "end 310: e1>gone since")
	})
}

func TestRouter_DoesNotSendAnEventToAnEndpointLoadedButRegisteredLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		later := row("later")
		later.Created = time.Unix(3000, 0)
		rt.loadState(state(row("ep"), later))
		b := transaction(event("e1"))
		b.XID = 40
		rt.want(rt.take(b), "end 310: e1>ep")
		b.XID = 60 // not in the snapshot: the stream alone says what there is
		rt.want(rt.take(b), "end 310: e1>ep e1>later")
	})
}

func TestRouter_LooksUpOnlyWhatAnEarlierTermMayHaveRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(row("a"), row("b")))
		asked := []string{}
		rt.lookup = func(_ context.Context, events, endpoints []string) (outbox.Recorded, error) {
			for i := range events {
				asked = append(asked, events[i]+">"+endpoints[i])
			}
			return nil, nil
		}
		for _, test := range []struct {
			commit outbox.LSN
			asked  []string
			told   string
		}{
			{99, []string{}, "end 310:"},
			{100, []string{"e1>a", "e1>b", "e2>a", "e2>b"}, "end 310: e1>a e1>b e2>a e2>b"},
			{199, []string{"e1>a", "e1>b", "e2>a", "e2>b"}, "end 310: e1>a e1>b e2>a e2>b"},
			{200, []string{}, "end 310: e1>a e1>b e2>a e2>b"},
		} {
			b := transaction(event("e1"), event("e2"))
			b.Commit = test.commit
			asked = asked[:0]
			rt.want(rt.take(b), test.told)
			if diff := cmp.Diff(test.asked, asked); diff != "" {
				t.Errorf("commit at %d: deliveries looked up (-want +got):\n%s", test.commit, diff)
			}
		}
	})
}

// A table that is restored brings its rows again.
func TestRouter_GivesAnEventThatIsWrittenOnceMoreToNobodyWhoCameLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		log := &agenttest.Buffer{}
		rt.log = slog.New(slog.NewTextHandler(log, nil))
		later, widened := row("later"), row("widened")
		later.Created, widened.Subscribed = time.Unix(1800, 0), time.Unix(1800, 0)
		rt.loadState(state(row("old"), later, widened))
		asked := 0
		rt.lookup = func(context.Context, []string, []string) (outbox.Recorded, error) { asked++; return nil, nil }
		rt.markLate = func(_ context.Context, suspects []*outbox.Event) error {
			for _, e := range suspects {
				e.Late = e.ID == "e1"
			}
			return nil
		}
		again, backdated := event("e1"), event("e2")
		again.Event.Created, again.Event.Suspect = time.Unix(1500, 0), true
		backdated.Event.Created, backdated.Event.Suspect = time.Unix(1500, 0), true
		rt.want(rt.take(transaction(again, backdated)), "end 310: e1>old e2>old e2>later e2>widened")
		if asked != 1 {
			t.Errorf("looked up %d times what may be recorded long since, want once", asked)
		}
		if said := log.String(); strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, "event=e1") || !strings.Contains(said, "endpoint=later") {
			t.Errorf("it is left out for two endpoints, and the log says\n%s", said)
		}
	})
}

func TestRouter_TruncateRemovesAllEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(row("a"), row("b"), row("c")))
		rt.want(rt.take(transaction(event("e1"), truncated, event("e2"))), "end 0: e1>a e1>b e1>c", "end 310:")
		if n := len(rt.router.lanes.Endpoints()) + len(rt.subs.byID); n != 0 {
			t.Errorf("%d lanes and subscriptions are left", n)
		}
	})
}

func TestRouter_LoadTakesUpReplaysAndEndsWhatIsPendingForEndpointsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		s := state(row("ep"))
		s.Replays = []outbox.Replay{{ID: "r1"}, {ID: "r2"}}
		s.Due = map[string]time.Time{"gone": time.Now(), "ep": time.Now()}
		rt.loadState(s)
		rt.want(rt.lines, "replay r1", "replay r2")
		rt.want(rt.missing, "gone: the endpoint was removed")
	})
}

func TestRouter_PassesIdlePositionsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.want(rt.take(&outbox.Batch{End: 320}), "idle 320:")
	})
}

// TestRouter_SkipsDeliveriesThatHaveARowAndNotThoseOfAnotherEvent looks up in a real database, as
// only that makes a set of recorded deliveries.
func TestRouter_SkipsDeliveriesThatHaveARowAndNotThoseOfAnotherEvent(t *testing.T) {
	env := testenv.NewDB(t)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created, finished)
		values ('e1', 'b', 'venue_1', 'lead.created', 'succeeded', 1, '0001-01-01 00:00:00+00', now()),
		('e2', 'b', 'venue_2', 'lead.created', 'succeeded', 1, '0001-01-01 00:00:00+00', now())`) // of another event with the id e2
	db, err := outbox.Open(t.Context(), agenttest.Config(env).OutboxConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	recorded, err := db.Slot(env.Slot).Lookup(t.Context(), []string{"e1", "e1", "e2", "e2"}, []string{"a", "b", "a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		rt.loadState(state(row("a"), row("b")))
		rt.lookup = func(context.Context, []string, []string) (outbox.Recorded, error) { return recorded, nil }
		b := transaction(event("e1"), event("e2"))
		b.Commit = 150
		rt.want(rt.take(b), "end 310: e1>a e2>a e2>b")
	})
}

// An app may register a hundred thousand endpoints in one transaction; with the memory limit of
// before, the garbage collector would take most of the processor.
func TestRouter_TellsOfEndpointsThatBecomeMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := newRouterTest(t)
		var told []int
		rt.tune = func(endpoints int) { told = append(told, endpoints) }
		rt.loadState(state(manyRows(100)...))
		rows := manyRows(20_000)
		for i := 0; i < len(rows); i += 1000 {
			b := transaction()
			for _, e := range rows[i : i+1000] {
				b.Changes = append(b.Changes, changed(e))
			}
			rt.take(b)
		}
		rt.take(transaction(truncated))
		if len(told) < 2 || len(told) > 5 || told[len(told)-1] != 0 || told[len(told)-2] < 14_000 {
			t.Errorf("told of %v endpoints while there were up to 20,000 and then none", told)
		}
	})
}
