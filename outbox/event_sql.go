package outbox

import (
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// This file holds the two statements of a comparison. One finds events that lack a row; it runs on
// the pool. The other adds their rows; it runs as a job of the Ledger. Both select events by
// eventSQL and endpoints by mayWant. So the second statement sees what has changed since the first.
//
// A comparison must know whether an event was committed after the last horizon. In the agent's own
// table, the column xid says so exactly and for ever. An app's table has only the row's xmin, which
// says "perhaps": an update, a change of the table or a restore gives an old event a new xmin.
// There, an event counts as new if its time created says so. An event is a suspect if its time
// created is before the last horizon, but that horizon does not see it.

// ownsTable reports whether the outbox is the agent's own table, which has the column xid.
func (m *mapping) ownsTable() bool { return m.cfg.Table == ownTable }

const ownTable = "webhooks.outbox"

// eventXID is the SQL expression for the id of the transaction that inserted an event. It is null
// if that is not known.
const eventXID = `webhooks.event_xid(o.xid, o.xmin, n.next)`

// nextXID is a table n with the next transaction id, as of the statement. Every row that the
// statement sees was written by an earlier transaction.
const nextXID = `(select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next offset 0) n`

// seenBy returns the SQL expression that is true if a snapshot, given as a parameter, sees the
// transaction that committed an event. Rows that were written within a savepoint carry the id of a
// subtransaction, which no snapshot lists. So handed_over compares only with the snapshot's xmin.
func (m *mapping) seenBy(snapshot string) string {
	p := pieces{"xid": eventXID, "snapshot": snapshot + "::text::pg_snapshot"}
	if !m.ownsTable() {
		return p.in(`webhooks.handed_over(o.xmin, ${snapshot})`)
	}
	return p.in(`case when ${xid} is null then webhooks.handed_over(o.xmin, ${snapshot}) else pg_visible_in_snapshot(${xid}, ${snapshot}) end`)
}

// eventSQL returns a query for the events that the new horizon sees and the last one does not. It
// reads the tables from, where the outbox is o, and applies the condition where. Its parameters are
// those of comparison.args. The column fresh says that an event was certainly committed after the
// last horizon.
func (m *mapping) eventSQL(from, where string) string {
	id, venue, created, eventType := m.eventColumns()
	fresh := "false"
	if m.ownsTable() {
		from += ", " + nextXID
		fresh = "coalesce(not pg_visible_in_snapshot(" + eventXID + ", @last::text::pg_snapshot), false)"
	}
	return pieces{
		"id": id, "venue": venue, "created": created, "type": eventType, "notice": m.noticeSQL(eventType), "fresh": fresh, "from": from, "where": where,
		"ours": m.cfg.isOurs(eventType), "seen by the new": m.seenBy("@horizon"), "seen by the last": m.seenBy("@last"),
	}.in(`
    select o.tableoid as relation, o.ctid as place, ${id}::text as id, ${venue} as venue, ${created} as created,
           ${type} as type, ${notice} as notice, ${fresh} as fresh
    from ${from}
    where ${where} and ${id} is not null and ${ours} and coalesce(${seen by the new}, false)
      and not coalesce(${seen by the last} and coalesce(o.tableoid = any(@known::oid[]), true), false)`)
}

// mayWant returns the condition under which an endpoint e should have an event of eventSQL, whether
// it has a row or not. endpointXMIN is the expression for the xmin of the endpoint's row. A suspect
// goes only to endpoints that want today what they wanted when the event was created. If the event
// was ever handed over, such an endpoint has a row for it, unless the log no longer reaches back to
// the event. A notice is for others than the endpoint that it is about.
func mayWant(endpointXMIN string) string {
	const until = "case when event.fresh then greatest(event.created, @last_at::timestamptz) else event.created end"
	return pieces{"wants": wants("event.venue", until, "event.type"), "xmin": endpointXMIN, "about it": aboutSQL("event.notice", "e.id")}.in(`${wants}
      and not ${about it}
      and (event.fresh or event.created >= @last_at::timestamptz
           or coalesce(e.subscribed, e.created) <= event.created and (@floor::timestamptz is null or event.created >= @floor::timestamptz))
      and (@unchanged_since::text is null or webhooks.handed_over(${xmin}, @unchanged_since::text::pg_snapshot))`)
}

// args returns the values of eventSQL and mayWant, together with further values of a statement.
func (c comparison) args(further values) []any {
	var unchangedSince *string // about endpoints; nil if they may have changed
	if c.periodic {
		unchangedSince = c.last.snapshot
	}
	of := values{
		"last": c.last.snapshot, "last_at": c.last.at, "known": c.to.Coverage.known(c.last.relations),
		"horizon": c.to.Snapshot, "unchanged_since": unchangedSince, "floor": c.floor,
	}
	return []any{planAnew, of.and(further)}
}

// planAnew makes PostgreSQL plan a statement at each execution. A plan from before the log was
// filled would read the whole log for each piece.
const planAnew = pgx.QueryExecModeDescribeExec

// found is an event that lacks a row. It says where the event is and how many endpoints its venue
// has.
type found struct {
	relation  uint32
	place     pgtype.TID
	endpoints int64
}

// findSQL returns the statement that finds the events that lack a row in a part of the outbox. part
// is the condition for that part. The statement also returns the files of @relations, as filesOf
// does.
func (m *mapping) findSQL(part string) string {
	return pieces{
		"event": m.eventSQL(m.cfg.table()+" o", part), "may want": mayWant("e.xmin"), "files": filesOf("@relations"),
		"is recorded": m.isRecorded("event.id", "event.venue", "event.type", "event.created", "e.id"),
	}.in(`
with event as (${event}
), found as materialized (
    select relation, place, venue from event
    where exists (select from webhooks.endpoints e where ${may want} and not ${is recorded})
), venues as (
    select venue, count(*) as endpoints from webhooks.endpoints where venue in (select venue from found) group by venue
)
select ${files}, coalesce(array_agg(relation order by relation, place), '{}'), coalesce(array_agg(place order by relation, place), '{}'),
       coalesce(array_agg(endpoints order by relation, place), '{}')
from found join venues using (venue)`)
}

// giveSQL returns the statement that adds the missing rows of the events at @places of @relations.
// It handles at most @limit endpoints of each venue, in order, after the endpoint @after. The
// statement returns the last endpoint that it has handled, how many it has handled, and one
// endpoint for each new row. Rows for disabled endpoints become missed at once. Whether an endpoint
// can be sent to is decided later, by its lane. If the row of another event with the same id is in
// the way, an entry among the attempts says so. streamed is the condition under which the stream
// brings an event (Coverage.streamed).
func (m *mapping) giveSQL(streamed string) string {
	from := m.cfg.table() + " o, unnest(@relations::oid[], @places::tid[]) l (relation, place)"
	return pieces{
		"event": m.eventSQL(from, "o.tableoid = l.relation and o.ctid = l.place and "+streamed), "may want": mayWant("e.row_xmin"),
		"is recorded": m.isRecorded("event.id", "event.venue", "event.type", "event.created", "e.id"), "id": logTextSQL("event.id"),
		"created": firstCreated("looked.id", "looked.venue", "looked.type", "looked.created"),
		"taken":   quoteText(ClassIDTaken), "why taken": quoteText(foundTaken),
	}.in(`
with event as materialized (${event}
), looked as materialized (
    select ${id} as id, event.venue, event.type, event.created, e.id as endpoint_id,
           case when e.disabled_at is not null then 'the endpoint is disabled' end as off,
           ${may want} and not ${is recorded} as lacks
    from event, lateral (
        select e.*, e.xmin as row_xmin from webhooks.endpoints e
        where e.venue = event.venue and e.id > @after order by e.id limit @limit) e
), added as (
    insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created, finished, last_error)
    select id, endpoint_id, venue, type, case when off is null then 'pending' else 'missed' end,
           case when off is null then now() end, ${created}, case when off is not null then now() end, off
    from looked where lacks
    on conflict (event_id, endpoint_id) do nothing
    returning endpoint_id
), told as (
    insert into webhooks.attempts (event_id, endpoint_id, attempt, at, class, error)
    select l.id, l.endpoint_id, 0, now(), ${taken}, ${why taken}
    from looked l join webhooks.deliveries d on d.event_id = l.id and d.endpoint_id = l.endpoint_id
    where l.lacks
)
select coalesce((select max(endpoint_id) from looked), ''), (select count(*) from looked),
       coalesce((select array_agg(endpoint_id) from added), '{}')`)
}

// filesOf returns the SQL expression for the files in which relations are stored. If the files are
// others than before, places mean nothing any more.
func filesOf(relations string) string {
	return `array(select coalesce(pg_relation_filenode(relation)::text, '') from unnest(` + relations + `::oid[]) with ordinality r (relation, n) order by n)`
}
