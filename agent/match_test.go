package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/outbox"
)

// naiveMatch matches an event type pattern by pattern, as the documentation for customers and
// DESIGN issue 2 say: exact, lead.*, *.
func naiveMatch(events []string, eventType string) bool {
	return slices.ContainsFunc(events, func(p string) bool {
		prefix, below := strings.CutSuffix(p, "*")
		return p == eventType || below && strings.HasPrefix(eventType, prefix)
	})
}

// subscribe registers an endpoint for these events, valid or not, and returns the error of its
// patterns.
func subscribe(s *subscriptions, id, venue string, events ...string) error {
	p, err := outbox.ParsePatterns(events)
	s.set(&subscription{endpoint: &outbox.Endpoint{ID: id, Venue: venue, Events: events}, patterns: p})
	return err
}

// matchedIDs returns the endpoints that want an event, sorted, and each as often as it was found.
func matchedIDs(s *subscriptions, venue, eventType string) (ids []string) {
	for _, sub := range s.match(nil, venue, eventType) {
		ids = append(ids, sub.endpoint.ID)
	}
	slices.Sort(ids)
	return ids
}

func TestMatch_FindsAnEndpointOnceByTypePrefixOrAll(t *testing.T) {
	for _, test := range []struct {
		events  []string
		matches []string
		not     []string
	}{
		{[]string{"lead.created"}, []string{"lead.created"}, []string{"lead.updated", "lead", "lead.created.x", "xlead.created", "Lead.created", ""}},
		{[]string{"lead.*"}, []string{"lead.created", "lead.a.b", "lead."}, []string{"lead", "leads.created", "x.lead.created", ""}},
		{[]string{"lead.a.*"}, []string{"lead.a.b", "lead.a.b.c"}, []string{"lead.a", "lead.ab.c", "lead.created"}},
		{[]string{"*"}, []string{"lead.created", "x", "ü.*", ""}, nil},
		{[]string{"lead.created", "lead.*", "lead.a.*", "*", "lead.created"}, []string{"lead.created", "lead.a.b", "x"}, nil},
		{[]string{"lead.a.*", "lead.*", "lead.*", "lead.a.b", "lead.a.b"}, []string{"lead.created", "lead.a.b"}, []string{"x"}},
		{[]string{"lead.a", "lead.b.*", "lead!.*"}, []string{"lead.a", "lead.b.c", "lead!.x"}, []string{"lead.b", "lead.c"}},
	} {
		s := newSubscriptions()
		if err := subscribe(s, "ep", "venue_1", test.events...); err != nil {
			t.Errorf("%q: %v", test.events, err)
		}
		for _, eventType := range test.matches {
			if diff := cmp.Diff([]string{"ep"}, matchedIDs(s, "venue_1", eventType)); diff != "" {
				t.Errorf("%q for %q (-want +got):\n%s", test.events, eventType, diff)
			}
		}
		for _, eventType := range test.not {
			if got := matchedIDs(s, "venue_1", eventType); got != nil {
				t.Errorf("%q match %q", test.events, eventType)
			}
		}
	}
}

// The test registers, changes and removes endpoints of three venues at random. It also shows P5: an
// event never finds an endpoint of another venue.
func TestMatch_AgreesWithANaiveMatcher(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		pick := func(from []string) string { return from[r.IntN(len(from))] }
		parts, venues := []string{"a", "b", "ab", "b-c"}, []string{"venue_1", "venue_2", "venue_3"}
		eventType := func() string {
			path := make([]string, 1+r.IntN(4))
			for i := range path {
				path[i] = pick(parts)
			}
			return strings.Join(path, ".")
		}
		s, model := newSubscriptions(), map[string]outbox.Endpoint{}
		for range 100 {
			id := fmt.Sprint("ep_", r.IntN(12))
			if r.IntN(4) == 0 {
				s.remove(id)
				delete(model, id)
			} else {
				events := make([]string, r.IntN(5))
				for i := range events {
					switch r.IntN(10) {
					case 8, 9:
						events[i] = pick([]string{"lead*", "", "lead.", "**", "a b*"})
					case 0:
						events[i] = "*"
					case 1, 2, 3:
						events[i] = eventType() + ".*"
					default:
						events[i] = eventType()
					}
				}
				e := outbox.Endpoint{ID: id, Venue: pick(venues), Events: events}
				_ = subscribe(s, e.ID, e.Venue, e.Events...) // bad patterns are registered too: their events are missed
				model[id] = e
			}
			venue, of := pick(venues), eventType()
			var want []string
			for id, e := range model {
				if e.Venue == venue && naiveMatch(e.Events, of) {
					want = append(want, id)
				}
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, matchedIDs(s, venue, of)); diff != "" {
				t.Fatalf("seed %d, %s of %s (-want +got):\n%s", seed, of, venue, diff)
			}
		}
		for id := range model {
			s.remove(id)
		}
		if len(s.byID)+len(s.venues) != 0 {
			t.Fatalf("seed %d: without endpoints %d ids and %d venues are left", seed, len(s.byID), len(s.venues))
		}
	}
}

// FuzzParsePatterns shows that accepted patterns match as the naive matcher does, and find an
// endpoint only once.
func FuzzParsePatterns(f *testing.F) {
	f.Add("lead.*", "lead.created", "lead.created")
	f.Add("*", "a.*", "a.b.c")
	f.Add("a..*", ".", "a..b")
	f.Add("lead*", "a b", "lead")
	f.Fuzz(func(t *testing.T, a, b, eventType string) {
		events := []string{a, b}
		s := newSubscriptions()
		if err := subscribe(s, "ep", "v", events...); err != nil {
			return
		}
		found := len(s.match(nil, "v", eventType))
		if want := naiveMatch(events, eventType); found > 1 || found == 1 != want {
			t.Errorf("%q find %q %d times, the naive matcher says %v", events, eventType, found, want)
		}
	})
}

// BenchmarkMatch shows that the cost of an event depends on the endpoints that match, not on all
// endpoints.
func BenchmarkMatch(b *testing.B) {
	for _, endpoints := range []int{10, 100_000} {
		b.Run(fmt.Sprint("endpoints=", endpoints), func(b *testing.B) {
			s := newSubscriptions()
			for i := range endpoints {
				if err := subscribe(s, fmt.Sprint("ep_", i), fmt.Sprint("venue_", i/2), "lead.*", "payment.received"); err != nil {
					b.Fatal(err)
				}
			}
			var matched []*subscription
			for b.Loop() {
				if matched = s.match(matched[:0], "venue_3", "lead.created"); len(matched) != 2 {
					b.Fatalf("%d endpoints match, want 2", len(matched))
				}
			}
		})
	}
}
