package agent

import (
	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// subscription is an endpoint as events are matched against it. A change of the endpoint makes a
// new subscription. Nothing but the seats of a subscription ever changes.
type subscription struct {
	lane     *lanes.Lane
	endpoint *outbox.Endpoint
	patterns outbox.Patterns
	target   *sink.Target // the endpoint's
	unfit    error        // why nothing can be sent to target; nil when something can
	off      string       // why an event that is committed now is not sent; "" when it is
	seats    []seat       // one for each pattern; owned by subscriptions
}

// seat is the place of a subscription in a roster.
type seat struct {
	roster *roster
	at     int
}

// roster has the subscriptions with one pattern, in no order. A subscription knows its seat, so it
// can be removed in constant time: an app may change or remove all endpoints of a large venue at
// once.
type roster struct{ members []member }

// member is a subscription in a roster. seat is the index of this roster in sub.seats.
type member struct {
	sub  *subscription
	seat int
}

func (r *roster) add(sub *subscription) {
	r.members = append(r.members, member{sub, len(sub.seats)})
	sub.seats = append(sub.seats, seat{r, len(r.members) - 1})
}

// leave frees the seat at index at. The last member moves there.
func (r *roster) leave(at int) {
	last := len(r.members) - 1
	moved := r.members[last]
	r.members[at] = moved
	moved.sub.seats[moved.seat].at = at
	r.members[last] = member{}
	r.members = r.members[:last]
}

func (r *roster) appendTo(subs []*subscription) []*subscription {
	if r == nil {
		return subs
	}
	for _, m := range r.members {
		subs = append(subs, m.sub)
	}
	return subs
}

// subscriptions finds the endpoints that want an event. The cost of a look-up grows with the number
// of matches and of dots in the event type, not with the number of endpoints. It belongs to the
// router's goroutine.
type subscriptions struct {
	venues map[string]*venueSubscriptions
	byID   map[string]*subscription
}

// venueSubscriptions are the subscriptions of one venue. The maps have no roster without members.
type venueSubscriptions struct {
	endpoints int // registered endpoints, also those without a pattern
	all       roster
	byPrefix  map[string]*roster
	byType    map[string]*roster
}

func newSubscriptions() *subscriptions {
	return &subscriptions{venues: map[string]*venueSubscriptions{}, byID: map[string]*subscription{}}
}

// set adds the subscription of an endpoint. It replaces a former one.
func (s *subscriptions) set(sub *subscription) {
	s.remove(sub.endpoint.ID)
	s.byID[sub.endpoint.ID] = sub
	v := s.venues[sub.endpoint.Venue]
	if v == nil {
		v = &venueSubscriptions{}
		s.venues[sub.endpoint.Venue] = v
	}
	v.endpoints++
	if sub.patterns.All {
		v.all.add(sub)
	}
	for _, prefix := range sub.patterns.Prefixes {
		rosterOf(&v.byPrefix, prefix).add(sub)
	}
	for _, t := range sub.patterns.Types {
		rosterOf(&v.byType, t).add(sub)
	}
}

// rosterOf returns the roster of a key, and makes it when there is none.
func rosterOf(rosters *map[string]*roster, key string) *roster {
	r := (*rosters)[key]
	if r == nil {
		r = &roster{}
		if *rosters == nil {
			*rosters = map[string]*roster{}
		}
		(*rosters)[key] = r
	}
	return r
}

// remove removes the subscription of an endpoint. It does nothing for an unknown id.
func (s *subscriptions) remove(id string) {
	sub, ok := s.byID[id]
	if !ok {
		return
	}
	delete(s.byID, id)
	for _, seat := range sub.seats {
		seat.roster.leave(seat.at)
	}
	v := s.venues[sub.endpoint.Venue]
	dropEmpty(v.byPrefix, sub.patterns.Prefixes)
	dropEmpty(v.byType, sub.patterns.Types)
	if v.endpoints--; v.endpoints == 0 {
		delete(s.venues, sub.endpoint.Venue)
	}
}

// dropEmpty removes the rosters of these keys that have no member left.
func dropEmpty(rosters map[string]*roster, keys []string) {
	for _, key := range keys {
		if len(rosters[key].members) == 0 {
			delete(rosters, key)
		}
	}
}

// match appends the subscriptions that want an event of this venue and type to subs, each once.
func (s *subscriptions) match(subs []*subscription, venue, eventType string) []*subscription {
	v := s.venues[venue]
	if v == nil {
		return subs
	}
	subs = v.all.appendTo(subs)
	subs = v.byType[eventType].appendTo(subs)
	if len(v.byPrefix) == 0 {
		return subs
	}
	for i := range len(eventType) {
		if eventType[i] == '.' {
			subs = v.byPrefix[eventType[:i+1]].appendTo(subs)
		}
	}
	return subs
}
