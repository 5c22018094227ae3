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

	"github.com/quintago/webhook-agent/crashpoint"
)

const tcpKeepAlive = 30 * time.Second

// dialFunc opens connections.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newDial makes the only way by which customers' servers are reached: through the guard, and without a proxy, whose address the guard
// would judge in place of theirs. It notes the progress of the attempt, the names that have addresses, and the addresses that answer.
func newDial(g *guard, n *names, way *gateway) dialFunc {
	d := &net.Dialer{KeepAlive: tcpKeepAlive, ControlContext: g.control, Resolver: n.resolver}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		to := absoluteName(address)
		progressOf(ctx).reach(phaseDNS)
		conn, err := d.DialContext(ctx, network, to)
		host, _, _ := net.SplitHostPort(to)
		if _, isDNS := errors.AsType[*net.DNSError](err); strings.HasSuffix(host, ".") && !isDNS { // also of a dial that was given up
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
		return crashpoint.Conn(conn), nil
	}
}

// absoluteName adds the final dot to the host name of a host:port, so that the search domains of resolv.conf do not apply:
// by them a customer's "postgres.default" would be a service of the operator's cluster.
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

// phase is how far an attempt came, which is what it was waiting for when its time ran out.
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

// progress is how far an exchange has come. Package net dials several addresses of a name on goroutines of its own, and a long request is
// sent by one, so the fields are atomic and phases only advance.
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

// restart begins again, with another connection.
func (p *progress) restart() {
	p.phase.Store(int32(phaseDNS))
	p.blocked.Store(nil)
	p.certificate.Store(false)
}

type progressKey struct{}

// progressOf returns the progress of the attempt that ctx belongs to, or one that nobody reads.
func progressOf(ctx context.Context) *progress {
	if p, ok := ctx.Value(progressKey{}).(*progress); ok {
		return p
	}
	return new(progress)
}
