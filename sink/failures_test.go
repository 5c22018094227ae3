package sink

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// These servers break the protocol as real ones do. Each must get its own class.
func TestAttempt_NamesWhatTheServerDidWrong(t *testing.T) {
	const banner = "SSH-2.0-OpenSSH_9.7\r\n"
	for _, c := range []struct {
		name       string
		speakFirst bool
		handle     func(net.Conn)
		class      Class
		words      string
	}{
		{"SSH banner", true, func(c net.Conn) { write(c, banner); _, _ = io.Copy(io.Discard, c) }, ClassNotHTTP, "not valid HTTP"},
		{"SSH banner as the answer", false, func(c net.Conn) { write(c, banner) }, ClassNotHTTP, "not valid HTTP"},
		{"malformed status", false, func(c net.Conn) { write(c, "HTTP/1.1 2x0 OK\r\n\r\n") }, ClassNotHTTP, "not valid HTTP"},
		{"malformed header", false, func(c net.Conn) { write(c, "HTTP/1.1 200 OK\r\nno colon\r\n\r\n") }, ClassNotHTTP, "not valid HTTP"},
		{"bad length", false, func(c net.Conn) { write(c, "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n") }, ClassNotHTTP, "not valid HTTP"},
		{"unknown encoding", false, func(c net.Conn) { write(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\n") }, ClassNotHTTP, "not valid HTTP"},
		{"5 MB of headers", false, func(c net.Conn) {
			write(c, "HTTP/1.1 200 OK\r\n")
			for range 5000 {
				write(c, "X-Filler: "+strings.Repeat("x", 1000)+"\r\n")
			}
			write(c, "\r\n")
		}, ClassResponseTooLarge, "32 KiB"},
		{"flood of 103", false, func(c net.Conn) {
			for range 10_000 {
				write(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
			}
		}, ClassResponseTooLarge, "32 KiB"},
		{"close before the answer", false, func(net.Conn) {}, ClassConnectionReset, "before it answered"},
		{"close inside the headers", false, func(c net.Conn) { write(c, "HTTP/1.1 200 OK\r\nX:") }, ClassConnectionReset, "before it answered"},
		{"close at once", true, func(net.Conn) {}, ClassConnectionReset, "closed the connection"},
		{"reset", false, reset, ClassConnectionReset, "before it answered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTestWebhook(t, nil)
			got := attempt(t, w, requestTo("http://"+serveRaw(t, c.speakFirst, c.handle)))
			checkClass(t, got, c.class, 0, c.words)
			if strings.Contains(got.Error, "SSH") || strings.Contains(got.Error, "Filler") {
				t.Errorf("the sentence repeats the server's words: %s", got.Error)
			}
		})
	}
}

// reset makes the close of conn send RST.
func reset(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) }

func TestAttempt_SucceedsThoughTheBodyBreaks(t *testing.T) {
	w := newTestWebhook(t, nil)
	for name, after := range map[string]func(net.Conn){
		"truncated": func(net.Conn) {},
		"reset":     reset,
	} {
		got := attempt(t, w, requestTo("http://"+serveRaw(t, false, func(conn net.Conn) {
			write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
			after(conn)
		})))
		checkClass(t, got, "", 200)
		if got.Outcome != Succeeded {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestAttempt_ReportsAnAnswerThatCameBeforeTheWholeRequest(t *testing.T) {
	address := serveRaw(t, true, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 100))
		write(conn, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	r := requestTo("http://" + address)
	r.Body = make([]byte, 1<<20)
	checkClass(t, attempt(t, newTestWebhook(t, nil), r), ClassHTTPStatus, 413)
}

func TestAttempt_NamesARefusedConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close() // its port is free now
	got := attempt(t, newTestWebhook(t, nil), requestTo("http://"+listener.Addr().String()))
	checkClass(t, got, ClassConnectRefused, 0, "127.0.0.1", "nothing listens")
}

func TestAttempt_ContinuesBehindARefusedAddress(t *testing.T) {
	// The name has two addresses. The guard refuses the first, and the server at the second breaks
	// the protocol. The failure must be that of the second.
	w := newTestWebhook(t, nil)
	address := serveRaw(t, false, func(conn net.Conn) { write(conn, "nonsense\r\n\r\n") })
	dial := w.client.dial
	w.client.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		if err := w.guard.control(ctx, network, "10.0.0.1:80", nil); !errors.Is(err, errBlocked) {
			t.Errorf("the guard lets 10.0.0.1 through: %v", err)
		}
		return dial(ctx, network, address)
	}
	checkClass(t, attempt(t, w, requestTo("http://hooks.example.com")), ClassNotHTTP, 0)
}

func TestAttempt_NamesFailuresOfTheDial(t *testing.T) {
	dialError := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, c := range []struct {
		name  string
		err   error
		class Class
		words []string
	}{
		{"NXDOMAIN", dialError(&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}), ClassDNSError, []string{"no such host", "hooks.example.com"}},
		{"no DNS answer", dialError(&net.DNSError{Err: "i/o timeout", Server: "10.9.9.9:53", IsTimeout: true}), ClassDNSError, []string{"DNS did not answer"}},
		{"SERVFAIL", dialError(&net.DNSError{Err: "server misbehaving", Server: "10.9.9.9:53", IsTemporary: true}), ClassDNSError, []string{"DNS could not look up"}},
		{"kernel timeout", dialError(syscall.ETIMEDOUT), ClassConnectTimeout, []string{"timed out"}},
		{"no route", dialError(syscall.EHOSTUNREACH), ClassNetworkError, []string{"hooks.example.com", "no route to host"}},
		{"no IPv6", dialError(syscall.ENETUNREACH), ClassNetworkError, []string{"network is unreachable"}},
		{"unknown", errors.New("sentinel text of a stranger"), ClassNetworkError, []string{"failed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTestWebhook(t, nil)
			w.client.dial = func(context.Context, string, string) (net.Conn, error) { return nil, c.err }
			got := attempt(t, w, requestTo("http://hooks.example.com"))
			checkClass(t, got, c.class, 0, c.words...)
			if strings.Contains(got.Error, "10.9.9.9") {
				t.Errorf("the sentence names the operator's resolver: %s", got.Error)
			}
		})
	}
}

func TestAttempt_BoundsItsSentences(t *testing.T) {
	w := newTestWebhook(t, nil)
	w.client.dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{IsNotFound: true}
	}
	host := strings.Repeat("a23456789.", 25) + "com"
	checkClass(t, attempt(t, w, requestTo("http://"+host)), ClassDNSError, 0, "…: check the host name")
}

// net/http returns one of several errors, depending on which is first, the end of the connection or
// the request. Repetition meets most of them.
func TestAttempt_NamesAConnectionThatEndsBeforeTheRequest(t *testing.T) {
	w := newTestWebhook(t, nil)
	address := serveRaw(t, true, func(net.Conn) {})
	dial := w.client.dial
	w.client.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err == nil {
			_, _ = conn.Read(make([]byte, 1)) // until the server has closed it
		}
		return conn, err
	}
	for range 1000 {
		checkClass(t, attempt(t, w, requestTo("http://"+address)), ClassConnectionReset, 0, "closed the connection")
	}
}

func TestDial_NotesHowFarItCame(t *testing.T) {
	w := newTestWebhook(t, nil)
	address := serveRaw(t, true, func(net.Conn) {})
	for _, c := range []struct {
		address  string
		canceled bool
		want     phase
	}{
		{address, false, phaseConnect},
		{"10.0.0.1:80", false, phaseDNS}, // refused by the guard
		{address, true, phaseDNS},
	} {
		p := new(progress)
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), progressKey{}, p))
		if c.canceled {
			cancel()
		}
		conn, err := w.client.dial(ctx, "tcp", c.address)
		if err == nil {
			conn.Close()
		}
		if got := phase(p.phase.Load()); got != c.want {
			t.Errorf("%+v: waiting for %v, want %v (error %v)", c, got, c.want, err)
		}
		p.reach(phaseDNS)
		if got := phase(p.phase.Load()); got != c.want {
			t.Errorf("%+v: the phase went back to %v", c, got)
		}
		cancel()
	}
}

func TestDial_LooksNamesUpWithoutSearchDomains(t *testing.T) {
	for in, want := range map[string]string{
		"postgres.default:443": "postgres.default.:443",
		"hooks.example.com.:1": "hooks.example.com.:1",
		"localhost:80":         "localhost:80",
		"127.0.0.1:80":         "127.0.0.1:80",
		"[::1]:80":             "[::1]:80",
	} {
		if got := absoluteName(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestClose_ClosesIdleConnections(t *testing.T) {
	closed := make(chan struct{}) // closed by the server when its connection ends
	address := serveRaw(t, false, func(conn net.Conn) {
		write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
		close(closed)
	})
	w := newTestWebhook(t, nil)
	checkClass(t, attempt(t, w, requestTo("http://"+address)), "", http.StatusOK)
	w.Close()
	<-closed
}
