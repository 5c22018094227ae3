package outbox

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// treeByName is the beginning of a statement about the outbox $1.$2, its partitions, and its
// children by inheritance. It uses names, because to_regclass is an error if the role may not use
// the schema.
const treeByName = `
with recursive tree (relation) as (
    select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2
    union
    select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relation
)`

// selectHooks takes the bit of pg_trigger.tgtype and the value of pg_rewrite.ev_type for a
// statement.
const selectHooks = treeByName + `
select 'trigger ' || t.tgname from pg_trigger t join tree on t.tgrelid = tree.relation
where not t.tgisinternal and t.tgtype & $3::int4 <> 0 and t.tgenabled <> 'D'
union
select 'rule ' || r.rulename from pg_rewrite r join tree on r.ev_class = tree.relation
where r.ev_type::text = $4 and r.ev_enabled <> 'D'
order by 1`

// checkHooks warns of code that a DELETE by the pruner or an INSERT of a notice runs. The owner of
// the table has written that code, and it runs with the agent's rights.
func (db *DB) checkHooks(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	schema, table := db.cfg.tableName()
	for _, of := range []struct {
		used         bool
		bit          int
		event        string
		what, remedy string
	}{
		{db.cfg.Retention > 0, 8, "4", "pruning runs", `set outbox.retention = "0s" and prune the table by a role of its own, or drop them`},
		{db.cfg.Notices, 4, "3", "writing notices runs", "set notices.enabled = false, or drop them"},
	} {
		if !of.used {
			continue
		}
		hooks, err := queryRows(ctx, tx, selectHooks, pgx.RowTo[string], schema, table, of.bit, of.event)
		if err != nil {
			return found, err
		}
		if len(hooks) > 0 {
			found = append(found, warning("triggers of "+db.cfg.Table, of.remedy,
				"%s %s with the agent's rights, which reach the endpoints' secrets", of.what, strings.Join(hooks, ", ")))
		}
	}
	return found, nil
}

const selectUnusedOutbox = `select exists (select from webhooks.outbox limit 1)`

// checkUnusedOutbox warns of events in the agent's own table if another table is mapped as the
// outbox.
func (db *DB) checkUnusedOutbox(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	const unused = "webhooks.outbox"
	if schema, table := db.cfg.tableName(); schema+"."+table == unused {
		return nil, nil
	}
	if ok, err := readable(ctx, tx, unused); err != nil || !ok {
		return nil, err
	}
	var rows bool
	if err := tx.QueryRow(ctx, selectUnusedOutbox).Scan(&rows); err != nil || !rows {
		return nil, err
	}
	return []Finding{warning(unused, "write events into "+db.cfg.Table+", and empty webhooks.outbox",
		"it has rows, which nobody delivers: outbox.table is %s", db.cfg.Table)}, nil
}

// manyRetained is how many bytes of WAL a slot may keep, while no agent is connected, before check
// warns.
const manyRetained = 256 << 20

const selectRetained = `
select current_setting('max_slot_wal_keep_size') = '-1',
       case when exists (select from pg_replication_slots where slot_name = $1 and active) then 0 else ` + retainedBytes + ` end`

// checkRetainedWAL warns of a disk that may become full while no agent runs.
func (db *DB) checkRetainedWAL(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	var (
		unbounded bool
		retained  int64
	)
	if err := tx.QueryRow(ctx, selectRetained, db.cfg.Slot).Scan(&unbounded, &retained); err != nil {
		return nil, err
	}
	return retainedFindings(db.cfg.Slot, unbounded, retained), nil
}

func retainedFindings(slot string, unbounded bool, retained int64) (found []Finding) {
	if unbounded {
		found = append(found, warning("max_slot_wal_keep_size", "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB' (less than the disk has free) and reload",
			"it is -1: while no agent runs, the slot keeps WAL until the disk is full"))
	}
	if retained > manyRetained {
		found = append(found, warning("slot "+slot, "start the agent, or drop the slot with webhook-agent uninstall",
			"no agent is connected and it keeps %d MiB of WAL on the server's disk", retained>>20))
	}
	return found
}
