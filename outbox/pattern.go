package outbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Patterns says which event types are asked for. No type is covered twice. It means everything, or
// all types that begin with some prefixes ("lead." for lead.*) and some single types. The function
// webhooks.event_matches has the same rule in SQL.
type Patterns struct {
	All      bool
	Prefixes []string
	Types    []string
}

// CheckVenue returns an error if a text that a person wrote is not the name of a venue.
func CheckVenue(venue string) error {
	switch {
	case strings.TrimSpace(venue) == "":
		return errors.New("is blank; write the id of the venue")
	case strings.TrimLeftFunc(venue, unicode.IsSpace) != venue, strings.ContainsFunc(venue, invisible):
		// Blanks at the end are allowed: a column of the type char(n) adds them.
		return errors.New("begins with a blank or has an invisible character; remove it")
	case len(venue) > maxLogText:
		return fmt.Errorf("has more than %d bytes; shorten it", maxLogText)
	}
	return CheckText(venue)
}

// ParsePatterns parses endpoints.events or outbox.types. "*" asks for every type. "lead.*" asks for
// the types that begin with "lead.". A text that has no * and does not end with a dot asks for that
// very type. The error is the reason that the owner is shown. Even with an error, the patterns hold
// the entries that are right, so that at least those events are kept as missed.
func ParsePatterns(events []string) (p Patterns, err error) {
	if len(events) == 0 {
		return p, errors.New("events names no event type; use types such as lead.created, lead.* or *")
	}
	for _, e := range events {
		prefix, below := strings.CutSuffix(e, "*")
		if strings.TrimSpace(e) != e || strings.ContainsFunc(e, invisible) {
			// An event may have this very type, so the pattern is kept too.
			err = fmt.Errorf("events has %q, which begins or ends with a blank, or has an invisible character; remove it", e)
		}
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

// invisible reports whether a rune is a line break, a control character or a format character.
func invisible(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }

// reduce removes the patterns that other patterns cover already.
func (p Patterns) reduce() Patterns {
	if p.All {
		return Patterns{All: true}
	}
	slices.Sort(p.Prefixes)
	p.Prefixes = slices.Compact(p.Prefixes)
	// In sorted order, a prefix comes right before everything that it covers.
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
