package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// publication is one of the two publications that the agent streams.
type publication struct {
	name      string
	tables    []string // quoted
	shown     []string // the same tables as people read them
	publish   string   // onlyInserts or allChanges
	generated bool     // stored generated columns are published too
}

// These are the kinds of changes that a publication passes on.
const (
	onlyInserts = "insert"
	allChanges  = "insert, update, delete, truncate"
)

// publications returns the publications that must exist before the slot does. If the stream reaches
// a change that was made before its publication existed, the stream ends with an error.
func (c Config) publications() []publication {
	const replays, endpoints = "webhooks.replays", "webhooks.endpoints"
	schema, table := c.tableName()
	return []publication{
		{name: c.Publication, tables: []string{c.table(), replays}, shown: []string{schema + "." + table, replays}, publish: onlyInserts},
		{name: c.endpointsPublication(), tables: []string{endpoints}, shown: []string{endpoints}, publish: allChanges},
	}
}

func (p publication) create() string {
	options := ""
	if p.generated {
		options = ", publish_generated_columns = stored"
	}
	return fmt.Sprintf("create publication %s for table %s with (publish = '%s', publish_via_partition_root = true%s)",
		quoteIdent(p.name), strings.Join(p.tables, ", "), p.publish, options)
}

// ensurePublications makes the publications that are missing.
func (m Migrator) ensurePublications(ctx context.Context, conn *pgx.Conn) error {
	c := m.Config
	publications, err := c.publicationsOn(ctx, conn)
	if err != nil {
		return c.explain("look at the outbox", err)
	}
	for _, p := range publications {
		var exists bool
		if err := conn.QueryRow(ctx, selectPublicationExists, p.name).Scan(&exists); err != nil {
			return c.explain("look for publication "+p.name, err)
		}
		if exists {
			continue
		}
		err := m.createPublication(ctx, conn, p)
		if err == nil || madeMeanwhile(err) {
			continue // an agent that waits for the migration was quicker
		}
		if fault, _ := c.tableFault(ctx, conn, "outbox.table "+c.Table); fault != nil {
			problem := fault.problem()
			problem.Err = err
			return problem
		}
		return c.explain("create publication "+p.name, err)
	}
	return nil
}

// madeMeanwhile reports whether a statement failed because somebody else has made the same thing.
// PostgreSQL looks for it first, and answers with duplicate_object. If the other one commits after
// that look, the unique index of the catalog refuses the row.
func madeMeanwhile(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pe.Code == codeDuplicateObject || pe.Code == codeUniqueViolation && pe.SchemaName == "pg_catalog")
}

// createPublication takes a lock on each of the tables, of the kind that VACUUM has.
func (m Migrator) createPublication(ctx context.Context, conn *pgx.Conn, p publication) error {
	tables, err := m.Config.tablesOf(ctx, conn, p)
	if err != nil {
		return err
	}
	var locks []tableLock
	for _, table := range tables {
		locks = append(locks, tableLock{table, beside})
	}
	return m.insist(ctx, conn, "publication "+p.name, locks, func(timeout time.Duration) error {
		return execWithin(ctx, conn, timeout, p.create())
	})
}

// tablesOf returns the tables that a publication holds once it is made: the children of the outbox
// come with it.
func (c Config) tablesOf(ctx context.Context, q querier, p publication) ([]string, error) {
	if p.name != c.Publication {
		return p.tables, nil
	}
	children, err := queryRows(ctx, q, selectChildren, pgx.RowTo[string], c.table())
	return slices.Concat(p.tables, children), err
}

// publicationsOn returns the publications as they can be on this server. They publish generated
// columns if the agent reads one and the server can publish it.
func (c Config) publicationsOn(ctx context.Context, q querier) ([]publication, error) {
	generated, err := c.generatedColumns(ctx, q)
	if err != nil {
		return nil, err
	}
	publications := c.publications()
	publications[0].generated = slices.ContainsFunc(generated, func(g generatedColumn) bool { return g.publishable })
	return publications, nil
}

// publishedTables is a part of a FROM clause: the tables g.relid of the publications p. The view
// pg_publication_tables reads the same function and adds names. With the view, to plan a statement
// takes many times as long as to run it.
const publishedTables = `pg_publication p cross join lateral pg_get_publication_tables(p.pubname) g`

// holds returns the condition that a publication holds the table with this oid.
func holds(publication, oid string) string {
	return fmt.Sprintf(`exists (select from %s where p.pubname = %s and g.relid = %s)`, publishedTables, publication, oid)
}

// selectChildren returns the children by inheritance of the outbox. A publication holds the
// children that the outbox had when the publication was made. Later children must be added one by
// one.
var selectChildren = treeOf("$1::text") + `
select format('%I.%I', n.nspname, c.relname) from tree t
join pg_class c on c.oid = t.relation join pg_namespace n on n.oid = c.relnamespace
where t.relation <> to_regclass($1::text) and c.relkind = 'r' and not c.relispartition group by 1 order by 1`

// selectUnpublishedChildren returns the children that a publication does not hold.
var selectUnpublishedChildren = `
select name from (` + selectChildren + `) child (name)
where not ` + holds("$2", "to_regclass(name)") + ` order by name`

// Published returns the first reason why the outbox or the endpoints do not reach the stream, as a
// Problem. It returns nil if all is well.
func (db *DB) Published(ctx context.Context) error {
	return db.firstFailure(ctx, (*DB).checkOutbox, (*DB).checkPublications)
}

// selectMendable returns what exists of a publication, and what the role may make. The role must
// own the publication and the tables. For a new publication, it must be allowed to create in the
// database. Asking first keeps errors out of the server's log.
var selectMendable = `
select p.oid is not null,
       coalesce(pg_has_role(p.pubowner, 'USAGE'), has_database_privilege(current_database(), 'CREATE')),
       array(select t.name from unnest($2::text[]) with ordinality t (name, place)
             where to_regclass(t.name) is not null and not ` + holds("$1", "to_regclass(t.name)") + `
             order by place),
       coalesce((select bool_and(pg_has_role(c.relowner, 'USAGE')) from unnest($2::text[]) t (name) join pg_class c on c.oid = to_regclass(t.name)), false)
from (select) here left join pg_publication p on p.pubname = $1`

// setLockTimeout comes before a statement that can be tried again. A table that is being vacuumed
// or indexed, or a row that the app is changing, delays the agent no longer than that. The agent
// also does not get in the app's way.
const setLockTimeout = `set local lock_timeout = '1s'`

// MendPublications makes what the publications lack, if the role may. It returns what it did. It
// leaves the rest to Preflight, which reports it.
func (db *DB) MendPublications(ctx context.Context) (mended []string, err error) {
	publications, err := db.cfg.publicationsOn(ctx, unprepared{db.pool})
	if err != nil {
		return nil, db.cfg.explain("look at the outbox", err)
	}
	for _, p := range publications {
		statements, err := db.mendingOf(ctx, p)
		if err != nil {
			return mended, db.cfg.explain("look at publication "+p.name, err)
		}
		for _, statement := range statements {
			err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
				if err := exec(ctx, tx, setLockTimeout); err != nil {
					return err
				}
				return exec(ctx, tx, statement)
			})
			if madeMeanwhile(err) {
				continue // another agent, or migrate, was quicker
			}
			if err != nil {
				return mended, db.cfg.explain("mend publication "+p.name, err)
			}
			mended = append(mended, statement)
		}
	}
	return mended, nil
}

func (db *DB) mendingOf(ctx context.Context, p publication) (statements []string, err error) {
	var (
		exists, mayAlter, ownsTables bool
		missing                      []string
	)
	tables, err := db.cfg.tablesOf(ctx, unprepared{db.pool}, p)
	if err != nil {
		return nil, err
	}
	err = unprepared{db.pool}.QueryRow(ctx, selectMendable, p.name, tables).Scan(&exists, &mayAlter, &missing, &ownsTables)
	switch {
	case err != nil:
		return nil, err
	case !mayAlter || !ownsTables:
		return nil, nil
	case !exists:
		return []string{p.create()}, nil
	case len(missing) > 0:
		missing, err = db.filtered(ctx, db.pool, missing)
		return []string{fmt.Sprintf("alter publication %s add table %s", quoteIdent(p.name), strings.Join(missing, ", "))}, err
	}
	return nil, nil
}
