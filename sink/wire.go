package sink

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/quintago/webhook-agent/crashpoint"
)

// wire is a connection below HTTP and TLS. On a kept connection it sends a request in the call that
// waits for the answer: what is written after hold goes out with the next Read. An exchange takes
// three system calls so: a look whether the server has ended the connection or sent something, the
// write, and the read of the answer. Ordinary calls take four, because each Read begins with a
// system call, and no answer is there so early.
//
// RawConn.Read makes this possible. It calls a function, waits for bytes if that returns false, and
// calls it again. It begins to listen before the first call. So an answer to what the first call
// writes is not missed.
//
// Whatever the look finds, the connection is left. Over TLS that may be a harmless record, but also
// the first half of an answer that nobody has asked for. The look does not see what crypto/tls has
// read before and not returned yet. That comes out of conn.Read, which sees that the request is
// still held.
type wire struct {
	net.Conn
	socket syscall.RawConn       // nil in tests with pipes: they send at once and do not look
	step   func(fd uintptr) bool // (*wire).proceed, made once for all exchanges
	copies bool                  // who writes uses the bytes again after Write, as crypto/tls does

	// These belong to one exchange.
	held   bool      // the request is not sent yet, and Write keeps its bytes
	unsent []byte    // what Write has kept
	begun  bool      // the look has found nothing, and the request is under way
	seen   *progress // nil if more of the request follows; then Read does not wait for the answer
	into   []byte    // what is read goes here
	n      int       // how many bytes were read
	err    error     // of a system call
}

func newWire(c net.Conn, encrypted bool) *wire {
	w := &wire{Conn: c, copies: encrypted}
	w.step = w.proceed
	if s, ok := c.(syscall.Conn); ok {
		w.socket, _ = s.SyscallConn() // nil with an error
	}
	return w
}

// errUnsent reports that nothing of a request was sent.
var errUnsent = errors.New("the server had ended the kept connection, or sent something unasked")

// hold makes the next writes one request, or the first part of one, which the next Read sends. Once
// that is done, seen reaches phaseHeaders, and Read waits for the answer. Without seen, more of the
// request follows, and Read returns os.ErrDeadlineExceeded instead of waiting: crypto/tls can go on
// after that error.
func (w *wire) hold(seen *progress) {
	w.held, w.begun, w.seen = true, false, seen
}

// release ends what hold began, and reports whether the request got under way.
func (w *wire) release() (begun bool) {
	w.held, w.unsent, w.seen = false, nil, nil
	return w.begun
}

// Write implements net.Conn.
func (w *wire) Write(b []byte) (int, error) {
	switch {
	case !w.held:
		return w.Conn.Write(b)
	case w.socket == nil:
		w.begun = true
		n, err := w.Conn.Write(b)
		if err == nil {
			w.sent(w.seen)
		}
		return n, err
	case w.copies || len(w.unsent) > 0:
		w.unsent = append(slices.Clip(w.unsent), b...)
	default:
		w.unsent = b
	}
	return len(b), nil
}

// Read implements net.Conn. It first sends what Write has kept.
func (w *wire) Read(b []byte) (int, error) {
	if len(w.unsent) == 0 {
		return w.Conn.Read(b)
	}
	n, err := w.send(b)
	switch {
	case n > 0 || err != nil:
		return n, err
	case w.seen == nil:
		return 0, os.ErrDeadlineExceeded
	}
	return w.Conn.Read(b)
}

// send looks at the connection and sends what Write has kept. It may read n bytes of the answer
// into b.
func (w *wire) send(b []byte) (n int, err error) {
	w.into, w.n, w.err = b, 0, nil
	err = w.socket.Read(w.step)
	w.into = nil
	switch {
	case w.n > 0 || w.err != nil:
		return w.n, w.err
	case err == nil && len(w.unsent) > 0: // the socket took a part of it
		if _, err = w.Conn.Write(w.unsent); err == nil {
			w.sent(w.seen)
		}
	}
	return 0, err
}

// sent notes that the system has taken the whole.
func (w *wire) sent(seen *progress) {
	w.held, w.unsent = false, nil
	crashpoint.Hit(crashpoint.AfterRequestWritten)
	if seen != nil {
		seen.reach(phaseHeaders)
	}
}

// proceed does what can be done without waiting, and reports whether send has nothing to wait for.
func (w *wire) proceed(fd uintptr) bool {
	if len(w.unsent) == 0 {
		return w.receive(fd)
	}
	if w.receive(fd) {
		w.n, w.err = 0, errUnsent
		return true
	}
	w.begun = true
	n, err := writeSocket(fd, w.unsent)
	switch {
	case err != nil && !errors.Is(err, syscall.EAGAIN):
		w.err = w.failed("write", err)
		return true
	case n < len(w.unsent):
		w.unsent = w.unsent[max(n, 0):]
		return true
	}
	w.sent(w.seen)
	return w.seen == nil
}

// receive reads once, and reports whether there was something to read: bytes, the end, or an error.
func (w *wire) receive(fd uintptr) bool {
	n, err := readSocket(fd, w.into)
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return false
	case err != nil:
		w.err = w.failed("read", err)
	case n == 0:
		w.err = io.EOF
	default:
		w.n = n
	}
	return true
}

// failed returns the error that net returns for a system call.
func (w *wire) failed(call string, err error) error {
	return &net.OpError{Op: call, Net: "tcp", Source: w.LocalAddr(), Addr: w.RemoteAddr(), Err: os.NewSyscallError(call, err)}
}

// readSocket and writeSocket make a system call, again after a signal.
func readSocket(fd uintptr, b []byte) (n int, err error) {
	for {
		if n, err = syscall.Read(int(fd), b); !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

func writeSocket(fd uintptr, b []byte) (n int, err error) {
	for {
		if n, err = syscall.Write(int(fd), b); !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}
