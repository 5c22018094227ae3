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

// Fault is what fails on this side of the wire, a stable word. It is no fault of a customer's
// server.
type Fault string

const (
	FaultDescriptors Fault = "descriptors" // the process, or the host, may open no more files
	FaultMemory      Fault = "memory"      // the kernel has none for another connection
	FaultPorts       Fault = "ports"       // all ports for connections to this address are taken
	FaultRoute       Fault = "route"       // this host has no route to anywhere, or its gateway does not answer
	FaultResolver    Fault = "resolver"    // the host's DNS resolver answers for no name
	FaultRoots       Fault = "roots"       // the host has no root certificates, or they cannot be read
)

// Faults are all of them.
var Faults = []Fault{FaultDescriptors, FaultMemory, FaultPorts, FaultRoute, FaultResolver, FaultRoots}

// notMade makes the result of an attempt that was none.
func notMade(fault Fault, sentence string) Result {
	return Result{Outcome: NotMade, Class: ClassLocalFault, Fault: fault, Error: Sanitize(Printable(sentence), maxErrorBytes)}
}

// local finds out whether an attempt that began then failed on this side of the wire, and says in
// one sentence what it was and what mends it. The fault is empty where it is the customer's.
func (w *Webhook) local(began time.Time, err error, f failure) (Fault, string) {
	if fault, sentence := exhausted(err); fault != "" {
		return fault, sentence
	}
	if none, ok := errors.AsType[errNoRoots](err); ok {
		return FaultRoots, none.Error()
	}
	if f.phase > phaseConnect {
		return "", ""
	}
	var dns *net.DNSError
	switch isDNS := errors.As(err, &dns); {
	case isDNS && dns.IsNotFound: // an answer
	case isDNS, f.deadline && f.phase == phaseDNS:
		if !w.names.answered(began, f.host) {
			return FaultResolver, "this host's DNS resolver answers for no name: look at /etc/resolv.conf and at the servers that it names"
		}
	case errors.Is(err, syscall.EADDRNOTAVAIL) && (!connectingTo(err).Is6() || w.routes("udp6")): // without IPv6 there is no address of ours for it
		return FaultPorts, "this host has no port left for another connection: widen net.ipv4.ip_local_port_range"
	case noRoute(err) && !w.routes("udp4") && !w.routes("udp6"):
		return FaultRoute, "this host has no route to anywhere: look at its network"
	case errors.Is(err, syscall.EHOSTUNREACH) && w.client.gateway.silent(connectingTo(err)):
		return FaultRoute, "this host reaches no server, in several networks: look at its gateway"
	}
	return "", ""
}

// exhausted finds what the kernel has no more of. A lookup gives its error as a text.
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

const (
	// knownNames is how many names that were resolved lately are asked for again. One more is kept,
	// since it may be the one that fails.
	knownNames = 3
	// probeTimeout is longer than a resolver waits for the first of its servers, which may be the
	// only one that is down.
	probeTimeout = 7 * time.Second
	// brokenFor is how long a resolver that answered for no name is taken for broken without asking
	// again.
	brokenFor = 5 * time.Second
)

// names tells a customer's broken DNS from a resolver of ours that answers for nobody. It asks for
// names that no cache can have, below those that were resolved lately: that there is none is an
// answer, which no resolver gives that does not reach the internet. Where no other name was
// resolved it asks for the root.
type names struct {
	resolver *net.Resolver // nil for net.DefaultResolver

	mu    sync.Mutex
	known []string // resolved lately, the latest last
	// works is what was found last, by questions that began at found.
	works bool
	found time.Time
	// probing is closed when the questions that are under way have ended; nil when there are none.
	probing chan struct{}
}

// resolved takes note of a name that has addresses. It says nothing of the resolver: they may be
// from /etc/hosts or a cache.
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

// answered reports whether the resolver has answered for any other name than this one since then.
// Many attempts share one round of questions.
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
			<-probing // ends within probeTimeout
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

// ask reports whether the resolver answers for anything below one of these names, or for the root
// if there is none, be it that there is no such name. Its time is its own: that of the attempt is
// over where DNS is silent.
func (n *names) ask(known []string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	resolver := n.resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	known = known[max(0, len(known)-knownNames):]
	answers := make(chan bool, 1+len(known)) // sent to once by each question
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
