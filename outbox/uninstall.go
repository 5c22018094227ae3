package outbox

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Uninstallation names what Uninstall drops.
type Uninstallation struct {
	Slot         string   `json:"slot,omitempty"`
	Publications []string `json:"publications"`
	Schema       string   `json:"schema,omitempty"`
}

// Things lists in words what is dropped.
func (u Uninstallation) Things() (things []string) {
	if u.Slot != "" {
		things = append(things, "slot "+u.Slot)
	}
	for _, name := range u.Publications {
		things = append(things, "publication "+name)
	}
	if u.Schema != "" {
		things = append(things, "schema "+u.Schema)
	}
	return things
}

const (
	// selectOwnPublications skips publications that only have the same names as the agent's. The
	// agent's own hold a table of the agent or are empty.
	selectOwnPublications = `
select p.pubname::text from pg_publication p
where p.pubname = any($1) and not p.puballtables
  and (not exists (select from pg_publication_rel r where r.prpubid = p.oid) and not exists (select from pg_publication_tables t where t.pubname = p.pubname)
       or exists (select from pg_publication_rel r join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
                  where r.prpubid = p.oid and (n.nspname = 'webhooks' or (n.nspname, c.relname) = ($2, $3))))
order by p.pubname`

	selectSchemaExists = `select exists (select from pg_namespace where nspname = 'webhooks')`

	// selectForeign names what a cascade from the schema would drop and the agent has not made: first
	// what others made in the schema, then what outside depends on it. $1 are the relations and $2 the
	// functions of the agent. What is a part of an object, such as an index, PostgreSQL drops with it
	// in any case: such a dependency is not normal ('n').
	selectForeign = `
with recursive held as (
    select classid, objid from pg_depend
    where refclassid = 'pg_namespace'::regclass and refobjid = to_regnamespace('webhooks') and deptype = 'n'
), inside as (
    select classid, objid from held
    union
    select d.classid, d.objid from inside i join pg_depend d on d.refclassid = i.classid and d.refobjid = i.objid where d.deptype <> 'n'
), foreigner (place, classid, objid) as (
    select 1, classid, objid from held h
    where not exists (select from pg_depend part where part.classid = h.classid and part.objid = h.objid and part.deptype <> 'n')
      and not exists (select from pg_class c where h.classid = 'pg_class'::regclass and c.oid = h.objid and c.relname = any($1))
      and not exists (select from pg_proc f where h.classid = 'pg_proc'::regclass and f.oid = h.objid and f.proname = any($2))
    union
    select 2, case when r.oid is null then d.classid else 'pg_class'::regclass end, coalesce(r.ev_class, d.objid) -- a view, by its rule
    from inside i join pg_depend d on d.refclassid = i.classid and d.refobjid = i.objid and d.deptype = 'n'
    left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
    where not exists (select from inside other where other.classid = d.classid and other.objid = d.objid)
)
select o.type || ' ' || o.identity from foreigner f cross join lateral pg_identify_object(f.classid, f.objid, 0) o
order by f.place, o.type, o.identity`
)

// Uninstall drops the slot and the publications. With dropData it also drops the schema webhooks.
// Without do it only returns what it would drop. Objects that are already gone are no error.
// Uninstall refuses while an agent is connected, if the slot belongs to another system, and if
// objects of others would be dropped with the schema.
func (db *DB) Uninstall(ctx context.Context, dropData, do bool) (u Uninstallation, err error) {
	if err := db.look(ctx, "look for what to drop", func(tx pgx.Tx) (err error) {
		u, err = db.uninstallation(ctx, tx, dropData)
		return err
	}); err != nil || !do {
		return u, err
	}
	if u.Slot != "" {
		_, err := db.pool.Exec(ctx, dropSlot, u.Slot)
		switch SQLState(err) {
		case codeObjectInUse:
			return u, slotInUse(u.Slot)
		case codeNoObject: // gone meanwhile
		default:
			if err != nil {
				return u, db.cfg.explain("drop the slot", err)
			}
		}
	}
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		for _, name := range u.Publications {
			if err := exec(ctx, tx, "drop publication if exists "+quoteIdent(name)); err != nil {
				return err
			}
		}
		if u.Schema == "" {
			return nil
		}
		if err := db.nothingForeign(ctx, tx); err != nil {
			return err
		}
		return exec(ctx, tx, "drop schema if exists webhooks cascade")
	})
	if SQLState(err) == codeNoPrivilege {
		reason := "the role may not drop the publications or the schema"
		if u.Slot != "" {
			reason = "the slot " + u.Slot + " is dropped, so no WAL is kept any more, but " + reason
		}
		return u, &Problem{Thing: "uninstall", Reason: reason, Remedy: "run it again as their owner", Fatal: true, Err: err}
	}
	return u, db.cfg.explain("drop the publications", err)
}

func (db *DB) uninstallation(ctx context.Context, tx pgx.Tx, dropData bool) (u Uninstallation, err error) {
	var (
		plugin, database, walStatus string
		ours, active, temporary     bool
	)
	err = tx.QueryRow(ctx, selectSlotState, db.cfg.Slot).Scan(&plugin, &database, &ours, &active, &walStatus, &temporary)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return u, err
	case !ours:
		return u, &Problem{Thing: fmt.Sprintf("replication slot %q", db.cfg.Slot),
			Reason: fmt.Sprintf("it belongs to something else (database %s, plugin %s)", database, plugin), Remedy: "correct outbox.slot", Fatal: true}
	case active:
		return u, slotInUse(db.cfg.Slot)
	default:
		u.Slot = db.cfg.Slot
	}
	schema, table := db.cfg.tableName()
	u.Publications, err = queryRows(ctx, tx, selectOwnPublications, pgx.RowTo[string],
		[]string{db.cfg.Publication, db.cfg.endpointsPublication()}, schema, table)
	if err != nil || !dropData {
		return u, err
	}
	var exists bool
	if err = tx.QueryRow(ctx, selectSchemaExists).Scan(&exists); exists {
		u.Schema = "webhooks"
		err = db.nothingForeign(ctx, tx)
	}
	return u, err
}

// madeByMigration matches the beginning of a statement that makes something in the schema.
var madeByMigration = regexp.MustCompile(`(?m)^create (?:or replace )?(table|view|function) webhooks\.(\w+)`)

// nothingForeign returns a Problem if objects that the agent has not made would be dropped with the
// schema. It does not know what a newer binary has made.
func (db *DB) nothingForeign(ctx context.Context, tx pgx.Tx) error {
	ms, err := migrations()
	if err != nil {
		return err
	}
	relations, functions := []string{strings.TrimPrefix(versionTable, "webhooks.")}, []string{}
	for _, m := range ms {
		for _, made := range madeByMigration.FindAllStringSubmatch(m.sql, -1) {
			if made[1] == "function" {
				functions = append(functions, made[2])
			} else {
				relations = append(relations, made[2])
			}
		}
	}
	foreign, err := queryRows(ctx, tx, selectForeign, pgx.RowTo[string], relations, functions)
	if err != nil || len(foreign) == 0 {
		return err
	}
	var versioned bool
	if err := tx.QueryRow(ctx, selectSchema).Scan(&versioned); err != nil {
		return err
	}
	if versioned {
		schema, err := db.cfg.readSchema(ctx, tx)
		if err != nil {
			return err
		}
		if schema.Version > schema.Binary {
			return &Problem{Thing: schemaThing, Fatal: true,
				Reason: fmt.Sprintf("it has version %d, this binary knows versions up to %d and not what else is the agent's: %s", schema.Version, schema.Binary, firstOf(foreign)),
				Remedy: "uninstall it by the webhook-agent that has migrated it"}
		}
	}
	them := "it"
	if len(foreign) > 1 {
		them = "them"
	}
	return &Problem{Thing: schemaThing, Reason: "with it would be dropped what is not the agent's: " + firstOf(foreign),
		Remedy: "move or drop " + them + " first, or leave out --drop-data", Fatal: true}
}

// firstOf returns the first names of a list and the number of the rest.
func firstOf(names []string) string {
	const shown = 3
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

func slotInUse(slot string) *Problem {
	return &Problem{Thing: fmt.Sprintf("replication slot %q", slot), Reason: "an agent is connected", Remedy: "stop it first", Fatal: true}
}
