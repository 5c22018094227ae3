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

// This file checks that the columns of the outbox can be read, and that they distinguish one event
// from another.

// outboxColumn is a column that the agent reads. key is the setting that maps it.
type outboxColumn struct{ key, name string }

func (c Columns) list() []outboxColumn {
	all := []outboxColumn{{"id", c.ID}, {"type", c.Type}, {"venue", c.Venue}, {"data", c.Data}, {"created", c.Created}}
	if c.Traceparent != "" {
		all = append(all, outboxColumn{"traceparent", c.Traceparent})
	}
	return all
}

// isTraceparent reports whether a column may hold the traceparent.
func (t columnType) isTraceparent() bool { return t.name == "text" || t.name == "varchar" }

// checkTraceparent compares the column traceparent with what the table has. Its findings stop no
// delivery, because the column only serves traces.
func (c Columns) checkTraceparent(thing string, t columnType) []Finding {
	var f Finding
	switch {
	case t.isTraceparent():
		return nil
	case t.name == "":
		f = failure(thing, "add the column, of type text, or remove outbox.columns.traceparent", "it has no column %q, so no traceparent is sent", c.Traceparent)
	default:
		f = failure(thing, "use a column of type text, or remove outbox.columns.traceparent",
			"column %q is %s, must be text to hold a traceparent", c.Traceparent, t.cast)
	}
	f.tolerated = true
	return []Finding{f}
}

// accepted reports whether a column may have the type. An id cannot be an enum: it is looked up by
// its column, and an enum cannot express every text in the log.
func (t columnType) accepted(key string) bool {
	return slices.Contains(baseTypes, t.name) || t.enum && key != "id"
}

// check compares the mapping with the names and types of the columns that the table has.
func (c Columns) check(thing string, types map[string]columnType) (found []Finding) {
	for _, column := range c.list() {
		t := types[column.name]
		switch {
		case column.key == "traceparent":
			found = append(found, c.checkTraceparent(thing, t)...)
		case t.name == "":
			found = append(found, failure(thing, "set outbox.columns."+column.key+" to the column that holds it", "it has no column %q", column.name))
		case column.key != "data" && column.key != "created" && !t.accepted(column.key):
			found = append(found, failure(thing, fmt.Sprintf("use a column of one of the types %s, or a generated one that holds it as text", strings.Join(baseTypes, ", ")),
				"column %q is %s, which cannot be an event's %s", column.name, t.cast, column.key))
		}
	}
	switch t := types[c.Data]; t.name {
	case "json", "":
	case "jsonb":
		found = append(found, warning(thing, "use json where customers rely on the spelling",
			"column %q is jsonb, which loses key order and the spelling of numbers", c.Data))
	default:
		found = append(found, failure(thing, "use a column of type json", "column %q is %s, must be json or jsonb", c.Data, t.cast))
	}
	switch t := types[c.Created]; t.name {
	case "timestamptz", "timestamp", "":
	default:
		found = append(found, failure(thing, "use a column of type timestamptz", "column %q is %s, must be timestamptz", c.Created, t.cast))
	}
	return found
}

// selectIdentity returns what the indexes of a table say about its id: whether there is a unique
// index of the id alone, one of the id and the venue, one of those and created, and any index that
// begins with the id. Partial and invalid indexes and indexes of expressions do not count.
const selectIdentity = `
with keys as (
    select i.indisunique, array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality k (attnum, place)
                                join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                                where k.place <= i.indnkeyatts order by k.place) as columns
    from pg_index i
    where i.indrelid = to_regclass($1) and i.indisvalid and i.indpred is null and i.indexprs is null
      and (select amname from pg_am where oid = (select relam from pg_class where oid = i.indexrelid)) = 'btree'
)
select coalesce(bool_or(indisunique and columns <@ array[$2, $3] and columns @> array[$2]), false),
       coalesce(bool_or(indisunique and columns <@ array[$2, $3, $4] and columns @> array[$2]), false),
       coalesce(bool_or(columns[1] = $2), false),
       exists (select from pg_attribute where attrelid = to_regclass($1) and attname = $2 and not attnotnull)
from keys`

// checkIdentity checks whether anything prevents two events from having one id, and whether an
// index finds an event by its id.
func (db *DB) checkIdentity(ctx context.Context, tx pgx.Tx, thing string, types map[string]columnType) (found []Finding, err error) {
	c := db.cfg.Columns
	if types[c.ID].name == "" {
		return nil, nil
	}
	var unique, withCreated, first, nullable bool
	if err := tx.QueryRow(ctx, selectIdentity, db.cfg.table(), c.ID, c.Venue, c.Created).Scan(&unique, &withCreated, &first, &nullable); err != nil {
		return nil, err
	}
	table, id, venue := db.cfg.table(), quoteIdent(c.ID), quoteIdent(c.Venue)
	switch {
	case unique:
	case withCreated:
		found = append(found, warning(thing, "see that ids are never used again, also not on another day",
			"its key holds column %q too, so two events may have one id: while the first is pending at an endpoint, the second is not recorded there", c.Created))
	default:
		f := failure(thing, fmt.Sprintf("CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s), or ON %s (%s, %s) where each venue counts its own", table, id, table, id, venue),
			"no unique index makes column %q the id of one event, alone or with the venue, so an event may be taken for another", c.ID)
		f.tolerated = true // an event that looks the same as another one is not sent again
		found = append(found, f)
	}
	if !first {
		found = append(found, warning(thing, fmt.Sprintf("CREATE INDEX CONCURRENTLY ON %s (%s); without CONCURRENTLY where the table is partitioned", table, id),
			"no index begins with column %q, so each retry reads the whole table", c.ID))
	}
	if nullable && (unique || withCreated) {
		found = append(found, warning(thing, fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL", table, id), "column %q may be null, and an event without an id cannot be sent", c.ID))
	}
	return found, nil
}

// reusedFor is how long check warns after ids were used again.
const reusedFor = 7 * 24 * time.Hour

// selectReused reads the columns by their names, because a schema that is not migrated yet lacks
// them.
const selectReused = `
select (row ->> 'reused')::bigint, (row ->> 'reused_at')::timestamptz
from (select to_jsonb(c) as row from webhooks.checkpoint c where slot = $1) r
where (row ->> 'reused_at')::timestamptz > now() - $2::interval`

// checkReused warns of ids that the outbox has used again.
func (db *DB) checkReused(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	if ok, err := readable(ctx, tx, "webhooks.checkpoint"); err != nil || !ok {
		return nil, err
	}
	var (
		n    int64
		last time.Time
	)
	if err := tx.QueryRow(ctx, selectReused, db.cfg.Slot, reusedFor).Scan(&n, &last); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		return nil, err
	}
	return []Finding{warning("outbox "+db.cfg.Table, "see that ids are never used again: after TRUNCATE ... RESTART IDENTITY, set the sequence beyond the ids of webhooks.deliveries",
		"%d deliveries were of events with the id of another event in the delivery log, the last at %s", n, last.UTC().Format(time.RFC3339))}, nil
}

// checkZone reports the zone in which times without zone are read.
func (db *DB) checkZone(ctx context.Context, tx pgx.Tx, types map[string]columnType) ([]Finding, error) {
	const thing = "time zone"
	if types[db.cfg.Columns.Created].name != "timestamp" {
		if db.cfg.TimeZone == "" {
			return nil, nil
		}
		return []Finding{warning(thing, "remove outbox.time_zone", "outbox.time_zone has no use: column %q has a zone of its own", db.cfg.Columns.Created)}, nil
	}
	zone, from := db.cfg.TimeZone, "outbox.time_zone"
	if zone == "" {
		var (
			ofRole bool
			err    error
		)
		if zone, ofRole, err = db.cfg.databaseZone(ctx); err != nil {
			return nil, err
		}
		if from = "the database's"; ofRole {
			from = "that of the agent's role, which the app's sessions may not have"
		}
	}
	if _, err := readLocalTime(ctx, tx, zone); err != nil {
		return nil, err
	}
	return []Finding{warning(thing, "use timestamptz; or see that the app's sessions have this zone, and set outbox.time_zone to theirs if not",
		"column %q has no time zone and is read as of %s (%s)", db.cfg.Columns.Created, zone, from)}, nil
}
