package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
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
	patterns  Patterns // of Config.Types
	mapping   *mapping
	bases     map[uint32]string // by the oid of a type of the database's own, the name of the type beneath
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
type outboxColumns struct {
	id, typ, venue, data, created int
	padded                        [3]bool // id, typ and venue: the stream pads the text of char(n) with blanks
	local                         bool    // created has no zone
	xid                           int     // of the agent's own table, -1 where there is none
}

func newDecoder(cfg Config, m *mapping) *decoder {
	return &decoder{cfg: cfg, patterns: cfg.patterns(), mapping: m, bases: map[uint32]string{}, relations: map[uint32]*relation{}}
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
	bases := make(map[string]string, len(m.Columns))
	for i, c := range m.Columns {
		columns[c.Name] = i
		bases[c.Name] = d.base(c.DataType)
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
		for i, name := range []string{c.ID, c.Type, c.Venue} {
			oc.padded[i] = bases[name] == "bpchar"
		}
		oc.xid = -1
		if xid, ok := columns["xid"]; ok && d.cfg.Table == ownTable {
			oc.xid = xid
		}
		if oc.local = bases[c.Created] == "timestamp"; oc.local && d.mapping.local == nil {
			return errMappingChanged
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

// typed takes in a Type message, which the server sends before a Relation message that names a type of the database's own. For a domain it
// names the type beneath: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
func (d *decoder) typed(m *pglogrepl.TypeMessage) { d.bases[m.DataType] = m.Name }

// base returns the name of the type beneath a column's, of those that matter here.
func (d *decoder) base(oid uint32) string {
	switch oid {
	case pgtype.BPCharOID:
		return "bpchar"
	case pgtype.TimestampOID:
		return "timestamp"
	}
	return d.bases[oid]
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
		if c.Event, err = d.decodeEvent(r.outbox, m.Tuple, committed); err == nil && !d.patterns.Match(c.Event.Type) {
			if d.cfg.Counts != nil {
				d.cfg.Counts.Filtered.Add(1)
			}
			return Change{}, false, nil
		}
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

func (d *decoder) decodeEvent(oc *outboxColumns, t *pglogrepl.TupleData, committed time.Time) (*Event, error) {
	if t == nil {
		return nil, fmt.Errorf("%w: an insert without a row", errDecode)
	}
	n := len(t.Columns)
	if oc.id >= n || oc.typ >= n || oc.venue >= n || oc.data >= n || oc.created >= n || oc.xid >= n {
		return nil, fmt.Errorf("%w: a row has %d columns, fewer than described", errDecode, n)
	}
	e := &Event{Data: t.Columns[oc.data].Data}
	for i, column := range []struct {
		at   int
		text *string
	}{{oc.id, &e.ID}, {oc.typ, &e.Type}, {oc.venue, &e.Venue}} {
		text := string(t.Columns[column.at].Data)
		if oc.padded[i] {
			text = strings.TrimRight(text, " ") // as PostgreSQL does when it makes a text of it
		}
		*column.text = logText(text)
	}
	e.Unfit = unfit(e.ID, e.Type, e.Venue, e.Data)
	var dated bool
	if e.Created, e.local, dated = d.created(string(t.Columns[oc.created].Data), oc.local); !dated {
		// infinity, null or a year that Go cannot hold: the time of the commit is the best there is, and no reason to stop.
		e.Created, e.Undated = committed, true
	}
	if oc.xid >= 0 {
		if xid, err := strconv.ParseUint(string(t.Columns[oc.xid].Data), 10, 64); err == nil { // null in rows of before
			low := uint32(xid)
			e.insertedBy = &low
		}
	}
	return e, nil
}

// created reads the column created; ok is false when it is not usable. local is the time as it stands in a column without a zone.
func (d *decoder) created(text string, withoutZone bool) (at, local time.Time, ok bool) {
	at, err := parseTimestamp(text)
	if err != nil || !usable(at) {
		return time.Time{}, time.Time{}, false
	}
	if !withoutZone {
		return at, time.Time{}, true
	}
	local = at
	at, ok = d.mapping.local.utc(local)
	return at, local, ok && !local.Before(firstUsable)
}

// firstUsable is the first local time that is usable in every zone.
var firstUsable = time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC)

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
		"disabled_at", "disabled_reason", "generation", "created", "subscribed"} {
		if _, described := columns[name]; !described && name == "subscribed" {
			continue // a change from before version 7 of the schema
		}
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
	e.Subscribed, _ = parseTimestamp(values["subscribed"])
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

// parseTimestamp parses the text form of timestamptz (ISO, UTC, as the replication session is set) and of timestamp, which is returned as if
// it were of UTC.
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
