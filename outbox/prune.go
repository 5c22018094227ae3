package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Pruning deletes what is older than the retention, in an order that keeps two things true. A
// delivery outlives its event's row in the outbox, so no comparison of outbox and log can take a
// delivery for one that never was. And an event goes only after the stream has passed it for good:
// no recovery is under way, and the transaction that wrote it is one that the horizon of the
// checkpoint sees.
//
// It walks a table by the column created: a read-only statement lists the places (ctid) of many
// rows, and short transactions delete those of them for which every rule holds when they get there.
// A place is no more than a hint: another row may have taken it, which is then judged by itself.
// Many rows of one transaction have the same created, so the walk goes on within those by place.
// Where it stands is kept between runs: rows that must stay are not read again with each of them.

// PrunedTable is a table that is pruned.
type PrunedTable string

// The tables that are pruned, in the order in which they must be. Attempts go with their
// deliveries.
const (
	PrunedOutbox     PrunedTable = "outbox"
	PrunedDeliveries PrunedTable = "deliveries"
	PrunedAttempts   PrunedTable = "attempts"
	PrunedReplays    PrunedTable = "replays"
	PrunedRemoved    PrunedTable = "removed_endpoints"
)

const (
	// pruneRead is how many places one statement lists, and pruneBatch how many rows one
	// transaction deletes at most.
	pruneRead  = 20_000
	pruneBatch = 1000
	// pruneAgain is how long rows that had to stay are left alone, at most: then the walks begin
	// anew.
	pruneAgain = 6 * time.Hour
)

// Pruner deletes what is older than Config.Retention. It belongs to one goroutine.
type Pruner struct {
	slot    *Slot
	term    Term
	mapping *mapping // that of the run or the step under way
	cutoff  time.Time
	restart time.Time // when the walks begin anew, by the host's clock
	walks   map[PrunedTable]*walk
	batch   int // rows of one transaction; fewer after one that took too long
	// removed is the last row of webhooks.removed_endpoints that was judged in this run.
	removed removedPlace
	// obstacles are why tables cannot be pruned in this run.
	obstacles map[PrunedTable]*Problem
}

// walk is how far a table was walked.
type walk struct {
	after  place
	listed []place // not judged yet
}

// place is where a row is. The time is kept as PostgreSQL writes it.
type place struct {
	created string
	table   uint32 // a partition, or the table itself
	row     string // ctid
}

// values are those of listPlaces for what comes after this place.
func (at place) values(cutoff time.Time) values {
	return values{"created": at.created, "table": at.table, "row": at.row, "cutoff": cutoff, "limit": pruneRead}
}

// beginning is before every place.
var beginning = place{created: "-infinity", row: "(0,0)"}

// NewPruner returns one for a term. It does nothing by itself.
func (slot *Slot) NewPruner(term Term) *Pruner { return &Pruner{slot: slot, term: term} }

const selectCutoff = `
select clock_timestamp() - make_interval(secs => $1)`

// Begin begins a run: everything older than the retention now is to go.
func (p *Pruner) Begin(ctx context.Context) (err error) {
	retention := p.slot.cfg.Retention
	if err := p.slot.db.pool.QueryRow(ctx, selectCutoff, retention.Seconds()).Scan(&p.cutoff); err != nil {
		return p.slot.cfg.explain("read the clock", err)
	}
	if err := p.lookForObstacles(ctx); err != nil {
		return err
	}
	p.removed = removedPlace{}
	if now := time.Now(); now.After(p.restart) {
		// A retention that is short, which only a test has, makes for short rounds.
		p.restart = now.Add(min(pruneAgain, retention/4))
		p.walks = map[PrunedTable]*walk{PrunedOutbox: {after: beginning}, PrunedDeliveries: {after: beginning}}
		p.batch = pruneBatch
	}
	return nil
}

// Pruned is what a step deleted, by table.
type Pruned map[PrunedTable]int64

// Step makes one transaction of the run for a table, and reports whether it was the last one. An
// error ends the run for that table only. The next run goes on where it was.
func (p *Pruner) Step(ctx context.Context, table PrunedTable) (pruned Pruned, done bool, err error) {
	if obstacle := p.obstacles[table]; obstacle != nil {
		return nil, true, obstacle
	}
	if p.mapping, err = p.slot.mapping(ctx); err != nil {
		return nil, true, err
	}
	switch table {
	case PrunedReplays:
		pruned, done, err = p.replays(ctx)
	case PrunedRemoved:
		pruned, done, err = p.removedEndpoints(ctx)
	case PrunedOutbox:
		pruned, done, err = p.walk(ctx, table, p.mapping.listEventsSQL(), p.events)
	default:
		pruned, done, err = p.walk(ctx, table, listDeliveries, p.deliveries)
	}
	p.slot.mapped.forgetAfter(err)
	return pruned, done, p.slot.explainPrune(table, err)
}

// listPlaces lists the places of rows that are older than a moment, from a place on. Neither null
// nor an infinite time says how old a row is, so such rows stay.
const listPlaces = `
select o.${created}::timestamptz::text, o.tableoid, o.ctid::text from ${table} o
where o.${created} >= @created::text::timestamptz and o.${created} < ${cutoff} and o.${created} > '-infinity'
  and (o.${created} > @created::text::timestamptz or (o.tableoid, o.ctid) > (@table::oid, @row::text::tid)) and ${condition}
order by o.${created}, o.tableoid, o.ctid limit @limit`

var listDeliveries = pieces{
	"table": "webhooks.deliveries", "created": "created", "cutoff": "@cutoff::timestamptz", "condition": "o.status <> 'pending'",
}.in(listPlaces)

func (m *mapping) listEventsSQL() string {
	return pieces{
		"table": m.cfg.table(), "created": quoteIdent(m.cfg.Columns.Created), "cutoff": m.asCreated("@cutoff::timestamptz"), "condition": "true",
	}.in(listPlaces)
}

// walk judges the next places of a table by remove, which returns what it deleted.
func (p *Pruner) walk(
	ctx context.Context, table PrunedTable, list string, remove func(context.Context, pgx.Tx, []place) (Pruned, error),
) (pruned Pruned, done bool, err error) {
	w := p.walks[table]
	if len(w.listed) == 0 {
		listed, err := p.list(ctx, list, w.after)
		if err != nil || len(listed) == 0 {
			return nil, true, err
		}
		w.listed = listed
	}
	batch := w.listed[:min(p.batch, len(w.listed))]
	err = p.briefly(ctx, func(tx pgx.Tx) (err error) {
		pruned, err = remove(ctx, tx, batch)
		return err
	})
	if err != nil {
		if SQLState(err) == codeQueryCanceled {
			p.batch = max(1, p.batch/2)
		}
		return nil, true, err
	}
	w.listed, w.after = w.listed[len(batch):], batch[len(batch)-1]
	return pruned, false, nil
}

func (p *Pruner) list(ctx context.Context, sql string, after place) (listed []place, err error) {
	err = p.briefly(ctx, func(tx pgx.Tx) error {
		listed, err = queryRows(ctx, tx, sql, func(row pgx.CollectableRow) (at place, err error) {
			err = row.Scan(&at.created, &at.table, &at.row)
			return at, err
		}, planAnew, after.values(p.cutoff))
		return err
	})
	return listed, err
}

// briefSettings bound a transaction on the server: it gives up before anything that waits for it
// would, and also when the agent is cut off in the middle. What a crash of the server takes back is
// deleted again, so the commit does not wait for the disk.
const briefSettings = `
select set_config('lock_timeout', '500ms', true), set_config('statement_timeout', '10s', true),
       set_config('idle_in_transaction_session_timeout', '5s', true), set_config('synchronous_commit', 'off', true)`

// briefly runs a transaction on a connection of the pool.
func (p *Pruner) briefly(ctx context.Context, work func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, p.slot.db.pool, func(tx pgx.Tx) error {
		if err := exec(ctx, tx, briefSettings); err != nil {
			return err
		}
		return work(tx)
	})
}

// passedSQL begins the statements that delete. It reads from the checkpoint of the term
// (Pruner.values) what the stream has passed for good. Without a checkpoint, nothing is deleted. Ids of
// transactions have 32 bits and go round, and a row that is kept for a month may be older than half a
// round. The ids that have not passed are those from the horizon to now, so a row has passed if its id
// is none of these.
const passedSQL = `
with passed as materialized (
    select pg_snapshot_xmin(horizon)::text::bigint as horizon, pg_snapshot_xmax(pg_current_snapshot())::text::bigint as now, relations
    from webhooks.checkpoint where slot = @slot and epoch = @epoch and not recovering and horizon is not null
)`

// isOld is the condition that a row's created is before a moment. Its form keeps the planner from
// an index on created: the places are given, and the index would lead to all that is old.
func isOld(created, before string) string {
	return pieces{"created": created, "before": before}.in(`(${created} < ${before} and ${created} > '-infinity') is true`)
}

// xidsAfter is the expression for how many transaction ids after the id from that of the
// transaction is that wrote a row. Ids of rows have 32 bits and go round; webhooks.handed_over
// takes a row that is older than half a round for one of the future.
func xidsAfter(row, from string) string {
	return fmt.Sprintf("(%s.xmin::text::bigint - %s & 4294967295)", row, from)
}

// hasPassed is the condition that the transaction that wrote a row has passed.
func hasPassed(row string) string {
	return xidsAfter(row, "passed.horizon") + ` >= passed.now - passed.horizon`
}

// inOpenReplay is the condition that a delivery d belongs to a replay that has not ended, whatever
// its status. One that is paused keeps what it is to send, for as long as it is paused.
const inOpenReplay = `exists (select from webhooks.replays r
          where r.finished is null and r.endpoint_id = d.endpoint_id
            and (d.replay_id = r.id or d.event_id = any(r.event_ids)
                 or r.event_ids is null and d.created >= coalesce(r.since, '-infinity') and d.created < coalesce(r.until, 'infinity')))`

// deleteEventsSQL deletes events of the outbox by their places and returns how many were to go and
// how many did. A partition of which the horizon does not speak may hold rows that the stream has
// not brought.
func (m *mapping) deleteEventsSQL() string {
	created := "o." + quoteIdent(m.cfg.Columns.Created)
	return pieces{
		"table": m.cfg.table(), "id": quoteIdent(m.cfg.Columns.ID), "is old": isOld(created, m.asCreated("@cutoff::timestamptz")),
		"has passed": hasPassed("o"), "relations": relationsOf("@outbox::text", "@publication::text"), "in open replay": inOpenReplay,
	}.in(passedSQL + `, listed as (
    select * from unnest(@tables::oid[], @rows::text[]::tid[]) l (place_table, place)
), old as materialized (
    select o.tableoid as place_table, o.ctid as place
    from passed, listed l, ${table} o
    where o.tableoid = l.place_table and o.ctid = l.place and ${is old} and ${has passed}
      and o.tableoid in (select split_part(relation, ':', 1)::oid from unnest(${relations}) relation
                         where relation in (select unnest(relations) from passed))
      and not exists (select from webhooks.deliveries d where d.event_id = o.${id}::text and (d.status = 'pending' or ${in open replay}))
), deleted as (
    delete from ${table} o using old where o.tableoid = old.place_table and o.ctid = old.place returning 1
)
select (select count(*) from old), (select count(*) from deleted)`)
}

// values are those that all statements of a run which delete have.
func (p *Pruner) values() values {
	return values{"slot": p.slot.cfg.Slot, "epoch": p.term.Epoch, "cutoff": p.cutoff}
}

// errKept reports that DELETE deletes nothing, without an error.
var errKept = errors.New("a trigger or a rule of the table keeps its rows")

func (p *Pruner) events(ctx context.Context, tx pgx.Tx, batch []place) (Pruned, error) {
	tables, rows := make([]uint32, len(batch)), make([]string, len(batch))
	for i, at := range batch {
		tables[i], rows[i] = at.table, at.row
	}
	var old, deleted int64
	err := tx.QueryRow(ctx, p.mapping.deleteEventsSQL(), planAnew, p.values().and(values{
		"tables": tables, "rows": rows, "outbox": p.slot.cfg.table(), "publication": p.slot.cfg.Publication,
	})).Scan(&old, &deleted)
	if err == nil && old > 0 && deleted == 0 {
		err = errKept
	}
	return Pruned{PrunedOutbox: deleted}, err
}

// deleteDeliveriesSQL deletes deliveries by their places, with their attempts. What the ledger is
// writing now is left alone. The transaction that wrote the row has passed, so its event would be
// visible if it were there.
func (m *mapping) deleteDeliveriesSQL() string {
	return pieces{
		"outbox": m.cfg.table(), "id": quoteIdent(m.cfg.Columns.ID), "key": eventKey("d.event_id", m.idType), "is old": isOld("d.created", "@cutoff::timestamptz"),
		"has passed": hasPassed("d"), "in open replay": inOpenReplay,
	}.in(passedSQL + `, old as materialized (
    select d.ctid as place
    from passed, webhooks.deliveries d
    where d.ctid = any(@rows::text[]::tid[]) and ${is old} and d.status <> 'pending'
      and ${has passed}
      and not ${in open replay}
      and not exists (select from ${outbox} o where o.${id} = ${key})
    for update of d skip locked
), deleted as (
    delete from webhooks.deliveries d using old where d.ctid = old.place returning d.event_id, d.endpoint_id
), tried as (
    delete from webhooks.attempts a using deleted d where a.event_id = d.event_id and a.endpoint_id = d.endpoint_id returning 1
)
select (select count(*) from deleted), (select count(*) from tried)`)
}

// eventKey returns the expression that makes a key of the outbox of an event's id. A text that is
// no such key, since it comes from an outbox that was used before, gives null, where a plain cast
// would end the statement.
func eventKey(id, keyType string) string {
	p := pieces{"id": id}
	switch keyType {
	case "uuid":
		return p.in("case when ${id} ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then ${id}::uuid end")
	case "smallint", "integer", "bigint":
		return p.in(`case when ${id} ~ '^-?[0-9]{1,19}$' then
        case when ${id}::numeric between -9223372036854775808 and 9223372036854775807 then ${id}::bigint end end`)
	case "numeric":
		return p.in("case when ${id} ~ '^(-?[0-9]+([.][0-9]+)?|NaN|-?Infinity)$' then ${id}::numeric end")
	}
	return id + "::" + keyType
}

func (p *Pruner) deliveries(ctx context.Context, tx pgx.Tx, batch []place) (Pruned, error) {
	rows := make([]string, len(batch))
	for i, at := range batch {
		rows[i] = at.row
	}
	var deliveries, attempts int64
	err := tx.QueryRow(ctx, p.mapping.deleteDeliveriesSQL(), planAnew, p.values().and(values{"rows": rows})).Scan(&deliveries, &attempts)
	return Pruned{PrunedDeliveries: deliveries, PrunedAttempts: attempts}, err
}

// deleteReplays needs no walk: nothing keeps a replay that has ended.
const deleteReplays = `
with old as materialized (
    select ctid as place from webhooks.replays where finished < @cutoff and state in ('done', 'failed', 'canceled')
      and exists (select from webhooks.checkpoint where slot = @slot and epoch = @epoch)
    order by finished limit @limit for update skip locked
)
delete from webhooks.replays r using old where r.ctid = old.place`

func (p *Pruner) replays(ctx context.Context) (pruned Pruned, done bool, err error) {
	var n int64
	err = p.briefly(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, deleteReplays, p.values().and(values{"limit": pruneBatch}))
		n = tag.RowsAffected()
		return err
	})
	return Pruned{PrunedReplays: n}, n < pruneBatch, err
}

// removedPlace is a row of webhooks.removed_endpoints.
type removedPlace struct{ venue, id string }

// deleteRemoved deletes the traces of endpoints that were removed, once the log has no rows of
// them. One that is another venue's now has rows of that venue as well, which are younger: an event
// that was committed before the change has a time of before it, but for the length of a
// transaction. The trace stays for the retention at least, since the stream may be behind and bring
// rows.
const deleteRemoved = `
with listed as materialized (
    select r.ctid as place, r.venue, r.id, r.removed from webhooks.removed_endpoints r
    where (r.venue, r.id) > (@after_venue, @after_id)
      and exists (select from webhooks.checkpoint where slot = @slot and epoch = @epoch)
    order by r.venue, r.id limit @limit
), deleted as (
    delete from webhooks.removed_endpoints r using listed l
    where r.ctid = l.place and r.removed < @cutoff
      and not case when exists (select from webhooks.endpoints e where e.id = l.id)
                   then exists (select from webhooks.deliveries d where d.endpoint_id = l.id and d.created < l.removed + interval '1 hour')
                   else exists (select from webhooks.deliveries d where d.endpoint_id = l.id) end
    returning 1
)
select count(*), coalesce((array_agg(venue order by venue desc, id desc))[1], ''), coalesce((array_agg(id order by venue desc, id desc))[1], ''),
       (select count(*) from deleted)
from listed`

func (p *Pruner) removedEndpoints(ctx context.Context) (pruned Pruned, done bool, err error) {
	var listed, deleted int64
	last := p.removed
	err = p.briefly(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, deleteRemoved, planAnew, p.values().and(values{
			"after_venue": p.removed.venue, "after_id": p.removed.id, "limit": pruneBatch,
		})).Scan(&listed, &last.venue, &last.id, &deleted)
	})
	if err == nil {
		p.removed = last
	}
	return Pruned{PrunedRemoved: deleted}, listed < pruneBatch, err
}

// explainPrune words what keeps a table from being pruned.
func (slot *Slot) explainPrune(table PrunedTable, err error) error {
	if table != PrunedOutbox || !refusesDelete(err) {
		return slot.cfg.explain("prune "+string(table), err)
	}
	reason := err.Error()
	if refusal, ok := errors.AsType[*pgconn.PgError](err); ok {
		reason = refusal.Message
	}
	return &Problem{Thing: "outbox " + slot.cfg.Table, Reason: "it cannot be pruned: " + reason,
		Remedy: "let its rows be deleted (a foreign key can have ON DELETE CASCADE), or set outbox.retention = \"0s\" and prune it otherwise", Err: err}
}

// refusesDelete reports whether the table itself is the reason: a foreign key, a trigger, a missing
// replica identity.
func refusesDelete(err error) bool {
	code := SQLState(err)
	return errors.Is(err, errKept) || strings.HasPrefix(code, classIntegrity) || strings.HasPrefix(code, classRaised) || code == codeNotPrerequisite
}
