package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file searches the delivery log. There is no index that answers every filter, and one more
// would cost each delivery. So a search walks the index that fits best from its newest row on,
// looks at a bounded number of rows, and says how far it came:
//
//	an event          the primary key
//	one endpoint      deliveries_endpoint_created, or deliveries_unsuccessful for failed and missed
//	one venue         the same for each of its endpoints, put together
//	all               deliveries_created; where few endpoints have what is pending, or what failed or was
//	                  missed, the indexes of those

const (
	// searchRows is how many rows a search looks at, and searchRowsAtFirst how many for a first
	// page, which people wait for. A look at lookRows is enough for most.
	searchRows, searchRowsAtFirst, lookRows = 10_000, 5_000, 1_000
	// searchEndpoints is how many endpoints a venue may have to be searched by them. One with more
	// is searched by time.
	searchEndpoints = 200
	// searchShare is how many rows of each endpoint a search of a venue looks at, at least.
	searchShare = 5
	// searchPending is how many pending deliveries a search reads. Where there are more, they are
	// found among the newest rows.
	searchPending = 2000
)

// DeliveryPage is a part of the delivery log, newest event first.
type DeliveryPage struct {
	Deliveries []DeliveryInfo
	// Next is the cursor of the next page, for DeliveryFilter.Before; "" when everything was looked
	// at. A page with few rows, or none, may have one: the search looks at a bounded number of
	// rows.
	Next string
	// NextEvent is for DeliveryFilter.BeforeEvent: an id that people know. It is "" where the page
	// does not end with all that it has of an event.
	NextEvent string
	// SearchedTo is how far back the search came, nil where it did not end before the page was full
	// or everything was looked at.
	SearchedTo *time.Time
}

// Complete reports whether everything that can match was looked at.
func (p DeliveryPage) Complete() bool { return p.Next == "" }

// matches is the condition of a filter on the row d, but for what the walked index is for. The type
// is compared here and not by webhooks.event_matches, which would cost more than all else.
const matches = `
      (@venue_filter = '' or d.venue = @venue_filter)
  and (cardinality(@statuses::text[]) = 0 or d.status = any(@statuses))
  and (@type = '' or d.type = @type or @type_prefix <> '' and starts_with(d.type, @type_prefix))
  and (@since::timestamptz is null or d.created >= @since)
  and (@until::timestamptz is null or d.created < @until)`

// before is the condition that a row comes after a cursor in the list.
const before = `(@at::text is null or (d.created, d.event_id, d.endpoint_id) < (@at::text::timestamptz, @at_event, @at_endpoint))`

// selectEventLog lists the deliveries of one event.
var selectEventLog = `
select ` + deliveryColumns + `
from webhooks.deliveries d
where d.event_id = @event and (@endpoint = '' or d.endpoint_id = @endpoint) and ` + matches + ` and ` + before + `{ and d.venue = @venue}
order by created desc, event_id desc, endpoint_id desc
limit @limit`

// selectAllLog walks the newest rows of all venues. The last row is where the walk ended, with
// is_row false, if it has looked at @rows. The walk takes only the columns that are compared.
//
// The end of the walk has two places where the next page may begin: the columns of the order, and a
// mark with a number. The mark is a whole second at or after the row, and the number says how many
// rows from there on were looked at. It says nothing of the row itself, which may be another
// venue's.
var selectAllLog = `
with looked as materialized (
    select l.*, row_number() over () as nth from (
        select created, event_id, endpoint_id, venue, type, status from webhooks.deliveries d
        where (@since::timestamptz is null or d.created >= @since) and (@until::timestamptz is null or d.created < @until)
          and (@at::text is null or d.created <= @at::text::timestamptz) and (@skip::bigint > 0 or ` + before + `)
        order by created desc, event_id desc, endpoint_id desc offset @skip::bigint limit @rows
    ) l
), ending as (
    select e.*, least(@at::text::timestamptz, case when created > '0001-01-01' and created < '290000-01-01'
                      then date_trunc('second', created - interval '1 microsecond') + interval '1 second' else created end) as mark
    from looked e where nth = @rows
), found as (
    select event_id, endpoint_id from looked d
    where ` + matches + `{ and d.venue = @venue}
    order by created desc, event_id desc, endpoint_id desc
    limit @limit
)
select * from (
    select ` + deliveryColumns + `, true as is_row, null::timestamptz as mark, '' as mark_text, 0 as skip
    from found join webhooks.deliveries using (event_id, endpoint_id)
    union all
    select event_id, endpoint_id, '', '', '', 0, null, null, '', '', null, '', created, created::text, null, false, mark, mark::text,
           (select count(*) from looked l where l.created <= mark)
           + case when mark is distinct from @at::text::timestamptz then 0 when @skip::bigint > 0 then @skip::bigint
                  else (select count(*) from webhooks.deliveries d
                        where d.created = @at::text::timestamptz and (d.event_id, d.endpoint_id) >= (@at_event, @at_endpoint)) end
    from ending
) page
order by is_row desc, created desc, event_id desc, endpoint_id desc`

// selectEndpointsLog walks the newest rows of each endpoint, @rows of each at most. What is older
// than the end of the shortest of these walks is left to the next page. The last row is that end,
// with is_row false, where there is one.
var selectEndpointsLog = `
with looked as materialized (
    select l.* from unnest(@endpoints::text[]) e (id) cross join lateral (
        select r.*, row_number() over () as nth from (
            select created, event_id, endpoint_id, venue, type, status from ${rows} d
            where d.endpoint_id = e.id and ${index condition}{ and d.venue = @venue}
              and (@since::timestamptz is null or d.created >= @since) and (@until::timestamptz is null or d.created < @until)
              and (@at::text is null or (d.created, d.event_id) <= (@at::text::timestamptz, @at_event)) and ` + before + `
            order by d.created desc, d.event_id desc limit @rows
        ) r
    ) l
), ending as (
    select created, event_id, endpoint_id from looked where nth = @rows
    order by created desc, event_id desc, endpoint_id desc limit 1
), found as (
    select event_id, endpoint_id from looked d
    where ` + matches + ` and not exists (select from ending b where (d.created, d.event_id, d.endpoint_id) < (b.created, b.event_id, b.endpoint_id))
    order by created desc, event_id desc, endpoint_id desc
    limit @limit
)
select * from (
    select ` + deliveryColumns + `, true as is_row
    from found join webhooks.deliveries using (event_id, endpoint_id)
    union all
    select event_id, endpoint_id, '', '', '', 0, null, null, '', '', null, '', created, created::text, null, false from ending
) page
order by is_row desc, created desc, event_id desc, endpoint_id desc`

// The statements by the part of the log that a search may leave out. What is pending is not in the
// order of the list in its index, so all of it is read: searchPending rows at most. Without the
// offset the planner may walk all rows of an endpoint in their order instead.
var (
	selectEndpointsAny          = pieces{"rows": "webhooks.deliveries", "index condition": "true"}.in(selectEndpointsLog)
	selectEndpointsUnsuccessful = pieces{"rows": "webhooks.deliveries", "index condition": "d.status in ('failed', 'missed')"}.in(selectEndpointsLog)
	selectEndpointsPending      = pieces{
		"rows":            "(select * from webhooks.deliveries p where p.endpoint_id = e.id and p.status = 'pending' offset 0)",
		"index condition": "true",
	}.in(selectEndpointsLog)
)

// manyPending reports whether endpoints have more pending deliveries than a search reads.
const manyPending = `
select count(*) > $2 from (
    select from webhooks.deliveries where endpoint_id = any($1) and status = 'pending'{ and venue = @venue} limit $2 + 1
) p`

// selectVenueEndpoints returns the ids that the log may have of a venue.
const selectVenueEndpoints = `
select id from webhooks.endpoints where venue = $1{ and venue = @venue}
union
select id from webhooks.removed_endpoints where venue = $1
limit $2`

// walkEndpointsWith goes from one endpoint to the next that has rows of a partial index, $1 of them
// at most.
const walkEndpointsWith = `
with recursive walked (id, n) as (
    (select d.endpoint_id, 1 from webhooks.deliveries d where ${rows}{ and d.venue = @venue} order by d.endpoint_id limit 1)
    union all
    select next.id, w.n + 1
    from walked w cross join lateral (
        select d.endpoint_id as id from webhooks.deliveries d where ${rows}{ and d.venue = @venue} and d.endpoint_id > w.id order by d.endpoint_id limit 1
    ) next
    where w.n < $1
)
select id from walked`

var (
	selectEndpointsWithUnsuccessful = pieces{"rows": "d.status in ('failed', 'missed')"}.in(walkEndpointsWith)
	selectEndpointsWithPending      = pieces{"rows": "d.status = 'pending'"}.in(walkEndpointsWith)
)

// search is a search under way.
type search struct {
	q         narrowed
	filter    DeliveryFilter
	values    values
	endpoints []string // to walk by; nil to walk by time
	statement string   // that walks
}

// Deliveries lists the delivery log, newest event first. An endpoint that neither exists nor stands
// in the log is a Problem.
func (v view) Deliveries(ctx context.Context, f DeliveryFilter) (page DeliveryPage, err error) {
	at := &cursor{}
	if f.Before != "" {
		if at, err = parseCursor(f.Before); err != nil {
			return page, err
		}
		if at.EventID != "" && at.EndpointID == "" { // it is of a replay
			return page, badCursor
		}
	}
	if !v.all && f.Venue != "" && f.Venue != v.venue {
		return page, v.refuse(f.EndpointID)
	}
	err = v.look(ctx, "list deliveries", func(q narrowed) error {
		if f.BeforeEvent != "" {
			if at, err = q.placeOf(ctx, f.BeforeEvent); err != nil {
				return err
			}
		}
		s := search{q: q, filter: f, values: f.values(at)}
		if f.EndpointID != "" {
			if err := q.mustKnow(ctx, f.EndpointID); err != nil {
				return err
			}
		}
		page, err = s.run(ctx)
		return err
	})
	if f.Before != "" && strings.HasPrefix(SQLState(err), classDataException) {
		return page, badCursor
	}
	return page, err
}

// selectPlace returns when an event was created, as the log has it. Where an app has used an id
// twice, it is the latest time, so that nothing is left out.
const selectPlace = `
select created::text from webhooks.deliveries where event_id = $1{ and venue = @venue} order by created desc limit 1`

// placeOf returns the place behind the last delivery of an event.
func (n narrowed) placeOf(ctx context.Context, eventID string) (*cursor, error) {
	at := &cursor{EventID: eventID}
	err := n.QueryRow(ctx, selectPlace, eventID).Scan(&at.Created)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, &Problem{Thing: fmt.Sprintf("event %q", eventID), Reason: "the delivery log does not have it, so no page begins there",
			Remedy: "list again from the newest on", Err: ErrNotFound}
	}
	return at, err
}

// endpointKnown reports whether an endpoint exists, or has left rows in the log.
const endpointKnown = `
select exists (select from webhooks.endpoints where id = $1{ and venue = @venue})
    or exists (select from webhooks.removed_endpoints where id = $1{ and venue = @venue})
    or exists (select from (select venue from webhooks.deliveries where endpoint_id = $1 order by created desc limit 1) d where true{ and venue = @venue})`

// mustKnow returns an error for an endpoint of which the view has neither itself nor rows of the
// log.
func (n narrowed) mustKnow(ctx context.Context, endpointID string) error {
	var known bool
	if err := n.QueryRow(ctx, endpointKnown, endpointID).Scan(&known); err != nil || known {
		return err
	}
	return noEndpoint(endpointID)
}

// values are what the statements of a search have of its filter and its cursor.
func (f *DeliveryFilter) values(at *cursor) values {
	exact, prefix := f.Type, ""
	if start, ok := strings.CutSuffix(f.Type, "*"); ok && !strings.Contains(start, "*") {
		if prefix = start; start == "" {
			exact = "" // all types
		}
	}
	return values{
		"event": f.EventID, "endpoint": f.EndpointID, "venue_filter": f.Venue, "statuses": texts(f.Statuses), "type": exact, "type_prefix": prefix,
		"since": f.Since, "until": f.Until, "at": orNull(at.Created), "at_event": at.EventID, "at_endpoint": at.EndpointID, "skip": at.Skip,
	}
}

// refuse returns what a view of one venue answers about another one: nothing, or that an endpoint
// is not there.
func (v view) refuse(endpointID string) error {
	if v.db == nil {
		return errNoVenue
	}
	if endpointID != "" {
		return noEndpoint(endpointID)
	}
	return nil
}

// walkInOrder keeps the planner from gathering all rows of an endpoint and sorting them. It takes
// each endpoint for one of average size, and the busiest has some hundred times as many.
const walkInOrder = `set local enable_bitmapscan = off`

func (s *search) run(ctx context.Context) (page DeliveryPage, err error) {
	if s.filter.EventID != "" {
		return s.event(ctx)
	}
	if err := exec(ctx, s.q.querier, walkInOrder); err != nil {
		return page, err
	}
	if err := s.findEndpoints(ctx); err != nil {
		return page, err
	}
	if err := s.choose(ctx); err != nil {
		return page, err
	}
	for _, rows := range s.looks() {
		if page, err = s.walk(ctx, rows); err != nil || page.SearchedTo == nil {
			return page, err // the page is full, or everything was looked at
		}
	}
	return page, nil
}

// choose chooses the statement that walks.
func (s *search) choose(ctx context.Context) error {
	switch {
	case s.endpoints == nil:
		s.statement = selectAllLog
		return nil
	case s.values["skip"] != int64(0):
		return badCursor // of a search by time
	case s.unsuccessful():
		s.statement = selectEndpointsUnsuccessful
		return nil
	case !s.pending():
		s.statement = selectEndpointsAny
		return nil
	}
	var many bool
	err := s.q.QueryRow(ctx, manyPending, s.endpoints, searchPending).Scan(&many)
	s.statement = selectEndpointsPending
	switch {
	case many && s.ofAll():
		s.endpoints, s.statement = nil, selectAllLog
	case many:
		s.statement = selectEndpointsAny
	}
	return err
}

// ofAll reports whether the search is in the log of all venues and endpoints.
func (s *search) ofAll() bool {
	return s.q.view.all && s.filter.EndpointID == "" && s.filter.Venue == ""
}

// looks returns how many rows the search looks at, of all or of each endpoint, and how many then if
// that fills no page.
func (s *search) looks() []int {
	n, page := max(1, len(s.endpoints)), s.filter.Limit+1
	switch {
	case !s.selects():
		most := searchRows
		if s.filter.Before == "" {
			most = searchRowsAtFirst
		}
		return []int{max(searchShare, lookRows/n), max(searchShare, most/n)}
	case n == 1:
		return []int{page} // each row that is looked at matches
	}
	return []int{min(page, max(searchShare, 4*page/n)), page}
}

// findEndpoints finds the endpoints whose rows have to be looked at.
func (s *search) findEndpoints(ctx context.Context) (err error) {
	venue := s.filter.Venue
	if !s.q.view.all {
		venue = s.q.view.venue
	}
	switch {
	case s.filter.EndpointID != "":
		s.endpoints = []string{s.filter.EndpointID}
	case venue != "":
		s.endpoints, err = queryRows(ctx, s.q, selectVenueEndpoints, pgx.RowTo[string], venue, searchEndpoints+1)
	case s.unsuccessful():
		s.endpoints, err = queryRows(ctx, s.q, selectEndpointsWithUnsuccessful, pgx.RowTo[string], searchEndpoints+1)
	case s.pending():
		s.endpoints, err = queryRows(ctx, s.q, selectEndpointsWithPending, pgx.RowTo[string], searchEndpoints+1)
	}
	if len(s.endpoints) > searchEndpoints {
		s.endpoints = nil // where there is none, the list is empty and not nil
	}
	return err
}

// unsuccessful and pending report whether the search is for rows of a partial index.
func (s *search) unsuccessful() bool {
	return len(s.filter.Statuses) > 0 && !slices.ContainsFunc(s.filter.Statuses, func(x Status) bool { return x != Failed && x != Missed })
}

func (s *search) pending() bool {
	return len(s.filter.Statuses) == 1 && s.filter.Statuses[0] == Pending
}

// selects reports whether the index that is walked has the rows that are looked for alone.
func (s *search) selects() bool {
	if s.filter.Type != "" || s.filter.Venue != "" && s.endpoints == nil {
		return false
	}
	if s.endpoints == nil {
		return len(s.filter.Statuses) == 0 && s.q.view.all
	}
	both := slices.Contains(s.filter.Statuses, Failed) && slices.Contains(s.filter.Statuses, Missed)
	return len(s.filter.Statuses) == 0 || both && s.unsuccessful() || s.statement == selectEndpointsPending
}

// walk looks at a number of rows, of all or of each endpoint.
func (s *search) walk(ctx context.Context, rows int) (page DeliveryPage, err error) {
	given := s.values.and(values{"endpoints": s.endpoints, "rows": rows, "limit": s.filter.Limit + 1})
	var ending *DeliveryInfo
	found, err := queryRows(ctx, s.q, s.statement, func(row pgx.CollectableRow) (d DeliveryInfo, err error) {
		var isRow bool
		if d, err = s.scan(row, &isRow); err == nil && !isRow {
			ending = &d
		}
		return d, err
	}, given.of(s.statement))
	if err != nil {
		return page, err
	}
	if ending != nil {
		found = found[:len(found)-1]
	}
	return s.page(found, ending), nil
}

// scan scans a row of a walk. In the view of one venue the walk of all rows goes on from a mark,
// since it may have ended at a row of another venue.
func (s *search) scan(row pgx.CollectableRow, isRow *bool) (d DeliveryInfo, err error) {
	if s.endpoints != nil {
		return scanDeliveryRow(row, isRow)
	}
	var (
		mark *time.Time
		at   cursor
	)
	d, err = scanDeliveryRow(row, isRow, moment{&mark}, &at.Created, &at.Skip)
	if !s.q.view.all && !*isRow {
		d.Cursor, d.Created = at.String(), mark
	}
	return d, err
}

// event lists the deliveries of one event.
func (s *search) event(ctx context.Context) (page DeliveryPage, err error) {
	found, err := queryRows(ctx, s.q, selectEventLog, scanDeliveryInfo, s.values.and(values{"limit": s.filter.Limit + 1}).of(selectEventLog))
	return s.page(found, nil), err
}

// page makes a page of what was found, one row more than it holds at most, and of where the search
// ended, nil where everything was looked at.
func (s *search) page(found []DeliveryInfo, end *DeliveryInfo) DeliveryPage {
	switch {
	case len(found) > s.filter.Limit:
		first := found[s.filter.Limit]
		found = found[:s.filter.Limit]
		last := found[len(found)-1]
		page := DeliveryPage{Deliveries: found, Next: last.Cursor}
		if first.EventID != last.EventID {
			page.NextEvent = last.EventID
		}
		return page
	case end != nil:
		return DeliveryPage{Deliveries: found, Next: end.Cursor, SearchedTo: end.Created}
	}
	return DeliveryPage{Deliveries: found}
}
