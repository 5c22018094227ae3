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

// noRoute reports whether a connect that found no route may fail so: there is none, the default
// route has the type unreachable, prohibit or blackhole, or a firewall of this host lets nothing
// out. Some of these errors also come from elsewhere.
func noRoute(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EHOSTUNREACH, syscall.EACCES, syscall.EPERM, syscall.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// Addresses of documentation (RFC 5737, RFC 3849), which nobody has. To connect a datagram socket
// to one sends nothing, and fails without a route.
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
	// silentFor is how long what was found of a network counts.
	silentFor = time.Minute
)

// gateway tells a server's host that is down from a gateway of ours that does not answer. Both make
// a connect fail with EHOSTUNREACH, and there is a route in both cases. It is the gateway if several
// networks fail so and nothing else answers. Private addresses say nothing of it.
type gateway struct {
	behind func(netip.Addr) bool // public; tests have another

	mu     sync.Mutex
	failed map[netip.Prefix]time.Time // since the last answer
}

// answered takes note of an address that has answered.
func (g *gateway) answered(from netip.Addr) {
	if !g.behind(from) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.failed)
}

// silent takes note of an address that is unreachable, and reports whether the gateway is silent.
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
