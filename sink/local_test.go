package sink

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
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
		{dial(syscall.EHOSTUNREACH, v4), "", phaseConnect, ""},
		{dial(syscall.ECONNREFUSED, v4), "", phaseConnect, ""},
		{dial(syscall.ENETUNREACH, v4), "", phaseHeaders, ""},
	} {
		w := newTestWebhook(t, nil)
		w.routes = func(family string) bool { return strings.Contains(test.routes, family) }
		if got, sentence := w.local(time.Now(), test.err, failure{host: "h.example", phase: test.phase}); got != test.want || (sentence == "") != (got == "") {
			t.Errorf("%v, routes %q: %q %q, want %q", test.err, test.routes, got, sentence, test.want)
		}
	}
}
