package outbox

import (
	"encoding/base64"
	"encoding/binary"
	"regexp"
	"strings"
	"time"
)

// cursor is the place of a row in a list: the columns of its order. Created is what PostgreSQL
// wrote, since it may be infinity.
type cursor struct {
	Created, EventID, EndpointID string
	// Skip is how many rows from Created on were looked at, where no delivery is named: see
	// selectAllLog.
	Skip int64
}

// maxSkip is more rows than have the same time.
const maxSkip = 100_000_000

var badCursor = &Problem{Thing: "the cursor", Reason: "it is not one of this list", Remedy: "copy it from the end of the page before"}

// cursorCreated matches a time as PostgreSQL writes it.
var cursorCreated = regexp.MustCompile(`^(-?infinity|[0-9]{4,7}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?[+-][0-9]{2}(:[0-9]{2}){0,2}( BC)?)$`)

// cursorLayouts are those of times that a cursor has as a number.
var cursorLayouts = []string{"2006-01-02 15:04:05-07", "2006-01-02 15:04:05-07:00", "2006-01-02 15:04:05-07:00:00"}

// The bits of a cursor's first byte say how the rest is written.
const (
	cursorText = 1 << iota // the time as a text, not in microseconds
	cursorSkip             // Skip stands at the end
)

// String writes the cursor for people to copy, so it is short: the time in microseconds and the ids
// as the numbers that they stand for, in base64. The ids of the app's own table may be any text.
func (c cursor) String() string {
	b := []byte{0}
	if at, ok := cursorTime(c.Created); ok {
		b = binary.AppendVarint(b, at.UnixMicro())
	} else {
		b[0] |= cursorText
		b = appendText(b, c.Created)
	}
	b = appendID(appendID(b, c.EventID), c.EndpointID)
	if c.Skip != 0 {
		b[0] |= cursorSkip
		b = binary.AppendVarint(b, c.Skip)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func cursorTime(text string) (time.Time, bool) {
	for _, layout := range cursorLayouts {
		if t, err := time.Parse(layout, text); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// IsCursor reports whether text can be a cursor of a list. The ids that webhooks.new_id makes are
// none.
func IsCursor(text string) bool {
	_, err := parseCursor(text)
	return err == nil
}

func parseCursor(s string) (*cursor, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) == 0 || b[0] > cursorText|cursorSkip {
		return nil, badCursor
	}
	c, r := &cursor{}, cursorReader{rest: b[1:]}
	if b[0]&cursorText != 0 {
		c.Created = r.id()
	} else {
		c.Created = time.UnixMicro(r.number()).UTC().Format("2006-01-02 15:04:05.999999+00")
	}
	c.EventID, c.EndpointID = r.id(), r.id()
	if b[0]&cursorSkip != 0 {
		c.Skip = r.number()
	}
	if r.missing || len(r.rest) > 0 || !cursorCreated.MatchString(c.Created) || CheckText(c.EventID) != nil || CheckText(c.EndpointID) != nil ||
		c.Skip < 0 || c.Skip > maxSkip {
		return nil, badCursor
	}
	return c, nil
}

// idPrefixes are those of the ids that webhooks.new_id makes for what lists have. What an id in a
// cursor begins with is the index of its prefix, before the sixteen bytes of its number, or else
// the length of the text, counted from there on.
var idPrefixes = []string{"evt_", "ep_", "rpl_"}

func appendID(b []byte, id string) []byte {
	for i, prefix := range idPrefixes {
		if letters, ok := strings.CutPrefix(id, prefix); ok {
			if number, ok := parseULID(letters); ok {
				return append(append(b, byte(i)), number[:]...)
			}
		}
	}
	return appendText(b, id)
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text)+len(idPrefixes))), text...)
}

// cursorReader reads the parts of a cursor. Once one is missing, it returns zero values.
type cursorReader struct {
	rest    []byte
	missing bool
}

// take takes n bytes. It takes none where there are fewer.
func (r *cursorReader) take(n uint64) []byte {
	if r.missing = r.missing || n > uint64(len(r.rest)); r.missing {
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *cursorReader) number() int64 {
	n, size := binary.Varint(r.rest)
	if r.missing = r.missing || size <= 0; r.missing {
		return 0
	}
	r.take(uint64(size))
	return n
}

func (r *cursorReader) id() string {
	kind, size := binary.Uvarint(r.rest)
	if r.missing = r.missing || size <= 0; r.missing {
		return ""
	}
	r.take(uint64(size))
	if kind >= uint64(len(idPrefixes)) {
		return string(r.take(kind - uint64(len(idPrefixes))))
	}
	number := r.take(ulidBytes)
	if r.missing {
		return ""
	}
	return idPrefixes[kind] + formatULID([ulidBytes]byte(number))
}

// A ULID is a number of 128 bits, written in 26 digits of five bits each (github.com/ulid/spec).
const (
	ulidBytes    = 16
	ulidDigits   = 26
	ulidAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)

// parseULID returns the number of a ULID. ok is false for a text that formatULID would not write.
func parseULID(text string) (number [ulidBytes]byte, ok bool) {
	if len(text) != ulidDigits || text[0] > '7' {
		return number, false
	}
	for _, digit := range []byte(text) {
		carry := strings.IndexByte(ulidAlphabet, digit)
		if carry < 0 {
			return number, false
		}
		for i := ulidBytes - 1; i >= 0; i-- { // number = number*32 + digit
			carry += int(number[i]) << 5
			number[i], carry = byte(carry), carry>>8
		}
	}
	return number, true
}

func formatULID(number [ulidBytes]byte) string {
	var text [ulidDigits]byte
	for i := ulidDigits - 1; i >= 0; i-- { // the last digit is the rest of number/32
		rest := 0
		for j := range number {
			rest = rest<<8 | int(number[j])
			number[j], rest = byte(rest>>5), rest&31
		}
		text[i] = ulidAlphabet[rest]
	}
	return string(text[:])
}
