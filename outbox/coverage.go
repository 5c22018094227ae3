package outbox

import (
	"context"
	"slices"
	"strconv"
	"strings"
)

// Coverage describes which rows reach the stream. PostgreSQL gives no notice when a table leaves a
// publication and comes back, when it is made anew under the same name, or when it gets a partition
// that holds rows already. The stream silently skips such rows. So the agent compares the catalogue
// with what it was before.
type Coverage struct {
	// Fingerprint identifies the publications, their members and the tables. It changes whenever
	// one of them is made or altered.
	Fingerprint string `json:"Fingerprint"`
	// Relations are the tables that hold the rows of the outbox: the table itself, its partitions,
	// and its children by inheritance. Each is written as "oid:attachment".
	Relations []string `json:"Relations"`
	// Filters are the row filters that the publication has for them. A change of a filter changes
	// Fingerprint too.
	Filters []RowFilter `json:"Filters,omitempty"`
}

// treeOf returns the beginning of a statement about the outbox and all tables below it, by
// partitions or by inheritance, at any level. Each table comes with the row of pg_inherits that
// ties it to the table above.
func treeOf(outbox string) string { return pieces{"outbox": outbox}.in(tree) }

const tree = `
with recursive tree (relation, attachment) as (
    select to_regclass(${outbox})::oid, null::xid
    union
    select i.inhrelid, i.xmin from tree t join pg_inherits i on i.inhparent = t.relation
)`

// relationsOf returns the SQL expression for Coverage.Relations, given the expressions for the
// names of the table and of its publication. Children by inheritance are members of the publication
// one by one. So the membership of a child is part of its entry. A table with two parents is listed
// if either parent ties it.
func relationsOf(outbox, publication string) string {
	return pieces{"outbox": outbox, "publication": publication}.in(relations)
}

const relations = `(` + tree + `
       select coalesce(array_agg(format('%s:%s%s', relation, attachment, member) order by relation), array[':'])
       from (select relation, min(attachment::text) as attachment,
                    (select '/' || r.xmin::text from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
                     where p.pubname = ${publication} and r.prrelid = t.relation and t.relation <> to_regclass(${outbox})) as member
             from tree t join pg_class c on c.oid = t.relation where c.relkind = 'r' group by relation) r)`

// selectCoverage reads catalogue rows with their xmin. Every change of such a row changes its xmin.
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
           select format('streamed %s.%s', n.nspname, c.relname)
           from ` + publishedTables + ` join pg_class c on c.oid = g.relid join pg_namespace n on n.oid = c.relnamespace
           where p.pubname = any($1) and g.relid in (select to_regclass(name) from unnest($2::text[]) name)
           union all
           select format('table %s', to_regclass(name)::oid) from unnest($2::text[]) name
       ) facts), ''),
       relations,
       -- Before PostgreSQL 15 there are no filters, and no such column.
       exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
               where p.pubname = any($1) and to_jsonb(r) ->> 'prqual' is not null)
from here`

// Coverage reads the coverage from the catalogue.
func (db *DB) Coverage(ctx context.Context) (c Coverage, err error) {
	table, filtered := db.cfg.table(), false
	err = db.pool.QueryRow(ctx, selectCoverage, []string{db.cfg.Publication, db.cfg.endpointsPublication()}, []string{table, "webhooks.replays", "webhooks.endpoints"}, table, db.cfg.Publication).
		Scan(&c.Fingerprint, &c.Relations, &filtered)
	if err == nil && filtered {
		// The filters are read after the fingerprint. A filter that changes in between is found at
		// the next reading.
		c.Filters, err = db.rowFilters(ctx, db.pool)
	}
	return c, db.cfg.explain("look at the publications", err)
}

// Continues reports whether rows reach the stream as they did when last was read. A partition that
// has gone since then does not matter.
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

// known returns the oids of the relations that are also in the relations of a checkpoint. It
// returns nil, which stands for all, if the checkpoint has no list.
func (c Coverage) known(relations []string) (oids []uint32) {
	if relations == nil {
		return nil
	}
	return oidsOf(slices.DeleteFunc(slices.Clone(c.Relations), func(r string) bool { return !slices.Contains(relations, r) }))
}

// oids returns the oids of the relations.
func (c Coverage) oids() []uint32 { return oidsOf(c.Relations) }

func oidsOf(relations []string) []uint32 {
	oids := []uint32{}
	for _, r := range relations {
		text, _, _ := strings.Cut(r, ":")
		// PostgreSQL has printed it, so it is a number
		if oid, err := strconv.ParseUint(text, 10, 32); err == nil {
			oids = append(oids, uint32(oid))
		}
	}
	return oids
}
