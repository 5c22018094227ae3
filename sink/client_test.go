package sink

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

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

// Late bytes behind an answer are not taken for the next answer. Neither is what a server sends
// before it closes an idle connection. Both arrive only when the next request is there, so that a
// look before that finds nothing.
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
	// On a fresh connection the same bytes are an answer.
	for said, class := range map[string]Class{"\r\n<html>": ClassNotHTTP, "HTTP/1.1 408 No\r\nConnection: close\r\n\r\n": ClassHTTPStatus, "": ClassConnectionReset} {
		s, url := startScript(t, func(int64, int64) string { return said })
		if got := attempt(t, newTestWebhook(t, nil), requestTo(url)); got.Class != class || s.requests.Load() != 1 {
			t.Errorf("%q: %+v after %d requests", said, got, s.requests.Load())
		}
	}
}

// Bytes that came over an idle connection are not the answer to the next request, even if they look
// like one.
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
	waitForBytes(t, w.client.idle.oldest.Front().Value.(*conn))
	if got := attempt(t, w, first); got.Code != 200 {
		t.Errorf("the unasked answer counts: %+v", got)
	}
}

// An answer that nobody asked for, which came with the answer before in a TLS record of its own, is
// not the answer to the next request.
func TestClient_LooksAtWhatTLSHasReadBefore(t *testing.T) {
	var connections atomic.Int64
	url, w := serveTLSRaw(t, nil, func(conn *tls.Conn, held *together) {
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
	w.Close() // the server waits for the end of the last one
}

// A server that does not speak HTTP/1.1 is recognized, with TLS and without, whether it shows that
// in the handshake or by frames.
func TestAttempt_NamesAServerOfHTTP2Only(t *testing.T) {
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	plain := "http://" + serveRaw(t, false, func(conn net.Conn) {
		write(conn, settings)
		_, _ = io.Copy(io.Discard, conn)
	})
	checkClass(t, attempt(t, newTestWebhook(t, nil), requestTo(plain)), ClassH2C, 0, "h2c")

	for protocol, words := range map[string]string{
		"":       "in HTTP/2 only",                  // it does not look at ALPN
		"spdy/3": "refuses HTTP/1.1 in the TLS han", // as "h2" would, were it not for an exception of crypto/tls
	} {
		url, w := serveTLSRaw(t, strings.Fields(protocol), func(conn *tls.Conn, _ *together) {
			write(conn, settings)
			_, _ = io.Copy(io.Discard, conn)
		})
		checkClass(t, attempt(t, w, requestTo(url)), ClassHTTP2Only, 0, words)
	}
}
