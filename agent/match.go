package agent

import (
	"slices"

	"github.com/quintago/webhook-agent/outbox"
)

// subscription is an endpoint as events are matched against it.
type subscription struct {
	lane     *lane
	endpoint *outbox.Endpoint
	patterns outbox.Patterns
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
	if sub.patterns.All {
		v.all = append(v.all, sub)
	}
	for _, prefix := range sub.patterns.Prefixes {
		v.byPrefix[prefix] = append(v.byPrefix[prefix], sub)
	}
	for _, t := range sub.patterns.Types {
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
	for _, prefix := range sub.patterns.Prefixes {
		if v.byPrefix[prefix] = without(v.byPrefix[prefix]); len(v.byPrefix[prefix]) == 0 {
			delete(v.byPrefix, prefix)
		}
	}
	for _, t := range sub.patterns.Types {
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
