package outbox

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file has a group go on without the rows that PostgreSQL refuses for what is in them, whatever that is: one row must not stop the others.
// It is the backstop. What is known to be refused (a long id, a byte that is not UTF-8) does not come here.
//
// Where PostgreSQL refuses every row, the table is the reason and not a row, so nothing is set aside: the ledger keeps everything and tries again.

// aside is how much is left of a delivery's row.
type aside int

const (
	asNothing aside = iota // all of it
	asFailed               // a row without texts that says that the rest was refused
	asNoRow                // no row
)

// setAside is what such a row says (deliveries.last_error).
var setAside = "PostgreSQL refused to record what came of the delivery; see the agent's log"

// refusesContent reports whether a statement failed for what its rows hold.
func refusesContent(sqlState string) bool {
	return strings.HasPrefix(sqlState, classDataException) || strings.HasPrefix(sqlState, classIntegrity) ||
		strings.HasPrefix(sqlState, classRaised) || strings.HasPrefix(sqlState, classProgramLimit)
}

// insertProbe writes a row that has nothing special, which is taken back.
const insertProbe = `
insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, finished)
values ('evt_probe', 'ep_probe', 'venue_probe', 'probe', 'failed', now(), now())
on conflict (event_id, endpoint_id) do update set status = excluded.status`

// writeCarefully writes the group in pieces, so that what PostgreSQL refuses is found. What it finds it keeps for the next try.
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

// writePiece writes records, and halves a piece that is refused.
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
		g.queueRecords(&b, kept)
		if err := tx.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		clashes := g.clashes
		g.clashes = nil // told once, below
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

// setAside leaves less of a delivery's row. One that is pending ends: it would come back and be refused again.
func (g *group) setAside(r *Record) {
	key := r.key()
	g.asides[key]++
	if latest := g.records[g.rows[key].latest]; latest.Status == Pending && !r.Taken {
		latest.Status, latest.NextAttempt, latest.Finished = Failed, time.Time{}, latest.at()
	}
}

// within runs statements between a savepoint and its end, and takes them back when one fails, or in any case.
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

// tellAsides logs and counts what was set aside.
func (l *Ledger) tellAsides(g *group) {
	for key, left := range g.asides {
		text := "PostgreSQL refused to record what came of a delivery; it stands as failed in the delivery log"
		if left == asNoRow {
			text = "PostgreSQL refused to record a delivery; the delivery log does not have it"
		}
		l.cfg.Log.Error(text, "event", key.eventID, "endpoint", key.endpointID)
	}
	if l.cfg.Counts != nil {
		l.cfg.Counts.SetAside.Add(int64(len(g.asides)))
	}
}

// reusedIDs keeps the log from saying the same with each group.
type reusedIDs struct {
	told  time.Time
	since int64 // deliveries since then
}

// reusedPause is how often the log says that ids are used again.
const reusedPause = time.Minute

const noteReused = `
update webhooks.checkpoint set reused = reused + $2, reused_at = now() where slot = $1`

// tellReused counts deliveries of events whose id the log had for another event, and says so.
func (l *Ledger) tellReused(n int64) {
	if n == 0 {
		return
	}
	if l.cfg.Counts != nil {
		l.cfg.Counts.Reused.Add(n)
	}
	l.reused.since += n
	if now := time.Now(); now.Sub(l.reused.told) >= reusedPause {
		l.cfg.Log.Error("the outbox uses ids of events again that the delivery log still has; ids must be unique, also after the table was emptied. An event "+
			"takes the place of one that has ended; while the other is pending, it is not recorded and may not be sent",
			"outbox", l.cfg.Table, "deliveries", l.reused.since)
		l.reused = reusedIDs{told: now}
	}
}
