package sink

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// script is a server that answers each request on a connection by what it is told, and ends a connection when there is no more to say.
type script struct {
	connections, requests atomic.Int64
	answer                func(connection, request int64) string // empty to end the connection
}

// serve answers on one connection.
func (s *script) serve(conn net.Conn) {
	defer conn.Close()
	connection := s.connections.Add(1)
	reader := bufio.NewReader(conn)
	for n := int64(1); ; n++ {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return
		}
		s.requests.Add(1)
		text := s.answer(connection, n)
		if text == "" {
			return
		}
		write(conn, text)
	}
}

// startScript starts a script on loopback.
func startScript(t *testing.T, answer func(connection, request int64) string) (*script, string) {
	t.Helper()
	s := &script{answer: answer}
	return s, "http://" + serveRaw(t, true, s.serve)
}

const ok200 = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

func TestClient_KeepsAConnectionBehindAWholeAnswerOnly(t *testing.T) {
	for name, c := range map[string]struct {
		answer      string
		connections int64 // of three attempts
	}{
		"a length":                {ok200, 1},
		"chunks and a trailer":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n", 1},
		"no content":              {"HTTP/1.1 204 No\r\n\r\n", 1},
		"hints":                   {"HTTP/1.1 103 Early\r\n\r\n" + ok200, 1},
		"a failure":               {"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", 1},
		"HTTP/1.0 that keeps":     {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", 1},
		"HTTP/1.0":                {"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 3},
		"Connection: close":       {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 3},
		"bytes behind it":         {ok200 + "x", 3},
		"an answer behind it":     {ok200 + ok200, 3},
		"204 with a body":         {"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nno", 3},
		"204 with a silent body":  {"HTTP/1.1 204 No\r\n\r\nno", 3},
		"two lengths":             {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 3},
		"a chunk that lies":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nokay\r\n0\r\n\r\n", 3},
		"Keep-Alive: timeout=0":   {"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0\r\nContent-Length: 0\r\n\r\n", 3},
		"Keep-Alive: timeout=5":   {"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n", 1},
		"a body that is too long": {"HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n" + strings.Repeat("x", 4097), 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, url := startScript(t, func(int64, int64) string { return c.answer })
			w := newTestWebhook(t, nil)
			for range 3 {
				if got := attempt(t, w, requestTo(url)); got.Code == 0 {
					t.Errorf("%+v", got)
				}
			}
			if n := s.connections.Load(); n != c.connections || s.requests.Load() != 3 {
				t.Errorf("%d connections for %d requests, want %d", n, s.requests.Load(), c.connections)
			}
		})
	}
}

// Bytes that come late, behind an answer, are not taken for the next one, and what a server says before it closes an idle connection is
// no answer either. All of it comes when the next request is there, so that a look before finds nothing.
func TestClient_TakesNothingForAnAnswerThatIsNone(t *testing.T) {
	for name, said := range map[string]string{
		"bytes":        "\r\n<html>",
		"a 408":        "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"another HTTP": "HTTP/2 200\r\n\r\n",
		"only an end":  "",
	} {
		t.Run(name, func(t *testing.T) {
			s, url := startScript(t, func(_, request int64) string {
				if request > 1 {
					return said
				}
				return ok200
			})
			w := newTestWebhook(t, nil)
			for range 2 {
				if got := attempt(t, w, requestTo(url)); got.Outcome != Succeeded {
					t.Errorf("%+v", got)
				}
			}
			if c, r := s.connections.Load(), s.requests.Load(); c != 2 || r != 3 {
				t.Errorf("%d connections, %d requests, want 2 and 3", c, r)
			}
		})
	}
	// On a fresh connection the same is an answer.
	for said, class := range map[string]Class{"\r\n<html>": ClassNotHTTP, "HTTP/1.1 408 No\r\nConnection: close\r\n\r\n": ClassHTTPStatus, "": ClassConnectionReset} {
		s, url := startScript(t, func(int64, int64) string { return said })
		if got := attempt(t, newTestWebhook(t, nil), requestTo(url)); got.Class != class || s.requests.Load() != 1 {
			t.Errorf("%q: %+v after %d requests", said, got, s.requests.Load())
		}
	}
}

// pipeScript makes a Webhook in a bubble whose connections are pipes to a script.
func pipeScript(t *testing.T, answer func(connection, request int64) string, change func(*WebhookConfig)) (*Webhook, *script) {
	s := &script{answer: answer}
	w := newTestWebhook(t, change)
	w.client.dial = func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go s.serve(server) // ends with the connection
		return client, nil
	}
	return w, s
}

// A name that leads elsewhere is followed within a minute, although the former server still answers.
func TestClient_FollowsANameThatHasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(int64, int64) string { return ok200 }, nil)
		start := time.Now()
		for s.connections.Load() < 2 && time.Since(start) < 2*connAge {
			attempt(t, w, requestTo("http://hooks.example.com"))
			<-time.After(time.Second)
		}
		if age := time.Since(start); age < connAge*3/4 || age > connAge+time.Second {
			t.Errorf("the second connection was made after %v", age)
		}
		w.Close()
	})
}

// A server that says how long it keeps a connection gets no request at the end of that time.
func TestClient_HonoursTheServersKeepAlive(t *testing.T) {
	for _, c := range []struct {
		says        string
		every       time.Duration
		connections int64 // of four attempts
	}{
		{"timeout=5", 3900 * time.Millisecond, 1}, {"timeout=5", 4100 * time.Millisecond, 4}, {"timeout=5, max=100", 4100 * time.Millisecond, 4},
		{"timeout=1", 400 * time.Millisecond, 1}, {"timeout=1", 600 * time.Millisecond, 4}, {"max=5", 10 * time.Second, 1}, {"timeout=600", 10 * time.Second, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, s := pipeScript(t, func(_, request int64) string {
				if request > 1 {
					return ok200 // which says nothing
				}
				return "HTTP/1.1 200 OK\r\nKeep-Alive: " + c.says + "\r\nContent-Length: 0\r\n\r\n"
			}, nil)
			for range 4 {
				attempt(t, w, requestTo("http://hooks.example.com"))
				<-time.After(c.every)
			}
			if n := s.connections.Load(); n != c.connections {
				t.Errorf("%s, every %v: %d connections, want %d", c.says, c.every, n, c.connections)
			}
			w.Close()
		})
	}
}

// Idle connections end by themselves, and nothing is kept of endpoints that get no more events.
func TestClient_ForgetsOriginsOfWhichNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(int64, int64) string { return ok200 }, nil)
		for n := range 100 {
			attempt(t, w, requestTo(fmt.Sprintf("http://hooks-%d.example.com", n)))
		}
		<-time.After(idleConnTimeout + 2*sweepEvery)
		synctest.Wait()
		i := w.client.idle
		i.mu.Lock()
		defer i.mu.Unlock()
		if len(i.origins) > 0 || i.oldest.Len() > 0 || i.sweeper != nil || s.connections.Load() != 100 {
			t.Errorf("%d origins, %d connections, a sweep to come: %v", len(i.origins), i.oldest.Len(), i.sweeper != nil)
		}
	})
}

// Of too many idle connections those go that were used longest ago.
func TestClient_KeepsTheConnectionsThatWereUsedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(int64, int64) string { return ok200 }, func(c *WebhookConfig) { c.MaxIdle = 2 })
		to := func(hosts ...string) int64 {
			before := s.connections.Load()
			for _, host := range hosts {
				attempt(t, w, requestTo("http://"+host+".example.com"))
			}
			return s.connections.Load() - before
		}
		if n := to("a", "b", "a", "c"); n != 3 {
			t.Errorf("%d connections at first, want 3", n)
		}
		if n := to("a", "c"); n != 0 {
			t.Errorf("%d more to those used last", n)
		}
		if n := to("b"); n != 1 {
			t.Errorf("%d more to the one used longest ago", n)
		}
		w.Close()
		if n := to("a", "a"); n != 2 {
			t.Errorf("%d connections of two attempts after Close", n)
		}
		synctest.Wait() // a connection that was left open would keep its server, and the bubble
	})
}

// What has come over an idle connection is not the answer to the next request, though it looks like one.
func TestClient_LooksAtAConnectionBeforeItUsesIt(t *testing.T) {
	idle := make(chan struct{})
	w := newTestWebhook(t, nil)
	address := serveRaw(t, false, func(conn net.Conn) {
		write(conn, ok200)
		<-idle
		write(conn, "HTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	first := requestTo("http://" + address)
	if got := attempt(t, w, first); got.Code != 200 {
		t.Fatalf("%+v", got)
	}
	close(idle)
	c := w.client.idle.oldest.Front().Value.(*conn)
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if err := c.socket.Control(c.peek); err != nil || time.Now().After(deadline) {
			t.Fatal("the unasked answer does not come")
		}
		if c.peeked == nil {
			break
		}
	}
	if got := attempt(t, w, first); got.Code != 200 {
		t.Errorf("the unasked answer counts: %+v", got)
	}
}

// Connections that end now and then are kept all the same.
func TestClient_KeepsConnectionsThatMostlyWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(_, request int64) string {
			if request > 2 {
				return ""
			}
			return ok200
		}, nil)
		for range 40 {
			attempt(t, w, requestTo("http://hooks.example.com"))
		}
		if n := s.connections.Load(); n != 20 {
			t.Errorf("%d connections for 40 requests, where each serves two", n)
		}
		w.Close()
	})
}

func TestClient_KeepsAsManyConnectionsToOneHostAsItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const attempts, most = 5, 2
		var together, all sync.WaitGroup
		together.Add(attempts)
		w, _ := pipeScript(t, func(int64, int64) string {
			together.Done()
			together.Wait()
			return ok200
		}, func(c *WebhookConfig) { c.MaxIdlePerHost = most })
		for range attempts {
			all.Go(func() { attempt(t, w, requestTo("http://hooks.example.com")) })
		}
		all.Wait()
		if n := w.client.idle.oldest.Len(); n != most {
			t.Errorf("%d connections are kept, want %d", n, most)
		}
		w.Close()
	})
}

// Losses are in a row only where nothing was answered on a kept connection between them, be it the last answer.
func TestClient_CountsLossesInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(connection, request int64) string {
			switch {
			case request == 1:
				return ok200
			case connection%2 == 1:
				return ""
			}
			return "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
		}, nil)
		for range 30 {
			attempt(t, w, requestTo("http://hooks.example.com"))
		}
		if n := s.connections.Load(); n != 20 {
			t.Errorf("%d connections, want 20: two for three requests", n)
		}
		w.Close()
	})
}

// together is a connection whose writes are held back, and go out as one.
type together struct {
	net.Conn
	held []byte
	hold bool
}

func (c *together) Write(b []byte) (int, error) {
	if !c.hold {
		return c.Conn.Write(b)
	}
	c.held = append(c.held, b...)
	return len(b), nil
}

// serveTLSRaw calls handle for each connection behind the handshake, with what it is made of. It returns the URL and a Webhook that trusts
// the certificate.
func serveTLSRaw(t *testing.T, handle func(*tls.Conn, *together)) (string, *Webhook) {
	t.Helper()
	var trusted []tls.Certificate
	_, w := serveTLSWith(t, func(c *tls.Config) { trusted = c.Certificates })
	address := serveRaw(t, true, func(conn net.Conn) {
		held := &together{Conn: conn}
		encrypted := tls.Server(held, &tls.Config{Certificates: trusted})
		if encrypted.Handshake() == nil {
			handle(encrypted, held)
		}
	})
	return "https://" + address, w
}

// An unasked answer that came with the answer before, in a TLS record of its own, is not the answer to the next request.
func TestClient_LooksAtWhatTLSHasReadBefore(t *testing.T) {
	var connections atomic.Int64
	url, w := serveTLSRaw(t, func(conn *tls.Conn, held *together) {
		connections.Add(1)
		if !readRequest(conn) {
			return
		}
		held.hold = true
		write(conn, ok200)
		write(conn, "HTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n")
		write(held.Conn, string(held.held))
		_, _ = io.Copy(io.Discard, held.Conn)
	})
	for range 3 {
		if got := attempt(t, w, requestTo(url)); got.Code != 200 {
			t.Errorf("the unasked answer counts: %+v", got)
		}
	}
	if n := connections.Load(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

// A server that reads nothing holds an attempt for delivery.timeout, and not for what TLS has to say at the end.
func TestAttempt_EndsAtItsDeadlineOverTLS(t *testing.T) {
	over := make(chan struct{})
	url, w := serveTLSRaw(t, func(*tls.Conn, *together) { <-over })
	defer close(over)
	w.timeout = time.Second
	r := requestTo(url)
	r.Body = make([]byte, 32<<20)
	start := time.Now()
	checkClass(t, attempt(t, w, r), ClassTimeout, 0, "the server to read the request")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

// What fails on this side as a long request is sent is no attempt, and is known at once.
func TestAttempt_KnowsAFaultOfOursAsItSendsTheRest(t *testing.T) {
	w := newTestWebhook(t, nil)
	failWrites(w, 1, syscall.ENOBUFS)
	r := requestTo(serve(t, discard))
	r.Body = make([]byte, 1<<20)
	if got := attempt(t, w, r); got.Outcome != NotMade || got.Fault != FaultMemory || got.Latency > 5*time.Second {
		t.Errorf("%+v", got)
	}
}

// A server that ends kept connections gets fresh ones for a minute only.
func TestClient_TriesAgainToKeepConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sound atomic.Bool
		w, s := pipeScript(t, func(_, request int64) string {
			if request > 1 && !sound.Load() {
				return ""
			}
			return ok200
		}, nil)
		for range 2 * lostInARow {
			if got := attempt(t, w, requestTo("http://hooks.example.com")); got.Outcome != Succeeded {
				t.Errorf("%+v", got)
			}
		}
		sound.Store(true)
		<-time.After(freshFor)
		before := s.connections.Load()
		for range 5 {
			attempt(t, w, requestTo("http://hooks.example.com"))
		}
		if n := s.connections.Load() - before; n != 1 {
			t.Errorf("%d connections of five attempts", n)
		}
		w.Close()
	})
}

// A server may answer before it has read a long request, and then read on, or not, or reset the connection.
func TestAttempt_AnEarlyAnswerCounts(t *testing.T) {
	const size = 16 << 20
	var got atomic.Int64 // bytes of the last request's body
	for name, c := range map[string]struct {
		handle  func(net.Conn, <-chan struct{})
		outcome Outcome
		code    int
		atMost  time.Duration
		all     bool
	}{
		"refused, and not read": {func(conn net.Conn, over <-chan struct{}) {
			_, _ = conn.Read(make([]byte, 100))
			write(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
			<-over
		}, Failed, 413, time.Second, false},
		"refused, and reset": {func(conn net.Conn, _ <-chan struct{}) {
			_, _ = conn.Read(make([]byte, 100))
			write(conn, "HTTP/1.1 401 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}, Failed, 401, time.Second, false},
		"accepted, and reset": {func(conn net.Conn, _ <-chan struct{}) {
			_, _ = io.ReadFull(conn, make([]byte, 1<<20))
			write(conn, ok200)
		}, Succeeded, 200, 3 * time.Second, false},
		"accepted, and read on": {func(conn net.Conn, _ <-chan struct{}) {
			request, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				return
			}
			write(conn, ok200)
			n, _ := io.Copy(io.Discard, request.Body)
			got.Store(n)
		}, Succeeded, 200, 3 * time.Second, true},
		"accepted, and never read": {func(conn net.Conn, over <-chan struct{}) {
			write(conn, ok200)
			<-over
		}, Succeeded, 200, 2500 * time.Millisecond, false},
		"no answer, but an end": {func(conn net.Conn, _ <-chan struct{}) { _, _ = conn.Read(make([]byte, 100)) }, Failed, 0, time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			r := requestTo("http://" + serveRaw(t, true, func(conn net.Conn) { c.handle(conn, over) }))
			t.Cleanup(func() { close(over) })
			r.Body = make([]byte, size)
			start := time.Now()
			w := newTestWebhook(t, nil)
			result := attempt(t, w, r)
			if took := time.Since(start); result.Outcome != c.outcome || result.Code != c.code || took > c.atMost {
				t.Errorf("%+v after %v", result, took)
			}
			if c.code == 0 {
				checkClass(t, result, ClassConnectionReset, 0)
			}
			if kept := w.client.idle.oldest.Len() > 0; kept != c.all {
				t.Errorf("the connection is kept: %v", kept)
			}
		})
	}
	t.Cleanup(func() {
		if n := got.Load(); n != size {
			t.Errorf("the server that reads on got %d bytes of %d", n, size)
		}
	})
}

// A server that has answered and reset the connection before anything was sent is believed.
func TestAttempt_ReadsWhatWasSaidBeforeAReset(t *testing.T) {
	w, connected := newTestWebhook(t, nil), make(chan struct{})
	address := serveRaw(t, true, func(conn net.Conn) {
		<-connected
		write(conn, "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy")
		reset(conn)
	})
	dial := w.client.dial
	w.client.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		opened, err := dial(ctx, network, address)
		close(connected)
		if err != nil {
			return nil, err
		}
		for { // until the reset is here, of which a write tells
			if _, err := opened.Write([]byte("P")); err != nil {
				return opened, nil
			}
			runtime.Gosched()
		}
	}
	if got := attempt(t, w, requestTo("http://"+address)); got.Code != 503 || got.RetryAfter != 7*time.Second || got.Response != "busy" {
		t.Errorf("%+v", got)
	}
}

// The end of the caller's context ends the sending of a long request that nobody reads.
func TestAttempt_IsCanceledAsItSends(t *testing.T) {
	done := make(chan struct{})
	r := requestTo("http://" + serveRaw(t, true, func(net.Conn) { <-done }))
	defer close(done)
	r.Body = make([]byte, 64<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	w := newTestWebhook(t, nil)
	if got := w.Attempt(ctx, r.of(w)); got.Outcome != Canceled || got.Latency > 5*time.Second {
		t.Errorf("%+v", got)
	}
}

// What a server sends over an idle TLS connection may be a session ticket, or its end.
func TestConn_IsAliveBehindASessionTicket(t *testing.T) {
	base, w := serveTLSWith(t, func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }) // the tickets come behind the handshake then
	target := w.Target(base, requestTo(base).Secret)
	c, err := w.client.connect(t.Context(), target.origin, time.Now().Add(time.Minute), new(progress))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() { // until the tickets are here
		if err := c.socket.Control(c.peek); err != nil || time.Now().After(deadline) {
			t.Fatal("no ticket comes")
		}
		if c.peeked == nil {
			break
		}
	}
	if !c.alive() {
		t.Error("the connection is taken for dead")
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	write(c, "nonsense\r\n\r\n") // is answered by 400 and the end of the connection
	for deadline := time.Now().Add(10 * time.Second); c.alive(); {
		if time.Now().After(deadline) {
			t.Fatal("the connection is taken for alive")
		}
		runtime.Gosched()
	}
}

// A server that speaks no HTTP/1.1 is named, with TLS and without, whether it says so in the handshake or by frames.
func TestAttempt_NamesAServerOfHTTP2Only(t *testing.T) {
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	plain := "http://" + serveRaw(t, false, func(conn net.Conn) {
		write(conn, settings)
		_, _ = io.Copy(io.Discard, conn)
	})
	checkClass(t, attempt(t, newTestWebhook(t, nil), requestTo(plain)), ClassH2C, 0, "h2c")

	var trusted []tls.Certificate
	_, w := serveTLSWith(t, func(c *tls.Config) { trusted = c.Certificates })
	for protocol, words := range map[string]string{
		"":       "in HTTP/2 only",                  // it does not look at ALPN
		"spdy/3": "refuses HTTP/1.1 in the TLS han", // as "h2" would, were it not for an exception of crypto/tls
	} {
		listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: trusted, NextProtos: strings.Fields(protocol)})
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			write(conn, settings)
			_, _ = io.Copy(io.Discard, conn)
		})
		checkClass(t, attempt(t, w, requestTo("https://"+listener.Addr().String())), ClassHTTP2Only, 0, words)
		listener.Close()
		serving.Wait()
	}
}
