package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Since PostgreSQL 15, an operator may put a row filter on the outbox in the publication. A row
// that the filter leaves out is no event. The stream never brings it, so a comparison must not find
// it either.

// RowFilter is the condition under which the rows of some tables of the outbox are published.
type RowFilter struct {
	Relations []uint32 `json:"Relations"`
	// Name is the name, quoted, of the table that Condition is about.
	Name string `json:"Name"`
	// Condition is an expression over the columns of that table, without a prefix, as PostgreSQL
	// prints it.
	Condition string `json:"Condition"`
}

func (f RowFilter) same(other RowFilter) bool {
	return f.Name == other.Name && f.Condition == other.Condition
}

// selectRowFilters returns the filters that the publications $2 have for the tables that hold the
// rows of the outbox $1. A partition is published by the filter of the outbox, and a child by
// inheritance by its own filter. If there are several publications, it is enough that one publishes
// a row. Before PostgreSQL 15 the view has no filters.
var selectRowFilters = treeOf("$1::text") + `, listed as (
    select c.oid, c.relname, to_jsonb(pt) ->> 'rowfilter' as condition
    from pg_publication_tables pt join pg_namespace n on n.nspname = pt.schemaname
    join pg_class c on c.relnamespace = n.oid and c.relname = pt.tablename
    where pt.pubname = any($2::text[]) and c.oid in (select relation from tree)
), filters as (
    select oid, min(quote_ident(relname)) as name,
           case when bool_and(condition is not null) then string_agg(distinct '(' || condition || ')', ' or ') end as condition
    from listed group by oid
)
select array_agg(relation order by relation), name, condition
from (select distinct relation from tree) t join pg_class c on c.oid = t.relation and c.relkind = 'r',
     lateral (select name, condition from filters
              where oid = case when t.relation in (select oid from filters) then t.relation else to_regclass($1::text) end) f
where condition is not null
group by name, condition order by 1`

// rowFilters reads the filters that are in force.
func (db *DB) rowFilters(ctx context.Context, q querier) ([]RowFilter, error) {
	return queryRows(ctx, q, selectRowFilters, func(row pgx.CollectableRow) (f RowFilter, err error) {
		err = row.Scan(&f.Relations, &f.Name, &f.Condition)
		return f, err
	}, db.cfg.table(), []string{db.cfg.Publication, db.cfg.endpointsPublication()})
}

// streamed returns the condition under which a row o of the outbox reaches the stream. A subquery
// resolves the names of columns in a filter, whatever else the statement reads.
func (c Coverage) streamed() string {
	conditions := []string{"true"}
	for _, f := range c.Filters {
		conditions = append(conditions, fmt.Sprintf(
			"case when o.tableoid = any(%s) then coalesce((select %s from (select o.*) %s), false) else true end",
			oidArray(f.Relations), f.Condition, f.Name))
	}
	return strings.Join(conditions, " and ")
}

// oidArray writes oids as an array of SQL.
func oidArray(oids []uint32) string {
	texts := make([]string, len(oids))
	for i, oid := range oids {
		texts[i] = fmt.Sprint(oid)
	}
	return "array[" + strings.Join(texts, ", ") + "]::oid[]"
}

// filtered adds the filter of the outbox to the names of those of its children that are to become
// members of the publication. So the children are published by the same rule.
func (c Config) filtered(ctx context.Context, q querier, tables []string) ([]string, error) {
	var condition string
	err := q.QueryRow(ctx, selectMemberFilter, c.Publication, c.table()).Scan(&condition)
	if err != nil || condition == "" {
		return tables, err
	}
	members := make([]string, len(tables))
	for i, table := range tables {
		members[i] = table
		if !slices.Contains(c.publications()[0].tables, table) {
			members[i] += " WHERE (" + condition + ")"
		}
	}
	return members, nil
}

const selectMemberFilter = `
select coalesce(max(to_jsonb(pt) ->> 'rowfilter'), '')
from pg_publication_tables pt join pg_namespace n on n.nspname = pt.schemaname
join pg_class c on c.relnamespace = n.oid and c.relname = pt.tablename
where pt.pubname = $1 and c.oid = to_regclass($2)`
