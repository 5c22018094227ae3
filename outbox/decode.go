package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/quintago/webhook-agent/secret"
)

// decoder turns pgoutput messages (protocol version 1, text) into changes. It keeps the relations that the stream
// described; the server describes a relation again before the first change after any ALTER TABLE, so columns are
// found by name in the latest description.
type decoder struct {
	cfg       Config
	relations map[uint32]*relation
	below     map[uint32]bool // the tables below the outbox, of which each may be named by a change
}

// relation is a published table as the stream described it last. At most one of the three is set; none for a table of
// no interest.
type relation struct {
	outbox    *outboxColumns
	endpoints map[string]int // column name to index
	replays   map[string]int
}

// outboxColumns holds the index of each column in a tuple.
type outboxColumns struct{ id, typ, venue, data, created int }

func newDecoder(cfg Config) *decoder {
	return &decoder{cfg: cfg, relations: map[uint32]*relation{}}
}

// errDecode marks bytes that are not what the protocol promises. Nothing may be confirmed after it.
var errDecode = errors.New("cannot decode the replication stream")

// holdsWhatItSays tells that the lengths within a message do not exceed it: pglogrepl makes room for what a length says, up to 16 GiB,
// before it looks whether that is there. See https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
func holdsWhatItSays(data []byte) bool {
	const relation, count, flags = 4, 4, 1
	switch data[0] {
	case 'T':
		data = data[1:]
		return len(data) >= count+flags && uint64(binary.BigEndian.Uint32(data))*relation <= uint64(len(data)-count-flags)
	case 'I', 'U', 'D':
		if len(data) < 1+relation {
			return false
		}
		for data = data[1+relation:]; len(data) > 0; {
			var fits bool
			if data, fits = skipTuple(data[1:]); !fits { // behind N, O or K
				return false
			}
		}
	}
	return true
}

// skipTuple returns what follows a tuple, and false when the tuple is longer than the data.
func skipTuple(data []byte) (rest []byte, fits bool) {
	if len(data) < 2 {
		return nil, false
	}
	columns := binary.BigEndian.Uint16(data)
	data = data[2:]
	for range columns {
		if len(data) == 0 {
			return nil, false
		}
		kind := data[0]
		data = data[1:]
		if kind != 't' && kind != 'b' {
			continue // null, or unchanged
		}
		if len(data) < 4 || uint64(binary.BigEndian.Uint32(data)) > uint64(len(data)-4) {
			return nil, false
		}
		data = data[4+binary.BigEndian.Uint32(data):]
	}
	return data, true
}

// parse wraps pglogrepl.Parse, which panics on truncated input. It returns nil for messages that mean nothing here:
// PostgreSQL 18 sends a Stream Abort ('A') of a transaction that was never streamed, also with protocol version 1.
func parse(data []byte) (msg pglogrepl.Message, err error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("%w: empty message", errDecode)
	}
	if data[0] == 'A' {
		return nil, nil
	}
	if !holdsWhatItSays(data) {
		return nil, fmt.Errorf("%w: message %q is truncated", errDecode, data[0])
	}
	defer func() {
		if r := recover(); r != nil {
			msg, err = nil, fmt.Errorf("%w: message %q is truncated", errDecode, data[0])
		}
	}()
	if msg, err = pglogrepl.Parse(data); err != nil {
		return nil, fmt.Errorf("%w: message %q: %w", errDecode, data[0], err)
	}
	return msg, nil
}

// describe takes in a Relation message. A required column that is missing stops the stream with a Problem before any
// row of that shape is read, so that nothing is skipped. Bringing the column back does not change the rows that were written without
// it, so the Problem is ErrUndecodable: the stream goes on with a new slot and a sweep.
func (d *decoder) describe(m *pglogrepl.RelationMessage) error {
	columns := make(map[string]int, len(m.Columns))
	for i, c := range m.Columns {
		columns[c.Name] = i
	}
	r := &relation{}
	schema, table := d.cfg.tableName()
	switch {
	case m.Namespace == schema && m.RelationName == table, d.below[m.RelationID]:
		oc := &outboxColumns{}
		c := d.cfg.Columns
		for _, want := range []struct {
			name string
			at   *int
		}{{c.ID, &oc.id}, {c.Type, &oc.typ}, {c.Venue, &oc.venue}, {c.Data, &oc.data}, {c.Created, &oc.created}} {
			i, ok := columns[want.name]
			if !ok {
				return &Problem{Thing: "table " + d.cfg.Table, Reason: fmt.Sprintf("the stream has no column %q", want.name),
					Remedy: "add the column again or correct [outbox.columns]; nothing is lost meanwhile", Err: ErrUndecodable}
			}
			*want.at = i
		}
		r.outbox = oc
	case m.Namespace == "webhooks" && m.RelationName == "endpoints":
		r.endpoints = columns
	case m.Namespace == "webhooks" && m.RelationName == "replays":
		r.replays = columns
	}
	d.relations[m.RelationID] = r
	return nil
}

// relation returns the relation of a change. A change whose relation was never described breaks the protocol.
func (d *decoder) relation(id uint32) (*relation, error) {
	r, ok := d.relations[id]
	if !ok {
		return nil, fmt.Errorf("%w: a change names relation %d, which was not described", errDecode, id)
	}
	return r, nil
}

// insert decodes an Insert message. ok is false for a table of no interest.
func (d *decoder) insert(m *pglogrepl.InsertMessage, committed time.Time) (c Change, ok bool, err error) {
	r, err := d.relation(m.RelationID)
	if err != nil {
		return c, false, err
	}
	switch {
	case r.outbox != nil:
		c.Event, err = decodeEvent(r.outbox, m.Tuple, committed)
	case r.endpoints != nil:
		c.Endpoint, err = decodeEndpoint(r.endpoints, m.Tuple)
	case r.replays != nil:
		c.Replay, err = decodeReplay(r.replays, m.Tuple)
	default:
		return c, false, nil
	}
	return c, err == nil, err
}

// update decodes an Update message, which only endpoints publish.
func (d *decoder) update(m *pglogrepl.UpdateMessage) (c Change, ok bool, err error) {
	r, err := d.relation(m.RelationID)
	if err != nil || r.endpoints == nil {
		return c, false, err
	}
	c.Endpoint, err = decodeEndpoint(r.endpoints, m.NewTuple)
	return c, err == nil, err
}

// delete decodes a Delete message, which carries the key columns only.
func (d *decoder) delete(m *pglogrepl.DeleteMessage) (c Change, ok bool, err error) {
	r, err := d.relation(m.RelationID)
	if err != nil || r.endpoints == nil {
		return c, false, err
	}
	t := tuple{m.OldTuple, r.endpoints}
	id, err := t.text("id")
	c.Endpoint = &EndpointChange{Removed: true, ID: id}
	return c, err == nil, err
}

// truncate decodes a Truncate message: it matters when it names the endpoints.
func (d *decoder) truncate(m *pglogrepl.TruncateMessage) (c Change, ok bool, err error) {
	for _, id := range m.RelationIDs {
		r, err := d.relation(id)
		if err != nil {
			return c, false, err
		}
		if r.endpoints != nil {
			c.Endpoint = &EndpointChange{AllRemoved: true}
			return c, true, nil
		}
	}
	return c, false, nil
}

func decodeEvent(oc *outboxColumns, t *pglogrepl.TupleData, committed time.Time) (*Event, error) {
	if t == nil {
		return nil, fmt.Errorf("%w: an insert without a row", errDecode)
	}
	n := len(t.Columns)
	if oc.id >= n || oc.typ >= n || oc.venue >= n || oc.data >= n || oc.created >= n {
		return nil, fmt.Errorf("%w: a row has %d columns, fewer than described", errDecode, n)
	}
	e := &Event{
		ID:    string(t.Columns[oc.id].Data),
		Type:  string(t.Columns[oc.typ].Data),
		Venue: string(t.Columns[oc.venue].Data),
		Data:  t.Columns[oc.data].Data,
	}
	var err error
	if e.Created, err = parseTimestamp(string(t.Columns[oc.created].Data)); err != nil {
		// infinity, null or a year that Go cannot hold: the time of the commit is the best there is, and no reason to
		// stop.
		e.Created = committed
	}
	return e, nil
}

// tuple reads columns of a row by name.
type tuple struct {
	data    *pglogrepl.TupleData
	columns map[string]int
}

// text returns a column's text, "" for NULL.
func (t tuple) text(name string) (string, error) {
	c, err := t.column(name)
	if err != nil {
		return "", err
	}
	return string(c.Data), nil
}

func (t tuple) column(name string) (*pglogrepl.TupleDataColumn, error) {
	i, ok := t.columns[name]
	if !ok {
		return nil, &Problem{Thing: "schema webhooks", Reason: fmt.Sprintf("the stream has no column %q", name), Remedy: "run webhook-agent migrate"}
	}
	if t.data == nil || i >= len(t.data.Columns) {
		return nil, fmt.Errorf("%w: a row has fewer columns than described", errDecode)
	}
	return t.data.Columns[i], nil
}

// decodeEndpoint decodes a row of webhooks.endpoints. Values that are of no use (an array with a null, a time that Go
// cannot hold) are left zero: they make that endpoint unusable, or count as never, and stop no other.
func decodeEndpoint(columns map[string]int, data *pglogrepl.TupleData) (*EndpointChange, error) {
	row := tuple{data, columns}
	values := map[string]string{} // columns that are not null
	c := &EndpointChange{}
	for _, name := range []string{"id", "venue", "url", "events", "secret", "previous_secret", "previous_secret_until",
		"disabled_at", "disabled_reason", "generation", "created"} {
		column, err := row.column(name)
		if err != nil {
			return nil, err
		}
		switch column.DataType {
		case pglogrepl.TupleDataTypeText:
			values[name] = string(column.Data)
		case pglogrepl.TupleDataTypeToast:
			c.unchanged = append(c.unchanged, name)
		}
	}
	_, disabled := values["disabled_at"]
	e := &Endpoint{
		ID: values["id"], Venue: values["venue"], URL: secret.New(values["url"]), Events: parseEvents(values["events"]), Secret: secret.New(values["secret"]),
		Disabled: disabled, DisabledReason: values["disabled_reason"],
	}
	e.PreviousUntil, _ = parseTimestamp(values["previous_secret_until"])
	if !e.PreviousUntil.IsZero() {
		e.Previous = secret.New(values["previous_secret"])
	}
	e.Generation, _ = strconv.ParseInt(values["generation"], 10, 64)
	e.Created, _ = parseTimestamp(values["created"])
	c.ID, c.Endpoint = e.ID, e
	return c, nil
}

// parseEvents parses the text form of a text[]. A null in it becomes an empty text, which is no event type: it makes the
// endpoint unusable, and what is right beside it is kept.
func parseEvents(array string) []string {
	var elements []*string
	if err := pgtype.NewMap().Scan(pgtype.TextArrayOID, pgtype.TextFormatCode, []byte(array), &elements); err != nil {
		return nil // the column is never null, and what it holds was written by PostgreSQL
	}
	events := make([]string, len(elements))
	for i, e := range elements {
		if e != nil {
			events[i] = *e
		}
	}
	return events
}

func decodeReplay(columns map[string]int, data *pglogrepl.TupleData) (*Replay, error) {
	t := tuple{data, columns}
	id, err := t.text("id")
	return &Replay{ID: id}, err
}

// parseTimestamp parses the text form of timestamptz (ISO, UTC, as the replication session is set) and of timestamp,
// which is taken as UTC.
func parseTimestamp(s string) (time.Time, error) {
	if t, err := time.Parse("2006-01-02 15:04:05.999999999Z07", s); err == nil {
		return t.UTC(), nil
	}
	if t, err := time.Parse("2006-01-02 15:04:05.999999999", s); err == nil {
		return t, nil
	}
	t, err := time.Parse("2006-01-02", s)
	return t, err
}
