package outbox

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file says what an event of the outbox is, and how SQL reads one, whichever table and columns it is mapped to. The stream's reading
// is that of decoder; both must give the same values for whatever a column can hold.
//
// An event is told from others by its id, its venue, its type and when it was created: an id alone may come again, in a table that has no key, or
// another one, or that was emptied and counts from one again. The log keeps all four. Ids, types and venues stand in it as logText writes them, and
// so they do everywhere beyond the reading of a row.
//
// created is usable when it is a moment of the years 1 to 9999. Otherwise the event has none: what the log keeps is the time of the commit, or of
// the comparison that found the event, and it tells nothing about which event it is.

// mapping is what the outbox's columns are, and writes the SQL that reads events by them.
type mapping struct {
	cfg    Config
	idType string     // a base type, fit for a cast; "" without such a column
	zone   string     // of created, when its type has none itself
	local  *localTime // the same for the stream; nil when created has a zone
}

// maxLogText is how many bytes of an id, a type or a venue the log takes: the longest keys of its indexes hold two of them, of about 2,700
// bytes that a key may have.
const maxLogText = 512

// baseTypes are the types that ids, types and venues may have, beside domains over them, and enums for types and venues. Their texts in a stream
// and in a query are the same, but for char(n), which is padded in the stream (decoder).
var baseTypes = []string{"text", "varchar", "bpchar", "name", "citext", "uuid", "int2", "int4", "int8", "numeric"}

// selectBaseTypes returns the types of columns as they are beneath any domains.
const selectBaseTypes = `
with recursive walk as (
    select a.attname, a.atttypid as type, 0 as depth from pg_attribute a
    where a.attrelid = to_regclass($1) and a.attname = any($2::text[]) and a.attnum > 0 and not a.attisdropped
    union all
    select w.attname, t.typbasetype, w.depth + 1 from walk w join pg_type t on t.oid = w.type where t.typtype = 'd'
)
select w.attname::text, t.typname::text, format_type(t.oid, -1), t.typtype = 'e'
from walk w join pg_type t on t.oid = w.type where t.typtype <> 'd'`

// columnType is the type of a column beneath any domains.
type columnType struct {
	name string // pg_type.typname
	cast string // fit for a cast
	enum bool
}

// columnTypes returns the types of the mapped columns by their names.
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

// readMapping looks at the columns of the outbox.
func (c Config) readMapping(ctx context.Context, q rowQuerier) (*mapping, error) {
	types, err := c.columnTypes(ctx, q)
	if err != nil {
		return nil, c.explain("look at "+c.Table, err)
	}
	m := &mapping{cfg: c, idType: types[c.Columns.ID].cast}
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

// mappings keeps the mapping of the outbox, so that its columns are looked at once: lookups by id can
// then use its index whatever the type, and times are read in their zone. Its methods are safe for
// concurrent use.
type mappings struct{ kept atomic.Pointer[mapping] }

// load returns the mapping, and reads it where none is kept.
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

// forget has the columns looked at again.
func (k *mappings) forget() { k.kept.Store(nil) }

// forgetAfter forgets after an error that may come of a change of the columns.
func (k *mappings) forgetAfter(err error) {
	if strings.HasPrefix(SQLState(err), "42") {
		k.forget()
	}
}

// logTextSQL is the expression for a text as the log has it.
func logTextSQL(value string) string { return "webhooks.log_text(" + value + ")" }

// eventColumns returns the expressions for an event's id, venue, created and type. The id is the column itself, whose type its index has. An event
// without a usable created has now(), which no event has that a query sees: see isRecorded and firstCreated.
func (m *mapping) eventColumns() (id, venue, created, eventType string) {
	c := m.cfg.Columns
	at := m.usableCreated("o")
	return "o." + quoteIdent(c.ID), logTextSQL("coalesce(o." + quoteIdent(c.Venue) + "::text, '')"),
		"coalesce(" + at + ", now())", logTextSQL("coalesce(o." + quoteIdent(c.Type) + "::text, '')")
}

// usableCreated is the expression for an event's created, null when it is not usable.
func (m *mapping) usableCreated(row string) string {
	at := row + "." + quoteIdent(m.cfg.Columns.Created)
	if m.zone != "" {
		return pieces{"at": at, "end": quoteText(lastLocal), "zone": quoteText(m.zone)}.in("case when ${at} >= '0001-01-02' and ${at} < ${end} then ${at} at time zone ${zone} end")
	}
	return pieces{"at": at}.in("case when ${at} >= '0001-01-01 00:00:00+00' and ${at} < '10000-01-01 00:00:00+00' then ${at} end")
}

// asCreated is the expression for a moment that the column created, whatever its type, can be compared with by its index.
func (m *mapping) asCreated(moment string) string {
	if m.zone != "" {
		return fmt.Sprintf("(%s at time zone %s)", moment, quoteText(m.zone))
	}
	return moment
}

// sameCreated is the condition that an event's created, which may be null, is what the log has. Before version 6 of the schema a time without
// zone was read as one of UTC: rows from then are of the same event.
func (m *mapping) sameCreated(created, recorded string) string {
	p := pieces{"created": created, "recorded": recorded, "zone": quoteText(m.zone)}
	if m.zone == "" {
		return p.in("(${created} is null or ${created} = now() or ${created} = ${recorded})")
	}
	return p.in("(${created} is null or ${created} = now() or ${created} = ${recorded} or ${created} at time zone ${zone} at time zone 'UTC' = ${recorded})")
}

// wants is the condition that an endpoint e wants an event, given the expressions for the event's venue, its type and the time
// until which the endpoint can have been registered.
func wants(venue, until, eventType string) string {
	return pieces{"venue": venue, "until": until, "type": eventType}.in(`e.venue = ${venue} and e.created <= ${until}
      and webhooks.event_matches(e.events, ${type})`)
}

// isOurs is the condition that an event is one that Config.Types asks for, given the expression for its type.
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

// patterns returns Types, which stand for everything when there are none.
func (c Config) patterns() Patterns {
	if len(c.Types) == 0 {
		return Patterns{All: true}
	}
	p, _ := ParsePatterns(c.Types) // what is no pattern asks for nothing
	return p
}

// isRecorded is the condition that an event has a delivery row for an endpoint, given the expressions for what tells the event and for the
// endpoint's id. A row of another event under the same id is none; that the event has no row for it may stand among the attempts, though.
func (m *mapping) isRecorded(id, venue, eventType, created, endpointID string) string {
	return pieces{
		"id": logTextSQL(id), "endpoint": endpointID, "venue": venue, "type": eventType,
		"same created": m.sameCreated(created, "d.created"), "is told": isTold("d.event_id", "d.endpoint_id", created),
	}.in(`exists (select from webhooks.deliveries d where d.event_id = ${id} and d.endpoint_id = ${endpoint}
          and (d.venue = ${venue} and d.type = ${type} and ${same created} or ${is told}))`)
}

// isTold is the condition that it was told of an event that it has no row since another one with its id has. It may be told again of an event that claims
// to be of the future.
func isTold(id, endpointID, created string) string {
	return pieces{"id": id, "endpoint": endpointID, "class": quoteText(ClassIDTaken), "created": created}.in(
		`exists (select from webhooks.attempts a where a.event_id = ${id} and a.endpoint_id = ${endpoint} and a.class = ${class}
          and a.at >= least(${created}, now() - interval '1 day'))`)
}

// firstCreated is the expression for the created of a new row of the log, given those that tell its event: all rows of an event must have the
// same, which its body holds, and one that is not usable was chosen with the first row.
func firstCreated(id, venue, eventType, created string) string {
	return pieces{"id": id, "venue": venue, "type": eventType, "created": created}.in(
		`case when ${created} = now() then coalesce((select min(d.created) from webhooks.deliveries d
           where d.event_id = ${id} and d.venue = ${venue} and d.type = ${type}), now()) else ${created} end`)
}

// usable reports whether a time is one that an event can have been created at.
func usable(t time.Time) bool { return t.Year() >= 1 && t.Year() <= 9999 }
