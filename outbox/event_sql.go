package outbox

import (
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// This file holds the statements of a comparison: one finds events that lack a row, on the pool, and
// one gives them their rows, as a job of the Ledger. Both judge an event by eventSQL and an endpoint
// by mayWant, so that what has changed between the two is judged anew.
//
// A comparison must know whether an event was committed after the last horizon. In the agent's own
// table the column xid says so, exactly and for ever. In an app's table there is only the row's
// xmin, which says "perhaps": an update, a change of the table or a restore gives an old event a new
// one. There an event counts as new when it says so itself, by created. One that says it is older
// than the horizon, and that the horizon does not see, is a suspect.

// ownsTable reports whether the outbox is the agent's own table, which has the column xid.
func (m *mapping) ownsTable() bool { return m.cfg.Table == ownTable }

const ownTable = "webhooks.outbox"

// eventXID is the expression for the transaction that inserted an event, null where that is not known.
const eventXID = `webhooks.event_xid(o.xid, o.xmin, n.next)`

// nextXID is a table, n, of the next transaction id. It is that of the statement: a row that it sees was
// written by an earlier one.
const nextXID = `(select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next offset 0) n`

// seenBy is the expression for whether a snapshot, given as a parameter, sees the transaction that
// committed an event. Rows that were written in a savepoint carry the id of a subtransaction, which no
// snapshot lists, so handed_over compares with the snapshot's xmin alone.
func (m *mapping) seenBy(snapshot string) string {
	byRow := fmt.Sprintf("webhooks.handed_over(o.xmin, %s::text::pg_snapshot)", snapshot)
	if !m.ownsTable() {
		return byRow
	}
	return fmt.Sprintf(`case when %[1]s is null then %[2]s else pg_visible_in_snapshot(%[1]s, %[3]s::text::pg_snapshot) end`,
		eventXID, byRow, snapshot)
}

// eventSQL selects the events that the new horizon sees and the last one does not, from these tables
// (the outbox is o) where a condition holds. Its parameters are the first of comparison.args.
// fresh says that an event was committed after the last horizon for certain.
func (m *mapping) eventSQL(from, where string) string {
	id, venue, created, eventType := m.eventColumns()
	fresh := "false"
	if m.ownsTable() {
		from += ", " + nextXID
		fresh = fmt.Sprintf("coalesce(not pg_visible_in_snapshot(%s, $1::text::pg_snapshot), false)", eventXID)
	}
	return fmt.Sprintf(`
    select o.tableoid as relation, o.ctid as place, %[1]s::text as id, %[2]s as venue, %[3]s as created,
           %[4]s as type, %[5]s as fresh
    from %[6]s
    where %[7]s and %[1]s is not null and %[10]s and coalesce(%[9]s, false)
      and not coalesce(%[8]s and coalesce(o.tableoid = any($2::oid[]), true), false)`,
		id, venue, created, eventType, fresh, from, where, m.seenBy("$1"), m.seenBy("$3"),
		m.cfg.isOurs(eventType))
}

// mayWant is the condition that an endpoint e is to have an event of eventSQL, whether it has a row
// or not, given the expression for the xmin of the endpoint's row. A suspect goes only to endpoints
// that want today what they wanted when it was created: such an endpoint has a row if the event was
// ever handed over, unless the event is older than what the log keeps.
func mayWant(endpointXMIN string) string {
	const until = "case when event.fresh then greatest(event.created, $5::timestamptz) else event.created end"
	return fmt.Sprintf(`%s
      and (event.fresh or event.created >= $5::timestamptz
           or coalesce(e.subscribed, e.created) <= event.created and ($6::timestamptz is null or event.created >= $6::timestamptz))
      and ($4::text is null or webhooks.handed_over(%s, $4::text::pg_snapshot))`,
		wants("event.venue", until, "event.type"), endpointXMIN)
}

// args are the parameters of eventSQL and mayWant, and further ones of a statement.
func (c comparison) args(further ...any) []any {
	var endpoints *string
	if c.periodic {
		endpoints = c.last.snapshot
	}
	args := []any{planAnew, c.last.snapshot, c.to.Coverage.known(c.last.relations), c.to.Snapshot, endpoints, c.last.at, c.floor}
	return append(args, further...)
}

// planAnew has a statement planned with each execution: a plan from before the log was filled reads
// all of it for each piece.
const planAnew = pgx.QueryExecModeDescribeExec

// found is an event that lacks a row: where it is, and how many endpoints its venue has.
type found struct {
	relation  uint32
	place     pgtype.TID
	endpoints int64
}

// findSQL returns the events of a part of the outbox that lack a row. part is the condition for the
// part, by the parameters $7 and $8. It also returns the files of the relations $9, as of filesOf.
func (m *mapping) findSQL(part string) string {
	return fmt.Sprintf(`
with event as (%[1]s
), found as materialized (
    select relation, place, venue from event
    where exists (select from webhooks.endpoints e where %[2]s and not %[3]s)
), venues as (
    select venue, count(*) as endpoints from webhooks.endpoints where venue in (select venue from found) group by venue
)
select %[4]s, coalesce(array_agg(relation order by relation, place), '{}'), coalesce(array_agg(place order by relation, place), '{}'),
       coalesce(array_agg(endpoints order by relation, place), '{}')
from found join venues using (venue)`,
		m.eventSQL(m.cfg.table()+" o", part), mayWant("e.xmin"), m.isRecorded("event.id", "event.venue", "event.type", "event.created", "e.id"), fmt.Sprintf(filesOf, "$9"))
}

// giveSQL gives the events at the places $8 of the relations $7 their missing rows: those to the first
// endpoints of each venue after $9, $10 at most. It returns the last endpoint that it looked at,
// how many it looked at, and the endpoints of the new rows, one for each. The rows of endpoints that are disabled
// are missed at once; whether an endpoint can be sent to the lanes know. Where the row of another event with the same id is in the
// way, that is told among the attempts. streamed is the condition that the stream brings an event (Coverage.streamed).
func (m *mapping) giveSQL(streamed string) string {
	from := m.cfg.table() + " o, unnest($7::oid[], $8::tid[]) l (relation, place)"
	return fmt.Sprintf(`
with event as materialized (%[1]s
), looked as materialized (
    select %[4]s as id, event.venue, event.type, event.created, e.id as endpoint_id,
           case when e.disabled_at is not null then 'the endpoint is disabled' end as off,
           %[2]s and not %[3]s as lacks
    from event, lateral (
        select e.*, e.xmin as row_xmin from webhooks.endpoints e
        where e.venue = event.venue and e.id > $9 order by e.id limit $10) e
), added as (
    insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created, finished, last_error)
    select id, endpoint_id, venue, type, case when off is null then 'pending' else 'missed' end,
           case when off is null then now() end, %[5]s, case when off is not null then now() end, off
    from looked where lacks
    on conflict (event_id, endpoint_id) do nothing
    returning endpoint_id
), told as (
    insert into webhooks.attempts (event_id, endpoint_id, attempt, at, class, error)
    select l.id, l.endpoint_id, 0, now(), '`+ClassIDTaken+`', '`+foundTaken+`'
    from looked l join webhooks.deliveries d on d.event_id = l.id and d.endpoint_id = l.endpoint_id
    where l.lacks
)
select coalesce((select max(endpoint_id) from looked), ''), (select count(*) from looked),
       coalesce((select array_agg(endpoint_id) from added), '{}')`,
		m.eventSQL(from, "o.tableoid = l.relation and o.ctid = l.place and "+streamed), mayWant("e.row_xmin"),
		m.isRecorded("event.id", "event.venue", "event.type", "event.created", "e.id"), logTextSQL("event.id"),
		firstCreated("looked.id", "looked.venue", "looked.type", "looked.created"))
}

// filesOf is the expression for the files in which relations are kept. A place means nothing any more
// once they are others.
const filesOf = `array(select coalesce(pg_relation_filenode(relation)::text, '') from unnest(%s::oid[]) with ordinality r (relation, n) order by n)`
