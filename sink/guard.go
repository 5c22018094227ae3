package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/quintago/webhook-agent/panics"
)

// network is a range of addresses, with the word for it in a sentence.
type network struct {
	prefix netip.Prefix
	kind   string
}

// never lists the networks that no configuration can allow. Metadata services give out the
// credentials of the host. Those inside a larger range have an entry of their own, so that allowing
// the larger range does not allow them.
//
// The ranges of IPv6 that carry an IPv4 address are here because a translator on the path would
// turn them into any of these addresses. ::1 is also in ::/96, but special has the entry that
// counts.
var never = networks(
	"link-local", "169.254.0.0/16", "fe80::/10",
	"cloud metadata", "fd00:ec2::/32", "fd20:ce::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",
	"multicast", "224.0.0.0/4", "ff00::/8",
	"broadcast", "255.255.255.255/32",
	"unspecified", "0.0.0.0/8", "::/128",
	"translated IPv4", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::ffff:0:0:0/96", "::/96",
)

// special lists networks that look like ordinary unicast addresses but are not on the public
// internet. They are from the IANA special-purpose registries
// (https://www.iana.org/assignments/iana-ipv4-special-registry, .../iana-ipv6-special-registry).
// IPv6 outside 2000::/3 needs no entry. Loopback and unique local have one only to be named in the
// sentence.
var special = networks(
	"loopback", "127.0.0.0/8", "::1/128",
	"private", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7",
	"shared (carrier-grade NAT)", "100.64.0.0/10",
	"documentation", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20",
	"reserved", "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24", "198.18.0.0/15",
	"reserved", "240.0.0.0/4", "2001::/23", "2620:4f:8000::/48",
)

var globalUnicast = netip.MustParsePrefix("2000::/3")

// networks parses a list of words. A word that is a prefix gets the kind named before it; any other
// word is the next kind.
func networks(list ...string) []network {
	var result []network
	var kind string
	for _, word := range list {
		if prefix, err := netip.ParsePrefix(word); err == nil {
			result = append(result, network{prefix, kind})
		} else {
			kind = word
		}
	}
	return result
}

// guard decides which addresses may be dialed, by the table in the package documentation. It never
// changes after newGuard.
type guard struct {
	allow []netip.Prefix
	deny  []netip.Addr // unmapped and without zones
}

// newGuard makes a guard from the operator's lists. Its error names every problem of
// allow_networks.
func newGuard(allow []netip.Prefix, deny []netip.Addr) (*guard, error) {
	g := &guard{allow: slices.Clone(allow)}
	var problems []error
	for _, p := range allow {
		switch {
		case !p.IsValid():
			problems = append(problems, errors.New("network.allow_networks holds a network that is not valid"))
		case p.Addr().Is4In6():
			problems = append(problems, fmt.Errorf("network.allow_networks: write %v as an IPv4 network", p))
		default:
			if n, ok := enclosing(never, p); ok && p.Masked() != netip.PrefixFrom(netip.IPv6Loopback(), 128) {
				problems = append(problems,
					fmt.Errorf("network.allow_networks: %v cannot be allowed: %s addresses are always refused", p, n.kind))
			}
		}
	}
	for _, a := range deny {
		g.deny = append(g.deny, plain(a))
	}
	return g, errors.Join(problems...)
}

// plain removes the IPv6 form of an IPv4 address, and the zone. netip.Prefix.Contains would not
// match with them.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// refusal is the reason why an address is refused. The zero value means that it is allowed.
type refusal struct {
	kind  string // what kind of address it is, for the sentence
	never bool   // allow_networks cannot change it
}

// judge applies the address policy to one address.
func (g *guard) judge(a netip.Addr) refusal {
	a = plain(a)
	if !a.IsValid() {
		return refusal{"malformed", true}
	}
	if kind := kindOf(never, a); kind != "" && a != netip.IPv6Loopback() {
		return refusal{kind, true}
	}
	if g.inAllow(a) {
		return refusal{}
	}
	if slices.Contains(g.deny, a) {
		return refusal{"of the agent's host or its database", false}
	}
	if kind := kindOf(special, a); kind != "" {
		return refusal{kind, false}
	}
	if a.Is6() && !globalUnicast.Contains(a) {
		return refusal{"reserved", false}
	}
	return refusal{}
}

// opens reports whether network.allow_networks names the address, public or not, and nothing else
// refuses it.
func (g *guard) opens(a netip.Addr) bool { return g.inAllow(plain(a)) && g.judge(a) == (refusal{}) }

func (g *guard) inAllow(a netip.Addr) bool {
	return slices.ContainsFunc(g.allow, func(p netip.Prefix) bool { return p.Contains(a) })
}

// enclosing returns the network of list that contains all of p.
func enclosing(list []network, p netip.Prefix) (network, bool) {
	for _, n := range list {
		if n.prefix.Bits() <= p.Bits() && n.prefix.Contains(p.Addr()) {
			return n, true
		}
	}
	return network{}, false
}

func kindOf(list []network, a netip.Addr) string {
	for _, n := range list {
		if n.prefix.Contains(a) {
			return n.kind
		}
	}
	return ""
}

// String completes the sentence "... leads to". It names no address: the customer who reads the
// sentence would learn what internal names resolve to.
func (r refusal) String() string {
	if r.never {
		return fmt.Sprintf("an address (%s) that is never allowed", r.kind)
	}
	return fmt.Sprintf("an address (%s) that network.allow_networks does not cover", r.kind)
}

// errBlocked stops a dial. The attempt reads the reason from progress.blocked instead: if a name
// has several addresses, net reports only the first error, which may be another one.
var errBlocked = errors.New("address refused by policy")

// control is net.Dialer.ControlContext. It is called for each address after DNS and before the
// first packet. A panic refuses the address as well; it must be caught here, because net calls
// control on goroutines of its own.
func (g *guard) control(ctx context.Context, _, address string, _ syscall.RawConn) error {
	return panics.Catch(func() error {
		p := progressOf(ctx)
		target, _ := netip.ParseAddrPort(address) // the zero address is refused as malformed
		if r := g.judge(target.Addr()); r != (refusal{}) {
			p.blocked.CompareAndSwap(nil, &r)
			return errBlocked
		}
		p.reach(phaseConnect)
		return nil
	})
}

// HostAddrs returns the addresses that the host's network interfaces have now, for
// WebhookConfig.DenyAddrs.
func HostAddrs() ([]netip.Addr, error) {
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this host: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range interfaces {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, addr.Unmap())
			}
		}
	}
	return addrs, nil
}
