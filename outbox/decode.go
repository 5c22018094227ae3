package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/quintago/webhook-agent/secret"
)

// decoder turns messages of pgoutput into changes. It keeps the relations that the stream has
// described. The server describes a relation again before the first change after any ALTER TABLE,
// so columns are found by name in the latest description.
type decoder struct {
	cfg      Config
	patterns Patterns // those of Config.Types
	mapping  *mapping
	// The base type's name, by the oid of a type that the database defines.
	bases     map[uint32]string
	relations map[uint32]*relation
	below     map[uint32]bool // the tables below the outbox, any of which a change may name
	values    row             // the values of the current change; the slice is used again
}

// relation is a published table as the stream last described it. At most one of the three fields is
// set. None is set for a table that does not matter here.
type relation struct {
	outbox    *outboxColumns
	endpoints *endpointIndexes
	replays   *int // the index of the column id
}

// outboxColumns holds the index of each column in a row.
type outboxColumns struct {
	id, typ, venue, data, created int
	padded                        [3]bool // id, typ and venue: the stream pads the text of char(n) with blanks
	local                         bool    // created has no zone
	traceparent                   int     // -1 if no column is mapped
	// The column of the agent's own table; -1 if there is none.
	xid int
}

func newDecoder(cfg Config, m *mapping) *decoder {
	return &decoder{cfg: cfg, patterns: cfg.patterns(), mapping: m, bases: map[uint32]string{}, relations: map[uint32]*relation{}}
}

// learn handles messages that describe the changes after them. It ignores all others, among them
// Origin and the messages of pg_logical_emit_message.
func (d *decoder) learn(message []byte) error {
	msg, err := parse(message)
	if err != nil {
		return err
	}
	switch m := msg.(type) {
	case *pglogrepl.TypeMessage:
		d.typed(m)
	case *pglogrepl.RelationMessage:
		return d.describe(m)
	}
	return nil
}

// describe handles a Relation message. If a required column is missing, it stops the stream with a
// Problem before any row of that shape is read, so nothing is skipped. Bringing the column back
// does not change the rows that were written without it. So the Problem is ErrUndecodable: the
// stream continues with a new slot and a sweep.
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
		// What only serves traces stops no delivery. The preflight reports a column that is missing.
		oc.traceparent = index(columns, c.Traceparent)
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
		r.endpoints = &endpointIndexes{}
		for i, name := range endpointColumns {
			r.endpoints[i] = index(columns, name)
		}
	case m.Namespace == "webhooks" && m.RelationName == "replays":
		at := index(columns, "id")
		r.replays = &at
	}
	d.relations[m.RelationID] = r
	return nil
}

// typed handles a Type message. The server sends it before a Relation message that names a type
// that the database defines. For a domain, the message names the base type:
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
func (d *decoder) typed(m *pglogrepl.TypeMessage) { d.bases[m.DataType] = m.Name }

// base returns the name of the base type of a column, if the type matters here.
func (d *decoder) base(oid uint32) string {
	switch oid {
	case pgtype.BPCharOID:
		return "bpchar"
	case pgtype.TimestampOID:
		return "timestamp"
	}
	return d.bases[oid]
}

// relation returns the relation of a change. A change whose relation was never described breaks the
// protocol.
func (d *decoder) relation(id uint32) (*relation, error) {
	r, ok := d.relations[id]
	if !ok {
		return nil, fmt.Errorf("%w: a change names relation %d, which was not described", errDecode, id)
	}
	return r, nil
}

// change decodes an Insert, Update or Delete message of a transaction that was committed at the
// given time. ok is false for a change that means nothing here: a change of a table that does not
// matter, or of an event that the configuration leaves out.
func (d *decoder) change(message []byte, committed time.Time) (c Change, ok bool, err error) {
	m, err := readRow(message, d.values)
	d.values = m.row
	defer clear(m.row) // otherwise the row would keep a message of any size in memory
	if err != nil {
		return c, false, err
	}
	r, err := d.relation(m.relation)
	if err != nil {
		return c, false, err
	}
	switch {
	case r.endpoints != nil && m.kind == msgDelete:
		c.Endpoint, err = decodeRemoved(r.endpoints, m.row)
	case r.endpoints != nil:
		c.Endpoint, err = decodeEndpoint(r.endpoints, m.row)
	case m.kind != msgInsert: // a change of a row that was handed over when it was inserted
		return c, false, nil
	case r.outbox != nil:
		if c.Event, err = d.decodeEvent(r.outbox, m.row, committed); err == nil && !d.patterns.Match(c.Event.Type) {
			if d.cfg.Counts != nil {
				d.cfg.Counts.Filtered.Add(1)
			}
			return Change{}, false, nil
		}
	case r.replays != nil:
		c.Replay, err = decodeReplay(*r.replays, m.row)
	default:
		return c, false, nil
	}
	return c, err == nil, err
}

// truncate decodes a Truncate message. It matters if it names the endpoints.
func (d *decoder) truncate(message []byte) (c Change, ok bool, err error) {
	relations, err := readTruncate(message)
	if err != nil {
		return c, false, err
	}
	for _, id := range relations {
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

func (d *decoder) decodeEvent(oc *outboxColumns, r row, committed time.Time) (*Event, error) {
	n := len(r)
	if oc.id >= n || oc.typ >= n || oc.venue >= n || oc.data >= n || oc.created >= n || oc.xid >= n || oc.traceparent >= n {
		return nil, fmt.Errorf("%w: a row has %d columns, fewer than described", errDecode, n)
	}
	e := &Event{}
	for i, column := range [...]struct {
		at   int
		text *string
	}{{oc.id, &e.ID}, {oc.typ, &e.Type}, {oc.venue, &e.Venue}} {
		text := r[column.at].text
		if oc.padded[i] {
			// As PostgreSQL does when it converts the value to text.
			text = bytes.TrimRight(text, " ")
		}
		*column.text = logText(string(text))
	}
	data := r[oc.data].text
	if e.Unfit = d.cfg.unfit(e.ID, e.Type, e.Venue, data); e.Unfit == "" {
		// The data of an event that is sent to nobody are not kept, as they may be large.
		e.Data = bytes.Clone(data)
	}
	var dated bool
	if e.Created, e.local, dated = d.created(string(r[oc.created].text), oc.local); !dated {
		// The column holds infinity, null, or a year that Go cannot hold. This is no reason to
		// stop. The time of the commit is the best value there is.
		e.Created, e.Undated = committed, true
	}
	if oc.traceparent >= 0 {
		e.Traceparent = parseTraceparent(r[oc.traceparent].text)
	}
	if oc.xid >= 0 {
		// It is null in rows from before the column existed.
		if xid, err := strconv.ParseUint(string(r[oc.xid].text), 10, 64); err == nil {
			low := uint32(xid)
			e.insertedBy = &low
		}
	}
	return e, nil
}

// created parses the column created. ok is false if the time is not usable. local is the time as a
// column without a zone holds it.
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

// endpointColumns are the columns of webhooks.endpoints that matter here.
var endpointColumns = [...]string{"id", "venue", "url", "events", "secret", "previous_secret", "previous_secret_until",
	"disabled_at", "disabled_reason", "generation", "created", "subscribed", "older_secrets", "older_secrets_until", "reused"}

// These are the places in endpointColumns.
const (
	endpointID = iota
	endpointVenue
	endpointURL
	endpointEvents
	endpointSecret
	endpointPrevious
	endpointPreviousUntil
	endpointDisabledAt
	endpointDisabledReason
	endpointGeneration
	endpointCreated
	endpointSubscribed
	endpointOlder
	endpointOlderUntil
	endpointReused
)

// endpointIndexes holds, for each of endpointColumns, its index in a row, or notDescribed.
type endpointIndexes [len(endpointColumns)]int

const notDescribed = -1

func index(columns map[string]int, name string) int {
	if at, described := columns[name]; described {
		return at
	}
	return notDescribed
}

// at returns the value of a column.
func (r row) at(i int, name string) (value, error) {
	switch {
	case i == notDescribed:
		return value{}, &Problem{Thing: "schema webhooks", Reason: fmt.Sprintf("the stream has no column %q", name), Remedy: "run webhook-agent migrate"}
	case i >= len(r):
		return value{}, fmt.Errorf("%w: a row has fewer columns than described", errDecode)
	}
	return r[i], nil
}

// decodeRemoved decodes the key of a row of webhooks.endpoints.
func decodeRemoved(at *endpointIndexes, r row) (*EndpointChange, error) {
	id, err := r.at(at[endpointID], "id")
	return &EndpointChange{Removed: true, ID: string(id.text)}, err
}

// decodeEndpoint decodes a row of webhooks.endpoints. Values that cannot be used (an array with a
// null, a time that Go cannot hold) are left zero. They make this endpoint unusable, or count as
// "never". They do not affect other endpoints.
func decodeEndpoint(at *endpointIndexes, r row) (*EndpointChange, error) {
	c := &EndpointChange{}
	var values [len(endpointColumns)]value
	for i, name := range endpointColumns {
		if at[i] == notDescribed && i >= endpointSubscribed {
			continue // a change from before version 7, 13 or 24 of the schema
		}
		var err error
		if values[i], err = r.at(at[i], name); err != nil {
			return nil, err
		}
		if values[i].kind == valueUnchanged {
			c.unchanged = append(c.unchanged, name)
		}
	}
	text := func(i int) string { return string(values[i].text) }
	e := &Endpoint{
		ID: text(endpointID), Venue: text(endpointVenue), URL: secret.New(text(endpointURL)), Events: parseTextArray(text(endpointEvents)),
		Secret: secret.New(text(endpointSecret)), Disabled: values[endpointDisabledAt].kind == valueText, DisabledReason: text(endpointDisabledReason),
	}
	e.PreviousUntil, _ = parseTimestamp(text(endpointPreviousUntil))
	if !e.PreviousUntil.IsZero() {
		e.Previous = secret.New(text(endpointPrevious))
	}
	e.Older, e.OlderUntil = parseOlder(text(endpointOlder), text(endpointOlderUntil))
	e.Generation, _ = strconv.ParseInt(text(endpointGeneration), 10, 64)
	e.Created, _ = parseTimestamp(text(endpointCreated))
	e.Subscribed, _ = parseTimestamp(text(endpointSubscribed))
	e.Reused = text(endpointReused) == "t"
	c.ID, c.Endpoint = e.ID, e
	return c, nil
}

// parseOlder parses the text forms of the columns older_secrets and older_secrets_until. Values
// that cannot be used, such as a null or an infinite time, are left zero.
func parseOlder(texts, untils string) (older []secret.Text, until []time.Time) {
	for _, text := range parseTextArray(texts) {
		older = append(older, secret.New(text))
	}
	for _, text := range parseTextArray(untils) {
		at, _ := parseTimestamp(text)
		until = append(until, at)
	}
	return older, until
}

// parseTextArray parses the text form of a text[] or of a timestamptz[]. A null becomes an empty
// text. An empty text is no event type, so it makes the endpoint unusable, but the other elements
// are kept. For an array of several dimensions, all elements are returned, as SQL's unnest does.
// The form is described in https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO.
func parseTextArray(array string) []string {
	if strings.HasPrefix(array, "[") { // if the bounds do not begin at one, they come first
		_, array, _ = strings.Cut(array, "=")
	}
	body, begins := strings.CutPrefix(array, "{")
	body, ends := strings.CutSuffix(body, "}")
	if !begins || !ends {
		return nil // cannot happen: the column is never null, and PostgreSQL wrote the text
	}
	events := make([]string, 0, 1+strings.Count(body, ","))
	for rest := body; rest != ""; {
		var element string
		rest = strings.TrimLeft(rest, "{") // an inner dimension begins
		if strings.HasPrefix(rest, `"`) {
			element, rest = cutQuoted(rest[1:])
			rest = strings.TrimPrefix(strings.TrimLeft(rest, "}"), ",")
		} else {
			element, rest, _ = strings.Cut(rest, ",")
			// The text "NULL" would be quoted.
			if element = strings.TrimRight(element, "}"); element == "NULL" {
				element = ""
			}
		}
		events = append(events, element)
	}
	return events
}

// cutQuoted returns the text before the closing quote, and the rest after it. Within the text, a
// backslash comes before each quote and each backslash.
func cutQuoted(s string) (element, rest string) {
	if end := strings.IndexAny(s, `"\\`); end >= 0 && s[end] == '"' {
		return s[:end], s[end+1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:]
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}

func decodeReplay(at int, r row) (*Replay, error) {
	id, err := r.at(at, "id")
	return &Replay{ID: string(id.text)}, err
}

// parseTimestamp parses the text form of timestamptz (ISO, UTC, as the replication session is set).
// It also parses that of timestamp, and returns the time as if it were UTC.
func parseTimestamp(s string) (time.Time, error) {
	if at, ok := parseUTC(s); ok {
		return at, nil
	}
	if s == "" {
		return time.Time{}, errNoTimestamp
	}
	if t, err := time.Parse("2006-01-02 15:04:05.999999999Z07", s); err == nil {
		return t.UTC(), nil
	}
	if t, err := time.Parse("2006-01-02 15:04:05.999999999", s); err == nil {
		return t, nil
	}
	t, err := time.Parse("2006-01-02", s)
	return t, err
}

var errNoTimestamp = errors.New("no timestamp")

// parseUTC parses the usual form of the stream's times, 2025-05-10 14:32:00.123456+00. It takes a
// tenth of the time of time.Parse.
func parseUTC(s string) (time.Time, bool) {
	const form = "0000-00-00 00:00:00"
	s = strings.TrimSuffix(s, "+00")
	if len(s) < len(form) {
		return time.Time{}, false
	}
	for i := range len(form) {
		if isDigit := '0' <= s[i] && s[i] <= '9'; isDigit != (form[i] == '0') || !isDigit && s[i] != form[i] {
			return time.Time{}, false
		}
	}
	two := func(i int) int { return int(s[i]-'0')*10 + int(s[i+1]-'0') }
	nanoseconds := 0
	if fraction := s[len(form):]; fraction != "" {
		if len(fraction) < 2 || len(fraction) > 10 || fraction[0] != '.' {
			return time.Time{}, false
		}
		unit := int(time.Second)
		for i := 1; i < len(fraction); i++ {
			if fraction[i] < '0' || fraction[i] > '9' {
				return time.Time{}, false
			}
			unit /= 10
			nanoseconds += int(fraction[i]-'0') * unit
		}
	}
	month, day, hour, minute, second := two(5), two(8), two(11), two(14), two(17)
	at := time.Date(two(0)*100+two(2), time.Month(month), day, hour, minute, second, nanoseconds, time.UTC)
	// time.Date turns the 30th of February into a day in March.
	return at, at.Day() == day && at.Month() == time.Month(month) && hour < 24 && minute < 60 && second < 60
}
