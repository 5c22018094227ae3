package manage

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
)

// Hint is an event type that the catalogue does not have.
type Hint struct {
	Given string `json:"given"`
	// Meant is the type of the catalogue that is most like it, or "" if none is.
	Meant string `json:"meant"`
}

// CheckEndpoint returns what is wrong with a URL and with event types, and the types that the
// catalogue does not have. An empty URL or list is not looked at.
func (d *Desk) CheckEndpoint(ctx context.Context, url string, events []string) (wrongURL, wrongEvents error, hints []Hint, err error) {
	if url != "" {
		wrongURL = d.checkURL(url)
	}
	if len(events) == 0 {
		return wrongURL, nil, nil, nil
	}
	if wrongEvents = checkEvents(events); wrongEvents != nil {
		return wrongURL, wrongEvents, nil, nil
	}
	catalogue, err := d.View.EventTypes(ctx)
	if err != nil || len(catalogue) == 0 {
		return wrongURL, nil, nil, err
	}
	return wrongURL, nil, hintsFor(events, catalogue), nil
}

// hintsFor returns the patterns that no type of the catalogue fits.
func hintsFor(events []string, catalogue []outbox.EventTypeInfo) (hints []Hint) {
	names := make([]string, len(catalogue))
	for i, t := range catalogue {
		names[i] = t.Name
	}
	for _, given := range events {
		patterns, err := outbox.ParsePatterns([]string{given})
		if err != nil || slices.ContainsFunc(names, patterns.Match) {
			continue
		}
		if meant := sameButForCase(given, names); meant != "" {
			hints = append(hints, Hint{given, meant})
			continue
		}
		known := names
		if group, ok := strings.CutSuffix(given, ".*"); ok { // it is the group that is mistyped
			known = groupsOf(names)
			if meant := config.Nearest(group, known); meant != "" {
				hints = append(hints, Hint{given, meant + ".*"})
				continue
			}
		}
		hints = append(hints, Hint{given, config.Nearest(given, known)})
	}
	return hints
}

// sameButForCase returns the type of the catalogue, or the group of types, that a pattern differs
// from in capital letters alone, and "" for none.
func sameButForCase(given string, names []string) string {
	for _, name := range names {
		group, _, _ := strings.Cut(name, ".")
		for _, known := range []string{name, group + ".*"} {
			if strings.EqualFold(given, known) {
				return known
			}
		}
	}
	return ""
}

// mostTwins is how many endpoints of a venue are compared.
const mostTwins = 1000

// SameURL returns the ids of the venue's endpoints that have a URL, apart from one.
func (d *Desk) SameURL(ctx context.Context, venue, url, except string) (ids []string, err error) {
	endpoints, err := d.View.Endpoints(ctx, outbox.EndpointFilter{Venue: venue, Limit: mostTwins})
	if err != nil {
		return nil, err
	}
	wanted := comparableURL(url)
	for _, e := range endpoints {
		if e.ID != except && comparableURL(e.URL) == wanted {
			ids = append(ids, e.ID)
		}
	}
	return ids, nil
}

// comparableURL returns a form that is the same for URLs that lead to the same place (RFC 3986, section
// 6.2.2.1 and 6.2.3).
func comparableURL(text string) string {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil {
		return text
	}
	u.Scheme, u.Host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	if port := u.Port(); u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		u.Host = strings.TrimSuffix(u.Host, ":"+port)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u.String()
}

// groupsOf returns the first words of event types.
func groupsOf(names []string) (groups []string) {
	for _, name := range names {
		group, _, _ := strings.Cut(name, ".")
		if !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	return groups
}
