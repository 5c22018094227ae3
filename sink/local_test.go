package sink

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/quintago/webhook-agent/testenv"
)

func newNamedWebhook(t *testing.T, resolver *net.Resolver, timeout time.Duration) *Webhook {
	t.Helper()
	w, err := NewWebhook(WebhookConfig{Version: "test", Timeout: timeout, AllowHTTP: true, AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, MaxIdlePerHost: 1, Resolver: resolver})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// A customer's broken DNS is a failure of the customer. If our resolver answers for nobody, it is
// no attempt.
func TestAttempt_TellsBrokenDNSOfACustomersFromOurs(t *testing.T) {
	url := serve(t, func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("Connection", "close") })
	_, port, err := net.SplitHostPort(url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	request := func(name string) testRequest { return requestTo("http://" + net.JoinHostPort(name, port)) }
	const fails, ok = dnsmessage.RCodeServerFailure, dnsmessage.RCodeSuccess
	for _, test := range []struct {
		name  string
		codes map[string]dnsmessage.RCode
		known bool // a name was resolved before
		fault Fault
		class Class
	}{
		{"no such host", map[string]dnsmessage.RCode{testenv.EveryName: fails, "bad.example.": dnsmessage.RCodeNameError}, false, "", ClassDNSError},
		{"one fails", map[string]dnsmessage.RCode{"bad.example.": fails}, false, "", ClassDNSError},
		{"one is silent", map[string]dnsmessage.RCode{"bad.example.": testenv.SilentName}, false, "", ClassDNSError},
		{"one fails, and the root is refused", map[string]dnsmessage.RCode{".": dnsmessage.RCodeRefused, "bad.example.": fails}, true, "", ClassDNSError},
		{"all fail but what a cache has", map[string]dnsmessage.RCode{testenv.EveryName: fails, "good.example.": ok, ".": ok}, true, FaultResolver, ClassLocalFault},
		{"all fail", map[string]dnsmessage.RCode{testenv.EveryName: fails}, false, FaultResolver, ClassLocalFault},
		{"all that were known fail", map[string]dnsmessage.RCode{testenv.EveryName: fails}, true, FaultResolver, ClassLocalFault},
		{"all are silent", map[string]dnsmessage.RCode{testenv.EveryName: testenv.SilentName}, true, FaultResolver, ClassLocalFault},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := testenv.StartDNS(t)
			w := newNamedWebhook(t, d.Resolver(), time.Second)
			if test.known {
				d.Say("good.example.", ok)
				if got := attempt(t, w, request("good.example")); got.Outcome != Succeeded {
					t.Fatalf("%+v", got)
				}
				d.Forget()
			}
			for name, code := range test.codes {
				d.Say(name, code)
			}
			for range 2 {
				got := attempt(t, w, request("bad.example"))
				if got.Fault != test.fault || got.Class != test.class || (got.Outcome == NotMade) != (test.fault != "") {
					t.Errorf("%+v", got)
				}
			}
			// What was ours ends with the first answer, and is believed at once.
			d.Forget()
			d.Say("back.example.", ok)
			if got := attempt(t, w, request("back.example")); got.Outcome != Succeeded {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A resolver that has lost its servers may say of each name that there is none, and so does that of
// a captive portal. One customer's domain that ends is his.
func TestAttempt_TellsADomainThatEndsFromAResolverThatKnowsNoName(t *testing.T) {
	url := serve(t, func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("Connection", "close") })
	_, port, err := net.SplitHostPort(url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	const none, ok, fails = dnsmessage.RCodeNameError, dnsmessage.RCodeSuccess, dnsmessage.RCodeServerFailure
	for _, test := range []struct {
		name   string
		before string // names that were resolved
		codes  map[string]dnsmessage.RCode
		then   string // the name of the attempt
		fault  Fault
	}{
		{"all are gone", "a.example b.example", map[string]dnsmessage.RCode{}, "a.example", FaultResolver},
		{"all are empty", "a.example b.example", map[string]dnsmessage.RCode{testenv.EveryName: testenv.EmptyName}, "a.example", FaultResolver},
		{"all are gone but an old one", "c.example a.example b.example", map[string]dnsmessage.RCode{"c.example.": ok}, "a.example", ""},
		{"one domain ends", "a.example b.example", map[string]dnsmessage.RCode{"b.example.": ok}, "a.example", ""},
		{"one domain ends, with all of its names", "x.a.example a.example y.a.example b.example", map[string]dnsmessage.RCode{"b.example.": ok}, "x.a.example", ""},
		{"the only domain ends", "x.a.example a.example y.a.example", map[string]dnsmessage.RCode{}, "x.a.example", ""},
		{"the only name ends", "a.example", map[string]dnsmessage.RCode{}, "a.example", ""},
		{"the other fails", "a.example b.example", map[string]dnsmessage.RCode{"b.example.": fails}, "a.example", ""},
		{"a name that never was", "a.example b.example", map[string]dnsmessage.RCode{}, "c.example", ""},
		{"in capitals", "a.example b.example", map[string]dnsmessage.RCode{}, "A.Example.", FaultResolver},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := testenv.StartDNS(t)
			w := newNamedWebhook(t, d.Resolver(), 10*time.Second)
			send := func(name string) Result { return attempt(t, w, requestTo("http://"+net.JoinHostPort(name, port))) }
			for name := range strings.FieldsSeq(test.before) {
				d.Say(name+".", ok)
				if got := send(name); got.Outcome != Succeeded {
					t.Fatalf("%s: %+v", name, got)
				}
			}
			d.Forget()
			for name, code := range test.codes {
				d.Say(name, code)
			}
			for range 2 {
				got := send(test.then)
				if got.Fault != test.fault || (got.Outcome == NotMade) != (test.fault != "") || test.fault == "" && got.Class != ClassDNSError {
					t.Errorf("%+v", got)
				}
			}
			// What was ours ends with the first answer.
			d.Say("a.example.", ok)
			if got := send("a.example"); got.Outcome != Succeeded {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Domains that end one after the other are their owners', and a name of long ago says nothing.
func TestNames_ExpectOnlyWhatWasThereLately(t *testing.T) {
	d := testenv.StartDNS(t)
	n := &names{resolver: d.Resolver()}
	for _, name := range []string{"a.example.", "b.example.", "c.example."} {
		n.resolved(name)
		d.Say(name, dnsmessage.RCodeSuccess)
	}
	for _, name := range []string{"a.example.", "b.example."} {
		d.Say(name, dnsmessage.RCodeNameError)
		if n.gone(t.Context(), time.Now(), name) {
			t.Errorf("%s has ended, and the resolver is blamed", name)
		}
	}
	d.Say("c.example.", dnsmessage.RCodeNameError)
	if n.gone(t.Context(), time.Now(), "c.example") {
		t.Error("the last one has ended, after the others, and the resolver is blamed")
	}
	n.resolved("a.example.")
	n.resolved("b.example.")
	n.lately["b.example"] = time.Now().Add(-2 * lately)
	if n.gone(t.Context(), time.Now(), "a.example") || n.gone(t.Context(), time.Now(), "b.example") {
		t.Error("a name of long ago is expected to be there")
	}
	for i := range mostLately + 10 {
		n.resolved(fmt.Sprintf("n%d.example.", i))
	}
	if len(n.lately) > mostLately {
		t.Errorf("%d names are remembered", len(n.lately))
	}
}

func TestAttempt_ManyThatFailAtOnceAskTheResolverOnce(t *testing.T) {
	d := testenv.StartDNS(t)
	d.Say(testenv.EveryName, dnsmessage.RCodeServerFailure)
	w := newNamedWebhook(t, d.Resolver(), time.Second)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if got := attempt(t, w, requestTo(fmt.Sprintf("http://n%d.example/", i))); got.Fault != FaultResolver {
				t.Errorf("%+v", got)
			}
		})
	}
	all.Wait()
	if n := d.Asked("."); n > 6 { // a resolver tries again by itself
		t.Errorf("the root was asked for %d times", n)
	}
}

// A round of questions to a resolver that is silent takes longer than its result counts.
func TestAttempt_ManyWaitForOneRoundOfASilentResolver(t *testing.T) {
	d := testenv.StartDNS(t)
	d.Say(testenv.EveryName, testenv.SilentName)
	w := newNamedWebhook(t, d.Resolver(), 500*time.Millisecond)
	began := time.Now()
	var all sync.WaitGroup
	for i := range 5 {
		all.Go(func() {
			if got := attempt(t, w, requestTo(fmt.Sprintf("http://n%d.example/", i))); got.Fault != FaultResolver {
				t.Errorf("%+v", got)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	all.Go(func() {
		if got := w.Attempt(ctx, requestTo("http://canceled.example/").of(w)); got.Outcome != Canceled {
			t.Errorf("%+v", got)
		}
		if took := time.Since(began); took > probeTimeout {
			t.Errorf("an attempt that was canceled after 2 s took %s", took)
		}
	})
	time.AfterFunc(2*time.Second, cancel)
	all.Wait()
	if took := time.Since(began); took > 2*probeTimeout {
		t.Errorf("five attempts at a time took %s, a round takes %s", took, probeTimeout)
	}
}

func TestNames_APanicOfTheQuestionsBlamesNobody(t *testing.T) {
	n := &names{}
	n.mu.Lock()
	defer n.mu.Unlock()
	works, err := n.askLocked(t.Context(), &n.answers, time.Now(), func() []string { return nil }, func([]string) bool { panic("a fault of ours") })
	if !works || err != nil {
		t.Errorf("the resolver works: %t, %v", works, err)
	}
}

func TestLocal_KnowsWhatTheKernelHasNoMoreOf(t *testing.T) {
	dial := func(errno syscall.Errno, to string) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(to)), Err: os.NewSyscallError("connect", errno)}
	}
	const v4, v6 = "203.0.113.7:443", "[2001:4860::7]:443"
	for _, test := range []struct {
		err    error
		routes string // families that have one
		phase  phase
		want   Fault
	}{
		{dial(syscall.EMFILE, v4), "udp4", phaseConnect, FaultDescriptors},
		{dial(syscall.ENFILE, v4), "udp4", phaseConnect, FaultDescriptors},
		{&net.DNSError{Err: "dial udp 127.0.0.1:53: socket: " + syscall.EMFILE.Error()}, "udp4", phaseDNS, FaultDescriptors},
		{dial(syscall.ENOBUFS, v4), "udp4", phaseConnect, FaultMemory},
		{dial(syscall.ENOMEM, v4), "udp4", phaseConnect, FaultMemory},
		{dial(syscall.EADDRNOTAVAIL, v4), "udp4", phaseConnect, FaultPorts},
		{dial(syscall.EADDRNOTAVAIL, v6), "udp4", phaseConnect, ""},
		{dial(syscall.EADDRNOTAVAIL, v6), "udp4 udp6", phaseConnect, FaultPorts},
		{dial(syscall.ENETUNREACH, v6), "udp4", phaseConnect, ""},
		{dial(syscall.ENETUNREACH, v4), "udp6", phaseConnect, ""},
		{dial(syscall.ENETUNREACH, v4), "", phaseConnect, FaultRoute},
		{dial(syscall.EHOSTUNREACH, v4), "", phaseConnect, FaultRoute}, // a default route of the type unreachable,
		{dial(syscall.EACCES, v4), "", phaseConnect, FaultRoute},       // prohibit,
		{dial(syscall.EINVAL, v4), "", phaseConnect, FaultRoute},       // blackhole
		{dial(syscall.EPERM, v4), "", phaseConnect, FaultRoute},        // a firewall of ours
		{dial(syscall.ENETDOWN, v6), "", phaseConnect, FaultRoute},
		{dial(syscall.EHOSTUNREACH, v4), "udp4", phaseConnect, ""},
		{dial(syscall.EACCES, v6), "udp6", phaseConnect, ""},
		{dial(syscall.EINVAL, v4), "udp6", phaseConnect, ""},
		{dial(syscall.EPERM, v4), "udp4", phaseConnect, ""},
		{dial(syscall.ETIMEDOUT, v4), "", phaseConnect, ""},
		{dial(syscall.ECONNREFUSED, v4), "", phaseConnect, ""},
		{dial(syscall.ENETUNREACH, v4), "", phaseHeaders, ""},
	} {
		w := newTestWebhook(t, nil)
		w.routes = func(family string) bool { return strings.Contains(test.routes, family) }
		if got, sentence := w.local(t.Context(), time.Now(), test.err, failure{host: "h.example", phase: test.phase}); got != test.want || (sentence == "") != (got == "") {
			t.Errorf("%v, routes %q: %q %q, want %q", test.err, test.routes, got, sentence, test.want)
		}
	}
}

// A gateway that does not answer fails connects to all networks, and a host that is down to one.
func TestLocal_TellsASilentGatewayFromServersThatAreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTestWebhook(t, nil)
		w.routes = func(string) bool { return true }
		fails := func(address string, want Fault) {
			t.Helper()
			to := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 443))
			err := &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}
			if got, sentence := w.local(t.Context(), time.Now(), err, failure{host: "h.example", phase: phaseConnect}); got != want || (sentence == "") != (got == "") {
				t.Errorf("%s: %q %q, want %q", address, got, sentence, want)
			}
		}
		answers := func(address string) { w.client.gateway.answered(netip.MustParseAddr(address)) }

		// Servers of one network, and of private ones, say nothing.
		for range 3 {
			for _, address := range []string{"9.1.1.1", "9.1.1.2", "9.1.2.1", "10.0.0.1", "192.168.0.1", "172.16.0.1", "fd00::1", "8.8.1.1"} {
				fails(address, "")
			}
		}
		// Another network does, and whoever answers from the internet says otherwise.
		fails("2600:1::1", FaultRoute)
		fails("9.1.1.1", FaultRoute)
		answers("10.0.0.1")
		fails("8.8.1.1", FaultRoute)
		answers("1.1.1.1")
		fails("9.1.1.1", "")
		fails("8.8.1.1", "")
		fails("1.2.1.1", FaultRoute)
		// What is long ago says nothing.
		<-time.After(silentFor + 1)
		fails("9.1.1.1", "")
		fails("8.8.1.1", "")
		<-time.After(silentFor / 2)
		fails("1.2.1.1", FaultRoute)
		<-time.After(silentFor/2 + 1)
		fails("1.2.1.1", "")
	})
}

// Whoever answers a connect, be it by a refusal, is behind a gateway that works.
func TestLocal_TakesAConnectThatIsAnsweredForAGatewayThatWorks(t *testing.T) {
	w := newTestWebhook(t, nil)
	g := w.client.gateway
	g.behind = netip.Addr.IsValid
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + listener.Addr().String()
	listener.Close()
	for _, url := range []string{serve(t, discard), closed} {
		for i, address := range []string{"9.1.1.1", "8.8.1.1", "1.2.1.1"} {
			if got := g.silent(netip.MustParseAddr(address)); got != (i+1 == silentNetworks) {
				t.Errorf("%s: %v", address, got)
			}
		}
		attempt(t, w, requestTo(url))
		if g.silent(netip.MustParseAddr("9.1.1.1")) {
			t.Errorf("%s has answered, and the gateway is silent", url)
		}
	}
}
