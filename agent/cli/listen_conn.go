package cli

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// watchedListener accepts connections that remember how they began. net/http itself refuses bytes
// that are no request, and informs only the client.
type watchedListener struct{ net.Listener }

// Accept implements net.Listener.
func (l watchedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: conn}, nil
}

// watchedConn is a connection of a watchedListener.
type watchedConn struct {
	net.Conn
	first   sync.Once   // guards the look at the first byte
	tls     atomic.Bool // it begins like TLS
	unheard atomic.Bool // bytes have come, but no handler was called for them yet
}

// handshake is the first byte of a TLS connection: the type of the record that contains the
// ClientHello (RFC 8446, section 5.1).
const handshake = 22

// Read implements net.Conn.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.first.Do(func() { c.tls.Store(p[0] == handshake) })
	}
	return n, err
}

type watchedKey struct{}

func withWatched(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, watchedKey{}, conn)
}

// heard notes that a handler has the request.
func heard(ctx context.Context) {
	if c, ok := ctx.Value(watchedKey{}).(*watchedConn); ok {
		c.unheard.Store(false)
	}
}

// notice follows the state of a connection (http.Server.ConnState), and prints what has arrived
// that is no request.
func (r *receiver) notice(conn net.Conn, state http.ConnState) {
	c, ok := conn.(*watchedConn)
	switch {
	case !ok:
	case state == http.StateActive:
		c.unheard.Store(true)
	case state == http.StateClosed && c.unheard.Load():
		what := "something that is no HTTP request, or whose head is too large or did not come to its end"
		if c.tls.Load() {
			what = "a TLS connection: listen speaks plain HTTP, so the endpoint's URL must begin with http:// here"
		}
		r.say(reception{Refused: "refused: " + what})
	}
}
