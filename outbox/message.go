package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
)

// errDecode marks bytes that are not what the protocol promises. After it, nothing may be
// confirmed.
var errDecode = errors.New("cannot decode the replication stream")

// These are the messages of pgoutput that come for each transaction and each row. They are read in
// place, in the buffer of the connection; pglogrepl reads the others. Their formats are those of
// protocol version 1 in
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
const (
	msgBegin    = 'B'
	msgCommit   = 'C'
	msgInsert   = 'I'
	msgUpdate   = 'U'
	msgDelete   = 'D'
	msgTruncate = 'T'
)

// These are the kinds of values in a row.
const (
	valueNull      = 'n'
	valueUnchanged = 'u' // a large value that the change did not touch: it is not sent
	valueText      = 't'
	valueBinary    = 'b' // never sent, since the agent asks for text
)

// rowMessage is an Insert, Update or Delete message.
type rowMessage struct {
	kind     byte
	relation uint32
	// row is the new row. For a Delete, row is the old one, in which columns outside the key are
	// null.
	row row
}

// row holds the values of a row in the order of its relation's columns. The values lie in the
// message's buffer. Code that keeps one must copy it.
type row []value

type value struct {
	kind byte
	text []byte // of valueText and valueBinary
}

// These are the roles of the rows in a message.
const (
	roleNew = 'N'
	roleOld = 'O' // all columns, under REPLICA IDENTITY FULL
	roleKey = 'K' // the columns of the key alone
)

// readRow reads a message of kind msgInsert, msgUpdate or msgDelete. The row overwrites what values
// held.
func readRow(message []byte, values row) (rowMessage, error) {
	const head = 1 + 4 // the kind, and the relation
	m := rowMessage{kind: message[0], row: values[:0]}
	if len(message) < head {
		return m, errTruncated(m.kind)
	}
	m.relation = binary.BigEndian.Uint32(message[1:])
	for rest := message[head:]; ; {
		if len(rest) == 0 {
			return m, errTruncated(m.kind)
		}
		role := rest[0]
		var ok bool
		if m.row, rest, ok = readValues(rest[1:], m.row[:0]); !ok {
			return m, errTruncated(m.kind)
		}
		switch old := role == roleOld || role == roleKey; {
		case old && m.kind == msgUpdate: // the old row comes before the new one
		case old != (m.kind == msgDelete), !old && role != roleNew:
			return m, fmt.Errorf("%w: message %q has a row of kind %q", errDecode, m.kind, role)
		case len(rest) > 0:
			return m, fmt.Errorf("%w: message %q goes on behind its row", errDecode, m.kind)
		default:
			return m, nil
		}
	}
}

func errTruncated(kind byte) error { return fmt.Errorf("%w: message %q is truncated", errDecode, kind) }

// readValues reads a row, appends it to values, and returns what follows it. ok is false if the row
// is longer than the data.
func readValues(data []byte, values row) (_ row, rest []byte, ok bool) {
	if len(data) < 2 {
		return values, nil, false
	}
	columns := binary.BigEndian.Uint16(data)
	data = data[2:]
	for range columns {
		if len(data) == 0 {
			return values, nil, false
		}
		v := value{kind: data[0]}
		data = data[1:]
		if v.kind == valueText || v.kind == valueBinary {
			if len(data) < 4 || uint64(binary.BigEndian.Uint32(data)) > uint64(len(data)-4) {
				return values, nil, false
			}
			end := 4 + binary.BigEndian.Uint32(data)
			v.text, data = data[4:end], data[end:]
		}
		values = append(values, v)
	}
	return values, data, true
}

// readTruncate reads the tables of a Truncate message.
func readTruncate(message []byte) (relations []uint32, err error) {
	const head, relation = 1 + 4 + 1, 4 // the kind, how many there are, and flags
	if len(message) < head || uint64(len(message)-head) != uint64(binary.BigEndian.Uint32(message[1:]))*relation {
		return nil, errTruncated(message[0])
	}
	for ids := message[head:]; len(ids) > 0; ids = ids[relation:] {
		relations = append(relations, binary.BigEndian.Uint32(ids))
	}
	return relations, nil
}

// parse reads the rare messages by pglogrepl.Parse, which panics on truncated input. It returns nil
// for messages that mean nothing here: PostgreSQL 18 sends a Stream Abort ('A') for a transaction
// that was never streamed, even with protocol version 1.
func parse(data []byte) (msg pglogrepl.Message, err error) {
	if data[0] == 'A' {
		return nil, nil
	}
	defer func() {
		if r := recover(); r != nil {
			msg, err = nil, errTruncated(data[0])
		}
	}()
	if msg, err = pglogrepl.Parse(data); err != nil {
		return nil, fmt.Errorf("%w: message %q: %w", errDecode, data[0], err)
	}
	return msg, nil
}
