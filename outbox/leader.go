package outbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

// blockersAfter is how long the creation of a slot may take before the agent logs what it waits
// for. After that, the agent logs it at this interval. The creation waits for every transaction
// that is writing anywhere in the cluster.
const blockersAfter = 10 * time.Second

// Term is the leadership of one agent. It says what the agent may write and where it continues.
type Term struct {
	// Epoch and Sequence fence the Ledger's commits.
	Epoch, Sequence int64
	// LSN is the checkpoint at the beginning of the term. Everything up to it is recorded.
	LSN LSN
	// LookupUntil is the server's position at the beginning of the term. An earlier leader may have
	// recorded transactions up to there.
	LookupUntil LSN
	// Repeats reports whether any event may come again. This is so if the outbox has partitions: an
	// UPDATE that moves a row to another partition is streamed as an insert. LookupUntil then has
	// no end.
	Repeats bool
	// Gap is why the stream may have skipped events before this term. It is "" if the term
	// continues where the last one ended.
	Gap string
	// Barrier is a transaction that began after the gap. When all transactions before it have
	// ended, Reconcile completes the recovery. Barrier is zero if there is nothing to recover.
	Barrier uint64
	// Coverage describes which rows were streamed at the beginning of the term.
	Coverage Coverage
}

// checkpoint is the checkpoint's row for the slot.
type checkpoint struct {
	lsn         LSN
	recovering  bool
	systemID    string
	timeline    int32
	database    string
	horizon     *string
	horizonAt   *time.Time
	fingerprint *string // Coverage.Fingerprint
	relations   []string
}

const selectCheckpoint = `
select lsn, recovering, system_identifier, timeline, database, horizon::text, horizon_at, coverage, relations from webhooks.checkpoint where slot = $1`

func scanCheckpoint(row pgx.Row) (c checkpoint, err error) {
	err = row.Scan(&c.lsn, &c.recovering, &c.systemID, &c.timeline, &c.database, &c.horizon, &c.horizonAt, &c.fingerprint, &c.relations)
	return c, err
}

// server is the state of the server, with which a checkpoint is compared.
type server struct {
	systemID  string
	timeline  int32
	database  string
	insert    LSN // the end of its WAL
	confirmed LSN // the slot's confirmed position; zero if there is no slot
	coverage  Coverage
}

const selectServerPosition = `
select current_database()::text, pg_current_wal_insert_lsn(),
       coalesce((select confirmed_flush_lsn from pg_replication_slots where slot_name = $1 and database = current_database()), '0/0')`

func (slot *Slot) serverPosition(ctx context.Context, q querier, t *Tailer) (s server, err error) {
	s.systemID, s.timeline = t.System.SystemID, t.System.Timeline
	err = q.QueryRow(ctx, selectServerPosition, slot.cfg.Slot).Scan(&s.database, &s.insert, &s.confirmed)
	return s, err
}

// gap returns why the stream may have skipped events since the checkpoint was written, or "". void
// reports that the checkpoint's position means nothing on this server: what the slot holds may
// begin anywhere.
func (c checkpoint) gap(s server) (reason string, void bool) {
	switch {
	case c.lsn > s.insert:
		return fmt.Sprintf("the checkpoint (%s) is ahead of the server's WAL (%s), so an earlier state was restored", c.lsn, s.insert), true
	case s.confirmed > c.lsn && c.lsn != 0: // a checkpoint of zero means that the slot is new
		// The agent never confirms a position that the checkpoint does not hold.
		return fmt.Sprintf("the slot stands at %s, beyond the checkpoint (%s), so it was advanced or made anew by someone else", s.confirmed, c.lsn), true
	case c.timeline != s.timeline:
		return fmt.Sprintf("the server's timeline is %d, the checkpoint's %d, so there was a failover or a restore", s.timeline, c.timeline), false
	case c.fingerprint != nil && *c.fingerprint != s.coverage.Fingerprint:
		return "the publications, or the tables they hold, have changed", false
	case c.relations != nil && len(s.coverage.added(c.relations)) > 0:
		return "the outbox has new partitions", false
	case c.recovering:
		return "the slot is new, or the last recovery was not completed", false
	}
	return "", false
}

// selectSlot also returns whether an ordinary session is making the slot, and whether the slot
// could be copied to standbys but is not. Before PostgreSQL 17 there is no column for the latter.
const selectSlot = `
select active, coalesce(confirmed_flush_lsn, '0/0'), coalesce(a.backend_type, '') = 'client backend', coalesce(wal_status, '') = 'lost', coalesce(to_jsonb(s) ->> 'failover', '') = 'false'
from pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid
where slot_name = $1 and database = current_database() and plugin in ('pgoutput', '')`

const selectConfirmed = `
select coalesce(confirmed_flush_lsn, '0/0') from pg_replication_slots where slot_name = $1`

const dropSlot = `
select pg_drop_replication_slot($1)`

// PrepareSlot makes sure that the slot and the checkpoint exist. It returns where to start. Before
// it makes a new slot, it marks the checkpoint as recovering, so that the outbox is swept even if
// the agent dies in between. If the slot exists and is free, PrepareSlot calls replace with the
// slot's confirmed position. replace decides whether a new slot takes its place. PrepareSlot
// returns ErrSlotActive while another agent holds the slot. It calls waiting repeatedly while the
// new slot waits for other transactions to end.
func (slot *Slot) PrepareSlot(ctx context.Context, t *Tailer, holder string, replace func(confirmed LSN) (bool, error), waiting func(error)) (LSN, error) {
	// This comes first, because the checkpoint of a new slot would say that this is no copy.
	if err := slot.mustBeAdopted(ctx, slot.db.pool, t.System.SystemID); err != nil {
		return 0, err
	}
	confirmed, err := slot.ensure(ctx, t, holder, replace, waiting)
	if err != nil {
		return 0, err
	}
	t.beginAt(confirmed)
	return slot.start(ctx, t, holder)
}

// ensure makes sure that the slot exists and can be streamed. It returns the slot's confirmed
// position.
func (slot *Slot) ensure(ctx context.Context, t *Tailer, holder string, replace func(confirmed LSN) (bool, error), waiting func(error)) (confirmed LSN, err error) {
	var active, inCreation, lost, staysBehind, giveUp bool
	err = unprepared{slot.db.pool}.QueryRow(ctx, selectSlot, slot.cfg.Slot).Scan(&active, &confirmed, &inCreation, &lost, &staysBehind)
	if err == nil && !active && !lost {
		if giveUp, err = replace(confirmed); err != nil {
			return 0, err
		}
	}
	switch {
	case err == nil && active && inCreation:
		// The session of another agent, which may be dead, is making the slot.
		return 0, slot.waitsForOthers(ctx)
	case err == nil && active:
		return 0, ErrSlotActive // asking first leaves no error in the server's log
	case err == nil && (giveUp || lost):
		// A lost slot lacks WAL that PostgreSQL has removed (max_slot_wal_keep_size, or
		// idle_replication_slot_timeout since version 18). It can never be streamed again.
		if _, err := slot.db.pool.Exec(ctx, dropSlot, slot.cfg.Slot); SQLState(err) == codeObjectInUse {
			return 0, ErrSlotActive
		} else if err != nil {
			return 0, slot.cfg.explain(fmt.Sprintf("drop the slot %q", slot.cfg.Slot), err)
		}
		confirmed = 0
		err = slot.create(ctx, t, holder, waiting)
	case err == nil && staysBehind:
		err = t.enableFailover(ctx)
	case errors.Is(err, pgx.ErrNoRows):
		err = slot.create(ctx, t, holder, waiting)
	}
	if err == nil && confirmed == 0 { // the slot was made just now
		err = unprepared{slot.db.pool}.QueryRow(ctx, selectConfirmed, slot.cfg.Slot).Scan(&confirmed)
	}
	return confirmed, slot.cfg.explain("look for the slot", err)
}

// start returns where the stream should start according to the checkpoint. It returns zero if the
// checkpoint does not say.
func (slot *Slot) start(ctx context.Context, t *Tailer, holder string) (LSN, error) {
	c, err := scanCheckpoint(unprepared{slot.db.pool}.QueryRow(ctx, selectCheckpoint, slot.cfg.Slot))
	if errors.Is(err, pgx.ErrNoRows) {
		// The slot exists, but its checkpoint does not. Nobody knows whether what the slot has
		// already passed was recorded.
		return 0, slot.beginRecovery(ctx, t, holder)
	}
	if err != nil {
		return 0, slot.cfg.explain("read the checkpoint", err)
	}
	s, err := slot.serverPosition(ctx, slot.db.pool, t)
	if err != nil {
		return 0, slot.cfg.explain("read the position", err)
	}
	if c.lsn > s.insert {
		// PostgreSQL would accept a start in the future and silently skip everything before it
		return 0, nil
	}
	return c.lsn, nil
}

const upsertRecovering = `
insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database, recovering)
values ($1, '0/0', 0, $2, $3, $4, current_database(), true)
on conflict (slot) do update set lsn = '0/0', recovering = true, updated = now()`

// beginRecovery records that the stream may have skipped events and that the position means nothing
// any more.
func (slot *Slot) beginRecovery(ctx context.Context, t *Tailer, holder string) error {
	_, err := slot.db.pool.Exec(ctx, upsertRecovering, slot.cfg.Slot, holder, t.System.SystemID, t.System.Timeline)
	return slot.cfg.explain("write the checkpoint", err)
}

// waitsForOthers returns a Problem that says for which transaction the creation of the slot waits,
// or an error if it cannot find that out.
func (slot *Slot) waitsForOthers(ctx context.Context) error {
	blocker, err := slot.Blocker(ctx)
	if err != nil {
		return err
	}
	return &Problem{Thing: fmt.Sprintf("replication slot %q", slot.cfg.Slot),
		Reason: "creating it waits for transactions that are still writing, the oldest of them " + blocker,
		Remedy: "let them end; the agent goes on by itself"}
}

// selectForeignSlot skips a slot of this database that has no plugin. Another agent is just making
// it.
const selectForeignSlot = `
select coalesce(database, '') || ', plugin ' || coalesce(plugin, 'none') from pg_replication_slots
where slot_name = $1 and not coalesce(database = current_database() and plugin in ('pgoutput', ''), false)`

const (
	createSlot = `select pg_create_logical_replication_slot($1, 'pgoutput')`
	// createFailoverSlot is for PostgreSQL 17 and newer. The slot is copied to standbys that ask
	// for it (sync_replication_slots), so it survives a failover.
	createFailoverSlot = `select pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)`

	failoverVersion = 170000
)

func (slot *Slot) create(ctx context.Context, t *Tailer, holder string, waiting func(error)) error {
	var foreign string
	err := slot.db.pool.QueryRow(ctx, selectForeignSlot, slot.cfg.Slot).Scan(&foreign)
	if err == nil {
		return &Problem{Thing: fmt.Sprintf("replication slot %q", slot.cfg.Slot), Reason: "it belongs to something else (database " + foreign + ")",
			Remedy: "choose another outbox.slot; slot names are shared by all databases of a server", Fatal: true}
	} else if !errors.Is(err, pgx.ErrNoRows) {
		return slot.cfg.explain("look for the slot", err)
	}
	if err := slot.beginRecovery(ctx, t, holder); err != nil {
		return err
	}
	crashpoint.Hit(crashpoint.InSlotRecovery)
	create := createSlot
	if version, err := slot.db.serverVersion(ctx); err != nil {
		return err
	} else if version >= failoverVersion {
		create = createFailoverSlot
	}
	done := make(chan error, 1) // the goroutine below sends once
	creation := panics.Guard(slot.cfg.Caught, func() error {
		_, err := slot.db.pool.Exec(unhurried(ctx), create, slot.cfg.Slot)
		return err
	})
	// It ends with the creation or with ctx.
	go panics.GuardFunc(slot.cfg.Caught, func() { done <- creation() })()
	tick := time.NewTicker(blockersAfter)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if SQLState(err) == codeDuplicateObject { // another agent was quicker
				return nil
			}
			return slot.cfg.explain(fmt.Sprintf("create slot %q", slot.cfg.Slot), err)
		case <-tick.C:
			if err := slot.waitsForOthers(ctx); ctx.Err() == nil {
				waiting(err)
			}
		}
	}
}

// selectBlocker compares the age of transaction ids, because only pg_read_all_stats may see when a
// transaction began.
const selectBlocker = `
select format('%s of %s in %s since %s', who, coalesce(role, '?'), coalesce(database, '?'), coalesce(date_trunc('second', since)::text, 'a time that only pg_read_all_stats may see'))
from (select 'pid ' || pid as who, usename as role, datname as database, xact_start as since, backend_xid as xid
      from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()
      union all
      select 'prepared transaction ' || gid, owner, database, prepared, transaction from pg_prepared_xacts) open
order by age(xid) desc limit 1`

// Blocker describes the oldest transaction that is writing, anywhere in the cluster.
func (slot *Slot) Blocker(ctx context.Context) (blocker string, err error) {
	err = slot.db.pool.QueryRow(ctx, selectBlocker).Scan(&blocker)
	if errors.Is(err, pgx.ErrNoRows) {
		return "unknown", nil
	}
	return blocker, slot.cfg.explain("look for long transactions", err)
}

const lockCheckpoint = selectCheckpoint + ` for update`

const takeOver = `
update webhooks.checkpoint
set epoch = epoch + 1, holder = $2, system_identifier = $3, timeline = $4, database = current_database(), updated = now(),
    recovering = recovering or $5,
    -- Where there is no position, the stream begins where the slot stands. What was committed before is left to the recovery.
    lsn = case when $6 or lsn = '0/0'
               then coalesce((select confirmed_flush_lsn from pg_replication_slots where slot_name = $1 and database = current_database()), '0/0')
               else lsn end,
    -- A horizon of a state that a restore has undone means nothing here, and neither does one that is so old
    -- that 32 bits do not tell it from the future.
    horizon = case when not $7 and pg_snapshot_xmin(horizon)::text::bigint between pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 2000000000
                                                                               and pg_snapshot_xmax(pg_current_snapshot())::text::bigint then horizon end,
    sweep = case when not $7 and pg_snapshot_xmin((sweep->'Horizon'->>'Snapshot')::pg_snapshot)::text::bigint
                      between pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 2000000000
                          and pg_snapshot_xmax(pg_current_snapshot())::text::bigint then sweep end
where slot = $1
returning epoch, sequence, lsn, pg_current_xact_id()::text::bigint`

const noteGap = `
update webhooks.checkpoint set recovering = true where slot = $1 and epoch = $2`

// NoteGap records that the stream skips events in this term. The next term then begins with a
// recovery.
func (slot *Slot) NoteGap(ctx context.Context, term Term) error {
	_, err := slot.db.pool.Exec(ctx, noteGap, slot.cfg.Slot, term.Epoch)
	return slot.cfg.explain("write the checkpoint", err)
}

// TakeOver begins a term. Once it commits, no earlier leader can record anything. The caller must
// hold the stream. If the stream may have skipped events, Term.Gap says so, and Reconcile finds
// them while the stream runs.
func (slot *Slot) TakeOver(ctx context.Context, t *Tailer, holder string) (Term, error) {
	var (
		term Term
		err  error
	)
	if _, err = slot.db.readClock(ctx, unprepared{slot.db.pool}); err != nil {
		return term, slot.cfg.explain("read the clock", err)
	}
	slot.mapped.forget() // the table may be a new one since the last term
	if term.Coverage, err = slot.db.Coverage(ctx); err != nil {
		return term, err
	}
	err = pgx.BeginFunc(ctx, slot.db.pool, func(tx pgx.Tx) error {
		tx = withoutPreparing(tx)
		c, err := scanCheckpoint(tx.QueryRow(ctx, lockCheckpoint, slot.cfg.Slot))
		if err != nil {
			return err
		}
		// This is read after the lock. A former leader can then move neither the checkpoint nor,
		// without the stream, the slot. It cannot record anything either. So everything that an
		// earlier term has recorded is in the WAL before this position.
		s, err := slot.serverPosition(ctx, tx, t)
		if err != nil {
			return err
		}
		if err := slot.mustBeAdopted(ctx, tx, s.systemID); err != nil {
			return err
		}
		term.LookupUntil = s.insert
		s.coverage = term.Coverage
		var void bool
		term.Gap, void = c.gap(s)
		row := tx.QueryRow(ctx, takeOver, slot.cfg.Slot, holder, t.System.SystemID, t.System.Timeline, term.Gap != "", void, c.lsn > s.insert)
		return row.Scan(&term.Epoch, &term.Sequence, &term.LSN, &term.Barrier)
	})
	if err != nil {
		return term, slot.cfg.explain("take over", err)
	}
	if term.Gap == "" {
		term.Barrier = 0
	}
	if term.Coverage.partitioned() {
		term.Repeats, term.LookupUntil = true, math.MaxUint64
	}
	return term, nil
}
