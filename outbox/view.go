package outbox

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Venue is what people see of one venue: its endpoints, their deliveries and their
// replays. Whatever belongs to another venue is for it as if it did not exist, whoever knows its
// id. The zero value, and the view of a venue without a name, see nothing and change nothing: each
// method returns an error that says so.
type Venue struct{ view }

// Venue returns the view of one venue.
func (db *DB) Venue(id string) Venue {
	if id == "" {
		return Venue{}
	}
	return Venue{view{db: db, venue: id}}
}

// AllVenues is the operator's view: what Venue sees of one venue, it sees of all. Only DB.AllVenues
// makes one; the zero value sees nothing, as that of Venue.
type AllVenues struct{ view }

// AllVenues returns the operator's view.
func (db *DB) AllVenues() AllVenues { return AllVenues{view{db: db, all: true}} }

// View is what Venue and AllVenues have in common, for code that works in either. Only DB.Venue and
// DB.AllVenues make one that sees something.
type View = view

// View returns the view without its type, for code that works in either.
func (v view) View() View { return v }

// view is what Venue and AllVenues share: one implementation of each operation. Its statements are
// written for one venue. What they say of it stands in braces, as in
//
//	delete from webhooks.endpoints where id = $1{ and venue = @venue}
//
// and is left out in the view of all. A statement that names no venue does not run in any view.
type view struct {
	db    *DB
	venue string
	all   bool // of all venues; venue means nothing then
}

var (
	errNoVenue   = &Problem{Thing: "view of a venue", Reason: "it was made without a venue, so it sees nothing", Remedy: "name the venue"}
	errUnlimited = errors.New("a statement of a view does not name the venue")
)

// venueClause matches what a statement says of the venue.
var venueClause = regexp.MustCompile(`\{([^{}]*)@venue([^{}]*)\}`)

// narrow returns a statement and its arguments as this view runs it.
func (v view) narrow(sql string, args []any) (string, []any, error) {
	switch {
	case !v.all && v.venue == "":
		return "", nil, errNoVenue
	case !venueClause.MatchString(sql):
		return "", nil, errUnlimited
	case v.all:
		return venueClause.ReplaceAllString(sql, ""), args, nil
	}
	if len(args) == 1 {
		if named, ok := args[0].(values); ok {
			return venueClause.ReplaceAllString(sql, "${1}@venue${2}"), []any{named.and(values{"venue": v.venue})}, nil
		}
	}
	parameter := "$$" + strconv.Itoa(len(args)+1) // $$ stands for $ in a replacement
	return venueClause.ReplaceAllString(sql, "${1}"+parameter+"${2}"), append(slices.Clip(args), v.venue), nil
}

// owner returns whose a new row is, given the venue that it names, which may be none. A view of one
// venue makes no rows of others.
func (v view) owner(named string) (string, error) {
	switch {
	case v.all:
		return named, nil
	case v.venue == "":
		return "", errNoVenue
	case named != "" && named != v.venue:
		return "", &Problem{Thing: "venue", Reason: "it is another one than that of the view", Remedy: "leave it out"}
	}
	return v.venue, nil
}

// look is DB.look for statements of the view.
func (v view) look(ctx context.Context, operation string, do func(q narrowed) error) error {
	if v.db == nil {
		return errNoVenue
	}
	timeout := lookTimeout
	if v.db.cfg.pages && !v.all {
		timeout = venueTimeout
	}
	return v.db.lookFor(ctx, timeout, operation, func(tx pgx.Tx) error { return do(v.on(tx)) })
}

// do is for single statements that change something.
func (v view) do() (narrowed, error) {
	if v.db == nil {
		return narrowed{}, errNoVenue
	}
	return v.on(v.db.pool), nil
}

// on runs statements of the view on q.
func (v view) on(q querier) narrowed { return narrowed{q, v} }

// narrowed runs statements of a view.
type narrowed struct {
	querier querier
	view    view
}

// Query implements rowQuerier.
func (n narrowed) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	sql, args, err := n.view.narrow(sql, args)
	if err != nil {
		return nil, err
	}
	return n.querier.Query(ctx, sql, args...)
}

// QueryRow is that of querier.
func (n narrowed) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	sql, args, err := n.view.narrow(sql, args)
	if err != nil {
		return failedRow{err}
	}
	return n.querier.QueryRow(ctx, sql, args...)
}

// Exec is that of querier.
func (n narrowed) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	sql, args, err := n.view.narrow(sql, args)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return n.querier.Exec(ctx, sql, args...)
}

// failedRow is the row of a statement that was not run.
type failedRow struct{ err error }

// Scan implements pgx.Row.
func (r failedRow) Scan(...any) error { return r.err }
