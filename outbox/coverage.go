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
	// Relations are the tables that hold the rows of the outbox, itself or its partitions, each as "oid:attachment".
	Relations []string
}

// relationsOf is Coverage.Relations of the table that its argument names.
const relationsOf = `coalesce((select array_agg(format('%%s:%%s', p.relid::oid, i.xmin) order by p.relid)
                 from pg_partition_tree(to_regclass(%[1]s)) p left join pg_inherits i on i.inhrelid = p.relid where p.isleaf),
                array[format('%%s:', to_regclass(%[1]s)::oid)])`

// selectCoverage reads catalogue rows with their xmin, which every change of such a row renews.
var selectCoverage = `
select coalesce((select string_agg(fact, ' ' order by fact) from (
           select format('publication %s/%s', oid, xmin) as fact from pg_publication where pubname = any($1)
           union all
           select format('member %s/%s', r.oid, r.xmin) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where p.pubname = any($1)
           union all
           -- A publication may hold other tables too, even all.
           select format('streamed %s.%s', schemaname, tablename) from pg_publication_tables
           where pubname = any($1) and (schemaname, tablename) in
                 (select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.oid in (select to_regclass(name) from unnest($2::text[]) name union all select relid from pg_partition_tree(to_regclass($3))))
           union all
           select format('table %s', to_regclass(name)::oid) from unnest($2::text[]) name
       ) facts), ''),
       ` + fmt.Sprintf(relationsOf, "$3")

// Coverage reads it.
func (db *DB) Coverage(ctx context.Context) (c Coverage, err error) {
	table := db.cfg.table()
	err = db.pool.QueryRow(ctx, selectCoverage, []string{db.cfg.Publication, db.cfg.endpointsPublication()},
		[]string{table, "webhooks.replays", "webhooks.endpoints"}, table).Scan(&c.Fingerprint, &c.Relations)
	return c, db.cfg.explain("look at the publications", err)
}

// Continues tells that rows reach the stream as they did when last was read. A partition that is gone since does not matter.
func (c Coverage) Continues(last Coverage) bool {
	return c.Fingerprint == last.Fingerprint && len(c.added(last.Relations)) == 0
}

// partitioned tells that the outbox has partitions.
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
	oids = []uint32{}
	for _, r := range c.Relations {
		if !slices.Contains(relations, r) {
			continue
		}
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
const selectMendable = `
select p.oid is not null,
       coalesce(pg_has_role(p.pubowner, 'USAGE'), has_database_privilege(current_database(), 'CREATE')),
       array(select t.name from unnest($2::text[]) with ordinality t (name, place)
             where to_regclass(t.name) is not null and not exists (select from pg_publication_tables pt where pt.pubname = $1
                   and to_regclass(format('%I.%I', pt.schemaname, pt.tablename)) = to_regclass(t.name))
             order by place),
       coalesce((select bool_and(pg_has_role(c.relowner, 'USAGE')) from unnest($2::text[]) t (name) join pg_class c on c.oid = to_regclass(t.name)), false)
from (select) here left join pg_publication p on p.pubname = $1`

// setLockTimeout goes before what can be tried again: a table that is being vacuumed or indexed, or a row that the app is changing, holds
// up no more than that, and the agent does not stand in the app's way.
const setLockTimeout = `set local lock_timeout = '1s'`

// MendPublications makes what is missing of the publications, as far as the role may, and tells what it did. What it may not
// make it leaves to Preflight, which says so.
func (db *DB) MendPublications(ctx context.Context) (mended []string, err error) {
	publications, err := db.cfg.publicationsOn(ctx, db.pool)
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
	err = db.pool.QueryRow(ctx, selectMendable, p.name, p.tables).Scan(&exists, &mayAlter, &missing, &ownsTables)
	switch {
	case err != nil:
		return nil, err
	case !mayAlter || !ownsTables:
		return nil, nil
	case !exists:
		return []string{p.create()}, nil
	case len(missing) > 0:
		return []string{fmt.Sprintf("alter publication %s add table %s", quoteIdent(p.name), strings.Join(missing, ", "))}, nil
	}
	return nil, nil
}

// firstFailure runs some checks and returns the first failure as a Problem.
func (db *DB) firstFailure(ctx context.Context, checks ...check) error {
	for _, look := range checks {
		err := db.look(ctx, "check", func(tx pgx.Tx) error {
			found, err := look(db, ctx, tx)
			if err != nil {
				return err
			}
			for _, f := range found {
				if f.Level == LevelFail {
					return f.problem()
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
