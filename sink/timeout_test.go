package sink

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const testTimeout = 15 * time.Second

// pipeWebhook makes a Webhook for a synctest bubble. Its connections are pipes to handle, which may
// wait only for the bubble's clock and for its connection. If handle is nil, the dial hangs in the
// phase that it has reached.
func pipeWebhook(t *testing.T, reached phase, handle func(net.Conn)) *Webhook {
	w := newTestWebhook(t, func(c *WebhookConfig) { c.Timeout = testTimeout })
	w.client.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		progressOf(ctx).reach(reached)
		if handle == nil {
			ctx, cancel := context.WithTimeout(ctx, testTimeout+time.Second) // as net.Dialer.Timeout does
			defer cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		client, server := net.Pipe()
		go func() { // ends when handle returns
			defer server.Close()
			handle(server)
		}()
		return client, nil
	}
	return w
}

// respond reads a request and then writes parts, a second apart, until the client closes the
// connection.
func respond(conn net.Conn, parts ...string) {
	if !readRequest(conn) {
		return
	}
	for _, part := range parts {
		if _, err := io.WriteString(conn, part); err != nil {
			return
		}
		pause(conn)
	}
	_, _ = io.Copy(io.Discard, conn) // hold the connection until the client closes it
}

// pause waits for a second of the bubble's clock, or for the end of conn.
func pause(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = conn.Read(make([]byte, 1))
	_ = conn.SetReadDeadline(time.Time{})
}

func TestAttempt_EndsAtItsDeadlineAndSaysWhatItWaitedFor(t *testing.T) {
	drip := strings.Split(strings.Repeat("x", 100), "")
	silent := func(conn net.Conn) { respond(conn) }
	for _, c := range []struct {
		name   string
		scheme string
		phase  phase
		handle func(net.Conn)
		class  Class
		words  string
	}{
		{"DNS", "http", phaseDNS, nil, ClassDNSError, "waiting for DNS"},
		{"connect", "http", phaseConnect, nil, ClassConnectTimeout, "waiting for the connection"},
		{"TLS", "https", phaseConnect, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, ClassTimeout, "waiting for the TLS handshake"},
		{"unread request", "http", phaseConnect, func(net.Conn) { <-time.After(testTimeout + time.Second) }, ClassTimeout, "waiting for the server to read"},
		{"hung headers", "http", phaseConnect, silent, ClassTimeout, "waiting for the response headers"},
		{"dribbling headers", "http", phaseConnect, func(c net.Conn) {
			respond(c, append([]string{"HTTP/1.1 200 OK\r\nX: "}, drip...)...)
		}, ClassTimeout, "waiting for the response headers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := pipeWebhook(t, c.phase, c.handle)
				r := requestTo(c.scheme + "://hooks.example.com")
				r.Body = make([]byte, 64<<10) // more than net/http buffers
				got := attempt(t, w, r)
				checkClass(t, got, c.class, 0, "timeout after 15s (delivery.timeout)", c.words)
				if got.Outcome != Failed || got.Latency != testTimeout {
					t.Errorf("%+v", got)
				}
				<-time.After(2 * time.Second) // a server that outlives the attempt ends within
			})
		})
	}
}

// A body that never ends holds the endpoint's place for a tenth of a second, whatever its framing.
func TestAttempt_WaitsATenthOfASecondForTheBodyOfAFailure(t *testing.T) {
	for _, head := range []string{"500 No\r\nContent-Length: 100", "500 No\r\nTransfer-Encoding: chunked", "404 No\r\nX: y", "302 No\r\nContent-Length: 100"} {
		synctest.Test(t, func(t *testing.T) {
			w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
				respond(conn, "HTTP/1.1 "+head+"\r\n\r\n3\r\n", "x", "y")
			})
			start := time.Now()
			got := attempt(t, w, requestTo("http://hooks.example.com"))
			if took := time.Since(start); took != 100*time.Millisecond || got.Outcome != Failed || got.Code == 0 || got.Latency != 0 || len(got.Response) > 3 {
				t.Errorf("%q: after %v: %+v", head, took, got)
			}
		})
	}
}

func TestAttempt_HardlyWaitsForTheBodyOfASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
			respond(conn, append([]string{"HTTP/1.1 200 OK\r\n\r\n"}, strings.Split(strings.Repeat("x", 100), "")...)...)
		})
		start := time.Now()
		got := attempt(t, w, requestTo("http://hooks.example.com"))
		if time.Since(start) != drainTimeout || got.Outcome != Succeeded || got.Latency != 0 {
			t.Errorf("after %v: %+v", time.Since(start), got)
		}
	})
}

func TestAttempt_DoesNotReadASwitchedProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
			respond(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		})
		start := time.Now()
		got := attempt(t, w, requestTo("http://hooks.example.com"))
		checkClass(t, got, ClassHTTPStatus, 101)
		if time.Since(start) != 0 {
			t.Errorf("it took %v", time.Since(start))
		}
	})
}

func TestAttempt_IsCanceledOnlyByItsCaller(t *testing.T) {
	const soon, late = 3 * time.Second, time.Minute
	hang := func(conn net.Conn) { respond(conn) }
	for _, c := range []struct {
		name    string
		context func(context.Context) (context.Context, context.CancelFunc)
		outcome Outcome
		class   Class
		after   time.Duration
	}{
		{"canceled", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			time.AfterFunc(soon, func() { cancel(errors.New("shutdown")) })
			return ctx, func() { cancel(nil) }
		}, Canceled, ClassCanceled, soon},
		{"caller's deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, soon)
		}, Canceled, ClassCanceled, soon},
		{"own deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, late)
		}, Failed, ClassTimeout, testTimeout},
		{"canceled before", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx, cancel
		}, Canceled, ClassCanceled, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := pipeWebhook(t, phaseConnect, hang)
				ctx, cancel := c.context(t.Context())
				defer cancel()
				got := w.Attempt(ctx, requestTo("http://hooks.example.com").of(w))
				if got.Outcome != c.outcome || got.Class != c.class || got.Latency != c.after || got.Error == "" {
					t.Errorf("%+v, want outcome %d, class %s, after %v", got, c.outcome, c.class, c.after)
				}
			})
		})
	}
}

// A status line that arrived before the caller's context ended is a result, not a cancellation.
func TestAttempt_KeepsAResultThatArrivedBeforeTheCancellation(t *testing.T) {
	for status, outcome := range map[string]Outcome{"200 OK": Succeeded, "500 No": Failed} {
		synctest.Test(t, func(t *testing.T) {
			w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
				respond(conn, "HTTP/1.1 "+status+"\r\nContent-Length: 100\r\n\r\npart")
			})
			ctx, cancel := context.WithTimeout(t.Context(), drainTimeout/2)
			defer cancel()
			if got := w.Attempt(ctx, requestTo("http://hooks.example.com").of(w)); got.Outcome != outcome {
				t.Errorf("%s: %+v", status, got)
			}
		})
	}
}

func TestAttempt_ReadsARetryAfterDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
			until := time.Now().Add(10 * time.Minute).UTC().Format(http.TimeFormat)
			respond(conn, "HTTP/1.1 503 No\r\nContent-Length: 0\r\nRetry-After: "+until+"\r\n\r\n")
		})
		if got := attempt(t, w, requestTo("http://hooks.example.com")); got.RetryAfter != 10*time.Minute {
			t.Errorf("%+v", got)
		}
	})
}

func TestAttempt_SignsWithTheTimeOfTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timestamps := make(chan string, 2) // one for each attempt; the test receives after both
		w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
			if request, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				timestamps <- request.Header.Get(HeaderTimestamp)
			}
		})
		r := requestTo("http://hooks.example.com")
		attempt(t, w, r)
		<-time.After(5 * time.Second)
		attempt(t, w, r)
		first, _ := time.ParseDuration(<-timestamps + "s")
		second, _ := time.ParseDuration(<-timestamps + "s")
		if second-first != 5*time.Second {
			t.Errorf("timestamps %v and %v, want five seconds between them", first, second)
		}
	})
}
