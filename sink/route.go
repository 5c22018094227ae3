package sink

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// connectingTo returns the address that could not be connected to, or the zero one.
func connectingTo(err error) netip.Addr {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if to, ok := op.Addr.(*net.TCPAddr); ok {
			return plain(to.AddrPort().Addr())
		}
	}
	return netip.Addr{}
}

// noRoute reports whether a connect may have failed because there is no route. Then no route
// exists, the default route has the type unreachable, prohibit or blackhole, or a firewall of this
// host lets nothing out. Some of these errors have other causes too.
func noRoute(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EHOSTUNREACH, syscall.EACCES, syscall.EPERM, syscall.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// These are addresses for documentation (RFC 5737, RFC 3849), which nobody has. Connecting a
// datagram socket to one sends nothing, and fails without a route.
const (
	documentation4 = "192.0.2.1:9"
	documentation6 = "[2001:db8::1]:9"
)

// routes reports whether the host has a route to the addresses of a family, udp4 or udp6.
func routes(network string) bool {
	address := documentation4
	if network == "udp6" {
		address = documentation6
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was sent
	return true
}

const (
	// silentNetworks is how many networks must be unreachable for the gateway to be the reason.
	silentNetworks = 3
	// silentFor is how long a result about a network counts.
	silentFor = time.Minute
)

// gateway distinguishes a server's host that is down from a gateway of ours that does not answer.
// Both make a connect fail with EHOSTUNREACH, and in both cases there is a route. The gateway is at
// fault if several networks fail so and nothing else answers. Private addresses do not count.
type gateway struct {
	behind func(netip.Addr) bool // public; tests have another

	mu     sync.Mutex
	failed map[netip.Prefix]time.Time // since the last answer
}

// answered records an address that has answered.
func (g *gateway) answered(from netip.Addr) {
	if !g.behind(from) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.failed)
}

// silent records an address that is unreachable. It reports whether the gateway is silent.
func (g *gateway) silent(to netip.Addr) bool {
	if !g.behind(to) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for network, at := range g.failed {
		if now.Sub(at) > silentFor {
			delete(g.failed, network)
		}
	}
	if g.failed == nil {
		g.failed = map[netip.Prefix]time.Time{}
	}
	bits := 16
	if to.Is6() {
		bits = 32
	}
	network, _ := to.Prefix(bits) // fails for more bits than an address has
	g.failed[network] = now
	return len(g.failed) >= silentNetworks
}

// public reports whether an address is one of the internet.
func public(a netip.Addr) bool {
	return a.IsValid() && kindOf(never, a) == "" && kindOf(special, a) == "" && (a.Is4() || globalUnicast.Contains(a))
}
