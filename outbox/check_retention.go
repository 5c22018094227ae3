package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// selectPrunable reports whether a table's rows may be deleted, and whether each part of it has an
// index that begins with a given column. Without such an index, pruning would read the whole part
// again and again.
const selectPrunable = `
select current_user::text, has_table_privilege(c.oid, 'DELETE'),
       not exists (
           select from (select c.oid as part where c.relkind = 'r' union select p.relid::oid from pg_partition_tree(c.oid) p where p.isleaf) parts
           where not exists (
               select from pg_index i
               join pg_class ic on ic.oid = i.indexrelid
               join pg_am m on m.oid = ic.relam and m.amname = 'btree'
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
               where i.indrelid = parts.part and i.indisvalid and i.indpred is null and a.attname = $3))
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2`

// selectUnidentified returns a part of the outbox from which rows cannot be deleted, and the
// reason: the named publication publishes deletes, and the table has no replica identity that says
// which row was deleted. A partition is published by its parent or by itself.
const selectUnidentified = treeByName + `
select format('%I.%I', n.nspname, c.relname), p.pubname::text
from tree join pg_class c on c.oid = tree.relation and c.relkind = 'r' join pg_namespace n on n.oid = c.relnamespace
join (select p.pubname, g.relid from ` + publishedTables + ` where p.pubdelete) p
  on p.relid = c.oid or c.relispartition and p.relid = (select r.oid from pg_class r join pg_namespace n on n.oid = r.relnamespace where n.nspname = $1 and r.relname = $2)
where case c.relreplident when 'f' then false when 'n' then true
      else not exists (select from pg_index i where i.indrelid = c.oid and i.indisvalid
                       and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end) end
order by 1, 2 limit 1`

// checkRetention reports what keeps the agent from pruning.
func (db *DB) checkRetention(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	if db.cfg.Retention == 0 {
		return nil, nil
	}
	for _, look := range []check{(*DB).checkOutboxRetention, (*DB).checkReplaysRetention} {
		of, err := look(db, ctx, tx)
		if err != nil {
			return found, err
		}
		found = append(found, of...)
	}
	if len(found) == 0 {
		found = append(found, fine("retention", "what is older than %g days is pruned", db.cfg.Retention.Round(time.Hour).Hours()/24))
	}
	return found, nil
}

func (db *DB) checkOutboxRetention(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	var (
		role               string
		mayDelete, indexed bool
	)
	schema, table := db.cfg.tableName()
	err = tx.QueryRow(ctx, selectPrunable, schema, table, db.cfg.Columns.Created).Scan(&role, &mayDelete, &indexed)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil // checkOutbox reports that
	}
	if err != nil {
		return nil, err
	}
	thing := "retention of " + db.cfg.Table
	if !mayDelete {
		found = append(found, warning(thing, fmt.Sprintf("GRANT DELETE ON %s TO %s", db.cfg.table(), quoteIdent(role)),
			"it is not pruned: role %s lacks DELETE", role))
	}
	var part, publication string
	err = tx.QueryRow(ctx, selectUnidentified, schema, table).Scan(&part, &publication)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return found, err
	default:
		found = append(found, warning(thing, "ALTER TABLE "+part+" REPLICA IDENTITY FULL, or give it a primary key",
			"it is not pruned: publication %s publishes deletes, which PostgreSQL refuses for %s without a replica identity", publication, part))
	}
	if created := db.cfg.Columns.Created; !indexed {
		found = append(found, warning(thing, fmt.Sprintf("CREATE INDEX ON %s (%s)", db.cfg.table(), quoteIdent(created)),
			"it is not pruned: no index begins with column %q", created))
	}
	return found, nil
}

// checkReplaysRetention checks the replays, the only table of the agent from which only pruning
// deletes.
func (db *DB) checkReplaysRetention(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	const replays = "webhooks.replays"
	lacking, err := queryRows(ctx, tx, selectLacking, pgx.RowTo[string], []string{replays}, []string{"DELETE"})
	if err != nil || len(lacking) == 0 {
		return nil, err
	}
	var role string
	err = tx.QueryRow(ctx, selectUser).Scan(&role)
	return []Finding{warning("retention of "+replays, "GRANT "+lacking[0]+" TO "+quoteIdent(role), "it is not pruned: role %s lacks DELETE", role)}, err
}

// lookForObstacles finds the obstacles that can be known before pruning begins.
func (p *Pruner) lookForObstacles(ctx context.Context) error {
	p.obstacles = map[PrunedTable]*Problem{}
	return p.slot.db.look(ctx, "look for what keeps rows from being deleted", func(tx pgx.Tx) error {
		for table, look := range map[PrunedTable]check{PrunedOutbox: (*DB).checkOutboxRetention, PrunedReplays: (*DB).checkReplaysRetention} {
			found, err := look(p.slot.db, ctx, tx)
			if err != nil {
				return err
			}
			if len(found) > 0 {
				p.obstacles[table] = found[0].problem()
			}
		}
		return nil
	})
}
