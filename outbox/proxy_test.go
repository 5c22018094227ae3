package outbox

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// proxy stands between the agent and PostgreSQL and breaks connections.
type proxy struct {
	url    string // the database's, by way of the proxy
	server string

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // both sides of each connection
	down   bool                  // new connections are closed at once
	commit commitFault           // what happens to the next commit
	faults int                   // commits that were broken
}

// commitFault is how a commit is broken.
type commitFault int

const (
	noFault    commitFault = iota
	loseCommit             // the server never gets it
	loseAnswer             // the server has carried it out, the client never gets to know
)

// newProxy starts a proxy before the database of env. It ends with the test.
func newProxy(t *testing.T, env *testenv.DB) *proxy {
	t.Helper()
	target, err := url.Parse(env.URL)
	must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{server: target.Host, conns: map[net.Conn]struct{}{}}
	target.Host = listener.Addr().String()
	target.RawQuery = "sslmode=disable"
	p.url = target.String()
	var all sync.WaitGroup
	all.Go(func() { // ends when the listener closes
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(client) }) // ends when one side closes
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.setDown(true)
		all.Wait()
	})
	return p
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLocked()
}

func (p *proxy) cutLocked() {
	for c := range p.conns {
		_ = c.(*net.TCPConn).SetLinger(0) // a reset: what is under way is lost
		_ = c.Close()
	}
	clear(p.conns)
}

// setDown breaks all connections and lets no new one through, until it is called with false.
func (p *proxy) setDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down = down; down {
		p.cutLocked()
	}
}

// breakCommit breaks the next commit that passes.
func (p *proxy) breakCommit(fault commitFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commit = fault
}

// broken returns how many commits were broken.
func (p *proxy) broken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	down := p.down
	if !down {
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	}
	p.mu.Unlock()
	if down {
		return
	}
	answers := make(chan struct{})
	answer := &gate{to: client}
	go func() { // ends when either side closes
		defer close(answers)
		_, _ = io.Copy(answer, server)
		_ = client.Close()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if n > 0 && !p.forward(buf[:n], server, answer) || err != nil {
			break
		}
	}
	_ = server.Close()
	<-answers
}

// forward hands data to the server unless it is a commit that is to be broken. It returns false when the connection is over.
func (p *proxy) forward(data []byte, server net.Conn, answer *gate) bool {
	fault := noFault
	if bytes.Contains(data, []byte("commit\x00")) {
		p.mu.Lock()
		fault, p.commit = p.commit, noFault
		if fault != noFault {
			p.faults++
		}
		p.mu.Unlock()
	}
	switch fault {
	case loseCommit:
		return false
	case loseAnswer:
		arrived := answer.shut()
		if _, err := server.Write(data); err != nil {
			return false
		}
		<-arrived
		return false
	}
	_, err := server.Write(data)
	return err == nil
}

// gate passes what is written on until it is shut.
type gate struct {
	to io.Writer

	mu      sync.Mutex
	closed  bool
	arrived chan struct{} // closed by the first write after shut
	once    sync.Once
}

// shut keeps back what comes from now on. The channel it returns is closed when something has come.
func (g *gate) shut() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.arrived = true, make(chan struct{})
	return g.arrived
}

func (g *gate) Write(data []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		g.once.Do(func() { close(g.arrived) })
		return len(data), nil
	}
	return g.to.Write(data)
}
