package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/quintago/webhook-agent/outbox"
)

// patterns says which event types an endpoint wants, in a form in which no type is covered twice: everything, or all
// types below some prefixes ("lead." for lead.*), and some single types.
type patterns struct {
	all      bool
	prefixes []string
	types    []string
}

// parsePatterns reads endpoints.events. Its error is the reason that the endpoint's owner is shown; the patterns hold
// what is right beside it, so that the events are at least kept as missed.
func parsePatterns(events []string) (p patterns, err error) {
	if len(events) == 0 {
		return p, errors.New("events names no event type; use types such as lead.created, lead.* or *")
	}
	for _, e := range events {
		prefix, below := strings.CutSuffix(e, "*")
		switch {
		case e == "*":
			p.all = true
		case e == "" || strings.ContainsAny(prefix, "* \t\r\n") || strings.HasSuffix(e, ".") || below && (len(prefix) < 2 || !strings.HasSuffix(prefix, ".")):
			err = fmt.Errorf("events has %q, which is no event type; use types such as lead.created, lead.* or *", e)
		case below:
			p.prefixes = append(p.prefixes, prefix)
		default:
			p.types = append(p.types, e)
		}
	}
	return p.reduce(), err
}

// match reports whether an event of this type is wanted.
func (p patterns) match(eventType string) bool {
	return p.all || slices.Contains(p.types, eventType) ||
		slices.ContainsFunc(p.prefixes, func(prefix string) bool { return strings.HasPrefix(eventType, prefix) })
}

// reduce drops what other patterns cover already.
func (p patterns) reduce() patterns {
	if p.all {
		return patterns{all: true}
	}
	slices.Sort(p.prefixes)
	p.prefixes = slices.Compact(p.prefixes)
	// In sorted order a prefix stands right before all that it covers.
	kept := p.prefixes[:0]
	for _, prefix := range p.prefixes {
		if n := len(kept); n == 0 || !strings.HasPrefix(prefix, kept[n-1]) {
			kept = append(kept, prefix)
		}
	}
	p.prefixes = kept
	slices.Sort(p.types)
	p.types = slices.DeleteFunc(slices.Compact(p.types), func(t string) bool {
		return slices.ContainsFunc(p.prefixes, func(prefix string) bool { return strings.HasPrefix(t, prefix) })
	})
	return p
}

// subscription is an endpoint as events are matched against it.
type subscription struct {
	lane     *lane
	endpoint *outbox.Endpoint
	patterns patterns
}

// subscriptions finds the endpoints that want an event. What a look-up costs depends on those that match and on the
// dots in the event type, not on those that there are. It is owned by the router's goroutine.
type subscriptions struct {
	venues map[string]*venueSubscriptions
	byID   map[string]*subscription
}

type venueSubscriptions struct {
	all      []*subscription
	byPrefix map[string][]*subscription
	byType   map[string][]*subscription
}

func newSubscriptions() *subscriptions {
	return &subscriptions{venues: map[string]*venueSubscriptions{}, byID: map[string]*subscription{}}
}

// set registers an endpoint, instead of its last state if there was one.
func (s *subscriptions) set(sub *subscription) {
	s.remove(sub.endpoint.ID)
	s.byID[sub.endpoint.ID] = sub
	v := s.venues[sub.endpoint.Venue]
	if v == nil {
		v = &venueSubscriptions{byPrefix: map[string][]*subscription{}, byType: map[string][]*subscription{}}
		s.venues[sub.endpoint.Venue] = v
	}
	if sub.patterns.all {
		v.all = append(v.all, sub)
	}
	for _, prefix := range sub.patterns.prefixes {
		v.byPrefix[prefix] = append(v.byPrefix[prefix], sub)
	}
	for _, t := range sub.patterns.types {
		v.byType[t] = append(v.byType[t], sub)
	}
}

// remove takes an endpoint out. It does nothing for an unknown id.
func (s *subscriptions) remove(id string) {
	sub, ok := s.byID[id]
	if !ok {
		return
	}
	delete(s.byID, id)
	v := s.venues[sub.endpoint.Venue]
	without := func(subs []*subscription) []*subscription {
		return slices.DeleteFunc(subs, func(other *subscription) bool { return other == sub })
	}
	v.all = without(v.all)
	for _, prefix := range sub.patterns.prefixes {
		if v.byPrefix[prefix] = without(v.byPrefix[prefix]); len(v.byPrefix[prefix]) == 0 {
			delete(v.byPrefix, prefix)
		}
	}
	for _, t := range sub.patterns.types {
		if v.byType[t] = without(v.byType[t]); len(v.byType[t]) == 0 {
			delete(v.byType, t)
		}
	}
	if len(v.all) == 0 && len(v.byPrefix) == 0 && len(v.byType) == 0 {
		delete(s.venues, sub.endpoint.Venue)
	}
}

// match appends to subs those that want an event of this venue and type, each once.
func (s *subscriptions) match(subs []*subscription, venue, eventType string) []*subscription {
	v := s.venues[venue]
	if v == nil {
		return subs
	}
	subs = append(subs, v.all...)
	subs = append(subs, v.byType[eventType]...)
	if len(v.byPrefix) == 0 {
		return subs
	}
	for i := range len(eventType) {
		if eventType[i] == '.' {
			subs = append(subs, v.byPrefix[eventType[:i+1]]...)
		}
	}
	return subs
}
