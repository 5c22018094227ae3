package sink

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
)

const (
	maxHeaderBytes = 32 << 10 // for the head of an answer and the informational heads before it
	maxBodyBytes   = 4 << 10  // how much of an answer's body is read
	// maxFramingBytes bounds the parts of a chunked body that are not content: sizes, extensions,
	// the trailer.
	maxFramingBytes = 8 << 10
	// answerBytes is the size of a buffer. Nearly every answer fits; the buffer grows for the
	// others.
	answerBytes = 4 << 10
)

// These are the errors of an answer. Their texts hold nothing that a server sent.
var (
	errMalformed    = errors.New("the answer is not valid HTTP")
	errNoStatusLine = errors.New("the answer does not begin with a status line")
	errHTTP2        = errors.New("the answer is HTTP/2")
	errHeadTooLarge = errors.New("the answer's headers are too large")
)

// head is the part of an answer's head that an attempt needs.
type head struct {
	code       int
	length     int64         // Content-Length, or -1
	chunked    bool          // takes precedence over length (RFC 9112, section 6.3)
	last       bool          // no other request may follow on the connection
	keepFor    time.Duration // Keep-Alive: timeout, or -1
	retryAfter retryAfter
	location   string
}

// empty reports whether the answer has no body (RFC 9112, section 6.3).
func (h *head) empty() bool {
	return h.code == 204 || h.code == 304 || !h.chunked && h.length == 0
}

// informational reports whether another head follows this one. After 101 no more HTTP follows.
func (h *head) informational() bool { return 100 <= h.code && h.code < 200 && h.code != 101 }

// parseHead parses a head: the status line, the header fields, and the blank line at the end (RFC
// 9112, sections 4 and 5). It accepts a bare LF as the end of a line, as that section allows. It
// refuses everything that could be read in two ways: malformed fields, lengths that differ, and
// transfer codings other than chunked.
func parseHead(b []byte) (head, error) {
	line, b := cutLine(b)
	h, old, err := parseStatusLine(line)
	if err != nil {
		return head{}, err
	}
	f := framing{old: old}
	var name []byte
	for len(b) > 0 {
		if line, b = cutLine(b); len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			// This line continues the value before it (obs-fold). Such a value must not decide how
			// long the answer is.
			if name == nil || foldsTo(name, "content-length") || foldsTo(name, "transfer-encoding") || !validValue(line) {
				return head{}, errMalformed
			}
			f.closes = f.closes || foldsTo(name, "connection")
			continue
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 1 || !isToken(line[:colon]) || !validValue(line[colon+1:]) {
			return head{}, errMalformed
		}
		name = line[:colon]
		if err := h.field(name, trimBlanks(line[colon+1:]), &f); err != nil {
			return head{}, err
		}
	}
	h.frame(f)
	return h, nil
}

// framing is what the fields say of the length of an answer and of its connection, and what else is
// known while they are read.
type framing struct {
	old             bool // the version is before HTTP/1.1
	coded           bool // there is a Transfer-Encoding
	closes, keepsOn bool // Connection has close, or keep-alive
	asked           bool // there is a usable Retry-After
}

// parseStatusLine parses HTTP/x.y, a blank, three digits, and a reason, which it ignores (RFC 9112,
// section 4). old reports whether the version is older than 1.1. A later version is read as 1.1,
// because some servers send one before an answer of HTTP/1.1.
func parseStatusLine(line []byte) (h head, old bool, err error) {
	const major, minor, digits = len("HTTP/"), len("HTTP/1."), len("HTTP/1.1 ")
	if len(line) < digits+3 || !bytes.HasPrefix(line, []byte("HTTP/")) || !isDigit(line[major]) || line[major+1] != '.' || !isDigit(line[minor]) || line[minor+1] != ' ' {
		return head{}, false, errNoStatusLine
	}
	h = head{length: -1, keepFor: -1}
	for _, c := range line[digits : digits+3] {
		if !isDigit(c) {
			return head{}, false, errMalformed
		}
		h.code = 10*h.code + int(c-'0')
	}
	if reason := line[digits+3:]; len(reason) > 0 && reason[0] != ' ' {
		return head{}, false, errMalformed
	}
	return h, line[major] == '0' || string(line[major:minor+1]) == "1.0", nil
}

// field reads one header field into h and f. The first usable Retry-After counts, and the first
// Location.
func (h *head) field(name, value []byte, f *framing) error {
	switch {
	case foldsTo(name, "content-length"):
		n, ok := parseLength(value)
		if !ok || h.length >= 0 && h.length != n {
			return errMalformed
		}
		h.length = n
	case foldsTo(name, "transfer-encoding"):
		if !f.old && (f.coded || !foldsTo(value, "chunked")) {
			return errMalformed
		}
		f.coded = true
	case foldsTo(name, "connection"):
		for token := range bytes.SplitSeq(value, []byte{','}) {
			token = trimBlanks(token)
			f.closes = f.closes || foldsTo(token, "close")
			f.keepsOn = f.keepsOn || foldsTo(token, "keep-alive")
		}
	case foldsTo(name, "keep-alive"):
		h.keepFor = keepAliveTimeout(value)
	case foldsTo(name, "retry-after") && !f.asked:
		h.retryAfter, f.asked = parseRetryAfter(string(value))
	case foldsTo(name, "location") && h.location == "":
		h.location = string(value)
	}
	return nil
}

// frame decides how the answer ends, and whether its connection may be used again.
func (h *head) frame(f framing) {
	h.chunked = f.coded && !f.old
	// An answer that could be read in two ways ends the connection: two lengths, a transfer coding
	// from a server of HTTP/1.0, a body where none is allowed (RFC 9112, sections 6.1 and 6.3).
	twice := f.coded && h.length >= 0
	bodyless := (h.code == 204 || h.code == 304) && (f.coded || h.code == 204 && h.length > 0)
	if f.coded && f.old {
		h.length = -1
	}
	h.last = f.closes || f.old && (!f.keepsOn || f.coded) || twice || bodyless || h.code <= 101
	if !h.empty() && !h.chunked && h.length < 0 {
		h.last = true // the body ends with the connection
	}
}

// cutLine returns the first line of b without its line end, and what follows it.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil
	}
	line, rest = b[:i], b[i+1:]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, rest
}

// keepAliveTimeout returns the timeout of a value like "timeout=5, max=100", or -1. The field is
// from RFC 2068, section 19.7.1, and most servers send it.
func keepAliveTimeout(value []byte) time.Duration {
	for parameter := range bytes.SplitSeq(value, []byte{','}) {
		name, number, _ := bytes.Cut(parameter, []byte{'='})
		if !foldsTo(trimBlanks(name), "timeout") {
			continue
		}
		if n, ok := parseLength(bytes.Trim(trimBlanks(number), `"`)); ok {
			return time.Duration(min(n, 3600)) * time.Second
		}
	}
	return -1
}

// parseLength parses a decimal number of at most 18 digits.
func parseLength(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if !isDigit(c) {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// foldsTo reports whether b equals lower, which has small letters, without regard to case.
func foldsTo(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func trimBlanks(b []byte) []byte { return bytes.Trim(b, " \t") }

// isToken reports whether b is a token (RFC 9110, section 5.6.2). A token has no blank, so this
// also refuses a blank before the colon.
func isToken(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// validValue reports whether b has no control characters except tabs (RFC 9110, section 5.5).
func validValue(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// incoming reads answers from a connection. b[r:w] are the bytes that were read and not used yet.
type incoming struct {
	from io.Reader
	b    []byte
	r, w int
}

// begun reports whether a byte has arrived.
func (in *incoming) begun() bool { return in.w > 0 }

func (in *incoming) unused() []byte { return in.b[in.r:in.w] }

// more reads once from the connection. If the buffer is full, it first makes room or grows it, to
// maxHeaderBytes and answerBytes together at most.
func (in *incoming) more() error {
	switch {
	case in.w < len(in.b):
	case in.r > 0:
		in.w = copy(in.b, in.unused())
		in.r = 0
	default:
		in.b = slices.Grow(in.b, len(in.b))
		in.b = in.b[:min(cap(in.b), maxHeaderBytes+answerBytes)]
	}
	n, err := in.from.Read(in.b[in.w:])
	in.w += n
	switch {
	case n > 0:
		return nil // the next read returns the error again
	case err == nil:
		return io.ErrNoProgress // a connection never does this
	case err == io.EOF && in.w > in.r:
		return io.ErrUnexpectedEOF
	}
	return err
}

// head reads the head of an answer, and returns it with its size in bytes. limit is the largest
// size that it accepts.
func (in *incoming) head(limit int) (h head, size int, err error) {
	for looked := 0; ; {
		unused := in.unused()
		if err := checkStart(unused); err != nil {
			return head{}, 0, err
		}
		if n := endOfHead(unused, looked); n > 0 && n <= limit {
			in.r += n
			h, err := parseHead(unused[:n])
			return h, n, err
		} else if n > limit || len(unused) >= limit {
			return head{}, 0, errHeadTooLarge
		}
		looked = max(0, len(unused)-len("\r\n"))
		if err := in.more(); err != nil {
			return head{}, 0, err
		}
	}
}

// checkStart returns an error as soon as b cannot be the start of a status line. It must not wait
// for the end of the line: a server of another protocol may never send one.
func checkStart(b []byte) error {
	const status = "HTTP/"
	if n := min(len(b), len(status)); string(b[:n]) == status[:n] {
		return nil
	}
	// A server that speaks HTTP/2 begins with a SETTINGS frame, or refuses by GOAWAY (RFC 9113,
	// sections 3.4 and 4.1). The frame header has three bytes of length, the type, the flags, and
	// stream 0.
	const frameHeader = 9
	if b[0] == 0 && len(b) < frameHeader {
		return nil
	}
	if b[0] == 0 && (b[3] == 4 || b[3] == 7) && b[5]|b[6]|b[7]|b[8] == 0 {
		return errHTTP2
	}
	return errNoStatusLine
}

// endOfHead returns the length of the head at the beginning of b, or 0 if its end has not arrived
// yet. The first looked bytes were searched before.
func endOfHead(b []byte, looked int) int {
	for i := looked; ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0
		}
		i += n + 1
		switch rest := b[i:]; {
		case bytes.HasPrefix(rest, []byte("\n")):
			return i + 1
		case bytes.HasPrefix(rest, []byte("\r\n")):
			return i + 2
		}
	}
}

// body reads the body, at most maxBodyBytes of it. It returns the content if keep is set. ended
// reports whether the answer has ended, so that another one may follow. An error of reading is
// dropped, because the status is known already.
func (in *incoming) body(h *head, keep bool) (content []byte, ended bool) {
	c := contentOf{in: in, keep: keep, left: maxBodyBytes}
	switch {
	case h.empty():
		return nil, true
	case h.chunked:
		ended = c.chunks()
	case h.length >= 0:
		ended = c.copy(h.length)
	default:
		c.copy(maxBodyBytes + 1) // there is no length: the body ends with the connection
	}
	return c.content, ended
}

// contentOf reads the content of a body.
type contentOf struct {
	in      *incoming
	keep    bool
	left    int // how many more bytes of content may be read
	framing int // how many bytes of framing a chunked body had so far
	content []byte
}

// copy reads n bytes of content, and reports whether all of them came and maxBodyBytes was not
// exceeded.
func (c *contentOf) copy(n int64) bool {
	for n > 0 && c.left > 0 {
		unused := c.in.unused()
		if len(unused) == 0 {
			if c.in.more() != nil {
				return false
			}
			continue
		}
		unused = unused[:min(int64(len(unused)), n, int64(c.left))]
		if c.keep {
			c.content = append(c.content, unused...)
		}
		c.in.r += len(unused)
		c.left -= len(unused)
		n -= int64(len(unused))
	}
	return n == 0
}

// chunks reads the chunks and the trailer behind them (RFC 9112, section 7.1). It is strict: a line
// ends with CR and LF, and a size has at most fifteen digits. It reports whether the body ended.
func (c *contentOf) chunks() bool {
	for {
		line, ok := c.line()
		size, valid := parseChunkSize(line)
		switch {
		case !ok, !valid:
			return false
		case size == 0:
			return c.trailer()
		case !c.copy(size):
			return false
		}
		if end, ok := c.line(); !ok || len(end) > 0 {
			return false
		}
	}
}

// trailer reads the trailer up to its blank line. Nothing needs its fields.
func (c *contentOf) trailer() bool {
	for {
		line, ok := c.line()
		if !ok || len(line) == 0 {
			return ok
		}
		if colon := bytes.IndexByte(line, ':'); colon < 1 || !isToken(line[:colon]) || !validValue(line[colon+1:]) {
			return false
		}
	}
}

// line reads one line of the framing. The result is valid until the next read.
func (c *contentOf) line() ([]byte, bool) {
	for {
		unused := c.in.unused()
		if end := bytes.IndexByte(unused, '\n'); end >= 0 {
			c.in.r += end + 1
			c.framing += end + 1
			line, crlf := bytes.CutSuffix(unused[:end], []byte{'\r'})
			return line, crlf && c.framing <= maxFramingBytes
		}
		if len(unused) > maxFramingBytes {
			return nil, false
		}
		if c.in.more() != nil {
			return nil, false
		}
	}
}

// parseChunkSize parses the size of a chunk, which is hexadecimal. It checks the extensions behind
// the size and ignores them.
func parseChunkSize(line []byte) (size int64, ok bool) {
	digits := 0
	for ; digits < len(line); digits++ {
		value, hex := hexValue(line[digits])
		if !hex {
			break
		}
		if digits == 15 {
			return 0, false
		}
		size = size<<4 | value
	}
	rest := line[digits:]
	blank := len(trimBlanks(rest)) == 0 // some servers pad the size
	return size, digits > 0 && (blank || rest[0] == ';' && validValue(rest))
}

func hexValue(c byte) (value int64, ok bool) {
	switch {
	case isDigit(c):
		return int64(c - '0'), true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int64(c|0x20-'a') + 10, true
	}
	return 0, false
}
