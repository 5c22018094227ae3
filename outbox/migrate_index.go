package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// selectIndexState says whether an index is there, and whether its build has come to its end.
const selectIndexState = `
select count(*) > 0, coalesce(bool_and(i.indisvalid), false) from pg_index i
where i.indexrelid = to_regclass('webhooks.' || quote_ident($1))`

// buildIndex builds what a migration would build under a lock that keeps writers out. CONCURRENTLY
// cannot be in a transaction, so an index may be there without its migration. A build that was
// interrupted leaves an index that is not valid: writers keep it, nobody reads it, and it is built
// anew.
func (m Migrator) buildIndex(ctx context.Context, conn *pgx.Conn, migration string, index laterIndex) error {
	var exists, valid, rows bool
	if err := conn.QueryRow(ctx, selectIndexState, index.name).Scan(&exists, &valid); err != nil {
		return err
	}
	// A table without rows costs nothing, and CONCURRENTLY would wait for the transactions of
	// others.
	if err := conn.QueryRow(ctx, `select exists (select from `+index.table+`)`).Scan(&rows); err != nil {
		return err
	}
	if valid || !exists && !rows {
		return nil
	}
	// What maintains the table may do so for hours. Here nothing is lost by trying again.
	err := m.insist(ctx, conn, "index webhooks."+index.name, []tableLock{{index.table, beside}}, func(timeout time.Duration) error {
		return execWithin(ctx, conn, timeout, "lock table "+index.table+" in "+beside+" mode")
	})
	if err == nil && exists {
		err = m.concurrently(ctx, conn, index, "drop index concurrently webhooks."+index.name, "access exclusive")
	}
	if err != nil || !rows {
		return err
	}
	m.say(fmt.Sprintf("%s builds the index %s of %s; everybody goes on meanwhile, and it waits for transactions that are open", migration, index.name, index.table))
	return m.concurrently(ctx, conn, index, "create index concurrently "+index.definition, "share")
}

// concurrently runs a statement that waits in between until the transactions of others have ended:
// those that have a lock on the table that conflicts with mode, and those that see it as it was. It
// waits for each as long as the Migrator's patience. With a shorter time it would fail where the
// transactions are long, and each try would read the table again.
func (m Migrator) concurrently(ctx context.Context, conn *pgx.Conn, index laterIndex, statement, mode string) error {
	if err := exec(ctx, conn, fmt.Sprintf("set lock_timeout = '%dms'", m.patience().Milliseconds())); err != nil {
		return err
	}
	err := exec(ctx, conn, statement)
	if err == nil {
		return exec(ctx, conn, "reset lock_timeout")
	}
	if SQLState(err) != codeLockNotAvailable {
		return err
	}
	holder, lookErr := holderOf(ctx, conn, []tableLock{{index.table, mode}})
	if lookErr == nil && holder.pid == 0 {
		holder, lookErr = readHolder(conn.QueryRow(ctx, selectOldestTransaction))
	}
	if lookErr != nil {
		return errors.Join(err, lookErr)
	}
	reason := fmt.Sprintf("it waits for the transactions of others, and in %s they have not ended", m.patience())
	if holder.pid != 0 {
		reason = fmt.Sprintf("it waits for the transactions of others, and in %s that of the process %d %s has not ended", m.patience(), holder.pid, holder.details())
	}
	return &Problem{Thing: "index webhooks." + index.name, Reason: reason, Remedy: holder.remedy() + ", and the index is built anew", Fatal: true, Err: err}
}

// selectOldestTransaction names the oldest transaction of the database. One that has a snapshot
// comes first: the build of an index waits for the others only if they have locked the table.
const selectOldestTransaction = `
select a.pid, '', '', false, ` + aboutSession + `
from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'virtualxid' and l.granted and a.datname = current_database() and a.pid <> pg_backend_pid()
order by a.backend_xmin is null, a.xact_start nulls last limit 1`
