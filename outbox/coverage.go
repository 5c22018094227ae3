package outbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Coverage is what decides which rows reach the stream. PostgreSQL tells nobody when a table leaves a publication and comes
// back, is made anew under its name, or gets a partition that holds rows already: the rows are passed over without a
// word. So the catalogue is compared with what it was.
type Coverage struct {
	// Fingerprint names the publications, their members and the tables by what changes whenever they are made or altered.
	Fingerprint string
	// Relations are the tables that hold the rows of the outbox, itself, its partitions and its children by inheritance, each as
	// "oid:attachment".
	Relations []string
	// Filters are the row filters of the publication for them. A change of one changes the Fingerprint.
	Filters []RowFilter `json:",omitempty"`
}

// treeOf begins a statement about the outbox and all tables below it, by partitions or by inheritance, whatever the level: each
// with the row of pg_inherits that ties it to the one above.
func treeOf(outbox string) string { return pieces{"outbox": outbox}.in(tree) }

const tree = `
with recursive tree (relation, attachment) as (
    select to_regclass(${outbox})::oid, null::xid
    union
    select i.inhrelid, i.xmin from tree t join pg_inherits i on i.inhparent = t.relation
)`

// selectChildren names the children by inheritance of the outbox. A publication that was made for the outbox holds those that it had
// then; later ones are added to it one by one.
var selectChildren = treeOf("$1::text") + `
select format('%I.%I', n.nspname, c.relname) from tree t
join pg_class c on c.oid = t.relation join pg_namespace n on n.oid = c.relnamespace
where t.relation <> to_regclass($1::text) and c.relkind = 'r' and not c.relispartition group by 1 order by 1`

// selectUnpublishedChildren names those that a publication does not hold.
var selectUnpublishedChildren = `
select name from (` + selectChildren + `) child (name)
where not ` + holds("$2", "to_regclass(name)") + ` order by name`

// holds is the condition that a publication holds a table. It goes by names, since asking for the oid of a table is an error where the
// role may not use its schema.
func holds(publication, table string) string {
	return fmt.Sprintf(`exists (select from pg_publication_tables pt join pg_namespace n on n.nspname = pt.schemaname
      join pg_class c on c.relnamespace = n.oid and c.relname = pt.tablename where pt.pubname = %s and c.oid = %s)`, publication, table)
}

// checkChildren returns what is wrong with a publication when it leaves out children of the outbox.
func (db *DB) checkChildren(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	missing, err := queryRows(ctx, tx, selectUnpublishedChildren, pgx.RowTo[string], db.cfg.table(), db.cfg.Publication)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	members, err := db.filtered(ctx, tx, missing)
	if err != nil {
		return nil, err
	}
	more := ""
	if len(missing) > 1 {
		more = fmt.Sprintf(" and %d more", len(missing)-1)
	}
	return []Finding{failure("publication "+db.cfg.Publication,
		"ALTER PUBLICATION "+quoteIdent(db.cfg.Publication)+" ADD TABLE "+strings.Join(members, ", ")+", or let the agent's role own the outbox and the publication, so that it adds them itself",
		"it does not hold %s%s, which inherits from the outbox, so those rows are found by comparisons only", missing[0], more)}, nil
}

// relationsOf is Coverage.Relations of a table, given the expressions for its name and that of its publication. Children by
// inheritance are members of the publication one by one, so what each is of it belongs to what is told of the child. Where a
// table has two parents, either ties it.
func relationsOf(outbox, publication string) string {
	return pieces{"outbox": outbox, "publication": publication}.in(relations)
}

const relations = `(` + tree + `
       select coalesce(array_agg(format('%s:%s%s', relation, attachment, member) order by relation), array[':'])
       from (select relation, min(attachment::text) as attachment,
                    (select '/' || r.xmin::text from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
                     where p.pubname = ${publication} and r.prrelid = t.relation and t.relation <> to_regclass(${outbox})) as member
             from tree t join pg_class c on c.oid = t.relation where c.relkind = 'r' group by relation) r)`

// selectCoverage reads catalogue rows with their xmin, which every change of such a row renews.
var selectCoverage = `
with here as materialized (select ` + relationsOf("$3::text", "$4::text") + ` as relations)
select coalesce((select string_agg(fact, ' ' order by fact) from (
           select format('publication %s/%s', oid, xmin) as fact from pg_publication where pubname = any($1)
           union all
           select format('member %s/%s', r.oid, r.xmin) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
           where p.pubname = any($1) and (r.prrelid = to_regclass($3) or r.prrelid not in
                 (select split_part(relation, ':', 1)::oid from unnest(relations) relation where relation <> ':'))
           union all
           -- A publication may hold other tables too, even all.
           select format('streamed %s.%s', schemaname, tablename) from pg_publication_tables
           where pubname = any($1) and (schemaname, tablename) in
                 (select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.oid in (select to_regclass(name) from unnest($2::text[]) name))
           union all
           select format('table %s', to_regclass(name)::oid) from unnest($2::text[]) name
       ) facts), ''),
       relations
from here`

// Coverage reads it.
func (db *DB) Coverage(ctx context.Context) (c Coverage, err error) {
	table := db.cfg.table()
	err = db.pool.QueryRow(ctx, selectCoverage, []string{db.cfg.Publication, db.cfg.endpointsPublication()}, []string{table, "webhooks.replays", "webhooks.endpoints"}, table, db.cfg.Publication).Scan(&c.Fingerprint, &c.Relations)
	if err == nil {
		// After the fingerprint: a filter that comes in between is found by the next look.
		c.Filters, err = db.rowFilters(ctx, db.pool)
	}
	return c, db.cfg.explain("look at the publications", err)
}

// Continues tells that rows reach the stream as they did when last was read. A partition that is gone since does not matter.
func (c Coverage) Continues(last Coverage) bool {
	return c.Fingerprint == last.Fingerprint && len(c.added(last.Relations)) == 0
}

// partitioned reports whether the outbox has partitions or children by inheritance.
func (c Coverage) partitioned() bool {
	return slices.ContainsFunc(c.Relations, func(r string) bool { return !strings.HasSuffix(r, ":") })
}

// added returns the relations that are not among the known ones.
func (c Coverage) added(known []string) (added []string) {
	for _, r := range c.Relations {
		if !slices.Contains(known, r) {
			added = append(added, r)
		}
	}
	return added
}

// known returns the oids of the relations that are among those of a checkpoint; nil when it does not tell, which stands for all.
func (c Coverage) known(relations []string) (oids []uint32) {
	if relations == nil {
		return nil
	}
	return oidsOf(slices.DeleteFunc(slices.Clone(c.Relations), func(r string) bool { return !slices.Contains(relations, r) }))
}

// oids returns those of the relations.
func (c Coverage) oids() []uint32 { return oidsOf(c.Relations) }

func oidsOf(relations []string) []uint32 {
	oids := []uint32{}
	for _, r := range relations {
		text, _, _ := strings.Cut(r, ":")
		if oid, err := strconv.ParseUint(text, 10, 32); err == nil { // PostgreSQL has printed it
			oids = append(oids, uint32(oid))
		}
	}
	return oids
}

// Published returns the first reason why the outbox or the endpoints do not reach the stream as a Problem, nil when all is
// well.
func (db *DB) Published(ctx context.Context) error {
	return db.firstFailure(ctx, (*DB).checkOutbox, (*DB).checkPublications)
}

// selectMendable tells what exists of a publication, and what the role may make: it must own the publication and the
// tables, or, for a new publication, be allowed to create in the database. Asking first keeps errors out of the server's
// log.
var selectMendable = `
select p.oid is not null,
       coalesce(pg_has_role(p.pubowner, 'USAGE'), has_database_privilege(current_database(), 'CREATE')),
       array(select t.name from unnest($2::text[]) with ordinality t (name, place)
             where to_regclass(t.name) is not null and not ` + holds("$1", "to_regclass(t.name)") + `
             order by place),
       coalesce((select bool_and(pg_has_role(c.relowner, 'USAGE')) from unnest($2::text[]) t (name) join pg_class c on c.oid = to_regclass(t.name)), false)
from (select) here left join pg_publication p on p.pubname = $1`

// setLockTimeout goes before what can be tried again: a table that is being vacuumed or indexed, or a row that the app is changing, holds
// up no more than that, and the agent does not stand in the app's way.
const setLockTimeout = `set local lock_timeout = '1s'`

// MendPublications makes what is missing of the publications, as far as the role may, and tells what it did. What it may not
// make it leaves to Preflight, which says so.
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
			if err != nil && SQLState(err) != codeDuplicateObject { // another agent was quicker
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
	tables := p.tables
	if p.name == db.cfg.Publication {
		children, err := queryRows(ctx, unprepared{db.pool}, selectChildren, pgx.RowTo[string], db.cfg.table())
		if err != nil {
			return nil, err
		}
		tables = slices.Concat(tables, children)
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

// firstFailure runs some checks and returns the first failure as a Problem.
func (db *DB) firstFailure(ctx context.Context, checks ...check) error {
	return db.look(ctx, "check", func(tx pgx.Tx) error {
		for _, look := range checks {
			found, err := look(db, ctx, tx)
			if err != nil {
				return err
			}
			for _, f := range found {
				if f.Level == LevelFail && !f.tolerated {
					return f.problem()
				}
			}
		}
		return nil
	})
}
