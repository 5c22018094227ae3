package outbox

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file defines what an event of the outbox is, and how SQL reads one, whichever table and
// columns it is mapped to. The decoder does the same for the stream. Both must give the same values
// for everything that a column can hold.
//
// An event is identified by its id, its venue, its type, and when it was created. The id alone is
// not enough. It may come again in a table that has no key or another key, or that was emptied and
// counts from one again. The log keeps all four. It holds ids, types and venues as logText writes
// them. So does all code after the reading of a row.
//
// The time created is usable if it is in the years 1 to 9999. Otherwise the event has none. The log
// then keeps the time of the commit, or of the comparison that found the event. That time does not
// help to identify the event.

// mapping holds the types of the outbox's columns. It builds the SQL that reads events by them.
type mapping struct {
	cfg    Config
	idType string     // a base type, usable in a cast; "" without such a column
	parent bool       // there is a column traceparent that can be read
	zone   string     // the time zone of created, if its type has none
	local  *localTime // the same for the stream; nil if created has a zone
}

// maxLogText is the most bytes that an id, a type or a venue may have in the log. A key of an index
// may have about 2,700 bytes, and the longest keys of the log's indexes hold two of these texts.
const maxLogText = 512

// baseTypes are the types that ids, types and venues may have. Domains over them are allowed too,
// and enums for types and venues. Their text is the same in the stream and in a query. Only char(n)
// differs: the stream pads it (decoder).
var baseTypes = []string{"text", "varchar", "bpchar", "name", "citext", "uuid", "int2", "int4", "int8", "numeric"}

// selectBaseTypes returns the base types of columns, without any domains.
const selectBaseTypes = `
with recursive walk as (
    select a.attname, a.atttypid as type, 0 as depth from pg_attribute a
    where a.attrelid = to_regclass($1) and a.attname = any($2::text[]) and a.attnum > 0 and not a.attisdropped
    union all
    select w.attname, t.typbasetype, w.depth + 1 from walk w join pg_type t on t.oid = w.type where t.typtype = 'd'
)
select w.attname::text, t.typname::text, format_type(t.oid, -1), t.typtype = 'e'
from walk w join pg_type t on t.oid = w.type where t.typtype <> 'd'`

// columnType is the base type of a column, without any domains.
type columnType struct {
	name string // pg_type.typname
	cast string // usable in a cast
	enum bool
}

// columnTypes returns the types of the mapped columns, by column name.
func (c Config) columnTypes(ctx context.Context, q rowQuerier) (map[string]columnType, error) {
	var names []string
	for _, column := range c.Columns.list() {
		names = append(names, column.name)
	}
	types := map[string]columnType{}
	_, err := queryRows(ctx, q, selectBaseTypes, func(row pgx.CollectableRow) (struct{}, error) {
		var name string
		var t columnType
		err := row.Scan(&name, &t.name, &t.cast, &t.enum)
		types[name] = t
		return struct{}{}, err
	}, c.table(), names)
	return types, err
}

// readMapping reads the types of the columns of the outbox.
func (c Config) readMapping(ctx context.Context, q rowQuerier) (*mapping, error) {
	types, err := c.columnTypes(ctx, q)
	if err != nil {
		return nil, c.explain("look at "+c.Table, err)
	}
	m := &mapping{cfg: c, idType: types[c.Columns.ID].cast, parent: types[c.Columns.Traceparent].isTraceparent()}
	if types[c.Columns.Created].name != "timestamp" {
		return m, nil
	}
	if m.zone = c.TimeZone; m.zone == "" {
		if m.zone, _, err = c.databaseZone(ctx); err != nil {
			return nil, err
		}
	}
	m.local, err = readLocalTime(ctx, q, m.zone)
	return m, c.explain("read the time zone", err)
}

// mappings caches the mapping of the outbox, so that its columns are read once. With the mapping,
// lookups by id can use the index of the id whatever its type, and times are read in their zone.
// Its methods are safe for concurrent use.
type mappings struct{ kept atomic.Pointer[mapping] }

// load returns the mapping. It reads the mapping if none is cached.
func (k *mappings) load(ctx context.Context, c Config, q rowQuerier) (*mapping, error) {
	if m := k.kept.Load(); m != nil {
		return m, nil
	}
	m, err := c.readMapping(ctx, q)
	if err != nil {
		return nil, err
	}
	if m.idType == "" {
		return nil, &Problem{Thing: "table " + c.Table, Reason: fmt.Sprintf("it has no column %q", c.Columns.ID), Remedy: "correct [outbox.columns]"}
	}
	k.kept.Store(m)
	return m, nil
}

// forget drops the mapping, so that the columns are read again.
func (k *mappings) forget() { k.kept.Store(nil) }

// forgetAfter drops the mapping after an error that a change of the columns may have caused.
func (k *mappings) forgetAfter(err error) {
	if strings.HasPrefix(SQLState(err), "42") {
		k.forget()
	}
}

// logTextSQL returns the SQL expression for a text as the log holds it.
func logTextSQL(value string) string { return "webhooks.log_text(" + value + ")" }

// eventColumns returns the SQL expressions for an event's id, venue, created and type. The id is
// the column itself, so that its index can be used. If created is not usable, the expression gives
// now(), which no event that a query sees can have: see isRecorded and firstCreated.
func (m *mapping) eventColumns() (id, venue, created, eventType string) {
	c := m.cfg.Columns
	at := m.usableCreated()
	return "o." + quoteIdent(c.ID), logTextSQL("coalesce(o." + quoteIdent(c.Venue) + "::text, '')"),
		"coalesce(" + at + ", now())", logTextSQL("coalesce(o." + quoteIdent(c.Type) + "::text, '')")
}

// usableCreated returns the SQL expression for an event's created. It is null if created is not
// usable.
func (m *mapping) usableCreated() string {
	at := "o." + quoteIdent(m.cfg.Columns.Created)
	if m.zone != "" {
		return pieces{"at": at, "end": quoteText(lastLocal), "zone": quoteText(m.zone)}.in("case when ${at} >= '0001-01-02' and ${at} < ${end} then ${at} at time zone ${zone} end")
	}
	return pieces{"at": at}.in("case when ${at} >= '0001-01-01 00:00:00+00' and ${at} < '10000-01-01 00:00:00+00' then ${at} end")
}

// asCreated returns the SQL expression for a moment in the type of the column created, so that a
// comparison can use the column's index.
func (m *mapping) asCreated(moment string) string {
	if m.zone != "" {
		return fmt.Sprintf("(%s at time zone %s)", moment, quoteText(m.zone))
	}
	return moment
}

// sameCreated returns the condition that an event's created, which may be null, is the one in the
// log. Before version 6 of the schema, a time without zone was read as UTC. Rows from then also
// count as rows of the same event.
func (m *mapping) sameCreated(created, recorded string) string {
	p := pieces{"created": created, "recorded": recorded, "zone": quoteText(m.zone)}
	if m.zone == "" {
		return p.in("(${created} is null or ${created} = now() or ${created} = ${recorded})")
	}
	return p.in("(${created} is null or ${created} = now() or ${created} = ${recorded} or ${created} at time zone ${zone} at time zone 'UTC' = ${recorded})")
}

// wants returns the condition that an endpoint e wants an event. It takes the SQL expressions for
// the event's venue, for its type, and for the time until which the endpoint can have been
// registered.
func wants(venue, until, eventType string) string {
	return pieces{"venue": venue, "until": until, "type": eventType}.in(`e.venue = ${venue} and e.created <= ${until}
      and webhooks.event_matches(e.events, ${type})`)
}

// isOurs returns the condition that Config.Types includes an event, given the SQL expression for
// the event's type.
func (c Config) isOurs(eventType string) string {
	if c.patterns().All {
		return "true"
	}
	quoted := make([]string, len(c.Types))
	for i, t := range c.Types {
		quoted[i] = quoteText(t)
	}
	return fmt.Sprintf("webhooks.event_matches(array[%s]::text[], %s)", strings.Join(quoted, ", "), eventType)
}

// patterns returns Types as Patterns. No types mean everything.
func (c Config) patterns() Patterns {
	if len(c.Types) == 0 {
		return Patterns{All: true}
	}
	p, _ := ParsePatterns(c.Types) // a text that is no pattern matches nothing
	return p
}

// isRecorded returns the condition that an event has a delivery row for an endpoint. It takes the
// SQL expressions that identify the event, and that for the endpoint's id. The row of another event
// with the same id does not count. But an entry among the attempts may say that the event has no
// row.
func (m *mapping) isRecorded(id, venue, eventType, created, endpointID string) string {
	return pieces{
		"id": logTextSQL(id), "endpoint": endpointID, "venue": venue, "type": eventType,
		"same created": m.sameCreated(created, "d.created"), "is told": isTold("d.event_id", "d.endpoint_id", created),
	}.in(`exists (select from webhooks.deliveries d where d.event_id = ${id} and d.endpoint_id = ${endpoint}
          and (d.venue = ${venue} and d.type = ${type} and ${same created} or ${is told}))`)
}

// isTold returns the condition that the attempts have an entry about this event, saying that it has
// no row because another event has its id. Such an entry may be written again if the event claims
// to be from the future.
func isTold(id, endpointID, created string) string {
	return pieces{"id": id, "endpoint": endpointID, "class": quoteText(ClassIDTaken), "created": created}.in(
		`exists (select from webhooks.attempts a where a.event_id = ${id} and a.endpoint_id = ${endpoint} and a.class = ${class}
          and a.at >= least(${created}, now() - interval '1 day'))`)
}

// firstCreated returns the SQL expression for created in a new row of the log. It takes the SQL
// expressions that identify the event. All rows of an event must have the same created, because its
// body holds it. If the event's own created is not usable, the first row decides.
func firstCreated(id, venue, eventType, created string) string {
	return pieces{"id": id, "venue": venue, "type": eventType, "created": created}.in(
		`case when ${created} = now() then coalesce((select min(d.created) from webhooks.deliveries d
           where d.event_id = ${id} and d.venue = ${venue} and d.type = ${type}), now()) else ${created} end`)
}

// usable reports whether an event can have been created at a time.
func usable(t time.Time) bool { return t.Year() >= 1 && t.Year() <= 9999 }
