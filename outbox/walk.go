package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A comparison reads the outbox in parts. A comparison of the whole outbox goes by the places of
// the rows (ctid), block by block, in all partitions at once. So it needs no index and sorts
// nothing. A place says nothing about a row's age, and need not. The periodic comparison goes by
// created if an index begins with that column. The size of a part depends on how long the last one
// took. The checkpoint keeps the position of a comparison of the whole outbox, and the next term
// continues there.

const (
	// partTime is how long one statement of a comparison should take. After partTimeout, the server
	// ends it, and it is tried again with a smaller part. If a change of the table holds a lock,
	// the statement waits no longer than partLockTimeout for it.
	partTime        = 500 * time.Millisecond
	partTimeout     = 5 * time.Second
	partLockTimeout = time.Second
	// firstBlocks is the size of the first part and mostBlocks that of the largest, in blocks of 8
	// KiB. mostBlocks also bounds what memory holds of a part: the places of its events.
	firstBlocks = 64
	mostBlocks  = 2048
	// foundLimit is how many events without a row one part should have at most.
	foundLimit = 10_000
	// noteInterval is how often the position of a comparison is written to the checkpoint.
	noteInterval = time.Second
	// looksAtPart is how often one part is read at most, until nothing is found there.
	looksAtPart = 3
	// looksAtMoved is the same for rows that have moved. There, each look is a statement that reads
	// the whole table.
	looksAtMoved = 10
	// least is the size of a row pointer and a row's header. No block holds more rows than its size
	// divided by this.
	least = 28
)

// sweep is a comparison of the whole outbox: its horizon and its position. The checkpoint keeps it
// as JSON.
type sweep struct {
	Horizon Horizon `json:"Horizon"`
	// Files are the files of the relations in Horizon.Coverage. Next is the place before which
	// everything was compared, as in partWalk.next. Files is nil before the beginning.
	Files []string `json:"Files"`
	Next  int64    `json:"Next"`
}

// layout is what a walk must know about the outbox's tables.
type layout struct {
	blocks   int64 // of the largest table
	perBlock int64 // more than the rows that a block can hold
	files    []string
	indexed  bool // each table has an index that begins with created
}

var selectLayout = `
select coalesce(max(pg_relation_size(r.relation)) / current_setting('block_size')::bigint, 0),
       current_setting('block_size')::bigint / $3 + 1, ` + filesOf("$1") + `,
       coalesce(bool_and(exists (
           select from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
           where i.indrelid = r.relation and i.indisvalid and i.indpred is null and m.amname in ('btree', 'brin') and a.attname = $2)), false)
from unnest($1::oid[]) r (relation)`

func (slot *Slot) layout(ctx context.Context, relations []uint32) (l layout, err error) {
	err = slot.db.pool.QueryRow(ctx, selectLayout, relations, slot.cfg.Columns.Created, least).Scan(&l.blocks, &l.perBlock, &l.files, &l.indexed)
	return l, slot.cfg.explain("look at the tables of "+slot.cfg.Table, err)
}

// errRewritten reports that a table was rewritten, so that places mean nothing any more.
var errRewritten = errors.New("the table was rewritten meanwhile; the comparison begins anew")

// sweep compares all events that the horizon of s sees and the last one does not. It begins at the
// position of s. At the end it makes the horizon of s the last one.
func (slot *Slot) sweep(ctx context.Context, l *Ledger, last lastHorizon, s sweep) (added int64, err error) {
	w, err := slot.walkPlaces(ctx, slot.comparison(last, s.Horizon, false))
	if err != nil {
		return 0, err
	}
	if s.Files == nil {
		s.Files = w.layout.files
	}
	w.files, w.next = s.Files, s.Next
	noted := time.Now()
	w.passed = func() error {
		if time.Since(noted) > noteInterval {
			noted = time.Now()
			s.Next = w.next
			if err := l.noteSweep(ctx, &s); err != nil {
				return err
			}
		}
		return sleepFor(ctx, w.looked) // the server has other work to do too
	}
	if added, err = w.run(ctx, l); err == nil {
		var n int64
		n, err = w.follow(ctx, l, s.Horizon)
		added += n
	}
	if errors.Is(err, errRewritten) {
		err = errors.Join(err, l.noteSweep(ctx, nil))
	}
	if err != nil {
		return added, slot.cfg.explain("compare "+slot.cfg.Table+" with the log", err)
	}
	return added, l.setHorizon(ctx, s.Horizon)
}

const storeSweep = `
update webhooks.checkpoint set sweep = $2::text::jsonb where slot = $1`

// noteSweep makes the Ledger store the position of a comparison, or that there is no comparison.
func (l *Ledger) noteSweep(ctx context.Context, s *sweep) error {
	if s == nil {
		return l.note(ctx, storeSweep, l.cfg.Slot, nil)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return l.note(ctx, storeSweep, l.cfg.Slot, string(text))
}

// compareLatest compares the latest events.
func (slot *Slot) compareLatest(ctx context.Context, l *Ledger, c comparison) (added int64, err error) {
	w, err := slot.walkLatest(ctx, c)
	if err == nil {
		added, err = w.run(ctx, l)
	}
	return added, slot.cfg.explain("compare "+slot.cfg.Table+" with the log", err)
}

// partWalk goes through the outbox in parts.
type partWalk struct {
	slot    *Slot
	mapping *mapping
	comparison
	layout    layout
	relations []uint32
	files     []string // the files that the places belong to; nil if they do not matter
	sql       string
	// bounds returns the values for the part from one position to another.
	bounds    func(from, to int64) values
	next, end int64
	pace      pace
	looked    time.Duration // how long the last statement took
	passed    func() error  // called after each part; may be nil
}

// newWalk makes a walk that has no statement yet.
func (slot *Slot) newWalk(ctx context.Context, c comparison) (*partWalk, error) {
	w := &partWalk{slot: slot, comparison: c, relations: c.to.Coverage.oids()}
	var err error
	if w.mapping, err = slot.mapping(ctx); err != nil {
		return nil, err
	}
	w.layout, err = slot.layout(ctx, w.relations)
	return w, err
}

// walkPlaces makes a walk through all rows by their places. A position is the number of the block
// times perBlock, plus the place in the block.
func (slot *Slot) walkPlaces(ctx context.Context, c comparison) (*partWalk, error) {
	w, err := slot.newWalk(ctx, c)
	if err != nil {
		return nil, err
	}
	w.byPlace("true")
	return w, nil
}

func (w *partWalk) byPlace(condition string) {
	perBlock := w.layout.perBlock
	place := func(at int64) string { return fmt.Sprintf("(%d,%d)", at/perBlock, at%perBlock) }
	w.sql = w.mapping.findSQL(condition + " and " + w.to.Coverage.streamed() + " and o.ctid >= @low::text::tid and o.ctid < @high::text::tid")
	w.bounds = func(from, to int64) values { return values{"low": place(from), "high": place(to)} }
	w.end = w.layout.blocks * perBlock
	w.pace = pace{step: firstBlocks * perBlock, most: mostBlocks * perBlock}
}

// walkLatest makes a walk through the latest rows by created. A position is then the number of
// microseconds since the first of them. If no index leads to the rows, it goes by their places. It
// begins with one part for everything.
func (slot *Slot) walkLatest(ctx context.Context, c comparison) (*partWalk, error) {
	w, err := slot.newWalk(ctx, c)
	if err != nil {
		return nil, err
	}
	created := "o." + quoteIdent(slot.cfg.Columns.Created)
	first := c.last.at.Add(-backdated)
	if !w.layout.indexed {
		w.files = w.layout.files
		w.byPlace(created + " >= " + w.mapping.asCreated(fmt.Sprintf("'%s'::timestamptz", first.Format(time.RFC3339Nano))))
		return w, nil
	}
	w.sql = w.mapping.findSQL(pieces{
		"created": created, "low": w.mapping.asCreated("@low::timestamptz"), "high": w.mapping.asCreated("@high::timestamptz"),
	}.in("${created} >= ${low} and (@high::timestamptz is null or ${created} < ${high}) and ") + c.to.Coverage.streamed())
	w.end = max(1, c.to.At.Sub(first).Microseconds())
	w.bounds = func(from, to int64) values {
		at := func(position int64) time.Time { return first.Add(time.Duration(position) * time.Microsecond) }
		if to == w.end {
			// The app may give an event a time in the future.
			return values{"low": at(from), "high": nil}
		}
		return values{"low": at(from), "high": at(to)}
	}
	w.pace = pace{step: w.end, most: w.end}
	return w, nil
}

// run adds the missing rows of the events of all parts, and returns how many.
func (w *partWalk) run(ctx context.Context, l *Ledger) (added int64, err error) {
	for w.next < w.end {
		to := min(w.next+w.pace.step, w.end)
		n, most, err := w.part(ctx, l, to)
		added += n
		if SQLState(err) == codeQueryCanceled && w.pace.step > 1 {
			w.pace.step = max(1, w.pace.step/8)
			continue
		}
		if err != nil {
			return added, err
		}
		w.next = to
		w.pace.adapt(w.looked, most)
		if w.passed != nil {
			if err := w.passed(); err != nil {
				return added, err
			}
		}
	}
	return added, nil
}

// part adds the missing rows of the events up to a position. If it has found something, it reads
// the part again, because a row may move before it is handled. most is the most events that one
// reading has found.
func (w *partWalk) part(ctx context.Context, l *Ledger, to int64) (added int64, most int, err error) {
	for range looksAtPart {
		events, err := w.find(ctx, to)
		most = max(most, len(events))
		if err != nil || len(events) == 0 {
			return added, most, err
		}
		n, err := w.giveRows(ctx, l, events)
		added += n
		if err != nil {
			return added, most, err
		}
	}
	return added, most, nil
}

// follow adds the missing rows of events whose rows have moved during the walk. An update writes a
// row at a new place, which the walk may have passed already, or which is beyond its end. In the
// agent's own table, nothing else would find such events, because xid says that the horizon sees
// them. One statement reads everything, so it misses no row. If too many rows have moved to be
// handled at once, the walk begins anew.
func (w *partWalk) follow(ctx context.Context, l *Ledger, horizon Horizon) (added int64, err error) {
	if !w.mapping.ownsTable() {
		return 0, nil // if the horizon does not see a row, it is a suspect for the next comparison
	}
	w.sql = w.mapping.findSQL("not webhooks.handed_over(o.xmin, @walked::text::pg_snapshot) and " + w.to.Coverage.streamed())
	w.bounds = func(int64, int64) values { return values{"walked": horizon.Snapshot} }
	w.pace.step = 1 // there is no smaller part than one
	given := int64(0)
	for range looksAtMoved {
		events, err := w.find(ctx, w.end)
		if err != nil || len(events) == 0 {
			return added, err
		}
		if given, err = w.giveRows(ctx, l, events); err != nil {
			return added + given, err
		}
		added += given
	}
	if given > 0 {
		return added, errRewritten
	}
	return added, nil // an event that is found but gets no row does not lack one
}

const limitPart = `
select set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true), set_config('jit', 'off', true)`

// find returns the events up to a position that lack a row.
func (w *partWalk) find(ctx context.Context, to int64) (events []found, err error) {
	timeout := partTimeout
	if w.pace.step <= 1 { // there is no smaller part to try
		ctx, timeout = unhurried(ctx), 0
	}
	var (
		files     []string
		relations []uint32
		places    []pgtype.TID
		endpoints []int64
	)
	began := time.Now()
	defer func() { w.looked = time.Since(began) }()
	err = pgx.BeginTxFunc(ctx, w.slot.db.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := exec(ctx, tx, limitPart, milliText(timeout), milliText(partLockTimeout)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, w.sql, w.params(to)...).Scan(&files, &relations, &places, &endpoints)
	})
	if err != nil {
		return nil, err
	}
	if w.rewritten(files) {
		return nil, errRewritten
	}
	for i := range relations {
		events = append(events, found{relations[i], places[i], endpoints[i]})
	}
	return events, nil
}

// params returns the parameters of w.sql for the part up to a position.
func (w *partWalk) params(to int64) []any {
	return w.args(w.bounds(w.next, to).and(values{"relations": w.relations}))
}

// rewritten reports whether a relation is now stored in another file. A relation that is gone does
// not matter.
func (w *partWalk) rewritten(now []string) bool {
	for i, file := range w.files {
		if i < len(now) && now[i] != "" && now[i] != file {
			return true
		}
	}
	return false
}

// milliText returns a duration in the form of a PostgreSQL setting.
func milliText(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// pace is how large the parts of a walk are.
type pace struct{ step, most int64 }

// adapt chooses the size of the next part by how long the last one took and how many events it
// found.
func (p *pace) adapt(took time.Duration, found int) {
	switch {
	case took > 2*partTime:
		p.step = max(1, int64(float64(p.step)*float64(partTime)/float64(took)))
	case found > foundLimit:
		p.step = max(1, p.step/2)
	case took < partTime/2 && found < foundLimit/2:
		p.step = min(p.most, 2*p.step)
	}
}

// sleepFor waits for d. If ctx ends before, it returns the cause.
func sleepFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
