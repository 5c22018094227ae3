package outbox

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/crashpoint"
)

// announcer inserts notices into the outbox, in the transactions of the Ledger. It belongs to the
// Ledger's goroutine.
//
// Each level of each run of failures is announced once. The mark of that is
// endpoint_health.notified, which is written in the same transaction as the event. A lane decides
// what is to be announced, and hands it over with each Health until it is committed, so that no
// Health that is dropped takes a notice with it.
//
// Notices never keep the Ledger from recording. The outbox may be a table of the app's, with
// triggers, constraints and rights of its own. So they are inserted behind a savepoint, and
// whatever goes wrong, the transaction goes on without them. A transaction without notices has no
// savepoint.
//
// That an endpoint was disabled is written later. Nothing follows it that would say so, as a later
// level follows an earlier one. Its mark stands below zero until then, so that a restart loses
// nothing.
type announcer struct {
	cfg          Config
	disableAfter int
	patterns     Patterns // of outbox.types: nobody would deliver a notice of another type
	trouble      backoff.Trouble
	// handled has, by endpoint, the number of the last notice that is done with.
	handled map[string]int64
	insert  string // the statement for this outbox; "" until its columns are read
	// restUntil is the time before which nothing is tried, because the last try failed for a reason
	// that concerns every notice.
	restUntil time.Time
	// lateAt is the time from which on it looks for disablings that are not announced yet. A new
	// term looks at once. lateNext is lateAt once the last write is durable.
	lateAt, lateNext time.Time
	tried            bool  // whether the last write has tried to insert
	refused          error // why PostgreSQL has refused notices then
}

const (
	// noticeLock is how long the insertion of notices may wait for a lock, such as that of an ALTER
	// TABLE of the app's. The recording waits as long.
	noticeLock = "250ms"
	// noticeTime is how long a statement of notices may take, with the triggers of the app's table.
	noticeTime = "500ms"
	// noticeRest is how long nothing is tried after a failure. It bounds what failures cost.
	noticeRest = 10 * time.Second
	// lateRest is the time between two looks for disablings that are not announced. lateRows is how
	// many a look takes: one by one they still keep the recording only for a moment.
	lateRest = time.Minute
	lateRows = 20
	// never is a time between looks.
	never = 365 * 24 * time.Hour
)

// news is a notice with its endpoint.
type news struct {
	endpointID string
	Notice
}

func newAnnouncer(cfg Config, disableAfter int, log *slog.Logger) *announcer {
	return &announcer{cfg: cfg, disableAfter: disableAfter, patterns: cfg.patterns(), handled: map[string]int64{}, trouble: backoff.Trouble{
		Log: log, Level: slog.LevelWarn, Ends: "notices about endpoints are written into the outbox again",
		Begins: "notices about endpoints cannot be written into the outbox, and are left out; webhook-agent check says what is missing",
	}}
}

// pending returns the notices of a group that are not done with, in their order. Of several that
// say that an endpoint keeps failing, it returns the last one.
func (a *announcer) pending(g *group) (all []news) {
	for id, h := range g.health {
		of := len(all)
		for _, n := range h.Notices {
			if n.Number <= a.handled[id] {
				continue
			}
			if last := len(all) - 1; last >= of && all[last].Level != NoticeWell && n.Level != NoticeWell {
				all = all[:last]
			}
			all = append(all, news{id, n})
		}
	}
	slices.SortFunc(all, func(a, b news) int { return cmp.Compare(a.Number, b.Number) })
	return all
}

// done is called when the transaction of a write is durable.
func (a *announcer) done(all []news) {
	for _, n := range all {
		a.handled[n.endpointID] = max(a.handled[n.endpointID], n.Number)
	}
	a.lateAt = a.lateNext
	if a.tried {
		a.trouble.Note(a.cfg.explain("write a notice into "+a.cfg.Table, a.refused))
	}
}

// write inserts the events of notices, and their marks, in the open transaction. It fails only when
// the transaction cannot go on.
func (a *announcer) write(ctx context.Context, tx querier, all []news) (err error) {
	a.tried, a.refused = false, nil
	if all, err = a.withLate(ctx, tx, all); err != nil {
		return err
	}
	switch {
	case len(all) == 0:
		return nil
	case !a.cfg.Notices || time.Now().Before(a.restUntil):
		return a.forget(ctx, tx, all)
	}
	a.tried = true
	if a.refused, err = a.try(ctx, tx, all); err != nil || a.refused == nil {
		return err
	}
	left := all
	if len(all) > 1 && refusesContent(SQLState(a.refused)) {
		if left, err = a.writeOneByOne(ctx, tx, all); err != nil {
			return err
		}
	}
	if len(left) == len(all) && (len(all) > 1 || !refusesContent(SQLState(a.refused))) {
		a.restUntil = time.Now().Add(noticeRest)
		a.insert = "" // the columns may have changed
	}
	return a.forget(ctx, tx, left)
}

// writeOneByOne writes what PostgreSQL does not refuse, and returns the rest.
func (a *announcer) writeOneByOne(ctx context.Context, tx querier, all []news) (left []news, err error) {
	for _, n := range all {
		refused, err := a.try(ctx, tx, []news{n})
		if err != nil {
			return nil, err
		}
		if refused != nil {
			left = append(left, n)
		}
	}
	return left, nil
}

// selectLate returns disablings that the outbox has refused. After a day people know. They come in
// any order, so that those that are refused again keep no others back.
const selectLate = `
select e.id, e.generation from webhooks.endpoint_health h join webhooks.endpoints e on e.id = h.endpoint_id
where h.notified < 0 and h.notified_generation = e.generation and e.disabled_at > now() - interval '1 day'
order by random() limit $1`

// withLate returns notices of disablings that are late, and all behind them.
func (a *announcer) withLate(ctx context.Context, tx querier, all []news) ([]news, error) {
	now := time.Now()
	a.lateNext = a.lateAt
	if !a.cfg.Notices || now.Before(a.lateAt) || now.Before(a.restUntil) {
		return all, nil
	}
	late, err := queryRows(ctx, tx, selectLate, func(row pgx.CollectableRow) (n news, err error) {
		n.Level = NoticeDisabled
		err = row.Scan(&n.endpointID, &n.Generation)
		return n, err
	}, lateRows)
	if len(late) < lateRows {
		a.lateNext = now.Add(never)
	}
	return slices.Concat(late, all), err
}

// forgetWell takes the mark away of endpoints that are well again, although nobody is told.
// Otherwise their next run of failures would not be announced.
const forgetWell = `
update webhooks.endpoint_health set notified = 0 where endpoint_id = any($1) and notified <> 0`

// markLate keeps in mind that a disabling is to be announced, and what was announced before.
const markLate = `
update webhooks.endpoint_health h set notified = -greatest(abs(h.notified), 1), notified_generation = late.generation
from unnest($1::text[], $2::bigint[]) late (endpoint_id, generation)
where h.endpoint_id = late.endpoint_id and (h.notified < 0 and h.notified_generation = late.generation) is not true`

// forget does what is left of notices that are not written.
func (a *announcer) forget(ctx context.Context, tx querier, all []news) error {
	var (
		well, late  []string
		generations []int64
	)
	for _, n := range all {
		switch {
		case n.Level == NoticeWell:
			well = append(well, n.endpointID)
		case n.Level == NoticeDisabled && a.cfg.Notices:
			late, generations = append(late, n.endpointID), append(generations, n.Generation)
		}
	}
	if len(late) > 0 {
		a.lateNext = time.Now().Add(lateRest)
		if err := exec(ctx, tx, markLate, late, generations); err != nil {
			return err
		}
	}
	if len(well) == 0 {
		return nil
	}
	return exec(ctx, tx, forgetWell, well)
}

const (
	beginNotices = `savepoint notices; set local lock_timeout = '` + noticeLock + `'`
	// limitNotices bounds what the app's table does. It comes behind the agent's own look at the
	// catalogs, which may take longer once: reading the names of time zones does.
	limitNotices = `set local statement_timeout = '` + noticeTime + `'`
	undoNotices  = `rollback to savepoint notices; release savepoint notices`
	// What the app has deferred to the commit must not make the commit fail.
	settleNotices = `set constraints all immediate`
	endNotices    = `set local lock_timeout to default; set local statement_timeout to default; release savepoint notices`
)

// try writes notices behind a savepoint. It returns why PostgreSQL has refused them, which leaves
// nothing of them. err is why the transaction cannot go on.
func (a *announcer) try(ctx context.Context, tx querier, all []news) (refused, err error) {
	if err := exec(ctx, tx, beginNotices); err != nil {
		return nil, err
	}
	if refused = a.announce(ctx, tx, all); refused == nil {
		crashpoint.Hit(crashpoint.InNotice)
		return nil, exec(ctx, tx, endNotices)
	}
	if exec(ctx, tx, undoNotices) != nil {
		// The connection has ended, perhaps because of the notices: a trigger may do that. So the
		// transaction is tried again without them.
		a.restUntil = time.Now().Add(noticeRest)
		return nil, refused
	}
	return refused, nil
}

// noticed is an endpoint as a notice shows it, and what is announced of it.
type noticed struct {
	id, venue, host, description, disabledReason string
	disabled                                     bool
	generation                                   int64
	level                                        int
	failures                                     int
	firstFailure                                 *time.Time
	lastError                                    string
}

const selectNoticed = `
select e.id, e.venue, webhooks.url_host(e.url), e.description, coalesce(e.disabled_reason, ''), e.disabled_at is not null, e.generation,
       coalesce(h.notified, 0), h.consecutive_failures, h.first_failure_at, coalesce(h.last_error, '')
from webhooks.endpoints e join webhooks.endpoint_health h on h.endpoint_id = e.id
where e.id = any($1)`

const updateNotified = `
update webhooks.endpoint_health h set notified = n.level, notified_generation = n.generation
from unnest($1::text[], $2::smallint[], $3::bigint[]) n (endpoint_id, level, generation)
where h.endpoint_id = n.endpoint_id`

func (a *announcer) announce(ctx context.Context, tx querier, all []news) error {
	if a.insert == "" {
		var err error
		if a.insert, err = a.cfg.noticeInsert(ctx, tx); err != nil {
			return err
		}
	}
	var ids []string
	for _, n := range all {
		ids = append(ids, n.endpointID)
	}
	endpoints := map[string]*noticed{}
	_, err := queryRows(ctx, tx, selectNoticed, func(row pgx.CollectableRow) (struct{}, error) {
		e := &noticed{}
		err := row.Scan(&e.id, &e.venue, &e.host, &e.description, &e.disabledReason, &e.disabled, &e.generation,
			&e.level, &e.failures, moment{&e.firstFailure}, &e.lastError)
		endpoints[e.id] = e
		return struct{}{}, err
	}, ids)
	if err != nil {
		return err
	}
	var b pgx.Batch
	b.Queue(limitNotices)
	if a.queue(&b, all, endpoints); b.Len() == 1 {
		return nil
	}
	return tx.SendBatch(ctx, &b).Close()
}

// queue queues the events of those notices that are to be written, and the marks.
func (a *announcer) queue(b *pgx.Batch, all []news, endpoints map[string]*noticed) {
	var types, venues, data, marked []string
	var levels []int16
	var generations []int64
	for _, n := range all {
		e := endpoints[n.endpointID]
		if e == nil || !e.wants(n.Notice) {
			continue
		}
		e.level = n.Level
		if n.Level == NoticeDisabled {
			n.Failures, n.LastError = e.failures, e.lastError
			if e.firstFailure != nil {
				n.FirstFailure = *e.firstFailure
			}
		}
		if at := slices.Index(marked, n.endpointID); at >= 0 {
			levels[at], generations[at] = int16(n.Level), n.Generation
		} else {
			marked, levels, generations = append(marked, n.endpointID), append(levels, int16(n.Level)), append(generations, n.Generation)
		}
		if a.patterns.Match(n.eventType()) {
			types, venues, data = append(types, n.eventType()), append(venues, e.venue), append(data, n.data(*e, a.disableAfter))
		}
	}
	if len(types) > 0 {
		b.Queue(a.insert, types, venues, data)
		b.Queue(settleNotices)
	}
	if len(marked) > 0 {
		b.Queue(updateNotified, marked, levels, generations)
	}
}

// wants reports whether a notice about the endpoint is to be written. Nobody needs to be told that
// an endpoint is well again that was announced as nothing else. What a person has done meanwhile is
// known to that person.
func (e *noticed) wants(n Notice) bool {
	switch n.Level {
	case NoticeWell:
		return e.level > NoticeWell || e.level < -NoticeFormer
	case NoticeDisabled:
		return true
	}
	return !e.disabled && e.generation == n.Generation
}

const selectIDDefault = `
select coalesce(bool_or(atthasdef or attidentity <> ''), false) from pg_attribute
where attrelid = to_regclass($1) and attname = $2 and not attisdropped`

// noticeInsert returns the statement that inserts notices into the outbox. Its parameters are their
// types, venues and data. An id that the table makes itself is left to it.
func (c Config) noticeInsert(ctx context.Context, q querier) (string, error) {
	types, err := c.columnTypes(ctx, q)
	if err != nil {
		return "", err
	}
	m, err := c.readMapping(ctx, q)
	if err != nil {
		return "", err
	}
	var made bool
	if err := q.QueryRow(ctx, selectIDDefault, c.table(), c.Columns.ID).Scan(&made); err != nil {
		return "", err
	}
	idColumn, id := "", ""
	if !made {
		idColumn, id = quoteIdent(c.Columns.ID)+", ", newIDSQL(types[c.Columns.ID])+", "
	}
	return pieces{
		"table": c.table(), "id column": idColumn, "new id": id, "created": quoteIdent(c.Columns.Created), "now": m.asCreated("now()"),
		"type": quoteIdent(c.Columns.Type), "venue": quoteIdent(c.Columns.Venue), "data": quoteIdent(c.Columns.Data),
		"as type": types[c.Columns.Type].cast, "as venue": types[c.Columns.Venue].cast, "as data": types[c.Columns.Data].cast,
	}.in(`
insert into ${table} (${id column}${type}, ${venue}, ${data}, ${created})
select ${new id}n.type::${as type}, n.venue::${as venue}, n.data::${as data}, ${now}
from unnest($1::text[], $2::text[], $3::text[]) with ordinality n (type, venue, data, place) order by n.place`), nil
}

// newIDSQL returns the SQL expression for the id of a notice in a column that has no default.
// PostgreSQL refuses it for the types that it does not fit, such as numbers.
func newIDSQL(t columnType) string {
	if t.name == "uuid" {
		return "gen_random_uuid()"
	}
	return "webhooks.new_id('evt')"
}
