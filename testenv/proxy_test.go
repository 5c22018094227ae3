package testenv

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// soon is how long a test waits for bytes that a proxy lets pass.
	soon = 10 * time.Second
	// quiet is how long a test listens for bytes that a proxy holds back.
	quiet = 200 * time.Millisecond
)

// pair is one connection through a proxy, seen from both ends.
type pair struct {
	t              *testing.T
	client, server *net.TCPConn
}

// proxied starts a proxy before a listener and connects through it. connect makes further pairs,
// one at a time.
func proxied(t *testing.T) (p *Proxy, first pair, connect func() pair) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	p = StartProxy(t, listener.Addr().String())
	connect = func() pair {
		t.Helper()
		client := dial(t, p)
		if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		return pair{t, client, server.(*net.TCPConn)}
	}
	return p, connect(), connect
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	client, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client.(*net.TCPConn)
}

func (c pair) write(to *net.TCPConn, text string) {
	c.t.Helper()
	if _, err := to.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// closeWrite closes the writing side of one end.
func (c pair) closeWrite(of *net.TCPConn) {
	c.t.Helper()
	if err := of.CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
}

// read reads as many bytes as want has, and fails the test if they differ.
func (c pair) read(from *net.TCPConn, want string) {
	c.t.Helper()
	_ = from.SetReadDeadline(time.Now().Add(soon))
	got := make([]byte, len(want))
	n, err := io.ReadFull(from, got)
	if err != nil || string(got) != want {
		c.t.Fatalf("read %q and %v, want %q", got[:n], err, want)
	}
}

// nothing fails the test if bytes come within a while.
func (c pair) nothing(from *net.TCPConn) {
	c.t.Helper()
	_ = from.SetReadDeadline(time.Now().Add(quiet))
	got := make([]byte, 64)
	if n, err := from.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("read %q and %v, want nothing", got[:n], err)
	}
}

// ends fails the test unless the connection ends next, by a reset or in good order.
func (c pair) ends(from *net.TCPConn, want error) {
	c.t.Helper()
	_ = from.SetReadDeadline(time.Now().Add(soon))
	got := make([]byte, 64)
	if n, err := from.Read(got); n > 0 || !errors.Is(err, want) {
		c.t.Fatalf("read %q and %v, want %v", got[:n], err, want)
	}
}

func awaitNoConnections(t *testing.T, p *Proxy) {
	t.Helper()
	Eventually(t, soon, func() error {
		if n := p.Connections(); n != 0 {
			return fmt.Errorf("%d connections are open, want none", n)
		}
		return nil
	})
}

// This test does not run in parallel, because the proxies of other tests have goroutines as well.
func TestProxy_CloseEndsEveryGoroutine(t *testing.T) {
	for _, fault := range []Fault{Pass, Stall, Drip, HalfOpen} {
		p, c, connect := proxied(t)
		for range 20 {
			connect()
		}
		connect().client.Close()
		p.SetFault(fault)
		c.write(c.client, strings.Repeat("x", 64<<10))
		c.write(c.server, "answer")
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
		if n := p.Connections(); n != 0 {
			t.Errorf("%d connections are open after Close", n)
		}
		if conn, err := net.Dial("tcp", p.Addr()); err == nil {
			conn.Close()
			t.Error("it still listens after Close")
		}
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, name := range []string{"(*Proxy).accept", "(*Proxy).serve", "(*link)."} {
			if strings.Contains(string(stacks), name) {
				t.Errorf("%s still runs after Close:\n%s", name, stacks)
			}
		}
	}
}

func TestProxy_PassesBothDirectionsAndTheirEnds(t *testing.T) {
	t.Parallel()
	p, c, connect := proxied(t)
	c.write(c.client, "question")
	c.read(c.server, "question")
	c.write(c.server, "answer")
	c.read(c.client, "answer")
	if n := p.Connections(); n != 1 {
		t.Errorf("%d connections are open, want one", n)
	}

	large := strings.Repeat("0123456789abcdef", 1<<16)
	go func() { _, _ = c.client.Write([]byte(large)) }() // more than the buffers hold; ends when the server has read it
	c.read(c.server, large)

	if err := c.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.ends(c.server, io.EOF)
	c.write(c.server, "last")
	c.read(c.client, "last")
	c.server.Close()
	c.ends(c.client, io.EOF)
	awaitNoConnections(t, p)

	c = connect()
	_ = c.client.SetLinger(0)
	c.client.Close()
	c.ends(c.server, syscall.ECONNRESET)
	awaitNoConnections(t, p)
}

func TestProxy_RefuseResetsAndLetsNobodyIn(t *testing.T) {
	t.Parallel()
	p, c, connect := proxied(t)
	p.SetFault(Refuse)
	c.ends(c.client, syscall.ECONNRESET)
	c.ends(c.server, syscall.ECONNRESET)
	refused := dial(t, p)
	c.ends(refused, io.EOF)
	awaitNoConnections(t, p)

	p.SetFault(Pass)
	c = connect() // the listener gets this one next, so the refused one has not come to it
	c.write(c.client, "question")
	c.read(c.server, "question")
}

func TestProxy_AServerThatIsAwayResetsTheClient(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	p := StartProxy(t, listener.Addr().String())
	client, err := net.Dial("tcp", p.Addr())
	if errors.Is(err, syscall.ECONNRESET) {
		return // as early as that
	} else if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	pair{t: t}.ends(client.(*net.TCPConn), syscall.ECONNRESET)
}

func TestProxy_StallHoldsEverythingBackAndThenGoesOn(t *testing.T) {
	t.Parallel()
	p, c, connect := proxied(t)
	p.SetFault(Stall)
	c.write(c.client, "question")
	c.write(c.server, "answer")
	c.closeWrite(c.client)
	c.nothing(c.server)
	c.nothing(c.client)
	second := connect()
	if err := second.client.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	second.client.Close()
	second.nothing(second.server)

	p.SetFault(Pass)
	c.read(c.server, "question")
	c.ends(c.server, io.EOF)
	c.read(c.client, "answer")
	c.write(c.server, "more")
	c.read(c.client, "more")
	second.ends(second.server, syscall.ECONNRESET)
}

func TestProxy_DripPassesOneByteASecondEachWay(t *testing.T) {
	t.Parallel()
	p, c, _ := proxied(t)
	p.SetFault(Drip)
	began := time.Now()
	c.write(c.client, "question")
	c.write(c.server, "answer")
	c.read(c.server, "q")
	c.read(c.client, "a")
	c.nothing(c.server)
	c.nothing(c.client)
	c.read(c.server, "u")
	c.read(c.client, "n")
	if took := time.Since(began); took < 2*dripInterval-quiet {
		t.Errorf("two bytes took %s, want two seconds or more", took)
	}
	p.SetFault(Pass)
	c.read(c.server, "estion")
	c.read(c.client, "swer")
}

func TestProxy_HalfOpenPassesToTheServerOnly(t *testing.T) {
	t.Parallel()
	p, c, _ := proxied(t)
	p.SetFault(HalfOpen)
	c.write(c.client, "question")
	c.read(c.server, "question")
	c.write(c.server, "answer")
	c.closeWrite(c.server)
	c.nothing(c.client)
	c.write(c.client, "again")
	c.read(c.server, "again")
	p.SetFault(Pass)
	c.read(c.client, "answer")
	c.ends(c.client, io.EOF)
}

func TestProxy_CutEndsBothSidesInGoodOrder(t *testing.T) {
	t.Parallel()
	p, c, connect := proxied(t)
	other := connect()
	c.write(c.client, "question")
	c.read(c.server, "question")
	p.Cut()
	// Data under way at that moment must not turn the end into a reset.
	c.write(c.client, "late")
	c.write(c.server, "late")
	for _, end := range []*net.TCPConn{c.client, c.server, other.client, other.server} {
		c.ends(end, io.EOF)
	}
	if n := p.Connections(); n != 0 {
		t.Errorf("%d connections are open", n)
	}
	c = connect()
	c.write(c.client, "question")
	c.read(c.server, "question")
}

func TestProxy_CutAlsoEndsWhatIsStalled(t *testing.T) {
	t.Parallel()
	p, c, _ := proxied(t)
	p.SetFault(Stall)
	c.write(c.client, strings.Repeat("x", 2*proxyBuffer)) // half of it waits in the socket, which must not turn the end into a reset
	c.nothing(c.server)
	p.Cut()
	c.ends(c.client, io.EOF)
	c.ends(c.server, io.EOF)
}

func TestProxy_ResetEndsBothSidesAtOnce(t *testing.T) {
	t.Parallel()
	p, c, connect := proxied(t)
	c.write(c.client, "question")
	c.read(c.server, "question")
	p.Reset()
	c.ends(c.client, syscall.ECONNRESET)
	c.ends(c.server, syscall.ECONNRESET)
	awaitNoConnections(t, p)
	c = connect()
	c.write(c.client, "question")
	c.read(c.server, "question")
}

func TestProxy_HalfCloseEndsOnlyWhatGoesToTheServer(t *testing.T) {
	t.Parallel()
	p, c, _ := proxied(t)
	p.HalfClose()
	c.ends(c.server, io.EOF)
	for range 3 {
		c.write(c.client, "lost")
		c.write(c.server, "answer")
		c.read(c.client, "answer")
	}
	if n := p.Connections(); n != 1 {
		t.Errorf("%d connections are open, want one", n)
	}
	c.server.Close()
	c.ends(c.client, io.EOF)
}

func TestProxy_BreaksOneCommit(t *testing.T) {
	t.Parallel()
	// The commit comes in one piece, in upper case, and in two reads of which the second has its
	// last byte.
	for _, pieces := range [][]string{{"Q\x00\x00\x00\x0bcommit\x00"}, {"Q\x00\x00\x00\x0bCOMMIT\x00"}, {"Q\x00\x00\x00\x0bcommit", "\x00"}} {
		p, c, connect := proxied(t)
		send := func(c pair) {
			t.Helper()
			for _, piece := range pieces {
				c.write(c.client, piece)
				if piece != pieces[len(pieces)-1] {
					c.read(c.server, piece) // so that the pieces are read apart
				}
			}
		}
		whole, last := strings.Join(pieces, ""), pieces[len(pieces)-1]

		c.write(c.client, "insert\x00")
		c.read(c.server, "insert\x00")
		p.BreakCommit(LoseCommit)
		send(c)
		c.ends(c.server, syscall.ECONNRESET)
		c.ends(c.client, syscall.ECONNRESET)

		c = connect()
		p.BreakCommit(LoseAnswer)
		send(c)
		c.read(c.server, last)
		c.nothing(c.client)
		c.write(c.server, "COMMIT")
		c.ends(c.client, syscall.ECONNRESET)
		c.ends(c.server, syscall.ECONNRESET)

		c = connect()
		send(c)
		c.read(c.server, last)
		c.write(c.server, "COMMIT")
		c.read(c.client, "COMMIT")
		if n := p.BrokenCommits(); n != 2 {
			t.Errorf("%q: %d commits were broken, want 2", whole, n)
		}
	}
}

func TestProxy_StandsBeforePostgreSQLAndReceivers(t *testing.T) {
	t.Parallel()
	db := NewDB(t)
	p := StartProxy(t, db.Addr())
	if err := ExecSQL(t.Context(), p.Via(db.URL+"&application_name=x"), "create table made_by_proxy ()"); err != nil {
		t.Fatal(err)
	}
	if n := QueryOne[int](t, db, `select count(*) from pg_class where relname = 'made_by_proxy'`); n != 1 {
		t.Error("the statement has not come to the server")
	}
	r := StartReceiver(t, "secret")
	if got, want := p.Via("postgres://a:b@elsewhere:1/c?application_name=x"), "postgres://a:b@"+p.Addr()+"/c?application_name=x&sslmode=disable"; got != want {
		t.Errorf("Via returned %s, want %s", got, want)
	}
	front := StartProxy(t, strings.TrimPrefix(r.URL, "http://"))
	if got, want := front.Via(r.URL+"/hook?a=b"), "http://"+front.Addr()+"/hook?a=b"; got != want {
		t.Errorf("Via returned %s, want %s", got, want)
	}
	if _, err := send(t, http.DefaultClient, front.Via(r.URL+"/hook"), "evt_1", "secret", "{}"); err != nil || r.Count() != 1 {
		t.Errorf("%d requests have come to the receiver, %v", r.Count(), err)
	}
}

func TestNewProxy_RefusesWhatIsNoAddress(t *testing.T) {
	if p, err := NewProxy("http://127.0.0.1"); err == nil {
		t.Errorf("it took a URL for an address; closed: %v", p.Close())
	}
}
