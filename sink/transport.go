package sink

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

const (
	// DefaultMaxIdle is how many idle connections are kept. One over TLS costs about 40 KiB.
	DefaultMaxIdle      = 512
	idleConnTimeout     = time.Minute
	maxHeaderBytes      = 32 << 10
	tlsSessionCacheSize = 1024
	tcpKeepAlive        = 30 * time.Second

	// net/http lets a dial go on after its request was given up, since a later request may use the connection. So dial and
	// TLS handshake have limits of their own, which exceed delivery.timeout by this much: the attempt's own deadline always
	// comes first, and its sentence is the one that is seen.
	dialGrace = time.Second
)

// newTransport makes the only transport through which customers' servers are reached.
//
// RoundTrip is called without an http.Client, which would add redirects, cookies, basic authentication from the URL and errors
// that quote the URL.
func newTransport(cfg WebhookConfig, g *guard, n *names) *http.Transport {
	dialer := &net.Dialer{Timeout: cfg.Timeout + dialGrace, KeepAlive: tcpKeepAlive, ControlContext: g.control, Resolver: n.resolver}

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // HTTP/2 brings nothing to one POST at a time, and a stranger's server can abuse more of it

	return &http.Transport{
		Proxy:       nil, // behind a proxy the guard would judge the proxy's address
		DialContext: dialContext(dialer, n),
		Protocols:   protocols,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			ClientSessionCache: tls.NewLRUClientSessionCache(tlsSessionCacheSize),
		},
		TLSHandshakeTimeout: cfg.Timeout + dialGrace,
		// net/http would inflate a small body without limit.
		DisableCompression: true,
		// A trace with a Got1xxResponse hook would lift this limit for informational responses.
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConns:           cmp.Or(cfg.MaxIdle, max(DefaultMaxIdle, cfg.MaxIdlePerHost)),
		MaxIdleConnsPerHost:    cfg.MaxIdlePerHost,
		// Zero, without limit: requests over it would wait inside RoundTrip, and customers that share a host for each other.
		MaxConnsPerHost: 0,
		IdleConnTimeout: idleConnTimeout,
	}
}

// dialContext dials with d and notes the progress of the attempt, and the names that have addresses. net/http calls it on a goroutine of its
// own, so a panic becomes the error of the dial.
func dialContext(d *net.Dialer, n *names) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = panics.Catch(func() (err error) {
			to := absoluteName(address)
			progressOf(ctx).reach(phaseDNS)
			conn, err = d.DialContext(ctx, network, to)
			host, _, _ := net.SplitHostPort(to)
			if _, isDNS := errors.AsType[*net.DNSError](err); strings.HasSuffix(host, ".") && !isDNS { // also of a dial that was given up
				n.resolved(host)
			}
			conn = crashpoint.Conn(conn)
			return err
		})
		return conn, err
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
	phaseStart phase = iota
	phaseDNS
	phaseConnect
	phaseTLS
	phaseSend
	phaseHeaders
)

// String completes the sentence "... waiting for".
func (p phase) String() string {
	switch p {
	case phaseDNS:
		return "DNS"
	case phaseConnect:
		return "the connection"
	case phaseTLS:
		return "the TLS handshake"
	case phaseSend:
		return "the server to read the request"
	case phaseHeaders:
		return "the response headers"
	default:
		return "a free connection"
	}
}

// progress is what the dial, deep inside net/http, tells the attempt that caused it. A dial may outlive its attempt, so both
// fields are atomic and phases only advance.
type progress struct {
	phase   atomic.Int32
	blocked atomic.Pointer[refusal] // the first address that the guard refused, or nil
}

func (p *progress) reach(next phase) {
	for {
		current := p.phase.Load()
		if current >= int32(next) || p.phase.CompareAndSwap(current, int32(next)) {
			return
		}
	}
}

type progressKey struct{}

// progressOf returns the progress of the attempt that ctx belongs to, or one that nobody reads.
func progressOf(ctx context.Context) *progress {
	if p, ok := ctx.Value(progressKey{}).(*progress); ok {
		return p
	}
	return new(progress)
}
