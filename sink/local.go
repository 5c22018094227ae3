package sink

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quintago/webhook-agent/panics"
)

// Fault is a stable word for what failed on this side of the wire. It is never the fault of a
// customer's server.
type Fault string

const (
	FaultDescriptors Fault = "descriptors" // the process, or the host, may open no more files
	FaultMemory      Fault = "memory"      // the kernel has no memory for another connection
	// All local ports for connections to this address are in use.
	FaultPorts    Fault = "ports"
	FaultRoute    Fault = "route"    // this host has no route to anywhere
	FaultResolver Fault = "resolver" // the host's DNS resolver answers for no name
)

// Faults lists every Fault.
var Faults = []Fault{FaultDescriptors, FaultMemory, FaultPorts, FaultRoute, FaultResolver}

// notMade returns the result of an attempt that could not be made.
func notMade(fault Fault, sentence string) Result {
	return Result{Outcome: NotMade, Class: ClassLocalFault, Fault: fault, Error: Sanitize(Printable(sentence), maxErrorBytes)}
}

// local reports whether an attempt failed on this side of the wire. It returns the fault, and one
// sentence that says what it is and how to repair it. Both are empty if the fault is on the
// customer's side. began is when the attempt began.
func (w *Webhook) local(began time.Time, err error, f failure) (Fault, string) {
	if fault, sentence := exhausted(err); fault != "" {
		return fault, sentence
	}
	if f.phase > phaseConnect {
		return "", ""
	}
	var dns *net.DNSError
	switch isDNS := errors.As(err, &dns); {
	case isDNS && dns.IsNotFound: // the resolver has answered, so it works
	case isDNS, f.deadline && f.phase == phaseDNS:
		if !w.names.answered(began, f.host) {
			return FaultResolver, "this host's DNS resolver answers for no name: look at /etc/resolv.conf and at the servers that it names"
		}
	// A host without IPv6 gives this error for every IPv6 address.
	case errors.Is(err, syscall.EADDRNOTAVAIL) && (!toIPv6(err) || w.routes("udp6")):
		return FaultPorts, "this host has no port left for another connection: widen net.ipv4.ip_local_port_range"
	case errors.Is(err, syscall.ENETUNREACH) && !w.routes("udp4") && !w.routes("udp6"):
		return FaultRoute, "this host has no route to anywhere: look at its network"
	}
	return "", ""
}

// exhausted returns the fault and the sentence if the kernel has run out of something. A DNS lookup
// gives the kernel's error only as a text, so the text is compared as well.
func exhausted(err error) (Fault, string) {
	text := ""
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		text = dns.Err
	}
	is := func(errno syscall.Errno) bool { return errors.Is(err, errno) || strings.HasSuffix(text, errno.Error()) }
	switch {
	case is(syscall.EMFILE):
		return FaultDescriptors, "this process may open no more files: raise its limit (ulimit -n, LimitNOFILE) or lower delivery.concurrency"
	case is(syscall.ENFILE):
		return FaultDescriptors, "this host may open no more files: raise fs.file-max"
	case is(syscall.ENOMEM), is(syscall.ENOBUFS):
		return FaultMemory, "this host has no memory for another connection"
	}
	return "", ""
}

// toIPv6 reports whether the connection that failed was one to an IPv6 address.
func toIPv6(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok {
		return false
	}
	to, ok := op.Addr.(*net.TCPAddr)
	return ok && to.IP.To4() == nil
}

// These addresses are for documentation (RFC 5737, RFC 3849), and nobody has them. Connecting a
// datagram socket to one sends nothing, and fails if there is no route.
const (
	documentation4 = "192.0.2.1:9"
	documentation6 = "[2001:db8::1]:9"
)

// routes reports whether the host has a route to the addresses of a family. network is udp4 or
// udp6.
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
	// knownNames is how many of the names resolved lately are asked for again. One more is kept,
	// because one of them may be the name that fails.
	knownNames = 3
	// probeTimeout is longer than a resolver waits for the first of its servers, because only that
	// one may be down.
	probeTimeout = 7 * time.Second
	// brokenFor is how long a resolver counts as broken, without another question, after it
	// answered for no name.
	brokenFor = 5 * time.Second
)

// names distinguishes a customer's broken DNS from our own resolver being broken. It asks the
// resolver for random names below those that were resolved lately. No cache can have these, so even
// the answer "no such name" shows that the resolver reaches the internet. If no other name was
// resolved lately, it asks for the root. mu guards the fields below it.
type names struct {
	resolver *net.Resolver // nil for net.DefaultResolver

	mu    sync.Mutex
	known []string // resolved lately, the latest last
	// works reports whether the resolver answered in the last round of questions, which began at
	// found.
	works bool
	found time.Time
	// probing is not nil while a round of questions is under way, and is closed when the round has
	// ended.
	probing chan struct{}
}

// resolved remembers a name that has addresses. It does not show that the resolver works: the
// addresses may be from /etc/hosts or a cache.
func (n *names) resolved(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.known, name); i >= 0 {
		n.known = slices.Delete(n.known, i, i+1)
	} else if len(n.known) > knownNames {
		n.known = slices.Delete(n.known, 0, 1)
	}
	n.known = append(n.known, name)
}

// answered reports whether the resolver has answered, since the time since, for any name other than
// failing. If it does not know, it asks. Many attempts share one round of questions.
func (n *names) answered(since time.Time, failing string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case n.works && n.found.After(since):
			return true
		case !n.works && time.Since(n.found) < brokenFor:
			return false
		case n.probing != nil:
			probing := n.probing
			n.mu.Unlock()
			<-probing // the round ends within probeTimeout
			n.mu.Lock()
			continue
		}
		ask := slices.DeleteFunc(slices.Clone(n.known), func(name string) bool { return sameName(name, failing) })
		probing, began := make(chan struct{}), time.Now()
		n.probing = probing
		n.mu.Unlock()
		works := n.ask(ask)
		n.mu.Lock()
		n.works, n.found, n.probing = works, began, nil
		close(probing)
		return works
	}
}

func sameName(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// ask reports whether the resolver answers for anything below one of the names known, or for the
// root if there are none. "No such name" is an answer. It has a time limit of its own, because the
// attempt's time is over already if DNS is silent.
func (n *names) ask(known []string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	resolver := n.resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	known = known[max(0, len(known)-knownNames):]
	// Each question sends once. The room lets the late ones end.
	answers := make(chan bool, 1+len(known))
	question := func(ask func() error) {
		err := panics.Catch(ask)
		dns, isDNS := errors.AsType[*net.DNSError](err)
		answers <- err == nil || isDNS && dns.IsNotFound
	}
	if len(known) == 0 {
		go question(func() error {
			_, err := resolver.LookupNS(ctx, ".")
			return err
		})
	}
	for _, name := range known {
		go question(func() error {
			_, err := resolver.LookupNetIP(ctx, "ip", strings.ToLower(rand.Text()[:12])+"."+name)
			return err
		})
	}
	for range max(1, len(known)) {
		if <-answers {
			return true
		}
	}
	return false
}
