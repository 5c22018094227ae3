package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// slotTimeout bounds the creation of the slot, which waits for every transaction that is writing anywhere in the
// cluster.
const slotTimeout = 10 * time.Second

// Term is one agent's leadership: what it may write and where it goes on.
type Term struct {
	// Epoch and Sequence fence the Ledger's commits.
	Epoch, Sequence int64
	// LSN is the checkpoint when the term began: everything up to it is recorded.
	LSN LSN
	// LookupUntil is the position of the server when the term began: an earlier leader may have recorded transactions
	// up to here.
	LookupUntil LSN
	// Swept counts the deliveries that were found in the outbox and in no slot, because the slot was new.
	Swept int64
}

const selectCheckpoint = `
select lsn, recovering from webhooks.checkpoint where slot = $1`

const selectSlot = `
select coalesce(wal_status, '') from pg_replication_slots where slot_name = $1 and database = current_database() and plugin = 'pgoutput'`

const dropSlot = `
select pg_drop_replication_slot($1)`

const selectForeignSlot = `
select coalesce(database, '') || ', plugin ' || coalesce(plugin, 'none') from pg_replication_slots
where slot_name = $1 and (database, plugin) is distinct from (current_database(), 'pgoutput')`

// PrepareSlot sees that the slot and the checkpoint exist and returns where to start. A new slot is noted in the
// checkpoint as recovering before it is made, so that the sweep of the outbox is done even when the agent dies in
// between. With replace a slot that is there is given up for a new one.
func (db *DB) PrepareSlot(ctx context.Context, t *Tailer, holder string, replace bool) (LSN, error) {
	var walStatus string
	err := db.pool.QueryRow(ctx, selectSlot, db.cfg.Slot).Scan(&walStatus)
	switch {
	case err == nil && (replace || walStatus == "lost"):
		// A lost slot lacks WAL that PostgreSQL has removed (max_slot_wal_keep_size): no one can stream from it again.
		if _, err := db.pool.Exec(ctx, dropSlot, db.cfg.Slot); SQLState(err) == codeObjectInUse {
			return 0, ErrSlotActive
		} else if err != nil {
			return 0, db.cfg.explain(fmt.Sprintf("drop the slot %q", db.cfg.Slot), err)
		}
		err = db.createSlot(ctx, t, holder)
	case errors.Is(err, pgx.ErrNoRows):
		err = db.createSlot(ctx, t, holder)
	}
	if err != nil {
		return 0, db.cfg.explain("look for the slot", err)
	}
	var (
		lsn        LSN
		recovering bool
	)
	err = db.pool.QueryRow(ctx, selectCheckpoint, db.cfg.Slot).Scan(&lsn, &recovering)
	if errors.Is(err, pgx.ErrNoRows) {
		// The slot is there and its checkpoint is not: what the slot has skipped so far is not known to be recorded.
		return 0, db.insertCheckpoint(ctx, t, holder)
	}
	if err != nil {
		return 0, db.cfg.explain("read the checkpoint", err)
	}
	if recovering {
		return 0, nil
	}
	return lsn, nil
}

const upsertRecovering = `
insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database, recovering)
values ($1, '0/0', 0, $2, $3, $4, current_database(), true)
on conflict (slot) do update set lsn = '0/0', recovering = true, updated = now(),
       -- transaction ids of another server mean nothing here
       horizon = case when checkpoint.system_identifier = excluded.system_identifier then checkpoint.horizon end`

func (db *DB) insertCheckpoint(ctx context.Context, t *Tailer, holder string) error {
	_, err := db.pool.Exec(ctx, upsertRecovering, db.cfg.Slot, holder, t.System.SystemID, t.System.Timeline)
	return db.cfg.explain("write the checkpoint", err)
}

const createSlot = `select pg_create_logical_replication_slot($1, 'pgoutput')`

const selectBlockers = `
select coalesce(string_agg(format('pid %s of %s in %s since %s', pid, coalesce(usename, '?'), coalesce(datname, '?'), coalesce(date_trunc('second', xact_start)::text, 'a time that only pg_read_all_stats may see')), ', '), 'unknown')
from (select * from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid() order by xact_start limit 3) a`

func (db *DB) createSlot(ctx context.Context, t *Tailer, holder string) error {
	var foreign string
	err := db.pool.QueryRow(ctx, selectForeignSlot, db.cfg.Slot).Scan(&foreign)
	if err == nil {
		return &Problem{Thing: fmt.Sprintf("replication slot %q", db.cfg.Slot), Reason: "it belongs to something else (database " + foreign + ")",
			Remedy: "choose another outbox.slot; slot names are shared by all databases of a server", Fatal: true}
	} else if !errors.Is(err, pgx.ErrNoRows) {
		return db.cfg.explain("look for the slot", err)
	}
	if err := db.insertCheckpoint(ctx, t, holder); err != nil {
		return err
	}
	slotCtx, cancel := context.WithTimeout(ctx, slotTimeout)
	defer cancel()
	_, err = db.pool.Exec(slotCtx, createSlot, db.cfg.Slot)
	if err == nil || SQLState(err) == codeDuplicateObject { // another agent was quicker
		return nil
	}
	if slotCtx.Err() == nil || ctx.Err() != nil {
		return db.cfg.explain(fmt.Sprintf("create slot %q", db.cfg.Slot), err)
	}
	var blockers string
	if berr := db.pool.QueryRow(ctx, selectBlockers).Scan(&blockers); berr != nil {
		return db.cfg.explain("look for long transactions", berr)
	}
	return &Problem{Thing: fmt.Sprintf("replication slot %q", db.cfg.Slot), Err: err,
		Reason: "creating it waits for transactions that are still writing: " + blockers,
		Remedy: "let them end; the agent tries again by itself"}
}

const takeOver = `
update webhooks.checkpoint
set epoch = epoch + 1, holder = $2, system_identifier = $3, timeline = $4, database = current_database(), updated = now()
where slot = $1
returning epoch, sequence, lsn, recovering`

const selectInsertLSN = `select pg_current_wal_insert_lsn()`

// TakeOver begins a term: from the moment it commits, no earlier leader can record anything. The caller must hold the
// stream. After a new slot it sweeps the outbox for what no slot has seen, before the first batch is read.
func (db *DB) TakeOver(ctx context.Context, t *Tailer, holder string) (Term, error) {
	var (
		term       Term
		recovering bool
	)
	row := db.pool.QueryRow(ctx, takeOver, db.cfg.Slot, holder, t.System.SystemID, t.System.Timeline)
	if err := row.Scan(&term.Epoch, &term.Sequence, &term.LSN, &recovering); err != nil {
		return term, db.cfg.explain("take over", err)
	}
	if recovering {
		swept, err := db.sweep(ctx, term.Epoch)
		if err != nil {
			return term, err
		}
		term.Swept = swept
	}
	err := db.pool.QueryRow(ctx, selectInsertLSN).Scan(&term.LookupUntil)
	return term, db.cfg.explain("read the position", err)
}

const sweepBatch = 1000

// sweepSQL inserts what is missing for one batch of the outbox in the order of its ids, and returns the last id of
// the batch. It leaves out what the horizon sees, which was handed over and matched at its time; the rest is matched
// against the endpoints that existed when it was written.
func (db *DB) sweepSQL() string {
	c := db.cfg.Columns
	id, created := "o."+quoteIdent(c.ID), "o."+quoteIdent(c.Created)
	return fmt.Sprintf(`
with batch as materialized (
    select %[1]s as id, %[1]s::text as event_id, coalesce(o.%[2]s::text, '') as type, o.%[3]s::text as venue,
           case when isfinite(%[4]s::timestamptz) then %[4]s::timestamptz else now() end as created,
           not webhooks.handed_over(o.xmin, (select horizon from webhooks.checkpoint where slot = $2)) as unseen
    from %[5]s o
    where ($1::text is null or %[1]s > $1::text::%[6]s)
    order by %[1]s limit %[7]d
), added as (
    insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created, finished, last_error)
    select b.event_id, e.id, b.venue, b.type,
           case when e.disabled_at is null then 'pending' else 'missed' end,
           case when e.disabled_at is null then now() end, b.created,
           case when e.disabled_at is null then null else now() end,
           case when e.disabled_at is null then null else 'the endpoint was disabled' end
    from batch b
    join webhooks.endpoints e on e.venue = b.venue and e.created <= b.created
    where b.unseen and exists (select from unnest(e.events) p
                  where p in ('*', b.type) or (right(p, 2) = '.*' and starts_with(b.type, left(p, -1))))
    on conflict (event_id, endpoint_id) do nothing
    returning 1
)
select (select event_id from batch order by id desc limit 1), (select count(*) from batch), (select count(*) from added)`,
		id, quoteIdent(c.Type), quoteIdent(c.Venue), created, db.cfg.table(), db.idType(), sweepBatch)
}

const endRecovery = `
update webhooks.checkpoint set recovering = false,
       lsn = coalesce((select confirmed_flush_lsn from pg_replication_slots where slot_name = $1), '0/0')
where slot = $1 and epoch = $2 and recovering`

// sweep records, for every event in the outbox, the deliveries that have no row. It runs when the slot is new.
func (db *DB) sweep(ctx context.Context, epoch int64) (added int64, err error) {
	if err := db.loadIDType(ctx); err != nil {
		return 0, err
	}
	var last *string
	for {
		var n, a int64
		if err := db.pool.QueryRow(ctx, db.sweepSQL(), last, db.cfg.Slot).Scan(&last, &n, &a); err != nil {
			return added, db.cfg.explain("sweep "+db.cfg.Table, err)
		}
		added += a
		if n < sweepBatch {
			break
		}
	}
	tag, err := db.pool.Exec(ctx, endRecovery, db.cfg.Slot, epoch)
	if err != nil {
		return added, db.cfg.explain("end the recovery", err)
	}
	if tag.RowsAffected() == 0 {
		return added, ErrFenced
	}
	return added, nil
}

// State is what the agent holds in memory about endpoints when a term begins.
type State struct {
	Endpoints []EndpointState
	// Snapshot tells which transactions the state contains already: their changes in the stream are old news.
	Snapshot Snapshot
	// Due is the earliest next_attempt_at of each endpoint that has pending deliveries, endpoints that are gone
	// included.
	Due map[string]time.Time
	// Replays are those that are not done, oldest first.
	Replays []Replay
}

// EndpointState is an endpoint with its failure counter.
type EndpointState struct {
	Endpoint
	// Failures is the number of consecutive failed attempts of this generation.
	Failures     int
	FirstFailure time.Time
	Unusable     string
}

const selectEndpoints = `
select e.id, e.venue, e.url, e.events::text, e.secret, coalesce(e.previous_secret, ''),
       case when isfinite(e.previous_secret_until) then e.previous_secret_until end,
       e.disabled_at is not null, coalesce(e.disabled_reason, ''), e.generation,
       case when isfinite(e.created) then e.created else 'epoch' end,
       case when h.generation = e.generation then h.consecutive_failures else 0 end,
       case when h.generation = e.generation then h.first_failure_at end,
       coalesce(h.unusable, '')
from webhooks.endpoints e
left join webhooks.endpoint_health h on h.endpoint_id = e.id`

// selectDue walks the index deliveries_pending from endpoint to endpoint (a loose index scan), so its cost is that of
// the endpoints with pending deliveries, not of the deliveries.
const selectDue = `
with recursive due as (
    (select endpoint_id, next_attempt_at from webhooks.deliveries
     where status = 'pending' order by endpoint_id, next_attempt_at limit 1)
    union all
    select next.* from due, lateral (
        select endpoint_id, next_attempt_at from webhooks.deliveries
        where status = 'pending' and endpoint_id > due.endpoint_id
        order by endpoint_id, next_attempt_at limit 1) next
)
select endpoint_id, coalesce(next_attempt_at, now()) from due`

const selectOpenReplays = `
select id from webhooks.replays where state in ('pending', 'running') order by created`

// LoadState reads endpoints, their health, what is due and the open replays, all in one snapshot.
func (db *DB) LoadState(ctx context.Context) (State, error) {
	s := State{Due: map[string]time.Time{}}
	err := pgx.BeginTxFunc(ctx, db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var snapshot string
		if err := tx.QueryRow(ctx, `select pg_current_snapshot()::text`).Scan(&snapshot); err != nil {
			return err
		}
		var err error
		if s.Snapshot, err = ParseSnapshot(snapshot); err != nil {
			return err
		}
		if s.Endpoints, err = queryRows(ctx, tx, selectEndpoints, scanEndpointState); err != nil {
			return err
		}
		type due struct {
			id string
			at time.Time
		}
		dues, err := queryRows(ctx, tx, selectDue, func(row pgx.CollectableRow) (d due, err error) {
			err = row.Scan(&d.id, &d.at)
			return d, err
		})
		if err != nil {
			return err
		}
		for _, d := range dues {
			s.Due[d.id] = d.at
		}
		s.Replays, err = queryRows(ctx, tx, selectOpenReplays, func(row pgx.CollectableRow) (r Replay, err error) {
			err = row.Scan(&r.ID)
			return r, err
		})
		return err
	})
	return s, db.cfg.explain("load the endpoints", err)
}

func scanEndpointState(row pgx.CollectableRow) (e EndpointState, err error) {
	var (
		secretText, previous string
		until, firstFailure  *time.Time
		events               string
	)
	err = row.Scan(&e.ID, &e.Venue, &e.URL, &events, &secretText, &previous, &until, &e.Disabled, &e.DisabledReason,
		&e.Generation, &e.Created, &e.Failures, &firstFailure, &e.Unusable)
	if err != nil {
		return e, fmt.Errorf("endpoint %s: %w", strconv.Quote(e.ID), err)
	}
	e.Events = parseEvents(events)
	e.Secret = secret.New(secretText)
	if previous != "" && until != nil {
		e.Previous, e.PreviousUntil = secret.New(previous), *until
	}
	if firstFailure != nil {
		e.FirstFailure = *firstFailure
	}
	return e, nil
}
