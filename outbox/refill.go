package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Want asks for due deliveries of one endpoint.
type Want struct {
	EndpointID string
	// Limit is the number of rows to look at. Rows that memory holds already are among them, so it must exceed their
	// number.
	Limit int
	// Skip tells whether memory holds the delivery of this event.
	Skip func(eventID string) bool
}

// Refill is what Due found for one endpoint.
type Refill struct {
	Deliveries []*Delivery
	// Lost are pending rows whose event is not in the outbox any more.
	Lost []*Delivery
	// More tells that there may be further rows due now. Otherwise Next is the earliest later one, zero when there is
	// none.
	More bool
	Next time.Time
}

// dueRow is a row that is due.
type dueRow struct {
	*Delivery
	settled bool // an event that is not there now is gone
}

// selectDueRows reads the due rows of several endpoints by the index deliveries_pending. It also tells whether every
// transaction that began before the row was written has ended, the one that wrote the event among them: the stream may
// have told of an event that queries do not see yet.
const selectDueRows = `
select d.event_id, d.endpoint_id, d.venue, d.type, d.created, d.attempts, coalesce(d.replay_id, ''),
       webhooks.handed_over(d.row_xmin, pg_current_snapshot())
from unnest($1::text[], $2::int[]) w (endpoint_id, "limit"),
     lateral (select xmin as row_xmin, * from webhooks.deliveries
              where endpoint_id = w.endpoint_id and status = 'pending' and next_attempt_at <= $3
              order by next_attempt_at limit w."limit") d`

const selectNextDue = `
select w.endpoint_id, d.next_attempt_at
from unnest($1::text[]) w (endpoint_id),
     lateral (select next_attempt_at from webhooks.deliveries
              where endpoint_id = w.endpoint_id and status = 'pending' and next_attempt_at > $2
              order by next_attempt_at limit 1) d`

// Due fetches what is due at now for the endpoints in wants, with the bodies: about maxBytes of deliveries (Delivery.Size)
// at most and one at least. The result has an entry for each endpoint asked for.
func (db *DB) Due(ctx context.Context, wants []Want, now time.Time, maxBytes int) (map[string]*Refill, error) {
	ids, limits := make([]string, len(wants)), make([]int32, len(wants))
	skip := make(map[string]func(string) bool, len(wants))
	refills := make(map[string]*Refill, len(wants))
	room := make(map[string]int, len(wants))
	for i, w := range wants {
		ids[i], limits[i] = w.EndpointID, int32(w.Limit)
		skip[w.EndpointID] = w.Skip
		room[w.EndpointID] = w.Limit
		refills[w.EndpointID] = &Refill{}
	}
	rows, err := queryRows(ctx, db.pool, selectDueRows, func(row pgx.CollectableRow) (dueRow, error) {
		d := dueRow{Delivery: &Delivery{recorded: true}}
		err := row.Scan(&d.EventID, &d.EndpointID, &d.Venue, &d.Type, &d.Created, &d.Attempts, &d.ReplayID, &d.settled)
		return d, err
	}, ids, limits, now)
	if err != nil {
		return nil, db.cfg.explain("fetch due deliveries", err)
	}
	next, err := db.nextDue(ctx, ids, now)
	if err != nil {
		return nil, err
	}
	wanted := rows[:0]
	for _, d := range rows {
		r := refills[d.EndpointID]
		if room[d.EndpointID]--; room[d.EndpointID] == 0 {
			r.More = true
		}
		if !skip[d.EndpointID](d.EventID) {
			wanted = append(wanted, d)
		}
	}
	for id, r := range refills {
		r.Next = next[id]
	}
	bodies, err := db.bodies(ctx, wanted, maxBytes)
	if err != nil {
		return nil, err
	}
	for _, d := range wanted {
		r := refills[d.EndpointID]
		body, read := bodies[d.EventID]
		switch {
		case !read: // beyond maxBytes
			r.More = true
		case body == nil && d.settled:
			r.Lost = append(r.Lost, d.Delivery)
		case body == nil: // the stream was quicker
			if again := now.Add(visibilityPause); r.Next.IsZero() || again.Before(r.Next) {
				r.Next = again
			}
		default:
			d.Body = body
			r.Deliveries = append(r.Deliveries, d.Delivery)
		}
	}
	return refills, nil
}

func (db *DB) nextDue(ctx context.Context, endpointIDs []string, now time.Time) (map[string]time.Time, error) {
	type due struct {
		id string
		at time.Time
	}
	dues, err := queryRows(ctx, db.pool, selectNextDue, func(row pgx.CollectableRow) (d due, err error) {
		err = row.Scan(&d.id, &d.at)
		return d, err
	}, endpointIDs, now)
	if err != nil {
		return nil, db.cfg.explain("fetch the next due time", err)
	}
	next := make(map[string]time.Time, len(dues))
	for _, d := range dues {
		next[d.id] = d.at
	}
	return next, nil
}

// bodies returns the envelopes of the deliveries' events by event id: nil for an event that is gone, no entry for one
// that is left out because maxBytes were read before it.
func (db *DB) bodies(ctx context.Context, deliveries []dueRow, maxBytes int) (map[string][]byte, error) {
	ids := make([]string, 0, len(deliveries))
	// The time in the body is the one that was recorded: a column of another type or without a usable time has no
	// other that stays the same.
	created := make(map[string]time.Time, len(deliveries))
	for _, d := range deliveries {
		if _, seen := created[d.EventID]; !seen {
			created[d.EventID] = d.Created
			ids = append(ids, d.EventID)
		}
	}
	bodies := make(map[string][]byte, len(ids))
	if len(ids) == 0 {
		return bodies, nil
	}
	if err := db.loadIDType(ctx); err != nil {
		return nil, err
	}
	c := db.cfg.Columns
	// The size is that of the stored, perhaps compressed value: near enough to keep memory in bounds, and it costs no
	// reading of the value.
	sizes := fmt.Sprintf(`select %[1]s::text, coalesce(pg_column_size(%[2]s), 0) from %[3]s where %[1]s = any($1::text[]::%[4]s[])`,
		quoteIdent(c.ID), quoteIdent(c.Data), db.cfg.table(), db.idType())
	size := map[string]int{}
	_, err := queryRows(ctx, db.pool, sizes, func(row pgx.CollectableRow) (struct{}, error) {
		var id string
		var n int
		err := row.Scan(&id, &n)
		size[id] = n + DeliveryBytes
		return struct{}{}, err
	}, ids)
	if err != nil {
		return nil, db.cfg.explain("fetch events", err)
	}
	var fetch []string
	total := 0
	for _, id := range ids {
		n, found := size[id]
		switch {
		case !found:
			bodies[id] = nil
		case total+n <= maxBytes || len(fetch) == 0:
			total += n
			fetch = append(fetch, id)
		}
	}
	events := fmt.Sprintf(`select %[1]s::text, coalesce(%[2]s::text, ''), coalesce(%[3]s::text, ''), coalesce(%[4]s::text, '') from %[5]s where %[1]s = any($1::text[]::%[6]s[])`,
		quoteIdent(c.ID), quoteIdent(c.Type), quoteIdent(c.Venue), quoteIdent(c.Data), db.cfg.table(), db.idType())
	_, err = queryRows(ctx, db.pool, events, func(row pgx.CollectableRow) (struct{}, error) {
		var e Event
		if err := row.Scan(&e.ID, &e.Type, &e.Venue, &e.Data); err != nil {
			return struct{}{}, err
		}
		e.Created = created[e.ID]
		bodies[e.ID] = e.Envelope()
		return struct{}{}, nil
	}, fetch)
	return bodies, db.cfg.explain("fetch events", err)
}

const selectRecorded = `
select d.event_id, d.endpoint_id from unnest($1::text[], $2::text[]) wanted (event_id, endpoint_id)
join webhooks.deliveries d on d.event_id = wanted.event_id and d.endpoint_id = wanted.endpoint_id`

// Recorded is a set of deliveries that have a row.
type Recorded map[deliveryKey]struct{}

// Has tells whether the delivery of the event to the endpoint has a row.
func (r Recorded) Has(eventID, endpointID string) bool {
	_, ok := r[deliveryKey{eventID, endpointID}]
	return ok
}

// Lookup returns which deliveries are recorded already, each given by the ids of its event and its endpoint at the same place.
func (db *DB) Lookup(ctx context.Context, eventIDs, endpointIDs []string) (Recorded, error) {
	keys, err := queryRows(ctx, db.pool, selectRecorded, func(row pgx.CollectableRow) (k deliveryKey, err error) {
		err = row.Scan(&k.eventID, &k.endpointID)
		return k, err
	}, eventIDs, endpointIDs)
	if err != nil {
		return nil, db.cfg.explain("look up deliveries", err)
	}
	r := make(Recorded, len(keys))
	for _, k := range keys {
		r[k] = struct{}{}
	}
	return r, nil
}

const selectIDType = `
select format_type(a.atttypid, a.atttypmod) from pg_attribute a
where a.attrelid = to_regclass($1) and a.attname = $2 and a.attnum > 0 and not a.attisdropped`

// loadIDType finds out the type of the outbox's id column once, so that lookups by id can use its index whatever the
// type.
func (db *DB) loadIDType(ctx context.Context) error {
	if db.idTypeName.Load() != nil {
		return nil
	}
	var name string
	err := db.pool.QueryRow(ctx, selectIDType, db.cfg.table(), db.cfg.Columns.ID).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return &Problem{Thing: "table " + db.cfg.Table, Reason: fmt.Sprintf("it has no column %q", db.cfg.Columns.ID), Remedy: "correct [outbox.columns]"}
	}
	if err != nil {
		return db.cfg.explain("look at "+db.cfg.Table, err)
	}
	db.idTypeName.Store(&name)
	return nil
}

// idType returns what loadIDType found, in a form fit for a cast.
func (db *DB) idType() string { return *db.idTypeName.Load() }
