package outbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Patterns says which event types are asked for, in a form in which no type is covered twice: everything, or all types below some
// prefixes ("lead." for lead.*), and some single types. The function webhooks.event_matches holds the same rule in SQL.
type Patterns struct {
	All      bool
	Prefixes []string
	Types    []string
}

// ParsePatterns reads endpoints.events, or outbox.types: "*" asks for every type, "lead.*" for those that begin with "lead.", and a text
// without * that does not end with a dot for that very type. The error is the reason that the owner is shown; the patterns hold what is
// right beside it, so that the events are at least kept as missed.
func ParsePatterns(events []string) (p Patterns, err error) {
	if len(events) == 0 {
		return p, errors.New("events names no event type; use types such as lead.created, lead.* or *")
	}
	for _, e := range events {
		prefix, below := strings.CutSuffix(e, "*")
		switch {
		case e == "*":
			p.All = true
		case strings.Contains(prefix, "*"), below && (len(prefix) < 2 || !strings.HasSuffix(prefix, ".")), !below && (e == "" || strings.HasSuffix(e, ".")):
			err = fmt.Errorf("events has %q, which is no event type; use types such as lead.created, lead.* or *", e)
		case below:
			p.Prefixes = append(p.Prefixes, prefix)
		default:
			p.Types = append(p.Types, e)
		}
	}
	return p.reduce(), err
}

// reduce drops what other patterns cover already.
func (p Patterns) reduce() Patterns {
	if p.All {
		return Patterns{All: true}
	}
	slices.Sort(p.Prefixes)
	p.Prefixes = slices.Compact(p.Prefixes)
	// In sorted order a prefix stands right before all that it covers.
	kept := p.Prefixes[:0]
	for _, prefix := range p.Prefixes {
		if n := len(kept); n == 0 || !strings.HasPrefix(prefix, kept[n-1]) {
			kept = append(kept, prefix)
		}
	}
	p.Prefixes = kept
	slices.Sort(p.Types)
	p.Types = slices.DeleteFunc(slices.Compact(p.Types), func(t string) bool {
		return slices.ContainsFunc(p.Prefixes, func(prefix string) bool { return strings.HasPrefix(t, prefix) })
	})
	return p
}

// Match reports whether the patterns ask for an event type.
func (p Patterns) Match(eventType string) bool {
	return p.All || slices.Contains(p.Types, eventType) ||
		slices.ContainsFunc(p.Prefixes, func(prefix string) bool { return strings.HasPrefix(eventType, prefix) })
}
