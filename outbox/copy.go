package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"time"

	"github.com/jackc/pgx/v5"
)

// copyDeliveries writes first rows. For PostgreSQL, COPY is the cheapest way to write rows: it
// plans and projects nothing, fills a page at a time, and writes one WAL record for the rows of a
// page. It looks for no conflicts, so a row that exists already makes PostgreSQL refuse the group.
// The group is then written anew, by upsertDeliveries alone (group.refused).
const copyDeliveries = `
copy webhooks.deliveries (event_id, endpoint_id, venue, type, created, status, attempts, next_attempt_at,
     last_code, last_class, last_error, last_latency_ms, replay_id, finished) from stdin binary`

// copyFirst writes the rows of records that have none.
func (g *group) copyFirst(ctx context.Context, conn *pgx.Conn, records []*Record) error {
	if len(records) == 0 {
		return nil
	}
	rows := newCopyRows(len(records))
	for _, r := range records {
		rows.add(g.row(r))
	}
	_, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(rows.end()), copyDeliveries)
	return err
}

// copyRows is the input of copyDeliveries in the binary format of COPY. It is described under
// "Binary Format" in https://www.postgresql.org/docs/current/sql-copy.html.
type copyRows []byte

const (
	copySignature = "PGCOPY\n\xff\r\n\x00"
	copyColumns   = 14  // in a row
	copyRowBytes  = 256 // is about the size of a row
)

// newCopyRows returns the header of the input. It has space for about n rows.
func newCopyRows(n int) copyRows {
	b := make(copyRows, 0, len(copySignature)+(n+1)*copyRowBytes)
	b = append(b, copySignature...)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0) // no flags, and no extension of the header
}

// add appends a row.
func (b *copyRows) add(r deliveryRow) {
	b.int16(copyColumns)
	b.text(r.eventID)
	b.text(r.endpointID)
	b.text(r.venue)
	b.text(r.eventType)
	b.time(r.created)
	b.text(string(r.status))
	b.length(2)
	b.int16(r.attempts)
	b.timeOrNull(r.next)
	b.int32OrNull(orNull(r.code))
	b.textOrNull(r.class)
	b.textOrNull(r.text)
	b.int32OrNull(r.latency)
	b.textOrNull(r.replayID)
	b.timeOrNull(r.finished)
}

// end appends the trailer and returns the whole input.
func (b *copyRows) end() []byte {
	b.int16(-1)
	return *b
}

// length appends the length of the value that follows, or -1 for a null.
func (b *copyRows) length(bytes int32) { *b = binary.BigEndian.AppendUint32(*b, uint32(bytes)) }

func (b *copyRows) null() { b.length(-1) }

func (b *copyRows) int16(i int16) { *b = binary.BigEndian.AppendUint16(*b, uint16(i)) }

func (b *copyRows) text(s string) {
	b.length(int32(len(s)))
	*b = append(*b, s...)
}

func (b *copyRows) textOrNull(s string) {
	if s == "" {
		b.null()
		return
	}
	b.text(s)
}

func (b *copyRows) int32OrNull(i *int32) {
	if i == nil {
		b.null()
		return
	}
	b.length(4)
	*b = binary.BigEndian.AppendUint32(*b, uint32(*i))
}

// postgresEpoch is the time from which PostgreSQL counts microseconds, in seconds of Unix time: the
// beginning of 2000.
const postgresEpoch = 946_684_800

// time appends a timestamptz.
func (b *copyRows) time(t time.Time) {
	b.length(8)
	microseconds := (t.Unix()-postgresEpoch)*1_000_000 + int64(t.Nanosecond()/1000)
	*b = binary.BigEndian.AppendUint64(*b, uint64(microseconds))
}

func (b *copyRows) timeOrNull(t time.Time) {
	if t.IsZero() {
		b.null()
		return
	}
	b.time(t)
}
