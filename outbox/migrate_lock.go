package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/backoff"
)

// A statement that waits for a strong lock makes everybody who comes after it wait as well: a
// transaction that has the outbox open for an hour would stop the app's INSERTs for an hour. So a
// migration waits for lockTimeout only, gives up, lets the others pass, and tries again.
const (
	lockTimeout = 500 * time.Millisecond
	// longLockTimeout is for each fourth try. It is longer than PostgreSQL's deadlock_timeout (1 s), after
	// which an autovacuum gives way to who waits for it.
	longLockTimeout = 1100 * time.Millisecond
	lockPatience    = 5 * time.Minute
	// migrationPause is the wait between two tries.
	migrationPause = time.Second
)

// codeLockNotAvailable and codeDeadlock are the answers to a lock that was not to be had.
const (
	codeLockNotAvailable = "55P03"
	codeDeadlock         = "40P01"
)

// selectIndexState says whether an index is there, and whether its build has come to its end.
const selectIndexState = `
select count(*) > 0, coalesce(bool_and(i.indisvalid), false) from pg_index i
where i.indexrelid = to_regclass('webhooks.' || quote_ident($1))`

// buildIndexes builds what the migration would build under a lock that keeps writers out.
// CONCURRENTLY cannot be in a transaction, so an index may be there without its migration. A build that
// was interrupted leaves an index that is not valid.
func (m Migrator) buildIndexes(ctx context.Context, conn *pgx.Conn, change migration) error {
	for _, index := range change.indexes {
		var exists, valid, rows bool
		if err := conn.QueryRow(ctx, selectIndexState, index.name).Scan(&exists, &valid); err != nil {
			return err
		}
		// A table without rows costs nothing, and CONCURRENTLY would wait for the transactions of others.
		if err := conn.QueryRow(ctx, `select exists (select from `+index.table+`)`).Scan(&rows); err != nil {
			return err
		}
		if exists && !valid {
			if err := exec(ctx, conn, `drop index concurrently webhooks.`+index.name); err != nil {
				return err
			}
		}
		if valid || !rows {
			continue
		}
		m.say(fmt.Sprintf("%s builds the index %s of %s; everybody goes on meanwhile, and it waits for transactions that are open", change.name, index.name, index.table))
		if err := exec(ctx, conn, `create index concurrently `+index.definition); err != nil {
			return err
		}
	}
	return nil
}

func (m Migrator) say(text string) {
	if m.Progress != nil {
		m.Progress(text)
	}
}

// apply runs a migration and records its version, both or neither. It tries again while others hold
// what it has to lock.
func (m Migrator) apply(ctx context.Context, conn *pgx.Conn, change migration, version int) error {
	if err := m.buildIndexes(ctx, conn, change); err != nil {
		return err
	}
	patience := m.Patience
	if patience == 0 {
		patience = lockPatience
	}
	began, said := time.Now(), lockHolder{pid: -1}
	for try := 1; ; try++ {
		timeout := lockTimeout
		if try%4 == 0 {
			timeout = longLockTimeout
		}
		err := change.try(ctx, conn, version, timeout)
		if state := SQLState(err); state != codeLockNotAvailable && state != codeDeadlock {
			return err
		}
		holder, lookErr := change.holder(ctx, conn)
		if lookErr != nil {
			return errors.Join(err, lookErr)
		}
		if time.Since(began) > patience {
			return &Problem{Thing: "migration " + change.name, Reason: fmt.Sprintf("in %s it did not get a lock on %s", patience, change.lockedTables()) + holder.text,
				Remedy: holder.remedy(), Fatal: true, Err: err}
		}
		if said.pid != holder.pid {
			m.say(fmt.Sprintf("%s waits for a lock on %s%s; trying again, and nobody waits behind it", change.name, change.lockedTables(), holder.text))
		}
		said = holder
		if !backoff.Sleep(ctx, migrationPause) {
			return context.Cause(ctx)
		}
	}
}

func (m migration) try(ctx context.Context, conn *pgx.Conn, version int, timeout time.Duration) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		sql := []string{fmt.Sprintf("set local lock_timeout = '%dms'", timeout.Milliseconds())}
		// The outbox comes last, so that the app does not wait while this waits for the others.
		for _, lock := range m.locks {
			sql = append(sql, "lock table "+lock.table+" in "+lock.mode+" mode")
		}
		if err := exec(ctx, tx, strings.Join(sql, "; ")); err != nil {
			return err
		}
		if err := exec(ctx, tx, m.sql); err != nil {
			return err
		}
		return exec(ctx, tx, "update "+versionTable+" set "+m.setVersion(version))
	})
}

func (m migration) lockedTables() string {
	var names []string
	for _, lock := range m.locks {
		names = append(names, lock.table)
	}
	if len(names) == 0 {
		return "its tables"
	}
	return strings.Join(names, ", ")
}

// lockHolder is the session that a migration waits for.
type lockHolder struct {
	pid  int32
	text string // empty if nobody is seen
}

func (h lockHolder) remedy() string {
	if h.pid == 0 {
		return "run migrate again when less is written"
	}
	return fmt.Sprintf("end its transaction (select pg_terminate_backend(%d)), or run migrate again when it has ended; what was migrated so far stays", h.pid)
}

// selectLockHolder names the oldest transaction that has a lock of a kind that matters on one of the
// tables $1. $2 are the kinds that do not, with commas. What it is doing is shown to roles that may
// see it.
const selectLockHolder = `
select a.pid, coalesce(a.usename, ''), coalesce(a.application_name, ''), coalesce(a.state, ''),
       coalesce(extract(epoch from clock_timestamp() - a.xact_start), 0)::float8
from unnest($1::text[], $2::text[]) wanted (name, harmless)
join pg_locks l on l.relation = wanted.name::regclass and l.mode <> all(string_to_array(wanted.harmless, ','))
join pg_stat_activity a on a.pid = l.pid
where l.granted and l.database = (select oid from pg_database where datname = current_database())
  and a.pid <> pg_backend_pid()
order by a.xact_start nulls last limit 1`

// harmlessBeside has the kinds of locks that do not conflict with one that a migration takes, by
// https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES.
var harmlessBeside = map[string]string{
	"share":               "AccessShareLock,RowShareLock,ShareLock",
	"share row exclusive": "AccessShareLock,RowShareLock",
	"exclusive":           "AccessShareLock",
}

func (m migration) holder(ctx context.Context, conn *pgx.Conn) (lockHolder, error) {
	tables, harmless := []string{}, []string{}
	for _, lock := range m.locks {
		tables, harmless = append(tables, lock.table), append(harmless, harmlessBeside[lock.mode])
	}
	var (
		h                 lockHolder
		role, name, state string
		seconds           float64
	)
	err := conn.QueryRow(ctx, selectLockHolder, tables, harmless).Scan(&h.pid, &role, &name, &state, &seconds)
	if errors.Is(err, pgx.ErrNoRows) {
		return h, nil // it has ended meanwhile
	}
	if err != nil {
		return h, err
	}
	open := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	details := []string{"role " + role}
	for _, detail := range []string{name, state} {
		if detail != "" {
			details = append(details, detail)
		}
	}
	h.text = fmt.Sprintf(" that the process %d holds (%s, its transaction is open for %s)", h.pid, strings.Join(details, ", "), open)
	return h, nil
}
