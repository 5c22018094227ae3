package sink

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

const (
	// drainTimeout is what a connection's reuse is worth: after a 2xx the attempt waits no longer than this for the body.
	drainTimeout = 50 * time.Millisecond
	// excerptTimeout is what the body of another answer is worth, of which the log shows the beginning.
	excerptTimeout = 100 * time.Millisecond
	// earlyTimeout is how long a 2xx that came early waits for the rest of the request to be read.
	earlyTimeout = time.Second
	// recordTimeout is how long it may take to look at what came over an idle TLS connection, which is there already.
	recordTimeout = time.Millisecond
)

// longAgo is a deadline that ends whatever waits on a connection.
var longAgo = time.Unix(1, 0)

// answer is what an attempt learns of a server's answer.
type answer struct {
	head
	at      time.Time // when the head had come
	excerpt []byte    // the beginning of the body, of a failure
}

// conn is a connection to a server, on which one exchange at a time is made. A mutex of the pool guards it while it is idle.
type conn struct {
	net.Conn
	origin origin
	socket syscall.RawConn // nil in tests with pipes
	peek   func(fd uintptr)
	peeked error   // what peek has found
	unread [1]byte // what alive has read

	ends    time.Time     // its longest age
	reused  bool          // an exchange was made before
	used    time.Time     // the end of the last exchange
	keepFor time.Duration // the server closes it after so long without a request; -1 if it does not say
	until   time.Time     // when it has been idle for too long
}

func newConn(c net.Conn, o origin, ends time.Time) *conn {
	nc := &conn{Conn: c, origin: o, ends: ends, keepFor: -1}
	raw := c
	if t, ok := c.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if s, ok := raw.(syscall.Conn); ok {
		nc.socket, _ = s.SyscallConn() // without one, an end is noticed as late as it may be anyway
	}
	nc.peek = func(fd uintptr) {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err == nil && n == 0 {
			err = io.EOF
		}
		nc.peeked = err
	}
	return nc
}

// alive reports, without waiting, whether an idle connection looks as if it could be used: the server has not ended it, and has sent
// nothing, such as bytes behind its last answer. There is no more certainty to be had before the next request.
func (c *conn) alive() bool {
	if c.socket == nil {
		return true
	}
	if c.socket.Control(c.peek) != nil {
		return false
	}
	_, encrypted := c.Conn.(*tls.Conn)
	silent := errors.Is(c.peeked, syscall.EAGAIN)
	if !encrypted || !silent && c.peeked != nil {
		return silent
	}
	// Package crypto/tls may have read more than it has shown. What is in the socket may be a session ticket, which servers send when
	// they like.
	until := longAgo
	if !silent {
		until = time.Now().Add(recordTimeout)
	}
	if c.SetReadDeadline(until) != nil {
		return false
	}
	n, err := c.Read(c.unread[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// abandon closes the connection without a word to the server: what TLS says at the end could wait for one that reads nothing.
func (c *conn) abandon() {
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.NetConn().Close() // nothing more is expected of it
		return
	}
	_ = c.Close()
}

// interrupt ends what waits on the connection.
func (c *conn) interrupt() { _ = c.SetDeadline(longAgo) } // fails on a closed one

// errEnded is the error of an exchange on a connection that ended before a byte of an answer.
type errEnded struct{ error }

func (e errEnded) Unwrap() error { return e.error }

// exchange sends m and reads the answer. It ends at the deadline, or with ctx. It reports whether the connection can be used for another
// exchange. Seen is told how far it has come.
func (c *conn) exchange(ctx context.Context, deadline time.Time, m *message, seen *progress) (a answer, keep bool, err error) {
	if err := ctx.Err(); err != nil {
		return answer{}, false, err
	}
	if err := c.SetDeadline(deadline); err != nil {
		return answer{}, false, errEnded{err}
	}
	finish := context.AfterFunc(ctx, c.interrupt)
	defer func() { keep = finish() && keep }()
	in := newIncoming(c.Conn)
	defer in.free()

	whole := true
	if _, err = c.Write(m.first); err != nil {
		whole = false
		a, err = c.lost(ctx, deadline, in, err)
	} else if m.rest == nil {
		seen.reach(phaseHeaders)
		a, err = receive(in)
	} else {
		rest := c.sendRest(m.rest, seen)
		a, err = receive(in)
		whole, err = c.endRest(ctx, deadline, rest, a.code, err)
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

// within sets a deadline that is so long from now, unless the attempt ends before.
func (c *conn) within(ctx context.Context, deadline time.Time, patience time.Duration, set func(time.Time) error) {
	if until := time.Now().Add(patience); until.Before(deadline) {
		_ = set(until) // fails on a closed one, as what follows then does
	}
	if ctx.Err() != nil {
		c.interrupt() // that the context has ended must not be undone
	}
}

// lost reads what a server has answered before it took no more of a request, which failed with err. The answer is here already, or never
// comes. On a connection that was kept it would be to nobody's question.
func (c *conn) lost(ctx context.Context, deadline time.Time, in *incoming, err error) (answer, error) {
	if !isReset(err) || c.reused {
		return answer{}, err
	}
	c.within(ctx, deadline, drainTimeout, c.SetReadDeadline)
	if a, said := receive(in); said == nil || isAlert(said) {
		return a, said
	}
	return answer{}, err
}

// sendRest sends the rest of a long request on a goroutine of its own, since a server may answer before it has read all. It ends with
// endRest, and its error is sent to the channel then. What fails on this side of the wire ends the wait for an answer.
func (c *conn) sendRest(rest []byte, seen *progress) <-chan error {
	sent := make(chan error, 1) // so that the goroutine never waits
	go func() {
		err := panics.Catch(func() error {
			_, err := c.Write(rest)
			if err == nil {
				seen.reach(phaseHeaders)
			}
			return err
		})
		if isOurs(err) {
			_ = c.SetReadDeadline(longAgo) // fails on a closed one
		}
		sent <- err
	}()
	return sent
}

// isOurs reports whether it was no server that ended the sending of the rest, nor the end of its time.
func isOurs(err error) bool {
	return err != nil && !isReset(err) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// endRest ends the sending of the rest, after an answer with this code, or none but err. It reports whether all was sent. A server that has
// accepted a request before all of it had come gets a second to read on.
func (c *conn) endRest(ctx context.Context, deadline time.Time, sent <-chan error, code int, err error) (whole bool, _ error) {
	if err == nil && succeeds(code) {
		c.within(ctx, deadline, earlyTimeout, c.SetWriteDeadline)
	} else {
		_ = c.SetWriteDeadline(longAgo) // fails on a closed one
	}
	failed := <-sent
	if err != nil && isOurs(failed) {
		return false, failed
	}
	return failed == nil, err
}

// receive reads heads up to the one that is not informational.
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

// readBody reads what is worth to be read of the body, and reports whether the answer has ended.
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

// buffers keeps those of answers: idle connections have none.
var buffers = sync.Pool{New: func() any { return &incoming{b: make([]byte, answerBytes)} }}

func newIncoming(from io.Reader) *incoming {
	in := buffers.Get().(*incoming)
	in.from = from
	return in
}

// free gives in back, unless it has grown.
func (in *incoming) free() {
	if len(in.b) > answerBytes {
		return
	}
	in.from, in.r, in.w = nil, 0, 0
	buffers.Put(in)
}
