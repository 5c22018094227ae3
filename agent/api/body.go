package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// maxBody is the greatest size of a request's body, in bytes: 1,000 ids of events have room.
	maxBody = 256 << 10
	// bodyTime bounds how long a caller may take to send it.
	bodyTime = 5 * time.Second
)

// checkBody refuses a body by what its head says: one that is too large, or is not JSON. A form of a
// page could be sent without a word of its author; huma would read it.
func checkBody(r *http.Request) *Problem {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return newProblem(http.StatusUnsupportedMediaType, "the body is not declared as JSON", "send Content-Type: application/json")
	}
	if r.ContentLength > maxBody {
		return tooLarge()
	}
	r.Header.Set("Content-Type", kind) // huma 2.37 compares it with case
	return nil
}

func tooLarge() *Problem {
	return newProblem(http.StatusRequestEntityTooLarge, "the body is too large", "send at most 256 KiB")
}

// readBody returns the request with its whole body in memory. It returns a copy: net/http finds out
// by the Body of its own request whether bytes of it are left, which it would else take for the next
// request of the connection. A request whose body is not read to its end closes the connection.
func readBody(w http.ResponseWriter, r *http.Request) (*http.Request, *Problem) {
	if r.Body == nil || r.Body == http.NoBody {
		return r, nil
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		w.Header().Set("Connection", "close")
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, newProblem(http.StatusRequestTimeout, "the body did not come in time", "send it within 5 seconds")
		}
		return nil, newProblem(http.StatusBadRequest, "the body ends before its end, or its chunks are malformed", "send it again")
	}
	if p := checkEncoding(body); p != nil {
		return nil, p
	}
	whole := *r
	whole.Body, whole.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return &whole, nil
}

// whole is an integer of a body. JSON Schema has 1e1 and 10.0 as integers too, package json has not.
type whole int

// UnmarshalJSON implements json.Unmarshaler. The document's bounds were checked before.
func (w *whole) UnmarshalJSON(text []byte) error {
	var n float64
	if err := json.Unmarshal(text, &n); err != nil {
		return err
	}
	*w = whole(n)
	return nil
}

// unmarshal is json.Unmarshal for bodies. Its errors are for the caller: those of package json name
// types of Go, and quote what was sent.
func unmarshal(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("is no JSON from byte %d on", syntax.Offset)
	}
	if err != nil {
		return errors.New("has a value that cannot be read; write numbers in plain digits, and times as 2026-11-29T14:30:00Z")
	}
	return nil
}

// checkEncoding refuses a body that package json would change without a word: it puts U+FFFD in the
// place of what is no character, so that a secret would be another one than the caller has.
func checkEncoding(body []byte) *Problem {
	switch {
	case !utf8.Valid(body):
		return newProblem(http.StatusUnprocessableEntity, "the body is not valid UTF-8", "write it in UTF-8")
	case hasLoneSurrogate(body):
		return newProblem(http.StatusUnprocessableEntity, "the body has half of a surrogate pair (\\ud800 to \\udfff) in a text", "write both halves, or the character itself")
	}
	return nil
}

// hasLoneSurrogate reports whether an escape in JSON is half of a surrogate pair (RFC 8259, section
// 8.2).
func hasLoneSurrogate(body []byte) bool {
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		unit, ok := escapedUnit(body[i:])
		switch {
		case !ok:
			i++ // what stands behind the backslash begins no escape
		case utf16.IsSurrogate(unit):
			second, _ := escapedUnit(body[i+escapeLength:])
			if utf16.DecodeRune(unit, second) == utf8.RuneError {
				return true
			}
			i += 2*escapeLength - 1
		default:
			i += escapeLength - 1
		}
	}
	return false
}

// escapeLength is that of an escape such as \u00e9.
const escapeLength = 6

// escapedUnit returns the unit of UTF-16 that a text begins with as an escape of JSON.
func escapedUnit(text []byte) (unit rune, ok bool) {
	if len(text) < escapeLength || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(text[2:escapeLength]), 16, 16)
	return rune(n), err == nil
}
