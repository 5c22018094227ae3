package sink

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
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
				t.Run(fmt.Sprintf("%s, %s, %d bytes", name, scheme, size), func(t *testing.T) {
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

// An answer that nobody has asked for may have come with the answer before, in one segment, as a
// record of TLS that crypto/tls has read already. Or only the first half of its record has come. It
// is no answer to the next request, however long that is.
func TestWire_LooksAtRecordsOfTLS(t *testing.T) {
	const answer, unasked = "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 200 Unasked\r\nContent-Length: 0\r\n\r\n"
	for name, c := range map[string]struct {
		records []string
		with    int // so many records come with the answer before; with none, half of one comes while the connection is idle
	}{
		"with the answer before":            {[]string{unasked}, 1},
		"half of it with the answer before": {[]string{unasked[:12], unasked[12:]}, 1},
		"half of its record":                {[]string{unasked}, 0},
	} {
		for _, size := range []int{2, 2 * oneWrite} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, size), func(t *testing.T) {
				var connections atomic.Int64
				idle := make(chan struct{})
				url, w := serveTLSRaw(t, nil, func(conn *tls.Conn, held *together) {
					first := connections.Add(1) == 1
					for readRequest(conn) {
						if !first {
							write(conn, answer)
							continue
						}
						held.hold = true
						var ends []int
						for _, record := range append([]string{answer}, c.records...) {
							write(conn, record)
							ends = append(ends, len(held.held))
						}
						all, early := string(held.held), ends[c.with]
						late := early
						if c.with == 0 {
							late = (early + len(all)) / 2
						}
						write(held.Conn, all[:early])
						<-idle
						write(held.Conn, all[early:late])
						time.AfterFunc(50*time.Millisecond, func() { write(held.Conn, all[late:]) })
						_, _ = io.Copy(io.Discard, conn)
						return
					}
				})
				r := requestTo(url)
				if got := attempt(t, w, r); got.Code != 204 {
					t.Fatalf("%+v", got)
				}
				kept := oneKept(t, w)
				if close(idle); c.with == 0 {
					waitForBytes(t, kept)
				}
				r.Body = make([]byte, size)
				if got := attempt(t, w, r); got.Code != 204 || connections.Load() != 2 {
					t.Errorf("%+v over %d connections, want a second one", got, connections.Load())
				}
				w.Close()
			})
		}
	}
}

// A connection over TLS is used again, with short requests and long ones. The look through crypto/tls
// does not spoil it, nor do the session tickets that came with the first answer.
func TestWire_UsesAConnectionOverTLSAgain(t *testing.T) {
	for _, size := range []int{2, 2 * oneWrite} {
		base, w := serveTLSWith(t, func(*tls.Config) {})
		r := requestTo(base)
		r.Body = make([]byte, size)
		conns := countConns(w)
		for range 3 {
			if got := attempt(t, w, r); got.Outcome != Succeeded {
				t.Fatalf("%+v", got)
			}
		}
		if n := conns.Load(); n != 1 {
			t.Errorf("%d connections for three requests of %d bytes, want 1", n, size)
		}
	}
}

// The system may take only a part of a request at once.
func TestWire_SendsWhatTheSocketDoesNotTakeAtOnce(t *testing.T) {
	for name, seen := range map[string]*progress{"all of it": new(progress), "its first part": nil} {
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
			w, answer := newWire(conn, true), make([]byte, 10)
			w.hold(seen)
			for part := range slices.Chunk(request, len(request)/4) {
				buffer := bytes.Clone(part)
				if _, err := w.Write(buffer); err != nil {
					t.Fatal(err)
				}
				clear(buffer) // crypto/tls uses it for something else
			}
			n, err := w.Read(answer)
			if seen == nil {
				if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || w.held {
					t.Errorf("got %q, %v instead of the end of the sending", answer[:n], err)
				}
				n, err = w.Read(answer)
			}
			if string(answer[:n]) != "all" || err != nil || !w.release() || seen != nil && phase(seen.phase.Load()) != phaseHeaders {
				t.Errorf("got %q, %v", answer[:n], err)
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
