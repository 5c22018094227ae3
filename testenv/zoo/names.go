package zoo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.org/x/net/dns/dnsmessage"
)

// domain is the end of all names.
const domain = ".zoo.example."

// maxDatagram is the longest answer by UDP, in bytes. A client has to ask for longer ones again by
// TCP.
const maxDatagram = 512

// name is what DNS answers for one host name.
type name struct {
	code   dnsmessage.RCode
	silent bool // there is no answer at all
	// addresses returns the addresses for the n-th question for IPv4 addresses. n counts from one.
	addresses func(n int64) []netip.Addr
	asked     *atomic.Int64
}

// addNamed starts DNS and adds the animals that live at host names. tame is the port of a harmless
// animal.
func (z *Zoo) addNamed(tame int) error {
	names := map[string]name{}
	add := func(label, does string, port int, n name) {
		if n.addresses == nil {
			n.addresses = always()
		}
		n.asked = new(atomic.Int64)
		names[label+domain] = n
		z.add(Animal{Name: label, Does: does, URL: fmt.Sprintf("http://%s:%d/%s", strings.TrimSuffix(label+domain, "."), port, label), Named: true})
	}
	add("name-unknown", "has a host name that does not exist", tame, name{code: dnsmessage.RCodeNameError})
	add("name-empty", "has a host name without addresses", tame, name{})
	add("name-failing", "has a host name whose DNS server fails", tame, name{code: dnsmessage.RCodeServerFailure})
	add("name-silent", "has a host name whose DNS server says nothing", tame, name{silent: true})
	add("name-thousand", "has a host name with a thousand addresses, all of them dead", z.full, name{addresses: always(thousand()...)})
	add("name-metadata", "has a host name of a metadata service", tame, name{addresses: at("169.254.169.254")})
	add("name-mapped", "has a host name of a metadata service, as IPv6", tame, name{addresses: at("::ffff:169.254.169.254")})
	add("name-translated", "has a host name of a metadata service, for a translator to IPv4", tame, name{addresses: at("64:ff9b::a9fe:a9fe")})
	add("name-private", "has a host name of a private address", tame, name{addresses: at("10.0.0.7")})
	add("name-zero", "has a host name of the address 0.0.0.0", tame, name{addresses: at("0.0.0.0")})
	add("name-mixed", "has a host name of a private address and of one that is allowed", tame, name{addresses: at("10.0.0.7", "127.0.0.1")})
	add("name-rebinding", "has a host name of an address that is allowed, once, and then of a private one", tame, name{addresses: func(n int64) []netip.Addr {
		if n == 1 {
			return at("127.0.0.1")(n)
		}
		return at("10.0.0.7")(n)
	}})
	return z.serveDNS(names)
}

func always(addresses ...netip.Addr) func(int64) []netip.Addr {
	return func(int64) []netip.Addr { return addresses }
}

func at(addresses ...string) func(int64) []netip.Addr {
	var parsed []netip.Addr
	for _, a := range addresses {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	return always(parsed...)
}

// thousand returns a thousand addresses of this machine.
func thousand() (addresses []netip.Addr) {
	for i := range 1000 {
		addresses = append(addresses, netip.AddrFrom4([4]byte{127, 9, byte(i / 250), byte(i%250 + 1)}))
	}
	return addresses
}

// serveDNS answers questions at one port, by UDP and by TCP. Its goroutines end with Close.
func (z *Zoo) serveDNS(names map[string]name) error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("start DNS: %w", err)
	}
	z.keep(listener)
	z.DNS = listener.Addr().(*net.TCPAddr).AddrPort()
	packets, err := net.ListenPacket("udp4", z.DNS.String())
	if err != nil {
		return fmt.Errorf("start DNS: %w", err)
	}
	z.keep(packets)
	z.serving.Go(func() { answerPackets(names, packets) })
	z.serving.Go(func() { z.acceptStreams(names, listener) })
	return nil
}

// answerPackets answers the questions that come by UDP, until packets is closed.
func answerPackets(names map[string]name, packets net.PacketConn) {
	question := make([]byte, 4096)
	for {
		n, from, err := packets.ReadFrom(question)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if reply := answer(names, question[:n], maxDatagram); reply != nil {
			_, _ = packets.WriteTo(reply, from) // a client asks again if an answer is lost
		}
	}
}

// acceptStreams accepts TCP connections until listener is closed. Each connection has a goroutine,
// which ends with Close at the latest.
func (z *Zoo) acceptStreams(names map[string]name, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil || !z.keep(conn) {
			return
		}
		z.serving.Go(func() {
			defer z.release(conn)
			answerStream(names, conn)
		})
	}
}

// answerStream answers the questions on one TCP connection (RFC 1035, section 4.2.2).
func answerStream(names map[string]name, conn net.Conn) {
	for {
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		reply := answer(names, question, 1<<16-1)
		if reply == nil {
			continue
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// answer returns the answer to a question, or nil if there should be none. If the answer would be
// longer than limit, it is marked as truncated instead.
func answer(names map[string]name, question []byte, limit int) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(question)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	n, known := names[strings.ToLower(q.Name.String())]
	if n.silent {
		return nil
	}
	if !known {
		n.code = dnsmessage.RCodeNameError
	}
	var addresses []netip.Addr
	if known {
		visit := int64(0)
		if q.Type == dnsmessage.TypeA {
			visit = n.asked.Add(1)
		}
		addresses = n.addresses(visit)
	}
	header = dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionAvailable: true, RecursionDesired: true, RCode: n.code}
	reply, err := build(header, q, addresses)
	if err == nil && len(reply) > limit {
		header.Truncated = true
		reply, err = build(header, q, nil)
	}
	if err != nil {
		return nil
	}
	return reply
}

// build makes an answer. It holds those of the addresses that have the type in question.
func build(header dnsmessage.Header, q dnsmessage.Question, addresses []netip.Addr) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, header)
	b.EnableCompression()
	errs := []error{b.StartQuestions(), b.Question(q), b.StartAnswers()}
	resource := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 0}
	for _, a := range addresses {
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			errs = append(errs, b.AResource(resource, dnsmessage.AResource{A: a.As4()}))
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			errs = append(errs, b.AAAAResource(resource, dnsmessage.AAAAResource{AAAA: a.As16()}))
		}
	}
	reply, err := b.Finish()
	return reply, errors.Join(append(errs, err)...)
}
