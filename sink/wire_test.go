package sink

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// oneKept returns the idle connection that w has.
func oneKept(t *testing.T, w *Webhook) *conn {
	t.Helper()
	w.client.idle.mu.Lock()
	defer w.client.idle.mu.Unlock()
	if n := w.client.idle.oldest.Len(); n != 1 {
		t.Fatalf("%d connections are kept, want 1", n)
	}
	return w.client.idle.oldest.Front().Value.(*conn)
}

// What came over an idle connection, whole or in part, is no answer to the next request, which goes
// over another connection. So does a request whose connection has ended. It is sent once, and such
// connections do not count as lost.
func TestWire_LooksBeforeItSends(t *testing.T) {
	const answer = "HTTP/1.1 200 Unasked\r\nContent-Length: 0\r\n\r\n"
	for name, unasked := range map[string][2]string{ // while the connection is idle, and later; or it ends
		"an answer":         {answer, ""},
		"half of an answer": {answer[:12], answer[12:]},
		"a byte":            {"H", ""},
		"a 408":             {"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", ""},
		"a reset":           {"", "reset"},
		"the end":           {"", ""},
	} {
		for _, size := range []int{2, 2 * oneWrite} {
			for _, scheme := range []string{"http", "https"} {
				t.Run(name+" "+scheme, func(t *testing.T) {
					var connections, requests atomic.Int64
					idle := make(chan struct{})
					handle := func(conn net.Conn, below *net.TCPConn) {
						nth := connections.Add(1)
						for readRequest(conn) {
							requests.Add(1)
							write(conn, "HTTP/1.1 204 No Content\r\n\r\n")
							if nth > 1 {
								continue
							}
							<-idle
							if unasked[0] == "" {
								if unasked[1] == "reset" {
									_ = below.SetLinger(0)
								}
								_ = below.Close()
								return
							}
							write(conn, unasked[0])
							if unasked[1] != "" {
								time.AfterFunc(50*time.Millisecond, func() { write(conn, unasked[1]) })
							}
						}
					}
					w := newTestWebhook(t, nil)
					var url string
					if scheme == "http" {
						url = "http://" + serveRaw(t, true, func(conn net.Conn) { handle(conn, conn.(*net.TCPConn)) })
					} else {
						url, w = serveTLSRaw(t, nil, func(conn *tls.Conn, held *together) { handle(conn, held.Conn.(*net.TCPConn)) })
					}
					r := requestTo(url)
					if got := attempt(t, w, r); got.Code != 204 {
						t.Fatalf("%+v", got)
					}
					close(idle)
					waitForBytes(t, oneKept(t, w))
					r.Body = make([]byte, size)
					if got := attempt(t, w, r); got.Code != 204 {
						t.Errorf("%+v", got)
					}
					if c, n := connections.Load(), requests.Load(); c != 2 || n != 2 {
						t.Errorf("%d requests over %d connections, want 2 and 2", n, c)
					}
					for _, k := range w.client.idle.origins {
						if k.lost != 0 {
							t.Errorf("%d connections count as lost", k.lost)
						}
					}
					w.Close()
				})
			}
		}
	}
}

// A session ticket is no reason to leave a connection.
func TestWire_SendsBehindASessionTicket(t *testing.T) {
	base, w := serveTLSWith(t, func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }) // the tickets come behind the handshake then
	target := w.Target(base, requestTo(base).Secret)
	c, err := w.client.connect(t.Context(), target.origin, time.Now().Add(time.Minute), 0, new(progress))
	if err != nil {
		t.Fatal(err)
	}
	waitForBytes(t, c) // the tickets
	if !w.client.idle.put(c) {
		t.Fatal("the connection is not kept")
	}
	kept := oneKept(t, w)
	kept.reused = true
	if _, _, err := kept.exchange(t.Context(), time.Now().Add(time.Minute), &message{first: []byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")}, new(progress)); err != nil {
		t.Errorf("the connection is left: %v", err)
	}
}

// The system may take only a part of a request at once.
func TestWire_SendsWhatTheSocketDoesNotTakeAtOnce(t *testing.T) {
	for name, sent := range map[string]func(*wire) error{
		"as it reads": func(*wire) error { return nil },
		"by flush":    (*wire).flush,
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			request := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // more than the buffer of a socket
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				got := make([]byte, len(request))
				if _, err := io.ReadFull(conn, got); err == nil && bytes.Equal(got, request) {
					write(conn, "all")
				}
			}()
			conn, err := net.Dial("unix", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			w, seen, answer := newWire(conn, true), new(progress), make([]byte, 10)
			w.hold(seen)
			for part := range slices.Chunk(request, len(request)/4) {
				buffer := bytes.Clone(part)
				if _, err := w.Write(buffer); err != nil {
					t.Fatal(err)
				}
				clear(buffer) // crypto/tls uses it for something else
			}
			if err := sent(w); err != nil {
				t.Fatal(err)
			}
			n, err := w.Read(answer)
			if string(answer[:n]) != "all" || err != nil || !w.release() || phase(seen.phase.Load()) != phaseHeaders {
				t.Errorf("got %q, %v, in phase %d", answer[:n], err, seen.phase.Load())
			}
		})
	}
}

// A server that reads nothing more of a kept connection holds an attempt up until its deadline, and
// the next attempt has a connection of its own.
func TestWire_WaitsUntilTheDeadline(t *testing.T) {
	var requests atomic.Int64
	address := serveRaw(t, true, func(conn net.Conn) {
		for readRequest(conn) {
			if requests.Add(1) == 2 {
				_, _ = io.Copy(io.Discard, conn)
				return
			}
			write(conn, ok200)
		}
	})
	w := newTestWebhook(t, func(c *WebhookConfig) { c.Timeout = 300 * time.Millisecond })
	r := requestTo("http://" + address)
	attempt(t, w, r)
	checkClass(t, attempt(t, w, r), ClassTimeout, 0, "the response headers")
	if got := attempt(t, w, r); got.Outcome != Succeeded {
		t.Errorf("%+v", got)
	}
}

// An exchange that cannot begin any more leaves the request unsent.
func TestWire_SendsNothingBehindTheDeadline(t *testing.T) {
	s, url := startScript(t, func(int64, int64) string { return ok200 })
	w := newTestWebhook(t, nil)
	attempt(t, w, requestTo(url))
	c := w.client.idle.take(requestTo(url).of(w).Target.origin)
	defer c.abandon()
	_, _, err := c.exchange(t.Context(), time.Now().Add(-time.Second), &message{first: []byte("POST / HTTP/1.1\r\n\r\n")}, new(progress))
	if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() || s.requests.Load() != 1 {
		t.Errorf("%v after %d requests", err, s.requests.Load())
	}
}
