package zoo

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The animals of this file treat connections and requests as some real servers do. They differ in
// what they do after an answer, or in how many connections or requests they take.

const (
	tokens     = 5 // requests a second that token-bucket takes
	bodyPlace  = 64 << 10
	neverSoon  = time.Minute
	nodeCloses = 5 * time.Second // as Node.js does
)

func keepingSpecies() []species {
	bucket := &tokenBucket{left: tokens, at: time.Now()}
	list := []species{
		{name: "keeps-5s", does: "keeps a connection, and closes it 5 s after its last answer", act: keeps(nodeCloses, always200)},
		{name: "keeps-1s", does: "keeps a connection, says for how long (Keep-Alive: timeout=1), and closes it then",
			act: keeps(time.Second, func() string { return keptResponse("Keep-Alive: timeout=1\r\n") })},
		{name: "keeps-nothing", does: "promises to keep the connection and closes it at once", act: keeps(0, func() string { return keptResponse("") })},
		{name: "no-content-body", does: "answers 204 with a body, and keeps the connection",
			act: keeps(neverSoon, func() string { return "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello" })},
		{name: "one-connection", does: "serves one connection at a time and resets every other", act: oneAtATime(keeps(time.Second, always200))},
		{name: "token-bucket", does: "answers 429 without Retry-After to all but 5 requests a second", act: keeps(neverSoon, bucket.answer)},

		{name: "unfinished-body", does: "answers 200 with the beginning of a body, and nothing more", act: unfinished(200)},
		{name: "unfinished-error", does: "answers 500 with the beginning of a body, and nothing more", act: unfinished(500)},
		{name: "early-200", does: "answers 200 when it has read 64 kB of a body, and resets the connection", act: early(200)},
		{name: "early-413", does: "answers 413 when it has read 64 kB of a body, and resets the connection", act: early(413)},
		{name: "h2c", does: "speaks HTTP/2 without TLS: answers with its SETTINGS and GOAWAY", act: then(hears, says(settings+goaway), pauses)},
	}
	for i := range list {
		list[i].first = true
	}
	return list
}

// settings and goaway are the answer of an HTTP/2 server to a request of HTTP/1.1 (RFC 9113,
// sections 3.4 and 6.8): a frame SETTINGS with SETTINGS_MAX_CONCURRENT_STREAMS, and a frame GOAWAY
// with PROTOCOL_ERROR.
const (
	settings = "\x00\x00\x06\x04\x00\x00\x00\x00\x00" + "\x00\x03\x00\x00\x00\x64"
	goaway   = "\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x01"
)

func always200() string { return response(200, "ok") }

// keptResponse returns an answer that keeps the connection. lines are further lines of its head.
func keptResponse(lines string) string {
	return "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n" + lines + "Content-Length: 0\r\n\r\n"
}

// keeps answers one request after another. It ends when no request has begun for the time idle
// after an answer.
func keeps(idle time.Duration, answer func() string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err = io.Copy(io.Discard, request.Body); err != nil {
				return
			}
			if _, err = io.WriteString(c, answer()); err != nil || idle == 0 {
				return
			}
			_ = c.SetReadDeadline(time.Now().Add(idle))
			if _, err = r.Peek(1); err != nil {
				return
			}
			_ = c.SetReadDeadline(time.Time{})
		}
	}
}

// oneAtATime resets connections that arrive while act is using one.
func oneAtATime(act func(net.Conn)) func(net.Conn) {
	var busy atomic.Bool
	return func(c net.Conn) {
		if !busy.CompareAndSwap(false, true) {
			// The client sees a reset when the connection is closed.
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		defer busy.Store(false)
		act(c)
	}
}

// tokenBucket answers with 200 to a limited number of requests a second, and with 429 to the
// others.
type tokenBucket struct {
	mu   sync.Mutex // guards the fields below
	left float64
	at   time.Time
}

func (b *tokenBucket) answer() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.left, b.at = min(tokens, b.left+tokens*now.Sub(b.at).Seconds()), now
	if b.left < 1 {
		return response(429, "slow down")
	}
	b.left--
	return always200()
}

// unfinished announces a longer body than it sends, and keeps the connection open.
func unfinished(code int) func(net.Conn) {
	return func(c net.Conn) {
		if readRequest(c) {
			says(fmt.Sprintf("HTTP/1.1 %d Status\r\nContent-Length: 1000\r\n\r\ncut", code))(c)
			listens(c)
		}
	}
}

// early answers before it has read all of a large body.
func early(code int) func(net.Conn) {
	return func(c net.Conn) {
		request, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, request.Body, bodyPlace) // a small body ends before
		resets(response(code, "early"))(c)
	}
}
