package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// proxyBuffer is the most bytes that the proxy holds for one direction of one connection.
	proxyBuffer  = 32 << 10
	dripInterval = time.Second     // the time between two bytes under Drip
	cutTimeout   = time.Second     // how long both ends have to close as well after Cut
	dialTimeout  = 5 * time.Second // for the connection to the target
)

// Fault is what a Proxy does to the connections that pass it.
type Fault int

// A fault holds from one SetFault to the next.
const (
	Pass     Fault = iota // none
	Refuse                // open connections are reset, new ones are closed at once
	Stall                 // connections are accepted, but nothing passes, not even their end
	Drip                  // one byte a second passes in each direction of each connection
	HalfOpen              // what the client sends passes, nothing comes back
)

// CommitFault is how a Proxy breaks a commit.
type CommitFault int

// A CommitFault holds for one commit.
const (
	KeepCommits CommitFault = iota // none
	LoseCommit                     // the connection breaks before the server gets the commit
	// LoseAnswer breaks the connection after the server has carried out the commit, before the
	// client knows.
	LoseAnswer
)

// Proxy stands between a TCP client and its server, PostgreSQL or a receiver, and breaks
// connections as the test says. What it holds back while a fault lasts it passes on afterwards, in
// order, and so does it with the end of a connection. So it behaves like a network that was away
// for a while. Any goroutine may call its methods.
//
// It has one goroutine that accepts connections, which ends with the listener. Each connection has
// two, one for each direction, which end with it. Close ends all of them and waits for them.
type Proxy struct {
	target   string
	listener net.Listener
	stop     context.CancelFunc // ends connections that are being made
	all      sync.WaitGroup     // every goroutine

	mu      sync.Mutex // guards all below
	fault   Fault
	changed chan struct{} // closed and replaced by SetFault
	links   map[*link]struct{}
	closed  bool
	turns   int
	delay   time.Duration // before each answer
	commit  CommitFault   // for the next commit
	broken  int           // how many commits were broken
	text    string        // before is called when a client sends this; "" if nothing is set
	before  func()
}

// NewProxy starts a proxy on a port of 127.0.0.1 that forwards to target, "host:port". The caller
// must call Close.
func NewProxy(target string) (*Proxy, error) {
	if _, port, err := net.SplitHostPort(target); err != nil {
		return nil, fmt.Errorf("start a proxy: %w", err)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fmt.Errorf("start a proxy: the port of %q is no number", target)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start a proxy: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Proxy{target: target, listener: listener, stop: stop, changed: make(chan struct{}), links: map[*link]struct{}{}}
	p.all.Go(func() { p.accept(ctx) })
	return p, nil
}

// StartProxy starts a proxy for one test, and closes it at the end of the test.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p, err := NewProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Addr returns the address of the proxy, "host:port".
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Via returns rawURL with the proxy's address in place of its own. A URL of PostgreSQL also gets
// sslmode=disable, because the proxy has to see commits. Via panics if rawURL is not a URL.
func (p *Proxy) Via(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		// The text is not shown: it may hold a password.
		panic("testenv: Proxy.Via was not given a URL")
	}
	u.Host = p.Addr()
	if u.Scheme == "postgres" || u.Scheme == "postgresql" {
		query := u.Query()
		query.Set("sslmode", "disable")
		u.RawQuery = query.Encode()
	}
	return u.String()
}

// SetFault sets the fault of all connections, also of those that are open already.
func (p *Proxy) SetFault(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
	if f == Refuse {
		p.eachLocked((*link).reset)
	}
}

// BreakCommit sets the fault of the next commit that passes.
func (p *Proxy) BreakCommit(f CommitFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.commit = f
}

// Before calls do once, when a client sends text within one write, and before that write passes on.
func (p *Proxy) Before(text string, do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text, p.before = text, do
}

// takeBefore returns the function to call before data passes, or nil.
func (p *Proxy) takeBefore(data []byte) (do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text == "" || !bytes.Contains(data, []byte(p.text)) {
		return nil
	}
	do, p.text, p.before = p.before, "", nil
	return do
}

// BrokenCommits returns how many commits BreakCommit has broken.
func (p *Proxy) BrokenCommits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}

// Turns returns how many round trips the clients have waited for: how often a client has sent
// something first, or after an answer of the server.
func (p *Proxy) Turns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turns
}

// SetDelay delays each answer, as if the server were far away. An answer is the first that the
// server sends after the client has sent something.
func (p *Proxy) SetDelay(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// turn counts a round trip when the direction of a link changes to up. When it changes to down, it
// returns how long to wait.
func (p *Proxy) turn(l *link, d direction) (wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case d == up && !l.asking:
		p.turns++
	case d == down && l.asking:
		wait = p.delay
	}
	l.asking = d == up
	return wait
}

// Cut closes all open connections in good order: both ends read what has passed so far, and then
// the end of the connection (FIN).
func (p *Proxy) Cut() { p.each((*link).cut) }

// Freeze stops all traffic on the connections that are open now, without notice to either end. New
// connections pass. A client sees the same if a host is gone behind a proxy or a network translator
// that still lives.
func (p *Proxy) Freeze() { p.each(func(l *link) { l.frozen.Store(true) }) }

// Reset breaks all open connections: both ends get a reset (RST), and data under way is lost.
func (p *Proxy) Reset() { p.each((*link).reset) }

// HalfClose closes the direction from the client to the server of all open connections. What a
// client sends after that is dropped; what a server sends passes.
func (p *Proxy) HalfClose() { p.each((*link).halfClose) }

// Connections returns how many connections are open.
func (p *Proxy) Connections() int {
	n := 0
	p.each(func(*link) { n++ })
	return n
}

// Close stops listening, resets all connections and waits for the proxy's goroutines. A second call
// does nothing.
func (p *Proxy) Close() error {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	for l := range p.links {
		l.reset()
	}
	p.mu.Unlock()
	p.stop()
	err := p.listener.Close()
	p.all.Wait()
	if err != nil && !again {
		return fmt.Errorf("close a proxy: %w", err)
	}
	return nil
}

func (p *Proxy) each(do func(*link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eachLocked(do)
}

func (p *Proxy) eachLocked(do func(*link)) {
	for l := range p.links {
		if !l.isOver() {
			do(l)
		}
	}
}

// state returns the fault and a channel that is closed when it changes.
func (p *Proxy) state() (Fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault, p.changed
}

// accept serves clients until the listener closes.
func (p *Proxy) accept(ctx context.Context) {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.serve(ctx, client.(*net.TCPConn)) })
	}
}

// serve connects client to the target and returns when both connections are closed. ctx only ends
// the attempt to connect.
func (p *Proxy) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	l := &link{proxy: p, client: client, over: make(chan struct{})}
	if !p.enter(l) {
		return
	}
	defer p.leave(l)
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", p.target)
	if err != nil {
		// A refused connection is not possible any more. A reset is the nearest to it.
		_ = client.SetLinger(0)
		return
	}
	defer conn.Close()
	if !l.attach(conn.(*net.TCPConn)) {
		// Read until the client has closed too, as pump does after a cut.
		_, _ = io.Copy(io.Discard, client)
		return
	}
	var back sync.WaitGroup
	back.Go(func() { l.pump(down) }) // ends when the pump below ends
	l.pump(up)
	back.Wait()
}

// enter adds l to the links of the proxy. It returns false if l is refused.
func (p *Proxy) enter(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.fault == Refuse {
		return false
	}
	p.links[l] = struct{}{}
	return true
}

func (p *Proxy) leave(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// takeCommitFault returns the fault for the commit that is about to pass, and counts it.
func (p *Proxy) takeCommitFault() CommitFault {
	p.mu.Lock()
	defer p.mu.Unlock()
	fault := p.commit
	if p.commit = KeepCommits; fault != KeepCommits {
		p.broken++
	}
	return fault
}

// direction is one of the two directions of a link.
type direction int

const (
	up   direction = iota // from the client to the server
	down                  // from the server to the client
)

// link is one connection through the proxy. It is over when both ends have closed it, or after cut
// or reset.
type link struct {
	proxy      *Proxy
	client     *net.TCPConn
	over       chan struct{} // closed by end
	halfClosed atomic.Bool   // what the client sends is dropped
	frozen     atomic.Bool   // nothing passes any more
	// answerLost makes the next thing that the server sends break the link instead of passing.
	answerLost atomic.Bool
	commits    commitScanner // only the goroutine that pumps up uses it

	asking bool // the client was the last to send; guarded by proxy.mu

	// mu is held while the ends are broken, so that attach comes either before that or after it.
	mu     sync.Mutex
	server *net.TCPConn       // nil before attach; the pumps start after attach
	broken func(*net.TCPConn) // how each end is broken; nil while the link is not over
}

// attach adds the connection to the server. It returns false if the link is over already.
func (l *link) attach(server *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		l.broken(server)
		return false
	}
	l.server = server
	if l.halfClosed.Load() {
		_ = server.CloseWrite()
	}
	return true
}

// end marks the link as over and calls do with both of its ends.
func (l *link) end(do func(*net.TCPConn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		close(l.over)
	}
	l.broken = do
	do(l.client)
	if l.server != nil {
		do(l.server)
	}
}

func (l *link) isOver() bool {
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

// reset breaks both ends by RST. It also ends a link that is being cut.
func (l *link) reset() {
	l.end(func(c *net.TCPConn) {
		_ = c.SetLinger(0)
		_ = c.Close()
	})
}

// cut closes only the writing side of both ends, because a socket that is closed with unread data
// would send a reset. The pumps read what still comes until the ends have closed as well, or
// cutTimeout has passed.
func (l *link) cut() {
	deadline := time.Now().Add(cutTimeout)
	l.end(func(c *net.TCPConn) {
		_ = c.CloseWrite()
		_ = c.SetDeadline(deadline)
	})
}

func (l *link) halfClose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halfClosed.Store(true)
	if l.server != nil {
		_ = l.server.CloseWrite()
	}
}

// pump forwards one direction until it has ended or the link is over.
func (l *link) pump(d direction) {
	from, to := l.client, l.server
	if d == down {
		from, to = to, from
	}
	buf := make([]byte, proxyBuffer)
	for {
		n, err := from.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			admitted := l.admit(d, len(rest))
			if admitted == 0 || !l.pass(d, to, rest[:admitted]) {
				// This is needed after a cut. Otherwise the read fails at once.
				_, _ = io.Copy(io.Discard, from)
				return
			}
			rest = rest[admitted:]
		}
		if err == nil {
			continue
		}
		switch {
		case l.admit(d, 1) == 0:
		case errors.Is(err, io.EOF):
			_ = to.CloseWrite()
		default:
			l.reset()
		}
		return
	}
}

// admit waits until some of n bytes may pass, and returns how many. It returns 0 if the link is
// over.
func (l *link) admit(d direction, n int) int {
	for !l.isOver() {
		fault, changed := l.proxy.state()
		var next <-chan time.Time // nil while nothing may pass
		switch {
		case l.frozen.Load():
		case fault == Drip:
			next = time.After(dripInterval)
		case fault == Pass, fault == HalfOpen && d == up:
			return n
		}
		select {
		case <-next:
			return 1
		case <-changed:
		case <-l.over:
		}
	}
	return 0
}

// pass writes data to the end to, or applies a fault instead. It returns false if the link is over.
func (l *link) pass(d direction, to *net.TCPConn, data []byte) bool {
	if d == up && l.halfClosed.Load() {
		return true
	}
	if d == down && l.answerLost.Load() || d == up && l.losesCommit(data) {
		l.reset()
		return false
	}
	if wait := l.proxy.turn(l, d); wait > 0 {
		select {
		case <-time.After(wait):
		case <-l.over:
		}
	}
	if _, err := to.Write(data); err != nil {
		if d == up && l.halfClosed.Load() {
			return true // closed while it was written
		}
		if !l.isOver() {
			l.reset()
		}
		return false
	}
	return true
}

// losesCommit calls the function of Before if data is what it waits for. It reports whether data
// ends a commit that must not arrive.
func (l *link) losesCommit(data []byte) bool {
	if do := l.proxy.takeBefore(data); do != nil {
		do()
	}
	if !l.commits.ends(data) {
		return false
	}
	switch l.proxy.takeCommitFault() {
	case LoseCommit:
		return true
	case LoseAnswer:
		l.answerLost.Store(true)
	}
	return false
}

// commitScanner finds the statement commit in a stream of messages, by its text and the zero byte
// that ends it. tail is the last bytes of the stream, one fewer than the text has.
type commitScanner struct{ tail []byte }

// ends reports whether a commit ends in data.
func (s *commitScanner) ends(data []byte) bool {
	const text = "commit\x00"
	s.tail = append(s.tail, data...)
	found := bytes.Contains(s.tail, []byte(text)) || bytes.Contains(s.tail, bytes.ToUpper([]byte(text)))
	s.tail = append(s.tail[:0], s.tail[max(0, len(s.tail)-len(text)+1):]...)
	return found
}
