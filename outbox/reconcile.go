package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// The outbox is the truth, and the stream is the fast way to it. This file compares the outbox with
// the log. An event that was handed over and that an endpoint wanted has a delivery row. So the
// stream has skipped an event that has none. The package documentation says why no event is sent
// twice, and why none is sent to an endpoint that was registered after it. See event_sql.go for the
// statements, and walk.go for how they are divided so that they disturb nobody.
//
// There are two kinds of comparison. After a gap (Term.Gap), the whole outbox is walked, and an
// event is matched with the endpoints that exist now and existed then. The periodic comparison has
// no sign that anything went wrong. It reads only the latest rows. It leaves out endpoints that
// have changed since the last horizon, because the stream may have been right to skip events for
// them.

const (
	// backdated is how much earlier than its commit an event's created may be for the periodic
	// comparison to read the event. created is the start of the transaction, or any time that the
	// app has written.
	backdated = time.Hour
	// recordedInterval is how often AwaitRecorded checks whether the ledger has reached the
	// horizon.
	recordedInterval = 100 * time.Millisecond
	// horizonStep is how many transactions a horizon must advance before a comparison that found
	// nothing stores it. It does not apply to the first horizon of a term. So the agent's own
	// transactions cause no writes in a database that is otherwise idle.
	horizonStep = 64
)

// Horizon is a snapshot, a position in the WAL that was read after it, and the coverage at that
// time.
type Horizon struct {
	Snapshot string    `json:"Snapshot"` // pg_snapshot
	LSN      LSN       `json:"LSN"`
	At       time.Time `json:"At"`
	Coverage Coverage  `json:"Coverage"`
	// Completes reports whether the recovery is over once this horizon is stored.
	Completes bool `json:"-"`

	xmin uint64
}

const selectHorizon = `
select pg_current_snapshot()::text, pg_current_wal_insert_lsn(), clock_timestamp()`

// Horizon takes a new horizon. It reads the coverage first, so the next comparison finds what
// changes after that.
func (slot *Slot) Horizon(ctx context.Context) (h Horizon, err error) {
	if h.Coverage, err = slot.db.Coverage(ctx); err != nil {
		return h, err
	}
	if err = slot.db.pool.QueryRow(ctx, selectHorizon).Scan(&h.Snapshot, &h.LSN, &h.At); err != nil {
		return h, slot.cfg.explain("take a horizon", err)
	}
	s, err := ParseSnapshot(h.Snapshot)
	h.xmin = s.xmin
	return h, err
}

// Passed reports whether every transaction up to xid, itself included, has ended and is visible.
func (h Horizon) Passed(xid uint64) bool { return h.xmin > xid }

// comparison says which events of the outbox to compare, and for which endpoints.
type comparison struct {
	last     lastHorizon
	to       Horizon    // the new horizon
	periodic bool       // no gap is known
	floor    *time.Time // the log may lack older events; nil if the log is kept for ever
}

// lastHorizon is the horizon in the checkpoint. If there is none, Snapshot and at are nil, and all
// rows are compared.
type lastHorizon struct {
	snapshot  *string
	at        *time.Time
	relations []string // Coverage.Relations at that time; nil if they are not known
}

// last returns h as the last horizon.
func (h Horizon) last() lastHorizon {
	return lastHorizon{&h.Snapshot, &h.At, h.Coverage.Relations}
}

func (slot *Slot) comparison(last lastHorizon, to Horizon, periodic bool) comparison {
	c := comparison{last: last, to: to, periodic: periodic}
	if slot.cfg.Retention > 0 {
		floor := to.At.Add(-slot.cfg.Retention)
		c.floor = &floor
	}
	return c
}

const selectCompared = `
select horizon::text, horizon_at, relations, sweep::text from webhooks.checkpoint
where slot = $1 and epoch = $2`

// compared reads what the last comparison has left in the checkpoint: its horizon, and the position
// of a comparison that was not completed.
func (slot *Slot) compared(ctx context.Context, term Term) (last lastHorizon, unfinished *sweep, err error) {
	var text *string
	err = slot.db.pool.QueryRow(ctx, selectCompared, slot.cfg.Slot, term.Epoch).
		Scan(&last.snapshot, &last.at, &last.relations, &text)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return last, nil, ErrFenced
	case err != nil:
		return last, nil, slot.cfg.explain("read the checkpoint", err)
	case last.at == nil: // a horizon from before the checkpoint kept its time
		last.snapshot = nil
	}
	if text != nil {
		if err := json.Unmarshal([]byte(*text), &unfinished); err != nil {
			return last, nil, fmt.Errorf("read where the comparison stands: %w", err)
		}
	}
	return last, unfinished, nil
}

// Reconcile adds the missing rows of every event that h sees and the last horizon does not. Then it
// makes h the last horizon. It returns how many rows were missing, even if it fails. The ledger
// must have recorded everything before h (AwaitRecorded). gap says that the stream is known to have
// skipped events. Such a comparison continues an earlier one that was not completed, of this term
// or another. A recovery is complete when Reconcile has run with a horizon beyond Term.Barrier.
func (slot *Slot) Reconcile(ctx context.Context, l *Ledger, h Horizon, gap bool) (added int64, err error) {
	last, unfinished, err := slot.compared(ctx, l.cfg.Term)
	if err != nil {
		return 0, err
	}
	defer func() { slot.mapped.forgetAfter(err) }()
	// A comparison that began under other row filters selected events by those filters, and they
	// may name columns that are gone. It is not continued.
	if gap && unfinished != nil && slices.EqualFunc(unfinished.Horizon.Coverage.Filters, h.Coverage.Filters, RowFilter.same) {
		if added, err = slot.sweep(ctx, l, last, *unfinished); err != nil {
			return added, err
		}
		last = unfinished.Horizon.last()
	}
	switch {
	case gap:
		var n int64
		n, err = slot.sweep(ctx, l, last, sweep{Horizon: h})
		return added + n, err
	case last.snapshot == nil:
		// Nothing shows which rows are new, nor which endpoints have not changed.
		return 0, l.setHorizon(ctx, h)
	}
	added, err = slot.compareLatest(ctx, l, slot.comparison(last, h, true))
	if err != nil {
		return added, err
	}
	if added == 0 && l.stats.horizon.Load() {
		if s, err := ParseSnapshot(*last.snapshot); err == nil && h.xmin-s.xmin < horizonStep {
			return 0, nil
		}
	}
	return added, l.setHorizon(ctx, h)
}

// AwaitRecorded waits until every delivery from the stream before lsn has its row.
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

// jobResult is what await waits for.
type jobResult struct {
	added int64
	err   error
}

// await gives the Ledger a job and waits for it.
func (l *Ledger) await(ctx context.Context, j job, done <-chan jobResult) (int64, error) {
	if err := l.Write(ctx, jobEntry{j}); err != nil {
		return 0, err
	}
	select {
	case r := <-done:
		return r.added, r.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

const storeHorizon = `
update webhooks.checkpoint
set horizon = $2::text::pg_snapshot, horizon_at = $3, coverage = $4, relations = $5,
    recovering = recovering and not $6, sweep = null
where slot = $1`

// setHorizon makes the Ledger store h. This ends a recovery if h.Completes is set. Everything that
// h sees must have been handed over or recovered.
func (l *Ledger) setHorizon(ctx context.Context, h Horizon) error {
	err := l.note(ctx, storeHorizon, l.cfg.Slot, h.Snapshot, h.At, h.Coverage.Fingerprint, h.Coverage.Relations, h.Completes)
	if err == nil {
		l.stats.horizon.Store(true)
	}
	return err
}

// note makes the Ledger run a statement that writes to the checkpoint.
func (l *Ledger) note(ctx context.Context, sql string, args ...any) error {
	done := make(chan jobResult, 1)
	_, err := l.await(ctx, &noteJob{sql: sql, args: args, done: done}, done)
	return err
}

// noteJob writes to the checkpoint.
type noteJob struct {
	sql    string
	args   []any
	failed error
	done   chan<- jobResult // has room for one value
}

func (j *noteJob) step(ctx context.Context, tx querier) (finished bool, err error) {
	return true, exec(ctx, tx, j.sql, j.args...)
}

func (j *noteJob) committed() []string {
	j.done <- jobResult{err: j.failed}
	return nil
}

func (j *noteJob) pause() time.Duration { return 0 }

func (j *noteJob) abandon(_ context.Context, _ querier, reason string) error {
	j.failed = fmt.Errorf("write the checkpoint: %s", reason)
	return nil
}
