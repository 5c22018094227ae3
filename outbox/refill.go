package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Want asks for due deliveries of one endpoint.
type Want struct {
	EndpointID string
	// Limit is the number of rows to read. It must be larger than the number of rows that memory
	// holds already, because those are among them.
	Limit int
	// Skip reports whether memory holds the delivery of this event.
	Skip func(eventID string) bool
	// Registered is Endpoint.Created, if another endpoint had the id before. Else it is zero.
	Registered time.Time
}

// Refill is what Due has found for one endpoint.
type Refill struct {
	Deliveries []*Delivery
	// Lost are pending rows whose event cannot be fetched again.
	Lost []Lost
	// Former are pending rows of an endpoint that was removed, and that had the id of this one.
	Former []*Delivery
	// More reports that there may be further rows that are due now. If it is false, Next is when
	// the earliest later row is due, or zero if there is none.
	More bool
	Next time.Time
}

// Lost is a delivery whose event cannot be fetched again, with the reason.
type Lost struct {
	*Delivery
	Reason string
}

// These are the reasons why an event cannot be fetched again (deliveries.last_error).
const (
	lostGone    = "the event is no longer in the outbox"
	lostOther   = "the outbox has another event under this id now; ids must be unique, and an event's venue, type and created must stay as they were"
	lostTwice   = "the outbox holds two events with the same id, venue, type and created, but with different data; ids must be unique"
	lostNotOurs = "outbox.types does not ask for the event's type any more"
)

// dueRow is a row that is due.
type dueRow struct {
	*Delivery
	settled bool // if the event is not there now, it is gone
}

// selectDueRows reads the due rows of several endpoints by the index deliveries_pending. It also
// returns when the first row after them is due, as a row without an event. And it returns whether
// every transaction that began before the row was written has ended, including the one that wrote
// the event. Otherwise the stream may have brought an event that queries do not see yet.
//
// A row is of a former endpoint if the delivery is older than the endpoint. It is, if its event is,
// and its first attempt too. Without an attempt it is due since it has a row. An attempt may begin up
// to a second after the registration, before the agent has heard of that.
const selectDueRows = `
select d.event_id, w.endpoint_id, d.venue, d.type, d.created, d.attempts, coalesce(d.replay_id, ''),
       d.replay_id is not null and former is not null, d.replay_id is not null and ` + formerlySucceeded + `, webhooks.handed_over(d.row_xmin, pg_current_snapshot()),
       coalesce(d.created < w.registered and coalesce((select min(at) from webhooks.attempts a
           where a.event_id = d.event_id and a.endpoint_id = w.endpoint_id), d.next_attempt_at) < w.registered + interval '1 second', false), null::timestamptz
from unnest($1::text[], $2::int[], $4::timestamptz[]) w (endpoint_id, "limit", registered),
     lateral (select xmin as row_xmin, * from webhooks.deliveries
              where endpoint_id = w.endpoint_id and status = 'pending' and next_attempt_at <= $3
              order by next_attempt_at limit w."limit") d
union all
select null, w.endpoint_id, '', '', null, 0, '', false, false, true, false, n.next_attempt_at
from unnest($1::text[]) w (endpoint_id),
     lateral (select next_attempt_at from webhooks.deliveries
              where endpoint_id = w.endpoint_id and status = 'pending' and next_attempt_at > $3
              order by next_attempt_at limit 1) n`

// Due fetches the deliveries that are due at now for the endpoints in wants, with their bodies. It
// fetches about maxBytes of deliveries (Delivery.Size) at most, and at least one. The result has an
// entry for each endpoint in wants. Due runs two statements, however many endpoints there are.
func (slot *Slot) Due(ctx context.Context, wants []Want, now time.Time, maxBytes int) (map[string]*Refill, error) {
	refills := make(map[string]*Refill, len(wants))
	wanted, err := slot.dueRows(ctx, wants, now, refills)
	if err != nil {
		return nil, err
	}
	events, err := slot.fetchEvents(ctx, wanted, maxBytes)
	if err != nil {
		slot.mapped.forgetAfter(err)
		return nil, slot.cfg.explain("fetch events", err)
	}
	for _, d := range wanted {
		r := refills[d.EndpointID]
		e := events[d.identity()]
		switch {
		case e.left: // there is no room within maxBytes
			r.More = true
		case e.lost == "":
			d.Body, d.Traceparent = e.body, e.of
			r.Deliveries = append(r.Deliveries, d.Delivery)
		case e.final || d.settled:
			r.Lost = append(r.Lost, Lost{d.Delivery, e.lost})
		default: // the stream was quicker than queries, which do not see the event yet
			if again := now.Add(visibilityPause); r.Next.IsZero() || again.Before(r.Next) {
				r.Next = again
			}
		}
	}
	return refills, nil
}

// dueRows returns the rows that are due, that memory does not hold, and whose events are to be
// fetched. It makes a Refill for each endpoint, with the rows of a former one.
func (slot *Slot) dueRows(ctx context.Context, wants []Want, now time.Time, refills map[string]*Refill) (wanted []dueRow, err error) {
	ids, limits, registered := make([]string, len(wants)), make([]int32, len(wants)), make([]*time.Time, len(wants))
	skip := make(map[string]func(string) bool, len(wants))
	room := make(map[string]int, len(wants))
	for i, w := range wants {
		ids[i], limits[i] = w.EndpointID, int32(w.Limit)
		if !w.Registered.After(now) { // otherwise an app has set it, and it says nothing
			registered[i] = &w.Registered
		}
		skip[w.EndpointID], room[w.EndpointID] = w.Skip, w.Limit
		refills[w.EndpointID] = &Refill{}
	}
	_, err = queryRows(ctx, slot.db.pool, selectDueRows, func(row pgx.CollectableRow) (struct{}, error) {
		d := dueRow{Delivery: &Delivery{recorded: true, Refilled: true}}
		var eventID *string
		var created, next *time.Time
		var former bool
		if err := row.Scan(&eventID, &d.EndpointID, &d.Venue, &d.Type, &created, &d.Attempts, &d.ReplayID, &d.hasFormer, &d.hadSucceeded, &d.settled, &former, &next); err != nil {
			return struct{}{}, err
		}
		r := refills[d.EndpointID]
		if eventID == nil {
			r.Next = *next
			return struct{}{}, nil
		}
		d.EventID, d.Created = *eventID, *created
		if room[d.EndpointID]--; room[d.EndpointID] == 0 {
			r.More = true
		}
		switch {
		case skip[d.EndpointID](d.EventID):
		case former:
			r.Former = append(r.Former, d.Delivery)
		default:
			wanted = append(wanted, d)
		}
		return struct{}{}, nil
	}, ids, limits, now, registered)
	return wanted, slot.cfg.explain("fetch due deliveries", err)
}

// identity is what identifies an event.
type identity struct {
	id, venue, eventType string
	created              int64 // microseconds since 1970
}

func (d *Delivery) identity() identity {
	return identity{d.EventID, d.Venue, d.Type, d.Created.UnixMicro()}
}

// fetched is what was found of an event. At most one of body, left and lost is set.
type fetched struct {
	body  []byte // the envelope
	of    Traceparent
	left  bool   // there was no room for the event
	lost  string // why the event cannot be sent
	final bool   // lost does not depend on what queries see
}

// fetchedParent is the expression for the traceparent of an event.
func (m *mapping) fetchedParent() string {
	if !m.parent {
		return "null"
	}
	return "o." + quoteIdent(m.cfg.Columns.Traceparent) + "::text"
}

// manyRows is how many rows with the same id are compared with each other.
const manyRows = 9

// fetchSQL returns the statement that fetches events by what identifies them. It finds their rows
// by the index of the id, if there is one. To see how much fits, it adds up the sizes of the stored
// data, which may be compressed, since that needs no reading of the data. It does not read events
// that do not fit. Rows that nothing distinguishes must have the same data.
func (m *mapping) fetchSQL() string {
	c := m.cfg.Columns
	created := m.usableCreated()
	venue, eventType := logTextSQL("coalesce(o."+quoteIdent(c.Venue)+"::text, '')"), logTextSQL("coalesce(o."+quoteIdent(c.Type)+"::text, '')")
	return pieces{
		"key": eventKey("w.event_id", m.idType), "id": quoteIdent(c.ID), "data": quoteIdent(c.Data), "venue": venue, "type": eventType,
		"same created": m.sameCreated(created, "w.created"), "outbox": m.cfg.table(), "parent": m.fetchedParent(),
	}.in(`
with want as materialized (
    select w.*, ${key} as key
    from unnest(@ids::text[], @venues::text[], @types::text[], @created::timestamptz[]) with ordinality w (event_id, venue, type, created, place)
), matched as (
    select w.place, o.${data} as data, ${parent} as parent, ${venue} = w.venue and ${type} = w.type and ${same created} as same
    from want w join ${outbox} o on o.${id} = w.key and o.${id}::text = w.event_id
), counted as (
    select place, data, parent, same, count(*) filter (where same) over (partition by place) as rows,
           row_number() over (partition by place order by same desc) as nth
    from matched
), compared as (
    select place, data, parent, same, rows, nth, case when same and rows > 1 and nth <= @many then md5(data::text) end as digest from counted
), judged as (
    select place, data, parent, same, nth, rows > @many or min(digest) over (partition by place) <> max(digest) over (partition by place) as differ
    from compared
), chosen as (
    select place, data, parent, same, differ, case when same then @overhead + coalesce(pg_column_size(data), 0) else 0 end as size from judged where nth = 1
), summed as (
    select *, sum(size) over (order by place) as total from chosen
)
select place, same, coalesce(differ, false), total <= @most or total = size, case when same and (total <= @most or total = size) then coalesce(data::text, '') end, parent
from summed order by place`)
}

// fetchEvents returns what is found of the events of deliveries. The time in a body is the recorded
// one, because a row without a usable time has no other time that stays the same.
func (slot *Slot) fetchEvents(ctx context.Context, deliveries []dueRow, maxBytes int) (map[identity]fetched, error) {
	events := make(map[identity]fetched, len(deliveries))
	if len(deliveries) == 0 {
		return events, nil
	}
	m, err := slot.mapping(ctx)
	if err != nil {
		return nil, err
	}
	patterns := slot.cfg.patterns()
	var (
		ids, venues, types []string
		created            []time.Time
		asked              []*Delivery
	)
	for _, d := range deliveries {
		key := d.identity()
		if _, seen := events[key]; seen {
			continue
		}
		if why := slot.cfg.unfit(d.EventID, d.Type, d.Venue, nil); why != "" {
			events[key] = fetched{lost: why, final: true}
			continue
		}
		if !patterns.Match(d.Type) {
			events[key] = fetched{lost: lostNotOurs, final: true}
			continue
		}
		events[key] = fetched{lost: lostGone}
		ids, venues, types, created = append(ids, d.EventID), append(venues, d.Venue), append(types, d.Type), append(created, d.Created)
		asked = append(asked, d.Delivery)
	}
	if len(asked) == 0 {
		return events, nil
	}
	total := 0
	_, err = queryRows(ctx, slot.db.pool, m.fetchSQL(), func(row pgx.CollectableRow) (struct{}, error) {
		var place int
		var same, differ, room bool
		var data, parent []byte
		if err := row.Scan(&place, &same, &differ, &room, &data, &parent); err != nil {
			return struct{}{}, err
		}
		d := asked[place-1]
		e := fetched{}
		switch why := slot.cfg.unfit(d.EventID, d.Type, d.Venue, data); {
		case !same:
			e.lost = lostOther
		case differ:
			e.lost, e.final = lostTwice, true
		case !room, total > maxBytes: // compressed data take more room than their stored size
			e.left = true
		case why != "":
			e.lost, e.final = why, true
		default:
			event := Event{ID: d.EventID, Type: d.Type, Venue: d.Venue, Created: d.Created, Data: data}
			e.body, e.of = event.Envelope(), parseTraceparent(parent)
			total += len(e.body) + DeliveryBytes
		}
		events[d.identity()] = e
		return struct{}{}, nil
	}, values{
		"ids": ids, "venues": venues, "types": types, "created": created, "many": manyRows, "overhead": DeliveryBytes, "most": maxBytes,
	})
	return events, err
}

// recordedRow is what the log says about an event.
type recordedRow struct {
	venue, eventType string
	created          time.Time
}

const selectRecorded = `
select d.event_id, d.endpoint_id, d.venue, d.type, case when isfinite(d.created) then d.created else 'epoch' end
from unnest($1::text[], $2::text[]) wanted (event_id, endpoint_id)
join webhooks.deliveries d on d.event_id = wanted.event_id and d.endpoint_id = wanted.endpoint_id`

// Recorded is a set of deliveries that have a row.
type Recorded map[deliveryKey]recordedRow

// Has reports whether the delivery of the event to the endpoint has a row. The row of another event
// with the same id does not count.
func (r Recorded) Has(e *Event, endpointID string) bool {
	row, ok := r[deliveryKey{e.ID, endpointID}]
	return ok && row.venue == e.Venue && row.eventType == e.Type &&
		(e.Undated || row.created.Equal(e.Created) || !e.local.IsZero() && row.created.Equal(e.local))
}

const selectHanded = `
select n - 1 from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) with ordinality e (id, venue, type, created, n)
where exists (select from webhooks.deliveries d
              where d.event_id = e.id and d.venue = e.venue and d.type = e.type and d.created = e.created)`

// MarkLate sets Late for the given events for which the log has a delivery, to any endpoint.
func (slot *Slot) MarkLate(ctx context.Context, events []*Event) error {
	var (
		ids, venues, types []string
		created            []time.Time
	)
	for _, e := range events {
		ids, venues, types, created = append(ids, e.ID), append(venues, e.Venue), append(types, e.Type), append(created, e.Created)
	}
	known, err := queryRows(ctx, slot.db.pool, selectHanded, pgx.RowTo[int], ids, venues, types, created)
	for _, i := range known {
		events[i].Late = true
	}
	return slot.cfg.explain("look up deliveries", err)
}

// Lookup returns which deliveries are recorded already. The ids of a delivery's event and endpoint
// are at the same place in the two lists.
func (slot *Slot) Lookup(ctx context.Context, eventIDs, endpointIDs []string) (Recorded, error) {
	r := Recorded{}
	_, err := queryRows(ctx, slot.db.pool, selectRecorded, func(row pgx.CollectableRow) (struct{}, error) {
		var key deliveryKey
		var is recordedRow
		err := row.Scan(&key.eventID, &key.endpointID, &is.venue, &is.eventType, &is.created)
		r[key] = is
		return struct{}{}, err
	}, eventIDs, endpointIDs)
	if err != nil {
		return nil, slot.cfg.explain("look up deliveries", err)
	}
	return r, nil
}
