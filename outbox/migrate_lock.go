package outbox

import (
	"cmp"
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
	// longLockTimeout is for each fourth try. It is longer than PostgreSQL's deadlock_timeout (1
	// s), after which an autovacuum gives way to who waits for it.
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

func (m Migrator) say(text string) {
	if m.Progress != nil {
		m.Progress(text)
	}
}

func (m Migrator) patience() time.Duration { return cmp.Or(m.Patience, lockPatience) }

// insist calls do, which wants locks for a thing, until they are to be had. do waits no longer than
// the timeout that it is given. After the Migrator's patience the error names who has a lock.
func (m Migrator) insist(ctx context.Context, conn *pgx.Conn, thing string, locks []tableLock, do func(timeout time.Duration) error) error {
	began, said := time.Now(), lockHolder{pid: -1}
	for try := 1; ; try++ {
		timeout := lockTimeout
		if try%4 == 0 {
			timeout = longLockTimeout
		}
		err := do(timeout)
		if state := SQLState(err); state != codeLockNotAvailable && state != codeDeadlock {
			return err
		}
		holder, lookErr := holderOf(ctx, conn, locks)
		if lookErr != nil {
			return errors.Join(err, lookErr)
		}
		if time.Since(began) > m.patience() {
			return &Problem{Thing: thing, Reason: fmt.Sprintf("in %s it did not get a lock on %s", m.patience(), holder.on(locks)),
				Remedy: holder.remedy(), Fatal: true, Err: err}
		}
		if said.pid != holder.pid {
			m.say(fmt.Sprintf("%s waits for a lock on %s; trying again, and nobody waits behind it", thing, holder.on(locks)))
		}
		said = holder
		if !backoff.Sleep(ctx, migrationPause) {
			return context.Cause(ctx)
		}
	}
}

// execWithin runs statements in one transaction, in which no lock is waited for longer than
// timeout.
func execWithin(ctx context.Context, conn *pgx.Conn, timeout time.Duration, statements string) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := exec(ctx, tx, limitLocks(timeout)); err != nil {
			return err
		}
		return exec(ctx, tx, statements)
	})
}

func limitLocks(timeout time.Duration) string {
	return fmt.Sprintf("set local lock_timeout = '%dms'", timeout.Milliseconds())
}

// apply runs a migration and records its version, both or neither. It tries again while others hold
// what it has to lock.
func (m Migrator) apply(ctx context.Context, conn *pgx.Conn, change migration, version int) error {
	for _, index := range change.indexes {
		if err := m.buildIndex(ctx, conn, change.name, index); err != nil {
			return err
		}
	}
	return m.insist(ctx, conn, "migration "+change.name, change.locks, func(timeout time.Duration) error {
		return change.try(ctx, conn, version, timeout)
	})
}

func (m migration) try(ctx context.Context, conn *pgx.Conn, version int, timeout time.Duration) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		sql := []string{limitLocks(timeout)}
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

// lockHolder is the session that a migration waits for. Its pid is 0 if nobody is seen.
type lockHolder struct {
	pid   int32
	table string
	// work is what maintains the table, such as VACUUM; "" if the session does something else.
	work string
	// automatic reports that PostgreSQL has started the work itself. Its process has no role.
	automatic            bool
	role, program, state string
	seconds              float64 // for which its transaction is open
}

// on says for which lock a migration waits, and who holds it.
func (h lockHolder) on(locks []tableLock) string {
	if h.pid == 0 {
		var tables []string
		for _, lock := range locks {
			tables = append(tables, lock.table)
		}
		return cmp.Or(strings.Join(tables, ", "), "its tables")
	}
	return fmt.Sprintf("%s that the process %d holds %s", h.table, h.pid, h.details())
}

// details says in brackets what is known of the session.
func (h lockHolder) details() string {
	var details []string
	if h.automatic {
		details = append(details, "autovacuum")
	}
	if h.work != "" {
		details = append(details, h.work+" of "+h.table)
	}
	if h.role != "" {
		details = append(details, "role "+h.role)
	}
	for _, detail := range []string{h.program, h.state} {
		if detail != "" {
			details = append(details, detail)
		}
	}
	open := time.Duration(h.seconds * float64(time.Second)).Round(time.Second)
	details = append(details, fmt.Sprintf("its transaction is open for %s", open))
	return "(" + strings.Join(details, ", ") + ")"
}

func (h lockHolder) remedy() string {
	const stays = "; what was migrated so far stays"
	switch {
	case h.pid == 0:
		return "run migrate again when less is written" + stays
	case h.automatic:
		return "run migrate again when it has ended; an autovacuum that does not give way prevents a wraparound of transaction ids, so let it end" + stays
	case h.work != "":
		return fmt.Sprintf("run migrate again when it has ended, or cancel it (select pg_cancel_backend(%d)) and start it again after migrate", h.pid) + stays
	}
	return fmt.Sprintf("end its transaction (select pg_terminate_backend(%d)), or run migrate again when it has ended", h.pid) + stays
}

// aboutSession is what the sentences say of a session of pg_stat_activity.
const aboutSession = `coalesce(a.usename, ''), coalesce(a.application_name, ''), coalesce(a.state, ''),
       coalesce(extract(epoch from clock_timestamp() - a.xact_start), 0)::float8`

// selectLockHolder names who has a lock of a kind that matters on one of the tables $1: who
// maintains a table, since that takes long, or else the oldest transaction. $2 are the kinds that
// do not matter, with commas. Everybody may see that there is a VACUUM, and its lock. The rest is
// shown to roles that may see it.
const selectLockHolder = `
select a.pid, n.nspname || '.' || c.relname, coalesce(works.name, ''), works.name is not null and a.usesysid is null, ` + aboutSession + `
from unnest($1::text[], $2::text[]) wanted (name, harmless)
join pg_class c on c.oid = wanted.name::regclass join pg_namespace n on n.oid = c.relnamespace
join pg_locks l on l.relation = c.oid and l.mode <> all(string_to_array(wanted.harmless, ','))
join pg_stat_activity a on a.pid = l.pid
left join (select pid, 'VACUUM' as name from pg_stat_progress_vacuum
           union all select pid, 'ANALYZE' from pg_stat_progress_analyze
           union all select pid, 'the build of an index' from pg_stat_progress_create_index) works on works.pid = l.pid
where l.granted and l.database = (select oid from pg_database where datname = current_database())
  and a.pid <> pg_backend_pid()
order by works.name is null, a.xact_start nulls last limit 1`

// beside is the kind of lock that VACUUM and COMMENT have, beside those of transactions that write.
const beside = "share update exclusive"

// harmlessBeside has the kinds of locks that do not conflict with one that a migration takes, by
// https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES.
var harmlessBeside = map[string]string{
	beside:                "AccessShareLock,RowShareLock,RowExclusiveLock",
	"share":               "AccessShareLock,RowShareLock,ShareLock",
	"share row exclusive": "AccessShareLock,RowShareLock",
	"exclusive":           "AccessShareLock",
}

// holderOf returns who holds what conflicts with one of the locks.
func holderOf(ctx context.Context, conn *pgx.Conn, locks []tableLock) (lockHolder, error) {
	tables, harmless := []string{}, []string{}
	for _, lock := range locks {
		tables, harmless = append(tables, lock.table), append(harmless, harmlessBeside[lock.mode])
	}
	return readHolder(conn.QueryRow(ctx, selectLockHolder, tables, harmless))
}

// readHolder reads who is waited for. Nobody is, where that session has ended meanwhile.
func readHolder(row pgx.Row) (h lockHolder, err error) {
	err = row.Scan(&h.pid, &h.table, &h.work, &h.automatic, &h.role, &h.program, &h.state, &h.seconds)
	if errors.Is(err, pgx.ErrNoRows) {
		return lockHolder{}, nil
	}
	return h, err
}
