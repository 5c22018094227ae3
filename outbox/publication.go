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

// add returns the statement that adds tables to the publication.
func (p publication) add(tables []string) string {
	return fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", quoteIdent(p.name), strings.Join(tables, ", "))
}

// lacks is the finding that the publication does not hold tables. shown are their names in the
// text.
func (p publication) lacks(tables []string, shown ...string) Finding {
	return failure("publication "+p.name, p.add(tables)+"; a partitioned table also needs publish_via_partition_root", "it does not hold %s", strings.Join(shown, ", "))
}

// ensurePublications makes the publications that are missing, and adds the tables that they lack:
// a publication outlives the schema and a change of outbox.table. It takes nothing away.
func (m Migrator) ensurePublications(ctx context.Context, conn *pgx.Conn) error {
	c := m.Config
	publications, err := c.publicationsOn(ctx, conn)
	if err != nil {
		return c.explain("look at the outbox", err)
	}
	for _, p := range publications {
		if err := m.ensurePublication(ctx, conn, p); err != nil {
			return err
		}
	}
	return nil
}

func (m Migrator) ensurePublication(ctx context.Context, conn *pgx.Conn, p publication) error {
	state, err := m.Config.publicationState(ctx, conn, p)
	switch {
	case err != nil:
		return m.Config.explain("look at publication "+p.name, err)
	case !state.exists:
		return m.alterPublication(ctx, conn, p, "create publication "+p.name, p.create())
	case len(state.missing)+len(state.absent) == 0:
		return nil
	}
	if err := m.Config.obstacle(ctx, conn, p, state); err != nil {
		return err
	}
	if len(state.absent) > 0 { // somebody has dropped a table of the agent
		return p.lacks(state.absent, state.absent...).problem()
	}
	if err := m.alterPublication(ctx, conn, p, "add tables to publication "+p.name, state.addition); err != nil {
		return err
	}
	m.say(fmt.Sprintf("publication %s lacked tables: %s", p.name, state.addition))
	state, err = m.Config.publicationState(ctx, conn, p)
	if err == nil && len(state.missing) > 0 { // it publishes the partitions in place of the outbox
		return p.lacks(state.missing, state.missing...).problem()
	}
	return m.Config.explain("look at publication "+p.name, err)
}

// obstacle returns a Problem if a Migrator cannot add to a publication what it lacks: what check
// says of it.
func (c Config) obstacle(ctx context.Context, q querier, p publication, state publicationState) error {
	if slices.Contains(state.absent, c.table()) && c.Table != ownTable {
		fault, err := c.tableFault(ctx, q, "outbox.table "+c.Table)
		if fault == nil || err != nil {
			return err
		}
		return fault.problem()
	}
	if lacking := slices.Concat(state.missing, state.absent); !state.mayAlter || !state.ownsTables && len(state.missing) > 0 {
		return p.lacks(lacking, lacking...).problem()
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

// alterPublication runs a statement that makes a publication or adds tables to it. It takes a lock
// on each of the tables, of the kind that VACUUM has.
func (m Migrator) alterPublication(ctx context.Context, conn *pgx.Conn, p publication, operation, statement string) error {
	tables, err := m.Config.tablesOf(ctx, conn, p)
	if err != nil {
		return m.Config.explain(operation, err)
	}
	var locks []tableLock
	for _, table := range tables {
		locks = append(locks, tableLock{table, beside})
	}
	err = m.insist(ctx, conn, "publication "+p.name, locks, func(timeout time.Duration) error {
		return execWithin(ctx, conn, timeout, statement)
	})
	if err == nil || madeMeanwhile(err) {
		return nil // an agent that waits for the migration may be quicker
	}
	if fault, _ := m.Config.tableFault(ctx, conn, "outbox.table "+m.Config.Table); fault != nil {
		problem := fault.problem()
		problem.Err = err
		return problem
	}
	return m.Config.explain(operation, err)
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

// publicationState is what exists of a publication, and what the role may make of it.
type publicationState struct {
	exists     bool
	mayAlter   bool     // the role owns it, or may create it if there is none
	ownsTables bool     // the role owns each table that is missing
	missing    []string // tables that exist, and that it does not hold
	absent     []string // tables that it should hold, and that do not exist
	addition   string   // the statement that adds what is missing; empty if nothing is
}

// selectPublicationState takes the name of a publication and the tables that it should hold. To add
// a table, the role must own it and the publication. For a new publication, it must be allowed to
// create in the database. Asking first keeps errors out of the server's log.
var selectPublicationState = `
with lacking as (
    select t.name, t.place, to_regclass(t.name) as relation from unnest($2::text[]) with ordinality t (name, place)
    where not ` + holds("$1", "to_regclass(t.name)") + `)
select p.oid is not null,
       coalesce(pg_has_role(p.pubowner, 'USAGE'), has_database_privilege(current_database(), 'CREATE')),
       coalesce((select bool_and(pg_has_role(c.relowner, 'USAGE')) from lacking join pg_class c on c.oid = relation), false),
       array(select name from lacking where relation is not null order by place),
       array(select name from lacking where relation is null order by place)
from (select) here left join pg_publication p on p.pubname = $1`

func (c Config) publicationState(ctx context.Context, q querier, p publication) (s publicationState, err error) {
	tables, err := c.tablesOf(ctx, q, p)
	if err != nil {
		return s, err
	}
	err = q.QueryRow(ctx, selectPublicationState, p.name, tables).Scan(&s.exists, &s.mayAlter, &s.ownsTables, &s.missing, &s.absent)
	if err != nil || !s.exists || len(s.missing) == 0 {
		return s, err
	}
	members, err := c.filtered(ctx, q, s.missing)
	s.addition = p.add(members)
	return s, err
}

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
		state, err := db.cfg.publicationState(ctx, unprepared{db.pool}, p)
		if err != nil {
			return mended, db.cfg.explain("look at publication "+p.name, err)
		}
		statement := state.addition
		if !state.exists {
			statement = p.create()
		}
		if statement == "" || !state.mayAlter || !state.ownsTables {
			continue
		}
		err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
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
	return mended, nil
}
