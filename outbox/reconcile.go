package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/crashpoint"
)

// The outbox is the truth and the stream the fast way to it. This file compares the two: an event that was handed over and
// that an endpoint wanted has a delivery row, so a row of the outbox without one was passed over by the stream.
//
// What has been handed over is told by a horizon, a snapshot together with a position of the WAL that was read after it:
// once everything before the position is recorded, every event that the snapshot sees is. The checkpoint keeps the last
// horizon up to which outbox and log agree, and a comparison looks only at what a new horizon sees and that one does
// not. Both are compared by the snapshot's xmin alone, since rows that were written in a savepoint carry the id of a
// subtransaction, which no snapshot lists.
//
// There are two kinds of comparison. After a gap (Term.Gap) all of the outbox is walked, and an event is matched with the
// endpoints that exist now and existed when it was created, or when the last horizon was taken if it was committed after that: created
// is the start of its transaction, or whatever the app has written. In the periodic run nothing is known to have gone wrong:
// it reads the latest rows only and leaves out endpoints that have changed since the last horizon, because the stream may have been
// right to pass their events over.

const (
	// findLimit is how many events one statement of a comparison looks at (a periodic one: finds), and recoverStep how many
	// get their rows in one transaction.
	findLimit   = 2000
	recoverStep = 500
	// backdated is how much older than its commit the created column of an event may be for the periodic run to read it:
	// it is the start of the transaction, or whatever the app has written.
	backdated = time.Hour
	// recordedInterval is how often AwaitRecorded looks whether the ledger has come to the horizon.
	recordedInterval = 100 * time.Millisecond
	// horizonStep is how many transactions a horizon must pass to be stored by a run that found nothing, after the first one
	// of a term, so that a database in which nothing happens is not written to for the agent's own transactions.
	horizonStep = 64
)

// Horizon is a snapshot with a position of the WAL that was read after it, and with what was streamed at that time.
type Horizon struct {
	Snapshot string // pg_snapshot
	LSN      LSN
	At       time.Time
	Coverage Coverage
	// Completes tells that a recovery is over once this horizon is stored.
	Completes bool

	xmin, xmax uint64
}

const selectHorizon = `
select pg_current_snapshot()::text, pg_current_wal_insert_lsn(), clock_timestamp()`

// Horizon takes one. The coverage is read first: what changes after that is found by the next comparison.
func (db *DB) Horizon(ctx context.Context) (h Horizon, err error) {
	if h.Coverage, err = db.Coverage(ctx); err != nil {
		return h, err
	}
	if err = db.pool.QueryRow(ctx, selectHorizon).Scan(&h.Snapshot, &h.LSN, &h.At); err != nil {
		return h, db.cfg.explain("take a horizon", err)
	}
	s, err := ParseSnapshot(h.Snapshot)
	h.xmin, h.xmax = s.xmin, s.xmax
	return h, err
}

// Passed tells that every transaction up to this one has ended and is visible.
func (h Horizon) Passed(xid uint64) bool { return h.xmin > xid }

// comparison says which rows of the outbox to look at, and for which endpoints.
type comparison struct {
	from *string   // the last horizon; nil when there is none, so that all rows are looked at
	at   time.Time // when from was taken
	// A row was written after that when its transaction is one of so many from newer on.
	newer, newerXIDs int64
	known            []uint32 // the tables that it speaks of; nil for all
	to               *string  // the new horizon; nil to look at all that is visible
	periodic         bool     // no gap is known
	endpoints        *string  // only endpoints that have not changed since this horizon
}

// after sets what the last horizon tells, at the time of the new one.
func (c *comparison) after(horizon *string, at *time.Time, h Horizon) error {
	if horizon == nil || at == nil {
		return nil
	}
	s, err := ParseSnapshot(*horizon)
	c.from, c.at = horizon, *at
	c.newer, c.newerXIDs = int64(s.xmax), int64(h.xmax)-int64(s.xmax)
	return err
}

// registeredUntil is the expression for until, given that for created and the parameters for comparison.at, newer and newerXIDs.
func registeredUntil(created, at, newer, newerXIDs string) string {
	return fmt.Sprintf("greatest(%s, case when %s < %s::bigint then %s::timestamptz end)", created, xidsAfter("o", newer+"::bigint"), newerXIDs, at)
}

// xidsAfter is the expression for how many transaction ids after the id from that of the transaction is that wrote a row. Ids of rows
// have 32 bits and go round; webhooks.handed_over takes a row that is older than half a round for one of the future.
func xidsAfter(row, from string) string {
	return fmt.Sprintf("(%s.xmin::text::bigint - %s & 4294967295)", row, from)
}

// findSQL returns events with whether they lack a delivery row. After a gap those are a piece of the outbox in the order of its ids,
// so that the many rows of a gap are each read once; in a periodic comparison only the latest rows that lack one.
func (db *DB) findSQL(periodic bool) string {
	id, venue, created, eventType := db.eventColumns()
	until := registeredUntil(created, "$6", "$7", "$8")
	unseen := id + ` is not null and ` + db.cfg.isOurs(eventType) + ` and not (webhooks.handed_over(o.xmin, $1::text::pg_snapshot) and coalesce(o.tableoid = any($2::oid[]), true))
  and ($3::text is null or webhooks.handed_over(o.xmin, $3::text::pg_snapshot))`
	lacking := func(id, venue, until, eventType, created string) string {
		return fmt.Sprintf(`exists (select from webhooks.endpoints e
      where %[1]s
      and ($4::text is null or webhooks.handed_over(e.xmin, $4::text::pg_snapshot))
      and not %[2]s)`,
			wants(venue, until, eventType), db.isRecorded(id, venue, eventType, created, "e.id"))
	}
	if periodic {
		return fmt.Sprintf(`
select %[1]s::text, true from %[2]s o
where o.%[3]s >= $5::timestamptz and %[4]s
  and %[5]s limit %[6]d`,
			id, db.cfg.table(), quoteIdent(db.cfg.Columns.Created), unseen, lacking(id+"::text", venue, until, eventType, created), findLimit)
	}
	return fmt.Sprintf(`
with piece as materialized (
    select %[1]s as key, %[1]s::text as id, %[2]s as venue, %[3]s as until, %[4]s as type, %[10]s as created from %[5]s o
    where ($5::text is null or %[1]s > $5::text::%[6]s) and %[7]s
    order by %[1]s limit %[8]d
)
select id, %[9]s from piece order by key`,
		id, venue, until, eventType, db.cfg.table(), db.idType(), unseen, findLimit, lacking("piece.id", "piece.venue", "piece.until", "piece.type", "piece.created"), created)
}

// planAnew has a statement planned with each execution: a plan from before the log was filled reads all of it for each piece.
const planAnew = pgx.QueryExecModeDescribeExec

// find returns the next events that lack a row, and the cursor after them, nil when there are no more.
func (db *DB) find(ctx context.Context, c comparison, cursor *string) (ids []string, next *string, err error) {
	var window any = cursor
	if c.periodic {
		window = c.at.Add(-backdated)
	}
	looked := 0
	_, err = queryRows(unhurried(ctx), db.pool, db.findSQL(c.periodic), func(row pgx.CollectableRow) (struct{}, error) {
		var (
			id      string
			lacking bool
		)
		err := row.Scan(&id, &lacking)
		if lacking {
			ids = append(ids, id)
		}
		looked, next = looked+1, &id
		return struct{}{}, err
	}, planAnew, c.from, c.known, c.to, c.endpoints, window, c.at, c.newer, c.newerXIDs)
	if looked < findLimit {
		next = nil
	}
	return ids, next, err
}

// recoverSQL gives events their missing rows, and counts them by endpoint. Those of endpoints that are disabled are missed at
// once; whether an endpoint can be sent to the lanes know.
func (db *DB) recoverSQL() string {
	id, venue, created, eventType := db.eventColumns()
	return fmt.Sprintf(`
with event as materialized (
    select %[9]s as id, %[4]s as type, %[2]s as venue, %[3]s as created, %[8]s as until
    from %[5]s o where %[1]s = any($1::text[]::%[6]s[]) and %[10]s
), wanted as (
    select o.*, e.id as endpoint_id,
           case when e.disabled_at is not null then 'the endpoint is disabled' end as off
    from event o
    join webhooks.endpoints e on %[7]s
    where $2::text is null or webhooks.handed_over(e.xmin, $2::text::pg_snapshot)
), added as (
    insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created, finished, last_error)
    select id, endpoint_id, venue, type, case when off is null then 'pending' else 'missed' end,
           case when off is null then now() end, %[11]s, case when off is not null then now() end, off
    from wanted
    on conflict (event_id, endpoint_id) do nothing
    returning endpoint_id
), told as (
    insert into webhooks.attempts (event_id, endpoint_id, attempt, at, class, error)
    select w.id, w.endpoint_id, 0, now(), '`+ClassIDTaken+`', '`+foundTaken+`'
    from wanted w join webhooks.deliveries d on d.event_id = w.id and d.endpoint_id = w.endpoint_id
    where not (d.venue = w.venue and d.type = w.type and %[12]s) and not %[13]s
)
select endpoint_id, count(*) from added group by endpoint_id`,
		id, venue, created, eventType, db.cfg.table(), db.idType(), wants("o.venue", "o.until", "o.type"), registeredUntil(created, "$3", "$4", "$5"),
		logTextSQL(id+"::text"), db.cfg.isOurs(eventType), firstCreated("wanted.id", "wanted.venue", "wanted.type", "wanted.created"),
		db.sameCreated("w.created", "d.created"), isTold("w.id", "w.endpoint_id", "w.created"))
}

// recoverArgs are the parameters of recoverSQL.
func (c comparison) recoverArgs(ids []string) []any {
	return []any{planAnew, ids, c.endpoints, c.at, c.newer, c.newerXIDs}
}

// recovered counts the rows that an endpoint got.
type recovered struct {
	endpointID string
	n          int64
}

func scanRecovered(row pgx.CollectableRow) (r recovered, err error) {
	err = row.Scan(&r.endpointID, &r.n)
	return r, err
}

const endSweep = `
update webhooks.checkpoint set horizon = $3::text::pg_snapshot, horizon_at = $4, coverage = $5, relations = $6,
       lsn = case when lsn = '0/0' then coalesce((select confirmed_flush_lsn from pg_replication_slots where slot_name = $1), '0/0') else lsn end
where slot = $1 and epoch = $2`

// sweep recovers what is in the outbox and was not handed over, before a term reads its first batch. What it sees that the
// stream brings as well is looked up then (Term.LookupUntil). Transactions that it does not see yet and the new slot
// does not stream (one that waits for a synchronous standby) are left to Reconcile.
func (db *DB) sweep(ctx context.Context, term Term) (added int64, err error) {
	if err := db.loadIDType(ctx); err != nil {
		return 0, err
	}
	// Taken before the first look, so that all it sees is looked at.
	h, err := db.Horizon(ctx)
	if err != nil {
		return 0, err
	}
	c, err := scanCheckpoint(db.pool.QueryRow(ctx, selectCheckpoint, db.cfg.Slot))
	if err != nil {
		return 0, db.cfg.explain("read the checkpoint", err)
	}
	all := comparison{known: h.Coverage.known(c.relations)}
	if err := all.after(c.horizon, c.horizonAt, h); err != nil {
		return 0, err
	}
	added, err = db.eachFound(ctx, all, func(ids []string) (n int64, err error) {
		rows, err := queryRows(ctx, db.pool, db.recoverSQL(), scanRecovered, all.recoverArgs(ids)...)
		for _, r := range rows {
			n += r.n
		}
		crashpoint.Hit(crashpoint.InSweep)
		return n, err
	})
	if err != nil {
		return added, db.cfg.explain("sweep "+db.cfg.Table, err)
	}
	tag, err := db.pool.Exec(ctx, endSweep, db.cfg.Slot, term.Epoch, h.Snapshot, h.At, h.Coverage.Fingerprint, h.Coverage.Relations)
	if err != nil {
		return added, db.cfg.explain("end the sweep", err)
	}
	if tag.RowsAffected() == 0 {
		return added, ErrFenced
	}
	return added, nil
}

// eachFound calls give with what a comparison finds, a step at a time, and adds up what it returns.
func (db *DB) eachFound(ctx context.Context, c comparison, give func(ids []string) (int64, error)) (total int64, err error) {
	var cursor *string
	for {
		ids, next, err := db.find(ctx, c, cursor)
		if err != nil {
			return total, err
		}
		var given int64
		for step := range slices.Chunk(ids, recoverStep) {
			n, err := give(step)
			given += n
			if err != nil {
				return total + given, err
			}
		}
		total += given
		// A periodic comparison has no cursor: it looks again, unless what it finds does not go away.
		if next == nil || c.periodic && given == 0 {
			return total, nil
		}
		cursor = next
	}
}

const selectCompared = `
select horizon::text, horizon_at, relations from webhooks.checkpoint where slot = $1 and epoch = $2`

// Reconcile gives every event that h sees and the last horizon does not the rows that it lacks, and makes h the last horizon. It
// returns how many rows were lacking. The ledger must have recorded everything before h (AwaitRecorded). gap tells that
// the stream is known to have passed events over; a recovery is complete when Reconcile has run with a horizon beyond
// Term.Barrier.
func (db *DB) Reconcile(ctx context.Context, l *Ledger, h Horizon, gap bool) (added int64, err error) {
	if err := db.loadIDType(ctx); err != nil {
		return 0, err
	}
	var (
		from      *string
		at        *time.Time
		relations []string
	)
	err = db.pool.QueryRow(ctx, selectCompared, db.cfg.Slot, l.cfg.Term.Epoch).Scan(&from, &at, &relations)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrFenced
	}
	if err != nil {
		return 0, db.cfg.explain("read the checkpoint", err)
	}
	c := comparison{known: h.Coverage.known(relations), to: &h.Snapshot}
	if err := c.after(from, at, h); err != nil {
		return 0, err
	}
	// Without a former horizon nothing tells which rows are new, and which endpoints have not changed.
	if !gap && c.from != nil {
		c.periodic, c.endpoints = true, c.from
	}
	if gap || c.periodic {
		added, err = db.eachFound(ctx, c, func(ids []string) (int64, error) { return l.recoverEvents(ctx, db.recoverSQL(), c.recoverArgs(ids)) })
		if err != nil {
			return added, db.cfg.explain("compare "+db.cfg.Table+" with the log", err)
		}
	}
	if !gap && added == 0 && from != nil && l.stats.horizon.Load() {
		last, err := ParseSnapshot(*from)
		if err == nil && h.xmin-last.xmin < horizonStep {
			return 0, nil
		}
	}
	return added, l.setHorizon(ctx, h)
}

// AwaitRecorded waits until every delivery of what the stream held before lsn has its row.
func (l *Ledger) AwaitRecorded(ctx context.Context, lsn LSN) error {
	tick := time.NewTicker(recordedInterval)
	defer tick.Stop()
	for LSN(l.stats.recorded.Load()) < lsn {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// recoverJob gives some events their missing rows.
type recoverJob struct {
	sql    string
	args   []any // comparison.recoverArgs
	rows   []recovered
	failed error
	done   chan<- jobResult // has room for the one value
}

type jobResult struct {
	added int64
	err   error
}

// recoverEvents has the Ledger give events their missing rows, and returns how many there were.
func (l *Ledger) recoverEvents(ctx context.Context, sql string, args []any) (int64, error) {
	done := make(chan jobResult, 1)
	return l.await(ctx, &recoverJob{sql: sql, args: args, done: done}, done)
}

// await has the Ledger do a job and waits for it.
func (l *Ledger) await(ctx context.Context, j job, done <-chan jobResult) (int64, error) {
	if err := l.send(ctx, op{job: j}); err != nil {
		return 0, err
	}
	select {
	case r := <-done:
		return r.added, r.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (j *recoverJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	j.rows, err = queryRows(ctx, tx, j.sql, scanRecovered, j.args...)
	return true, err
}

func (j *recoverJob) committed() (requeued []string) {
	r := jobResult{err: j.failed}
	for _, row := range j.rows {
		r.added += row.n
		requeued = append(requeued, row.endpointID)
	}
	j.done <- r
	return requeued
}

func (j *recoverJob) pause() time.Duration { return 0 }

func (j *recoverJob) abandon(_ context.Context, _ querier, reason string) error {
	j.rows, j.failed = nil, fmt.Errorf("give events their rows: %s", reason)
	return nil
}

// horizonJob stores a horizon.
type horizonJob struct {
	slot string
	Horizon
	failed error
	done   chan<- jobResult // has room for the one value
}

const storeHorizon = `
update webhooks.checkpoint set horizon = $2::text::pg_snapshot, horizon_at = $3, coverage = $4, relations = $5, recovering = recovering and not $6
where slot = $1`

// setHorizon has the Ledger store h, which ends a recovery if h Completes one. Everything that h sees must have been handed over or
// recovered.
func (l *Ledger) setHorizon(ctx context.Context, h Horizon) error {
	done := make(chan jobResult, 1)
	_, err := l.await(ctx, &horizonJob{slot: l.cfg.Slot, Horizon: h, done: done}, done)
	if err == nil {
		l.stats.horizon.Store(true)
	}
	return err
}

func (j *horizonJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	return true, exec(ctx, tx, storeHorizon, j.slot, j.Snapshot, j.At, j.Coverage.Fingerprint, j.Coverage.Relations, j.Completes)
}

func (j *horizonJob) committed() []string {
	j.done <- jobResult{err: j.failed}
	return nil
}

func (j *horizonJob) pause() time.Duration { return 0 }

func (j *horizonJob) abandon(_ context.Context, _ querier, reason string) error {
	j.failed = fmt.Errorf("store the horizon: %s", reason)
	return nil
}
