package sink

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A server that reads nothing holds up an attempt for delivery.timeout. The TLS message at the end
// does not make it longer.
func TestAttempt_EndsAtItsDeadlineOverTLS(t *testing.T) {
	var trusted []tls.Certificate
	serveTLSWith(t, func(c *tls.Config) { trusted = c.Certificates })
	synctest.Test(t, func(t *testing.T) {
		w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
			config := &tls.Config{Certificates: trusted, SessionTicketsDisabled: true} // a pipe has no room for a ticket that nobody reads
			if tls.Server(conn, config).Handshake() == nil {
				<-time.After(2 * testTimeout)
			}
		})
		w.client.tls.InsecureSkipVerify = true // the certificate is for an address
		r := requestTo("https://hooks.example.com")
		r.Body = make([]byte, 2*oneWrite)
		start := time.Now()
		checkClass(t, attempt(t, w, r), ClassTimeout, 0, "the server to read the request")
		if took := time.Since(start); took != testTimeout {
			t.Errorf("it took %v", took)
		}
		<-time.After(2 * testTimeout) // until the server has ended
	})
}

// An early 2xx does not make an attempt longer than delivery.timeout.
func TestAttempt_EndsAtItsDeadlineBehindAnEarlyAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				return
			}
			<-time.After(testTimeout - earlyTimeout/2)
			write(conn, ok200)
			<-time.After(2 * earlyTimeout)
		})
		r := requestTo("http://hooks.example.com")
		r.Body = make([]byte, 2*oneWrite)
		start := time.Now()
		got := attempt(t, w, r)
		if took := time.Since(start); got.Outcome != Succeeded || took != testTimeout {
			t.Errorf("%+v after %v", got, took)
		}
		<-time.After(2 * earlyTimeout) // until the server has ended
	})
}

// If this side of the wire fails while a long request is sent, it is no attempt, and that is known
// at once.
func TestAttempt_KnowsAFaultOfOursAsItSendsTheRest(t *testing.T) {
	w := newTestWebhook(t, nil)
	failWrites(w, 1, syscall.ENOBUFS)
	r := requestTo(serve(t, discard))
	r.Body = make([]byte, 1<<20)
	if got := attempt(t, w, r); got.Outcome != NotMade || got.Fault != FaultMemory || got.Latency > 5*time.Second {
		t.Errorf("%+v", got)
	}
}

// A server may answer before it has read a long request, and then read on, or not, or reset the
// connection. TestAttempt_WaitsASecondBehindAnEarly2xxAlone measures how long an attempt takes:
// here the kernel's buffers and other tests change it.
func TestAttempt_AnEarlyAnswerCounts(t *testing.T) {
	const size = 16 << 20
	var got atomic.Int64 // bytes of the last request's body
	for name, c := range map[string]struct {
		handle  func(net.Conn, <-chan struct{})
		outcome Outcome
		code    int
		all     bool
	}{
		"refused, and not read": {func(conn net.Conn, over <-chan struct{}) {
			_, _ = conn.Read(make([]byte, 100))
			write(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
			<-over
		}, Failed, 413, false},
		"refused, and reset": {func(conn net.Conn, _ <-chan struct{}) {
			_, _ = conn.Read(make([]byte, 100))
			write(conn, "HTTP/1.1 401 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}, Failed, 401, false},
		"accepted, and reset": {func(conn net.Conn, _ <-chan struct{}) {
			_, _ = io.ReadFull(conn, make([]byte, 1<<20))
			write(conn, ok200)
		}, Succeeded, 200, false},
		"accepted, and read on": {func(conn net.Conn, _ <-chan struct{}) {
			request, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				return
			}
			write(conn, ok200)
			n, _ := io.Copy(io.Discard, request.Body)
			got.Store(n)
		}, Succeeded, 200, true},
		"accepted, and never read": {func(conn net.Conn, over <-chan struct{}) {
			write(conn, ok200)
			<-over
		}, Succeeded, 200, false},
		"no answer, but an end": {func(conn net.Conn, _ <-chan struct{}) { _, _ = conn.Read(make([]byte, 100)) }, Failed, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			r := requestTo("http://" + serveRaw(t, true, func(conn net.Conn) { c.handle(conn, over) }))
			t.Cleanup(func() { close(over) })
			r.Body = make([]byte, size)
			w := newTestWebhook(t, nil)
			result := attempt(t, w, r)
			if result.Outcome != c.outcome || result.Code != c.code {
				t.Errorf("%+v", result)
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

// A server that stops reading a long request gets a second to read on if it has accepted the
// request, and none otherwise.
func TestAttempt_WaitsASecondBehindAnEarly2xxAlone(t *testing.T) {
	for name, c := range map[string]struct {
		answer string // then nothing more is read; the server ends the connection where it is empty
		code   int
		took   time.Duration
	}{
		"accepted":  {ok200, 200, earlyTimeout},
		"refused":   {"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", 413, 0},
		"no answer": {"", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil || c.answer == "" {
						return
					}
					write(conn, c.answer)
					<-time.After(testTimeout)
				})
				r := requestTo("http://hooks.example.com")
				r.Body = make([]byte, 2*oneWrite)
				start := time.Now()
				got := attempt(t, w, r)
				if took := time.Since(start); got.Code != c.code || took != c.took {
					t.Errorf("%+v after %v, want %v", got, took, c.took)
				}
				<-time.After(testTimeout) // until the server has ended
			})
		})
	}
}

// If a server has answered and reset the connection before anything was sent, its answer counts.
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
		for arrived := false; !arrived; runtime.Gosched() { // a write fails once the reset is here
			_, err := opened.Write([]byte("P"))
			arrived = err != nil
		}
		return opened, nil
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
	r.Body = make([]byte, 16<<20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	w := newTestWebhook(t, nil)
	if got := w.Attempt(ctx, r.of(w)); got.Outcome != Canceled || got.Latency > 5*time.Second {
		t.Errorf("%+v", got)
	}
}
