package outbox

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file lets a group be written without the rows that PostgreSQL refuses because of their
// content. One bad row must not stop the others, whatever is wrong with it. This is the last
// resort: content that is known to be refused (a long id, bytes that are not UTF-8) is handled
// before.
//
// If PostgreSQL refuses every row, the table is the reason and not a row. Then nothing is set
// aside: the ledger keeps everything and tries again.

// aside says how much of a delivery's row is written.
type aside int

const (
	asNothing aside = iota // all of it
	asFailed               // a row without texts, whose error says that the rest was refused
	asNoRow                // no row
)

// setAside is the error in the row of a delivery that was set aside (deliveries.last_error).
const setAside = "PostgreSQL refused to record the result of the delivery; see the agent's log"

// refusesContent reports whether a statement failed because of the content of its rows.
func refusesContent(sqlState string) bool {
	return strings.HasPrefix(sqlState, classDataException) || strings.HasPrefix(sqlState, classIntegrity) ||
		strings.HasPrefix(sqlState, classRaised) || strings.HasPrefix(sqlState, classProgramLimit)
}

// insertProbe writes a row with ordinary content. The row is rolled back.
const insertProbe = `
insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, finished)
values ('evt_probe', 'ep_probe', 'venue_probe', 'probe', 'failed', now(), now())
on conflict (event_id, endpoint_id) do update set status = excluded.status`

// writeCarefully writes the group in pieces, to find the rows that PostgreSQL refuses. It keeps
// what it has found for the next try.
func (g *group) writeCarefully(ctx context.Context, tx querier) error {
	probe := func() error { return exec(ctx, tx, insertProbe) }
	if err := within(ctx, tx, probe, true); err != nil {
		return err
	}
	if g.asides == nil {
		g.asides = map[deliveryKey]aside{}
	}
	if err := g.writePiece(ctx, tx, g.records); err != nil {
		return err
	}
	var b pgx.Batch
	g.queueHealth(&b)
	g.queueReplays(&b)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return err
	}
	g.taken = nil
	return g.writeTaken(ctx, tx)
}

// writePiece writes records. If PostgreSQL refuses them, it halves them and tries each half.
func (g *group) writePiece(ctx context.Context, tx querier, records []*Record) error {
	kept := make([]*Record, 0, len(records))
	for _, r := range records {
		if g.asides[r.key()] != asNoRow {
			kept = append(kept, r)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	reused := g.reused
	err := within(ctx, tx, func() error {
		var b pgx.Batch
		_, later, restored := g.latest(kept) // none is first: the group has rowsExist set
		g.queueRecords(&b, kept, later, restored)
		if err := tx.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		clashes := g.clashes
		g.clashes = nil // reported once, below
		err := g.writeTaken(ctx, tx)
		g.clashes = clashes
		return err
	}, false)
	if !refusesContent(SQLState(err)) {
		return err
	}
	g.reused, g.taken = reused, nil
	if len(kept) == 1 {
		g.setAside(kept[0])
		return g.writePiece(ctx, tx, kept)
	}
	half := len(kept) / 2
	if err := g.writePiece(ctx, tx, kept[:half]); err != nil {
		return err
	}
	return g.writePiece(ctx, tx, kept[half:])
}

// setAside reduces what is written of a delivery's row by one step. A pending delivery becomes
// failed: otherwise it would come back, and its row would be refused again.
func (g *group) setAside(r *Record) {
	key := r.key()
	g.asides[key]++
	if latest := g.rows[key]; !r.Taken && latest.Status == Pending {
		latest.Status, latest.NextAttempt, latest.Finished = Failed, time.Time{}, latest.at()
	}
}

// within runs statements after a savepoint. It rolls them back if one fails, or always if undo is
// set.
func within(ctx context.Context, tx querier, work func() error, undo bool) error {
	if err := exec(ctx, tx, "savepoint piece"); err != nil {
		return err
	}
	err := work()
	if err == nil && !undo {
		return exec(ctx, tx, "release savepoint piece")
	}
	if err != nil && SQLState(err) == "" {
		return err // the connection is gone
	}
	return errors.Join(err, exec(ctx, tx, "rollback to savepoint piece"), exec(ctx, tx, "release savepoint piece"))
}

// tellAsides logs and counts the deliveries that were set aside.
func (l *Ledger) tellAsides(g *group) {
	for key, left := range g.asides {
		text := "PostgreSQL refused to record the result of a delivery; the delivery log has it as failed"
		if left == asNoRow {
			text = "PostgreSQL refused to record a delivery; the delivery log does not have it"
		}
		l.cfg.Log.Error(text, "event", key.eventID, "endpoint", key.endpointID)
	}
	if l.cfg.Counts != nil {
		l.cfg.Counts.SetAside.Add(int64(len(g.asides)))
	}
}

// reusedIDs keeps the log from repeating the same warning with each group.
type reusedIDs struct {
	told  time.Time
	since int64 // deliveries since then
}

// reusedPause is the least time between two such warnings.
const reusedPause = time.Minute

const noteReused = `
update webhooks.checkpoint set reused = reused + $2, reused_at = now() where slot = $1`

// tellReused counts deliveries whose event has the id of another event in the delivery log, and
// logs that ids are used again.
func (l *Ledger) tellReused(n int64) {
	if n == 0 {
		return
	}
	if l.cfg.Counts != nil {
		l.cfg.Counts.Reused.Add(n)
	}
	l.reused.since += n
	if now := time.Now(); now.Sub(l.reused.told) >= reusedPause {
		l.cfg.Log.Error("the outbox has events with ids that other events in the delivery log have; ids must be unique, also after the table was emptied. A new event "+
			"replaces one that has ended; while the other one is pending, the new event is not recorded and may not be sent",
			"outbox", l.cfg.Table, "deliveries", l.reused.since)
		l.reused = reusedIDs{told: now}
	}
}
