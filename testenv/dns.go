package testenv

import (
	"context"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a DNS server on loopback. A name that Say was not called for does not exist. Any number of
// goroutines may call its methods.
type DNS struct {
	address string

	mu    sync.Mutex
	codes map[string]dnsmessage.RCode
	asked map[string]int
}

// DNS knows these beside the codes of dnsmessage.
const (
	// EveryName stands for all names that Say was not called for.
	EveryName = "*"
	// SilentName means that the server does not answer.
	SilentName = dnsmessage.RCode(99)
	// EmptyName is there, and has no address.
	EmptyName = dnsmessage.RCode(98)
)

// StartDNS starts a server. It ends with the test.
func StartDNS(t testing.TB) *DNS {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	d := &DNS{address: conn.LocalAddr().String(), codes: map[string]dnsmessage.RCode{}, asked: map[string]int{}}
	go d.serve(conn) // ends with conn
	return d
}

// Say sets the code of all further answers for a name, which must end with a dot. With
// dnsmessage.RCodeSuccess the name's address is 127.0.0.1.
func (d *DNS) Say(name string, code dnsmessage.RCode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.codes[name] = code
}

// Forget undoes all calls of Say.
func (d *DNS) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.codes)
}

// Asked returns how often a name was asked for.
func (d *DNS) Asked(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[name]
}

// Resolver returns a resolver that asks this server.
func (d *DNS) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", d.address)
	}}
}

func (d *DNS) serve(conn net.PacketConn) {
	packet := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(packet)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(packet[:n]) != nil || len(m.Questions) == 0 {
			continue
		}
		question := m.Questions[0]
		m.RCode = d.code(question.Name.String())
		switch m.RCode {
		case SilentName:
			continue
		case EmptyName:
			m.RCode, question.Type = dnsmessage.RCodeSuccess, dnsmessage.TypeTXT
		}
		m.Response, m.Additionals = true, nil
		if m.RCode == dnsmessage.RCodeSuccess && question.Type == dnsmessage.TypeA {
			header := dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class}
			m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
		}
		if answer, err := m.Pack(); err == nil {
			_, _ = conn.WriteTo(answer, from) // the client may have gone
		}
	}
}

func (d *DNS) code(name string) dnsmessage.RCode {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked[name]++
	if code, said := d.codes[name]; said {
		return code
	}
	if code, said := d.codes[EveryName]; said {
		return code
	}
	return dnsmessage.RCodeNameError
}
