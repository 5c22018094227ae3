package sink

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"code.dny.dev/ssrf"
)

func newTestGuard(t testing.TB, allow []string, deny ...string) *guard {
	t.Helper()
	var prefixes []netip.Prefix
	for _, p := range allow {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	var addrs []netip.Addr
	for _, a := range deny {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	g, err := newGuard(prefixes, addrs)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// No configuration allows these addresses. The spellings are those that once got past somebody's
// guard.
var neverAddrs = []string{
	"169.254.169.254", "169.254.0.1", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "fe80::1", "fe80::1%lo",
	"fd00:ec2::254", "fd20:ce::254", "168.63.129.16", "::ffff:168.63.129.16", "100.100.100.200", "192.0.0.192",
	"224.0.0.1", "239.255.255.255", "ff02::1", "255.255.255.255", "0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0",
	"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::8.8.8.8", "64:ff9b:1::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
	"2001::1", "2001:0:a9fe:a9fe::", "::ffff:0:7f00:1", "::127.0.0.1", "::a9fe:a9fe", "::2",
}

// Only allow_networks allows these addresses.
var closedAddrs = []string{
	"127.0.0.1", "127.255.255.254", "::1", "::1%lo", "::ffff:127.0.0.1", "::ffff:7f00:1", "10.0.0.1", "10.255.255.255",
	"::ffff:10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "192.0.0.1",
	"192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1", "198.18.0.1", "198.19.255.255",
	"198.51.100.1", "203.0.113.1", "240.0.0.1", "254.255.255.255", "fc00::1", "fd12:3456::1", "fec0::1", "2001:db8::1",
	"2001:2::1", "2001:1ff::1", "2620:4f:8000::1", "3fff::1", "5f00::1", "100::1", "4000::1",
}

var publicAddrs = []string{
	"1.1.1.1", "8.8.8.8", "::ffff:8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255",
	"128.0.0.1", "172.15.255.255", "172.32.0.1", "192.167.255.255", "169.253.255.255", "223.255.255.255", "168.63.129.15",
	"2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2001:200::1", "3ffe::1",
}

func TestGuard_RefusesEverySpellingOfAnInternalAddress(t *testing.T) {
	g := newTestGuard(t, nil)
	for _, a := range neverAddrs {
		if r := g.judge(netip.MustParseAddr(a)); !r.never || r.kind == "" {
			t.Errorf("%s: %+v, want never", a, r)
		}
	}
	for _, a := range closedAddrs {
		if r := g.judge(netip.MustParseAddr(a)); r.never || r.kind == "" {
			t.Errorf("%s: %+v, want refused but openable", a, r)
		}
	}
	for _, a := range publicAddrs {
		if r := g.judge(netip.MustParseAddr(a)); r != (refusal{}) {
			t.Errorf("%s: %+v, want allowed", a, r)
		}
	}
	if r := g.judge(netip.Addr{}); !r.never {
		t.Errorf("the zero address: %+v, want never", r)
	}
}

func TestGuard_AllowNetworksOpensEverythingButNever(t *testing.T) {
	g := newTestGuard(t, []string{"0.0.0.0/0", "::/0"}, "8.8.8.8")
	for _, a := range neverAddrs {
		if r := g.judge(netip.MustParseAddr(a)); !r.never {
			t.Errorf("%s: %+v, want never", a, r)
		}
		if g.opens(netip.MustParseAddr(a)) {
			t.Errorf("%s counts as opened", a)
		}
	}
	for _, a := range append(closedAddrs, "8.8.8.8") {
		if r := g.judge(netip.MustParseAddr(a)); r != (refusal{}) {
			t.Errorf("%s: %+v, want allowed", a, r)
		}
	}
}

func TestGuard_OpensOnlyWhatAllowNetworksCovers(t *testing.T) {
	g := newTestGuard(t, []string{"10.20.0.0/16", "::1/128"})
	for a, want := range map[string]bool{
		"10.20.255.255": true, "10.21.0.0": false, "::ffff:10.20.0.1": true, "127.0.0.1": false, "::1": true, "::1%lo": true, "::": false,
	} {
		if got := g.judge(netip.MustParseAddr(a)) == (refusal{}); got != want {
			t.Errorf("%s: allowed %v, want %v", a, got, want)
		}
	}
	if g.opens(netip.MustParseAddr("8.8.8.8")) {
		t.Error("a public address counts as opened though no network covers it")
	}
}

func TestGuard_RefusesDenyAddrs(t *testing.T) {
	g := newTestGuard(t, []string{"7.7.0.0/16"}, "8.8.8.8", "2606:4700:4700::1111", "::ffff:9.9.9.9", "7.7.7.7")
	for _, a := range []string{"8.8.8.8", "::ffff:8.8.8.8", "2606:4700:4700::1111", "2606:4700:4700::1111%eth0", "9.9.9.9"} {
		if r := g.judge(netip.MustParseAddr(a)); r.never || r.kind == "" {
			t.Errorf("%s: %+v, want refused but openable", a, r)
		}
	}
	for _, a := range []string{"8.8.8.9", "7.7.7.7"} {
		if r := g.judge(netip.MustParseAddr(a)); r != (refusal{}) {
			t.Errorf("%s: %+v, want allowed", a, r)
		}
	}
}

func TestNewGuard_RefusesNetworksThatCannotBeAllowed(t *testing.T) {
	for network, want := range map[string]string{
		"169.254.0.0/16": "link-local", "169.254.169.254/32": "link-local", "fe80::/64": "link-local", "fd00:ec2::/48": "metadata",
		"224.0.0.0/8": "multicast", "0.0.0.0/8": "unspecified", "64:ff9b::/96": "translated", "::/96": "translated", "::1/96": "translated",
		"::ffff:10.0.0.0/104": "IPv4 network",
	} {
		_, err := newGuard([]netip.Prefix{netip.MustParsePrefix(network)}, nil)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), network) {
			t.Errorf("%s: error %v, want one with %q", network, err, want)
		}
	}
	if _, err := newGuard([]netip.Prefix{{}}, nil); err == nil {
		t.Error("the zero prefix is accepted")
	}
	for _, network := range []string{"0.0.0.0/0", "::/0", "10.1.2.3/8", "::1/128", "fd00::/8", "224.0.0.0/3"} {
		if _, err := newGuard([]netip.Prefix{netip.MustParsePrefix(network)}, nil); err != nil {
			t.Errorf("%s: %v", network, err)
		}
	}
}

// This compares with an independent library that is generated from the same registries. Only two
// differences are allowed: it judges an IPv4-mapped address as IPv6, and does not know WireServer.
func TestGuard_AgreesWithTheSSRFLibrary(t *testing.T) {
	t.Parallel()
	g, oracle := newTestGuard(t, nil), ssrf.New(ssrf.WithAnyPort(), ssrf.WithAnyNetwork())
	wireServer := netip.MustParseAddr("168.63.129.16")
	compare := func(a netip.Addr) {
		a = a.Unmap()
		if ours, theirs := g.judge(a) == (refusal{}), oracle.SafeAddr(a) == nil; ours != theirs && a != wireServer {
			t.Errorf("%v: allowed here %v, there %v", a, ours, theirs)
		}
	}

	// These are the edges of every range of both, and their neighbours.
	var prefixes []netip.Prefix
	for _, n := range append(never[:len(never):len(never)], special...) {
		prefixes = append(prefixes, n.prefix)
	}
	prefixes = append(append(prefixes, ssrf.IPv4DeniedPrefixes...), ssrf.IPv6DeniedPrefixes...)
	prefixes = append(prefixes, globalUnicast)
	for _, p := range prefixes {
		first, last := p.Masked().Addr(), lastAddr(p)
		for _, a := range []netip.Addr{first, first.Prev(), last, last.Next()} {
			if a.IsValid() {
				compare(a)
			}
		}
	}

	random := rand.New(rand.NewPCG(1, 2)) // a fixed seed: a failure repeats
	pairs := 1_000_000
	if testing.Short() {
		pairs /= 10
	}
	for range pairs {
		var v4 [4]byte
		putRandom(random, v4[:])
		compare(netip.AddrFrom4(v4))

		var v6 [16]byte
		putRandom(random, v6[:])
		if random.IntN(2) == 0 { // half of them where IPv6 is allocated
			v6[0] = 0x20 | v6[0]&0x1f
		}
		compare(netip.AddrFrom16(v6))
	}
}

func putRandom(random *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(random.Uint32())
	}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

func TestHostAddrs_HasLoopback(t *testing.T) {
	addrs, err := HostAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.Is4In6() {
			t.Errorf("%v is not unmapped", a)
		}
		if a == netip.MustParseAddr("127.0.0.1") {
			return
		}
	}
	t.Errorf("127.0.0.1 is missing: %v", addrs)
}

func FuzzGuard(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "::ffff:169.254.169.254", "fe80::1%lo", "64:ff9b::1", "8.8.8.8"} {
		a := netip.MustParseAddr(s)
		f.Add(a.AsSlice(), a.Zone())
	}
	closed, open := newTestGuard(f, nil), newTestGuard(f, []string{"0.0.0.0/0", "::/0"})
	f.Fuzz(func(t *testing.T, bytes []byte, zone string) {
		a, ok := netip.AddrFromSlice(bytes)
		if !ok {
			return
		}
		r := closed.judge(a)
		if r != closed.judge(netip.AddrFrom16(a.As16()).WithZone(zone)) {
			t.Errorf("%v: its IPv6 form or the zone %q changes the judgement", a, zone)
		}
		if got := open.judge(a); got.never != r.never || got.never != (got != (refusal{})) {
			t.Errorf("%v: with everything allowed %+v, with nothing %+v", a, got, r)
		}
		if r == (refusal{}) && (a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()) {
			t.Errorf("%v is allowed", a)
		}
	})
}
