package sink

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

const (
	// drainTimeout is how long an attempt waits for the rest of the body after a 2xx. Waiting is
	// only good for using the connection again, so it is short.
	drainTimeout = 50 * time.Millisecond
	// excerptTimeout is how long an attempt waits for the body of any other answer, because the log
	// shows its beginning.
	excerptTimeout = 100 * time.Millisecond
	// earlyTimeout is how long a server that answered 2xx early has to read the rest of the request.
	earlyTimeout = time.Second
)

// longAgo is a deadline in the past: setting it ends whatever waits on a connection.
var longAgo = time.Unix(1, 0)

// answer is what an attempt needs of a server's answer.
type answer struct {
	head
	at      time.Time // when the head had been read
	excerpt []byte    // the beginning of the body; of failures only
}

// conn is a connection to a server. It makes one exchange at a time. In use it belongs to that
// attempt's goroutine; while it is idle, idle.mu guards it.
type conn struct {
	net.Conn // wire, or TLS over it
	wire     *wire
	origin   origin

	ends   time.Time // it is not used after this time (connAge)
	reused bool      // an exchange was made before
	used   time.Time // the end of the last exchange
	// keepFor is the time without a request after which the server closes the connection, or -1 if
	// the server does not say.
	keepFor time.Duration
	until   time.Time // when it will have been idle for too long
}

func newConn(c net.Conn, w *wire, o origin, ends time.Time) *conn {
	return &conn{Conn: c, wire: w, origin: o, ends: ends, keepFor: -1}
}

// Read reads from the server. What comes while the request is still held was not asked for.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.wire.held {
		return 0, errUnsent
	}
	return n, err
}

// abandon closes the connection without a TLS close message, because sending it could block if the
// server reads nothing.
func (c *conn) abandon() { _ = c.wire.Close() } // an error has no effect: nobody uses it again

// interrupt makes every read and write on the connection return at once.
func (c *conn) interrupt() { _ = c.SetDeadline(longAgo) } // fails on a closed one

// errEnded wraps the error of an exchange whose connection ended before the first byte of an
// answer.
type errEnded struct{ error }

func (e errEnded) Unwrap() error { return e.error }

// exchange sends m and reads the answer. It ends at the deadline, or with ctx. keep reports whether
// the connection can be used for another exchange. seen records how far it has come.
func (c *conn) exchange(ctx context.Context, deadline time.Time, m *message, seen *progress) (a answer, keep bool, err error) {
	if err := ctx.Err(); err != nil {
		return answer{}, false, err
	}
	if err := c.SetDeadline(deadline); err != nil {
		return answer{}, false, errEnded{err}
	}
	finish := context.AfterFunc(ctx, c.interrupt)
	defer func() { keep = finish() && keep }()
	in := newIncoming(c)
	defer in.free()

	whole := true
	if err = c.begin(m, seen); err != nil {
		whole = false
		a, err = c.earlyAnswer(ctx, deadline, in, err)
	} else if m.rest == nil {
		a, err = receive(in)
	} else {
		rest := c.sendRest(m.rest, seen)
		a, err = receive(in)
		whole, err = c.endRest(ctx, deadline, rest, a.code, err)
	}
	if c.reused && !c.wire.release() && !errors.Is(err, os.ErrDeadlineExceeded) {
		return answer{}, false, errUnsent
	}
	if err != nil {
		if !in.begun() && isReset(err) {
			err = errEnded{err}
		}
		return answer{}, false, err
	}
	crashpoint.Hit(crashpoint.AfterResponse)
	if a.keepFor >= 0 {
		c.keepFor = a.keepFor
	}
	ended := c.readBody(ctx, deadline, in, &a)
	return a, ended && whole && !a.last && len(in.unused()) == 0, nil
}

// begin sends the first part of m. On a kept connection it leaves that to the wire: a message
// without a rest is sent when the answer is read.
func (c *conn) begin(m *message, seen *progress) error {
	if m.rest != nil {
		seen = nil
	}
	if c.reused {
		c.wire.hold(seen)
	}
	_, err := c.Write(m.first)
	switch {
	case err != nil:
		return err
	case !c.reused:
		c.wire.sent(seen)
	case m.rest != nil && c.wire.held:
		// This sends it. It goes through crypto/tls, which may have read something before.
		var b [1]byte
		if _, err := c.Read(b[:]); c.wire.held {
			return err
		}
	}
	return nil
}

// within sets a deadline of patience from now, unless the attempt's own deadline is earlier. set is
// a method of c that sets a deadline.
func (c *conn) within(ctx context.Context, deadline time.Time, patience time.Duration, set func(time.Time) error) {
	if until := time.Now().Add(patience); until.Before(deadline) {
		_ = set(until) // fails on a closed connection, and so does what follows
	}
	if ctx.Err() != nil {
		c.interrupt() // ctx has ended meanwhile, and set must not undo that
	}
}

// earlyAnswer is called when writing a request failed with err. It returns the answer that the
// server may have sent before it stopped reading. Such an answer has arrived already, or never
// comes. On a kept connection it would not belong to this request, so earlyAnswer does not read
// there.
func (c *conn) earlyAnswer(ctx context.Context, deadline time.Time, in *incoming, err error) (answer, error) {
	if !isReset(err) || c.reused {
		return answer{}, err
	}
	c.within(ctx, deadline, drainTimeout, c.SetReadDeadline)
	if a, said := receive(in); said == nil || isAlert(said) {
		return a, said
	}
	return answer{}, err
}

// sendRest sends the body of a long request on a goroutine of its own, because a server may answer
// before it has read everything. endRest ends the goroutine and receives its error from the
// channel. If this side of the wire fails, the goroutine also ends the wait for an answer.
func (c *conn) sendRest(rest []byte, seen *progress) <-chan error {
	sent := make(chan error, 1) // room for the one error, so that the goroutine never waits
	go func() {
		err := panics.Catch(func() error {
			_, err := c.Write(rest)
			if err == nil {
				seen.reach(phaseHeaders)
			}
			return err
		})
		if isOurs(err) {
			_ = c.SetReadDeadline(longAgo) // fails on a closed connection
		}
		sent <- err
	}()
	return sent
}

// isOurs reports whether sending the rest failed on this side of the wire: neither the server nor
// the deadline ended it.
func isOurs(err error) bool {
	return err != nil && !isReset(err) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// endRest stops the sending of the rest and waits for its goroutine. code is the status of the
// answer; err is set if there was none. whole reports whether everything was sent. A server that
// answered 2xx early gets earlyTimeout to read the rest.
func (c *conn) endRest(ctx context.Context, deadline time.Time, sent <-chan error, code int, err error) (whole bool, _ error) {
	if err == nil && succeeds(code) {
		c.within(ctx, deadline, earlyTimeout, c.SetWriteDeadline)
	} else {
		_ = c.SetWriteDeadline(longAgo) // fails on a closed connection
	}
	failed := <-sent
	if err != nil && isOurs(failed) {
		return false, failed
	}
	return failed == nil, err
}

// receive reads the heads of an answer until one is not informational, and returns that one.
func receive(in *incoming) (answer, error) {
	for left := maxHeaderBytes; ; {
		h, size, err := in.head(left)
		if err != nil {
			return answer{}, err
		}
		if left -= size; !h.informational() {
			return answer{head: h, at: time.Now()}, nil
		}
	}
}

// readBody reads as much of the body as is useful, and reports whether the answer has ended. It
// keeps the beginning of a failure's body in a.excerpt.
func (c *conn) readBody(ctx context.Context, deadline time.Time, in *incoming, a *answer) bool {
	if a.code == http.StatusSwitchingProtocols {
		return false
	}
	ok, patience := succeeds(a.code), drainTimeout
	if !ok {
		patience = excerptTimeout
	}
	if a.chunked || a.length < 0 || a.length > int64(len(in.unused())) {
		c.within(ctx, deadline, patience, c.SetReadDeadline)
	}
	content, ended := in.body(&a.head, !ok)
	a.excerpt = content
	return ended
}

func succeeds(code int) bool { return 200 <= code && code < 300 }

// buffers is a pool of the buffers for answers. So an idle connection holds none.
var buffers = sync.Pool{New: func() any { return &incoming{b: make([]byte, answerBytes)} }}

func newIncoming(from io.Reader) *incoming {
	in := buffers.Get().(*incoming)
	in.from = from
	return in
}

// free gives in back to the pool. A buffer that has grown is dropped.
func (in *incoming) free() {
	if len(in.b) > answerBytes {
		return
	}
	in.from, in.r, in.w = nil, 0, 0
	buffers.Put(in)
}
