package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// This file finds the whole id for the beginning of one, as people type it. Programs give whole
// ids.

const (
	// shownCandidates is how many ids an ambiguous beginning names.
	shownCandidates = 5
	// prefixWalk is how many ids a look-up reads at most. With the rules of many languages, ids
	// that do not begin so may stand between those that do: they compare without punctuation, or
	// without case.
	prefixWalk = 200
)

// walkIDs is a loose index scan: it goes from one id to the next, from a beginning on. An id may
// stand in many rows. A whole id, which comes first, ends it.
func walkIDs(table, id, idType string) string {
	return pieces{"table": table, "id": "t." + id, "type": idType}.in(`
with recursive walked (id, n) as (
    (select ${id}, 1 from ${table} t where ${id} >= $2::text::${type} order by ${id} limit 1)
    union all
    select next.id, w.n + 1
    from walked w cross join lateral (select ${id} as id from ${table} t where ${id} > w.id order by ${id} limit 1) next
    where w.n < $3 and w.id::text <> $1
)
select id::text from walked where starts_with(id::text, $1) limit $4`)
}

var (
	walkEndpoints = walkIDs("webhooks.endpoints", "id", "text")
	walkRemoved   = walkIDs("webhooks.removed_endpoints", "id", "text")
	walkReplays   = walkIDs("webhooks.replays", "id", "text")
	walkLog       = walkIDs("webhooks.deliveries", "event_id", "text")
)

// prefixLookup is one index in which an id may stand.
type prefixLookup struct{ sql, from string }

// EndpointID returns the id of the endpoint whose id begins with given. With removed it also finds
// those whose log is all that is left. It returns given itself where that is an id, or where no id
// begins so: what is done with it then says that. Where several begin so, it returns a Problem that
// names them.
func (v AllVenues) EndpointID(ctx context.Context, given string, removed bool) (string, error) {
	lookups := []prefixLookup{{walkEndpoints, given}}
	if removed {
		lookups = append(lookups, prefixLookup{walkRemoved, given})
	}
	return v.wholeID(ctx, "endpoint", given, lookups)
}

// ReplayID is EndpointID for replays.
func (v AllVenues) ReplayID(ctx context.Context, given string) (string, error) {
	return v.wholeID(ctx, "replay", given, []prefixLookup{{walkReplays, given}})
}

// EventID is EndpointID for events, of the delivery log and of the outbox.
func (v AllVenues) EventID(ctx context.Context, given string) (string, error) {
	if v.db == nil {
		return "", errNoVenue
	}
	m, err := v.db.configured().mapping(ctx)
	if err != nil {
		return "", err
	}
	lookups := []prefixLookup{{walkLog, given}}
	if from, ok := firstKey(given, m.idType); ok {
		lookups = append(lookups, prefixLookup{walkIDs(m.cfg.table(), quoteIdent(m.cfg.Columns.ID), m.idType), from})
	}
	return v.wholeID(ctx, "event", given, lookups)
}

// wholeID returns the one id that begins with given.
func (v AllVenues) wholeID(ctx context.Context, kind, given string, lookups []prefixLookup) (id string, err error) {
	if given == "" { // every id begins so
		return "", nil
	}
	var found []string
	err = v.lookAll(ctx, "look for an id", func(tx pgx.Tx) error {
		found = nil
		for _, l := range lookups {
			ids, err := queryRows(ctx, tx, l.sql, pgx.RowTo[string], given, l.from, prefixWalk, shownCandidates+1)
			if err != nil {
				return err
			}
			found = append(found, ids...)
			if slices.Contains(ids, given) {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return chooseID(kind, given, found)
}

// chooseID chooses the id that given stands for among those that begin with it.
func chooseID(kind, given string, found []string) (string, error) {
	var ids []string
	seen := map[string]bool{}
	for _, id := range found {
		if id == given {
			return id, nil
		}
		if !seen[id] {
			ids = append(ids, id)
		}
		seen[id] = true
	}
	switch {
	case len(ids) == 0:
		return given, nil
	case len(ids) == 1:
		return ids[0], nil
	}
	more := ""
	if len(ids) > shownCandidates {
		ids, more = ids[:shownCandidates], " and more"
	}
	return "", &Problem{Thing: fmt.Sprintf("%s %q", kind, given), Reason: "several ids begin so: " + strings.Join(ids, ", ") + more,
		Remedy: "write more of the id"}
}

// firstKey returns the first key of the outbox that may begin with given, as a text, and reports
// whether keys of this type have a beginning: numbers are not in the order of their texts.
func firstKey(given, idType string) (from string, ok bool) {
	switch idType {
	case "smallint", "integer", "bigint", "numeric":
		return "", false
	case "uuid":
		const first = "00000000-0000-0000-0000-000000000000"
		if len(given) > len(first) {
			return "", false
		}
		for i, c := range []byte(given) {
			if (first[i] == '-') != (c == '-') || !strings.ContainsRune("0123456789abcdef-", rune(c)) {
				return "", false
			}
		}
		return given + first[len(given):], true
	}
	return given, true
}
