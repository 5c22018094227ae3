package sink

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// Fault is a stable word for what failed on this side of the wire. It is never the fault of a
// customer's server.
type Fault string

const (
	FaultDescriptors Fault = "descriptors" // the process, or the host, may open no more files
	FaultMemory      Fault = "memory"      // the kernel has no memory for another connection
	FaultPorts       Fault = "ports"       // all local ports for connections to this address are in use
	FaultRoute       Fault = "route"       // this host has no route to anywhere, or its gateway does not answer
	FaultResolver    Fault = "resolver"    // the host's DNS resolver answers for no name
	FaultRoots       Fault = "roots"       // the host has no root certificates, or they cannot be read
)

// Faults lists every Fault.
var Faults = []Fault{FaultDescriptors, FaultMemory, FaultPorts, FaultRoute, FaultResolver, FaultRoots}

// notMade returns the result of an attempt that could not be made.
func notMade(fault Fault, sentence string) Result {
	return Result{Outcome: NotMade, Class: ClassLocalFault, Fault: fault, Error: Sanitize(Printable(sentence), maxErrorBytes)}
}

// local reports whether an attempt failed on this side of the wire. It returns the fault, and one
// sentence that says what it is and how to repair it. Both are empty if the fault is on the
// customer's side, or if ctx ends first. began is when the attempt began.
func (w *Webhook) local(ctx context.Context, began time.Time, err error, f failure) (Fault, string) {
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
	case isDNS && dns.IsNotFound:
		if w.names.gone(ctx, began, f.host) {
			return FaultResolver, "this host's DNS resolver says of every name that there is none: look at /etc/resolv.conf and at the servers that it names"
		}
	case isDNS, f.deadline && f.phase == phaseDNS:
		if w.names.silent(ctx, began, f.host) {
			return FaultResolver, "this host's DNS resolver answers for no name: look at /etc/resolv.conf and at the servers that it names"
		}
	case errors.Is(err, syscall.EADDRNOTAVAIL) && (!connectingTo(err).Is6() || w.routes("udp6")): // a host without IPv6 gives this error for every IPv6 address
		return FaultPorts, "this host has no port left for another connection: widen net.ipv4.ip_local_port_range"
	case noRoute(err) && !w.routes("udp4") && !w.routes("udp6"):
		return FaultRoute, "this host has no route to anywhere: look at its network"
	case errors.Is(err, syscall.EHOSTUNREACH) && w.client.gateway.silent(connectingTo(err)):
		return FaultRoute, "this host reaches no server, in several networks: look at its gateway"
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
