package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// generatedVersion is the first PostgreSQL that can publish generated columns. It publishes stored
// ones only.
const generatedVersion = 180000

const selectGenerated = `
select a.attname::text, a.attgenerated = 's', current_setting('server_version_num')::int
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2 and a.attname = any($3) and a.attgenerated <> '' and not a.attisdropped
order by a.attnum`

// generatedColumn is a column of the outbox that the agent reads and PostgreSQL computes.
type generatedColumn struct {
	name        string
	stored      bool
	publishable bool // this server can publish it
}

func (c Config) generatedColumns(ctx context.Context, q querier) ([]generatedColumn, error) {
	schema, table := c.tableName()
	var read []string
	for _, column := range c.Columns.list() {
		read = append(read, column.name)
	}
	return queryRows(ctx, q, selectGenerated, func(row pgx.CollectableRow) (g generatedColumn, err error) {
		var version int
		err = row.Scan(&g.name, &g.stored, &version)
		g.publishable = g.stored && version >= generatedVersion
		return g, err
	}, schema, table, read)
}

// withoutGenerated takes the generated columns out of the hidden columns of the outbox. Generated
// columns get a finding of their own, because a list of columns does not publish them. Before
// PostgreSQL 18, the catalogue shows such columns as published although they are not.
func (db *DB) withoutGenerated(ctx context.Context, tx pgx.Tx, thing, alter string, hidden []string) (rest []string, found []Finding, err error) {
	generated, err := db.cfg.generatedColumns(ctx, tx)
	if err != nil {
		return hidden, nil, err
	}
	isHidden := map[string]bool{}
	for _, name := range hidden {
		isHidden[name] = true
	}
	for _, g := range generated {
		switch {
		case g.publishable && isHidden[g.name]:
			found = append(found, failure(thing, alter+" SET (publish_generated_columns = stored)",
				"it does not publish column %q of %s, which is generated", g.name, db.cfg.Table))
		case !g.publishable:
			found = append(found, failure(thing, "use a plain column, filled by the app, a default or a trigger",
				"column %q of %s is generated, and this server cannot stream it", g.name, db.cfg.Table))
		}
		delete(isHidden, g.name)
	}
	for _, name := range hidden {
		if isHidden[name] {
			rest = append(rest, name)
		}
	}
	return rest, found, nil
}
