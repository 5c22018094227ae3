package outbox

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// group is what one commit of the Ledger records.
type group struct {
	records []*Record               // all records, in the order in which they came
	rows    map[deliveryKey]*Record // the latest of each delivery: one statement must not write a row twice
	health  map[string]*Health      // the latest one of each endpoint
	// Endpoints whose recorded health belongs to a removed endpoint with the same id.
	former []string
	// withoutTexts leaves out the texts that customers' servers sent. It is set if PostgreSQL has
	// refused the group because of its data.
	withoutTexts bool
	// rowsExist makes first rows be written like later ones. It is set if PostgreSQL has refused
	// the group because a first row exists already. A comparison of the outbox with the log may
	// have made that row, or it belongs to another event with the same id.
	rowsExist bool
	// careful makes the group look for the rows that PostgreSQL refuses, one by one. It is set if
	// PostgreSQL has refused the group because of its content, for none of the reasons above.
	careful bool
	asides  map[deliveryKey]aside // rows that PostgreSQL has refused
	clashes []*Record             // records of events whose id another event in the group has
	// Records of the last write that got no row, because another event with the same id is pending.
	taken []*Record
	// Deliveries of the last write whose row belonged to another event with the same id.
	reused int64
	slot   string       // whose checkpoint keeps what cannot be counted
	ended  replayCounts // of the last write
}

type deliveryKey struct{ eventID, endpointID string }

func newGroup() *group {
	return &group{rows: map[deliveryKey]*Record{}, health: map[string]*Health{}}
}

func (g *group) empty() bool {
	return len(g.records) == 0 && len(g.health) == 0 && len(g.former) == 0
}

// forgetHealth makes the group delete the recorded health of an endpoint before it writes what
// comes in later.
func (g *group) forgetHealth(endpointID string) {
	delete(g.health, endpointID)
	g.former = append(g.former, endpointID)
}

// add adds a record. It must be called before the watermark learns that the delivery is recorded.
func (g *group) add(r *Record) {
	if r.Taken {
		g.records = append(g.records, r)
		return
	}
	key := r.key()
	before := g.rows[key]
	if before != nil && before.Delivery.identity() != r.Delivery.identity() {
		r.Taken = true // two events have one id: the first gets the row
		g.clashes = append(g.clashes, r)
		g.records = append(g.records, r)
		return
	}
	r.first = !r.Delivery.recorded
	if before != nil {
		before.superseded, r.first = true, r.first || before.first
	}
	g.rows[key] = r
	g.records = append(g.records, r)
}

func (r *Record) key() deliveryKey { return deliveryKey{r.Delivery.EventID, r.Delivery.EndpointID} }

// refused takes into account why PostgreSQL has refused the group, so that the next try is not
// refused again. It reports whether the next try differs.
func (g *group) refused(sqlState string) bool {
	switch {
	case strings.HasPrefix(sqlState, classDataException) && !g.withoutTexts:
		g.withoutTexts = true // what a customer's server sent must not make a commit fail
	case sqlState == codeUniqueViolation && !g.rowsExist:
		g.rowsExist = true
	case refusesContent(sqlState) && !g.careful:
		g.careful, g.rowsExist = true, true
	default:
		return false
	}
	return true
}

// upsertDeliveries writes later states. If the row belongs to another event with the same id, and
// that event has ended, the new event takes the row over. While that event is pending, its row
// stays, and an entry among the attempts holds the result of the new event. The statement returns
// how many rows belonged to other events, and the places of the records that got no row.
const upsertDeliveries = `
with incoming as materialized (
    select i.*, d.status as former,
           d.venue = i.venue and d.type = i.type and (d.created = i.created or i.undated) as same,
           case when i.undated and d.venue = i.venue and d.type = i.type then d.created else i.created end as dated
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::smallint[], $8::timestamptz[],
                $9::int[], $10::text[], $11::text[], $12::int[], $13::text[], $14::timestamptz[], $15::bool[]) with ordinality
         i (event_id, endpoint_id, venue, type, created, status, attempts, next_attempt_at, last_code, last_class, last_error, last_latency_ms,
            replay_id, finished, undated, place)
    left join webhooks.deliveries d on d.event_id = i.event_id and d.endpoint_id = i.endpoint_id
), written as (
    insert into webhooks.deliveries as d (event_id, endpoint_id, venue, type, created, status, attempts, next_attempt_at,
           last_code, last_class, last_error, last_latency_ms, replay_id, finished)
    select event_id, endpoint_id, venue, type, dated, status, attempts, next_attempt_at,
           last_code, last_class, last_error, last_latency_ms, replay_id, finished
    from incoming where same is not false or former <> 'pending'
    on conflict (event_id, endpoint_id) do update set
           venue = excluded.venue, type = excluded.type, created = excluded.created,
           status = excluded.status, attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at,
           last_code = coalesce(excluded.last_code, case when ` + goesOn + ` then d.last_code end),
           last_class = coalesce(excluded.last_class, case when ` + goesOn + ` then d.last_class end),
           last_error = coalesce(excluded.last_error, case when ` + goesOn + ` then d.last_error end),
           last_latency_ms = coalesce(excluded.last_latency_ms, case when ` + goesOn + ` then d.last_latency_ms end),
           replay_id = excluded.replay_id, finished = excluded.finished
)
select place - 1, former = 'pending' from incoming where not same`

// goesOn is the condition that a new state says nothing new about the last attempt.
const goesOn = `excluded.attempts = d.attempts and (excluded.venue, excluded.type, excluded.created) = (d.venue, d.type, d.created)`

const insertAttempts = `
insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response)
select * from unnest($1::text[], $2::text[], $3::smallint[], $4::timestamptz[], $5::int[], $6::text[], $7::text[], $8::int[], $9::text[])`

const upsertHealth = `
insert into webhooks.endpoint_health as h (endpoint_id, generation, consecutive_failures, first_failure_at, last_failure_at, last_success_at,
       last_error, unusable, held_until, held_by)
select * from unnest($1::text[], $2::bigint[], $3::int[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[], $7::text[], $8::text[],
       $9::timestamptz[], $10::text[])
on conflict (endpoint_id) do update set
       generation = excluded.generation, consecutive_failures = excluded.consecutive_failures, first_failure_at = excluded.first_failure_at,
       last_failure_at = coalesce(excluded.last_failure_at, h.last_failure_at),
       last_success_at = coalesce(excluded.last_success_at, h.last_success_at),
       last_error = coalesce(excluded.last_error, h.last_error), unusable = excluded.unusable,
       held_until = excluded.held_until, held_by = excluded.held_by`

// write writes the group in the open transaction. It may be called again after a failure.
func (g *group) write(ctx context.Context, conn *pgx.Conn) error {
	g.reused, g.taken = 0, nil
	if g.empty() {
		return nil
	}
	if g.careful {
		return g.writeCarefully(ctx, conn)
	}
	first, later, restored := g.latest(g.records)
	if err := g.copyFirst(ctx, conn, first); err != nil {
		return err
	}
	var b pgx.Batch
	g.queueHealth(&b)
	g.queueRecords(&b, g.records, later, restored)
	g.queueReplays(&b)
	if b.Len() > 0 {
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
	}
	return g.writeTaken(ctx, conn)
}

// queueRecords queues records with their attempts. later and restored are those of them that latest
// has returned.
func (g *group) queueRecords(b *pgx.Batch, records, later, restored []*Record) {
	g.queueLater(b, later)
	queueRestored(b, restored)
	g.queueAttempts(b, records)
}

// latest returns the latest record of each delivery among records. It returns those without a row,
// those with a row, and those whose row is to be restored to its state before a replay.
func (g *group) latest(records []*Record) (first, later, restored []*Record) {
	for _, r := range records {
		switch {
		case r.Taken:
			g.reused++
		case r.superseded:
		case r.restores():
			restored = append(restored, r)
		case r.first && !g.rowsExist:
			first = append(first, r)
		default:
			later = append(later, r)
		}
	}
	return first, later, restored
}

// queueLater queues the rows of records that may have one.
func (g *group) queueLater(b *pgx.Batch, records []*Record) {
	if len(records) == 0 {
		return
	}
	b.Queue(upsertDeliveries, g.columns(records)...).Query(func(rows pgx.Rows) error {
		var place int
		var pending bool
		_, err := pgx.ForEachRow(rows, []any{&place, &pending}, func() error {
			g.reused++
			if pending {
				g.taken = append(g.taken, records[place])
			}
			return nil
		})
		return err
	})
}

// writeTaken writes an entry among the attempts for each record that got no row because another
// event with the same id is pending.
func (g *group) writeTaken(ctx context.Context, tx querier) error {
	taken := slices.Concat(g.taken, g.clashes)
	if len(taken) == 0 {
		return nil
	}
	told := make([]*Record, len(taken))
	for i, r := range taken {
		outcome := "its delivery was " + string(r.Status)
		if r.Status == Pending {
			outcome = "its delivery had not ended, and is not attempted again"
		}
		told[i] = &Record{Taken: true, Delivery: r.Delivery, Attempt: &Attempt{At: r.at(), Class: ClassIDTaken, Error: r.Delivery.takenText(outcome)}}
	}
	g.taken = nil
	var b pgx.Batch
	g.queueAttempts(&b, told)
	return tx.SendBatch(ctx, &b).Close()
}

// at returns the time for an entry among the attempts about this record.
func (r *Record) at() time.Time {
	for _, t := range []time.Time{r.Finished, r.NextAttempt} {
		if !t.IsZero() {
			return t
		}
	}
	return time.Now()
}

// deliveryRow is a row of webhooks.deliveries. Zero values are nulls in the columns that may be
// null.
type deliveryRow struct {
	eventID, endpointID, venue, eventType string
	created                               time.Time
	status                                Status
	attempts                              int16
	next, finished                        time.Time
	code                                  int32
	class, text                           string
	latency                               *int32
	replayID                              string
}

// row returns what the group writes for a record.
func (g *group) row(r *Record) deliveryRow {
	d := r.Delivery
	row := deliveryRow{
		eventID: d.EventID, endpointID: d.EndpointID, venue: d.Venue, eventType: d.Type, created: d.Created,
		status: r.Status, attempts: int16(r.attempts()), next: r.NextAttempt, replayID: d.ReplayID,
	}
	if r.Status != Pending {
		row.finished = r.Finished
	}
	row.code, row.class, row.text, row.latency = r.last()
	switch {
	case len(g.asides) > 0 && g.asides[r.key()] != asNothing:
		row.text = setAside
	case g.withoutTexts:
		row.text = ""
	}
	return row
}

// columns returns the parameters of upsertDeliveries, which are arrays.
func (g *group) columns(records []*Record) []any {
	n := len(records)
	var (
		eventIDs, endpointIDs = make([]string, 0, n), make([]string, 0, n)
		venues, types         = make([]string, 0, n), make([]string, 0, n)
		created               = make([]time.Time, 0, n)
		statuses              = make([]string, 0, n)
		attempts              = make([]int16, 0, n)
		next, finished        = make([]*time.Time, 0, n), make([]*time.Time, 0, n)
		codes, latencies      = make([]*int32, 0, n), make([]*int32, 0, n)
		classes, errs         = make([]*string, 0, n), make([]*string, 0, n)
		replayIDs             = make([]*string, 0, n)
		undated               = make([]bool, 0, n)
	)
	for _, record := range records {
		r := g.row(record)
		eventIDs, endpointIDs = append(eventIDs, r.eventID), append(endpointIDs, r.endpointID)
		venues, types, created = append(venues, r.venue), append(types, r.eventType), append(created, r.created)
		statuses, attempts = append(statuses, string(r.status)), append(attempts, r.attempts)
		next, finished = append(next, orNull(r.next)), append(finished, orNull(r.finished))
		codes, latencies = append(codes, orNull(r.code)), append(latencies, r.latency)
		classes, errs = append(classes, orNull(r.class)), append(errs, orNull(r.text))
		replayIDs, undated = append(replayIDs, orNull(r.replayID)), append(undated, record.Delivery.undated)
	}
	return []any{eventIDs, endpointIDs, venues, types, created, statuses, attempts, next,
		codes, classes, errs, latencies, replayIDs, finished, undated}
}

func (g *group) queueAttempts(b *pgx.Batch, records []*Record) {
	var (
		eventIDs, endpointIDs []string
		numbers               []int16
		at                    []time.Time
		codes, latencies      []*int32
		classes, errs, bodies []*string
	)
	for _, r := range records {
		a := r.Attempt
		if a == nil || r.Taken && a.Class != ClassIDTaken || g.asides[r.key()] != asNothing {
			continue
		}
		eventIDs, endpointIDs = append(eventIDs, r.Delivery.EventID), append(endpointIDs, r.Delivery.EndpointID)
		numbers, at = append(numbers, int16(a.Number)), append(at, a.At)
		codes, latencies = append(codes, orNull(int32(a.Code))), append(latencies, milliseconds(a.Latency))
		classes, errs, bodies = append(classes, orNull(a.Class)), append(errs, g.text(a.Error)), append(bodies, g.text(a.Response))
	}
	if len(eventIDs) > 0 {
		b.Queue(insertAttempts, eventIDs, endpointIDs, numbers, at, codes, classes, errs, latencies, bodies)
	}
}

func (g *group) queueHealth(b *pgx.Batch) {
	if len(g.former) > 0 {
		b.Queue(deleteHealth, g.former)
	}
	n := len(g.health)
	if n == 0 {
		return
	}
	var (
		ids         = make([]string, 0, n)
		generations = make([]int64, 0, n)
		failures    = make([]int32, 0, n)
		first       = make([]*time.Time, 0, n)
		last        = make([]*time.Time, 0, n)
		success     = make([]*time.Time, 0, n)
		errs        = make([]*string, 0, n)
		unusable    = make([]*string, 0, n)
		held        = make([]*time.Time, 0, n)
		heldBy      = make([]*string, 0, n)
	)
	for _, h := range g.health {
		ids, generations, failures = append(ids, h.EndpointID), append(generations, h.Generation), append(failures, int32(h.Failures))
		first, last, success = append(first, orNull(h.FirstFailure)), append(last, orNull(h.LastFailure)), append(success, orNull(h.LastSuccess))
		errs, unusable = append(errs, g.text(h.LastError)), append(unusable, orNull(h.Unusable))
		held, heldBy = append(held, orNull(h.HeldUntil)), append(heldBy, orNull(h.HeldBy))
	}
	b.Queue(upsertHealth, ids, generations, failures, first, last, success, errs, unusable, held, heldBy)
}

// text returns a text as the value of a column.
func (g *group) text(s string) *string {
	if g.withoutTexts {
		return nil
	}
	return orNull(s)
}

// attempts returns how many attempts were made, including this one.
func (r *Record) attempts() int {
	if r.Attempt != nil {
		return r.Attempt.Number
	}
	if r.Status == Succeeded {
		return r.Delivery.Attempts + 1
	}
	return r.Delivery.Attempts
}

// last returns the columns last_code, last_class, last_error and last_latency_ms. They are zero if
// there is nothing to say.
func (r *Record) last() (code int32, class, text string, latency *int32) {
	switch {
	case r.Attempt != nil:
		text = r.Attempt.Error
		if r.Error != "" {
			text = r.Error
		}
		return int32(r.Attempt.Code), r.Attempt.Class, text, milliseconds(r.Attempt.Latency)
	case r.Status == Succeeded:
		return int32(r.Code), "", "", milliseconds(r.Latency)
	}
	return 0, "", r.Error, nil
}

// orNull returns nil for a zero value.
func orNull[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func milliseconds(d time.Duration) *int32 {
	ms := int32(min(d.Milliseconds(), 1<<31-1))
	return &ms
}
