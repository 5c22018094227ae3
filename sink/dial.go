package sink

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const tcpKeepAlive = 30 * time.Second

// dialFunc opens a connection, as net.Dialer.DialContext does.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newDial returns the only function that connects to customers' servers. It applies the guard, and
// uses no proxy: the guard would judge the proxy's address instead of the server's. It records the
// progress of the attempt in ctx, which names could be resolved, and which addresses answer.
func newDial(g *guard, n *names, way *gateway) dialFunc {
	d := &net.Dialer{KeepAlive: tcpKeepAlive, ControlContext: g.control, Resolver: n.resolver}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		to := absoluteName(address)
		progressOf(ctx).reach(phaseDNS)
		conn, err := d.DialContext(ctx, network, to)
		host, _, _ := net.SplitHostPort(to)
		// An error other than a DNSError means that the name was resolved, even if the dial then
		// failed or was canceled.
		if _, isDNS := errors.AsType[*net.DNSError](err); strings.HasSuffix(host, ".") && !isDNS {
			n.resolved(host)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			way.answered(connectingTo(err))
		}
		if err != nil {
			return nil, err
		}
		if from, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			way.answered(plain(from.AddrPort().Addr()))
		}
		return conn, nil
	}
}

// absoluteName adds the final dot to the host name of a host:port, so that the search domains of
// resolv.conf do not apply. With them a customer's "postgres.default" would be a service in the
// operator's cluster.
func absoluteName(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || strings.HasSuffix(host, ".") || isLocalhost(host) {
		return address
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return address
	}
	return net.JoinHostPort(host+".", port)
}

// phase is how far an attempt has come. When its time runs out, this is what it was waiting for.
type phase int32

const (
	phaseDNS phase = iota
	phaseConnect
	phaseTLS
	phaseSend
	phaseHeaders
)

// String completes the sentence "... waiting for".
func (p phase) String() string {
	switch p {
	case phaseConnect:
		return "the connection"
	case phaseTLS:
		return "the TLS handshake"
	case phaseSend:
		return "the server to read the request"
	case phaseHeaders:
		return "the response headers"
	default:
		return "DNS"
	}
}

// progress is how far an exchange has come. Its fields are atomic because several goroutines write
// them: net dials the addresses of a name on goroutines of its own, and a long request has a
// goroutine to send it. A phase only advances.
type progress struct {
	phase       atomic.Int32
	blocked     atomic.Pointer[refusal] // the first address that the guard refused, or nil
	certificate atomic.Bool             // the server has asked for a client certificate
}

func (p *progress) reach(next phase) {
	for {
		current := p.phase.Load()
		if current >= int32(next) || p.phase.CompareAndSwap(current, int32(next)) {
			return
		}
	}
}

// restart resets the progress for another connection.
func (p *progress) restart() {
	p.phase.Store(int32(phaseDNS))
	p.blocked.Store(nil)
	p.certificate.Store(false)
}

type progressKey struct{}

// progressOf returns the progress that ctx carries, or a new one that nobody reads.
func progressOf(ctx context.Context) *progress {
	if p, ok := ctx.Value(progressKey{}).(*progress); ok {
		return p
	}
	return new(progress)
}
