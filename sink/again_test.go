package sink

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// Servers close kept connections whenever they like, and many do so without a word.
func TestAttempt_GoesOnceMoreWhenAKeptConnectionHasEnded(t *testing.T) {
	for name, end := range map[string]func(net.Conn){
		"closes":    func(conn net.Conn) { _ = conn.Close() },
		"resets":    func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0); _ = conn.Close() },
		"half-open": func(conn net.Conn) { _ = conn.(*net.TCPConn).CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			var connections, requests atomic.Int64
			address := serveRaw(t, true, func(conn net.Conn) {
				connections.Add(1)
				reader := bufio.NewReader(conn)
				for n := 0; ; n++ {
					request, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, request.Body)
					if requests.Add(1); n == 1 { // the second one on this connection
						end(conn)
						return
					}
					write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			w := newTestWebhook(t, nil)
			const attempts = 10
			for range attempts {
				if got := attempt(t, w, requestTo("http://"+address)); got.Outcome != Succeeded {
					t.Errorf("%+v", got)
				}
			}
			if c, r := connections.Load(), requests.Load(); c != attempts || r != attempts+lostInARow {
				t.Errorf("%d connections, %d requests, want %d and %d: the server is found out", c, r, attempts, attempts+lostInARow)
			}
		})
	}
}

// An attempt on a fresh connection is not sent again: the server was there, and has seen the event.
func TestAttempt_DoesNotGoOnceMoreWhenAFreshConnectionEnds(t *testing.T) {
	var requests atomic.Int64
	address := serveRaw(t, true, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			requests.Add(1)
		}
		_ = conn.Close()
	})
	got := attempt(t, newTestWebhook(t, nil), requestTo("http://"+address))
	checkClass(t, got, ClassConnectionReset, 0)
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// The receiver of the customers' page reads one header and knows one secret. It changes to the new
// one whenever it likes.
func TestAttempt_ARotationFailsNothingAtAReceiverThatKnowsOneSecret(t *testing.T) {
	const former, current = "the-former-secret", "the-new-secret"
	var knows atomic.Pointer[string]
	var requests atomic.Int64
	code := http.StatusUnauthorized
	url := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		body, _ := io.ReadAll(r.Body)
		mac := hmac.New(sha256.New, []byte(*knows.Load()))
		mac.Write(body)
		if r.Header.Get("X-Quintago-Signature") != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
			rw.WriteHeader(code)
		}
	})
	// This one knows the new secret and takes every other request.
	var limit atomic.Int64
	limitedURL := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mac := hmac.New(sha256.New, []byte(current))
		mac.Write(body)
		switch {
		case r.Header.Get("X-Quintago-Signature") != "sha256="+hex.EncodeToString(mac.Sum(nil)):
			rw.WriteHeader(code)
		case limit.Add(1) == 1:
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	w := newTestWebhook(t, nil)
	for _, code = range []int{400, 401, 403} {
		target := rotating(w, url, secret.New(current), secret.New(former))
		for step, known := range []string{former, former, current, current, former, current} {
			knows.Store(&known)
			requests.Store(0)
			got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)})
			if got.Outcome != Succeeded || requests.Load() > 2 {
				t.Errorf("%d, step %d: %+v after %d requests", code, step, got, requests.Load())
			}
			got = w.Attempt(t.Context(), Request{Target: target, EventID: "evt_2", Body: []byte(testBody)})
			if got.Outcome != Succeeded || requests.Load() > 3 {
				t.Errorf("%d, step %d: what was accepted is not remembered: %+v after %d requests", code, step, got, requests.Load())
			}
		}
		// After the receiver has accepted the new secret, other failures, such as a limit on the
		// rate, do not make the agent forget that.
		limited := rotating(w, limitedURL, secret.New(current), secret.New(former))
		for _, want := range []int{503, 200} {
			got := w.Attempt(t.Context(), Request{Target: limited, EventID: "evt_1", Body: []byte(testBody)})
			if got.Code != want {
				t.Errorf("%d: behind a limit: %+v, want %d", code, got, want)
			}
		}
		limit.Store(0)
		// A receiver that knows neither secret fails after both were tried.
		neither := "another"
		knows.Store(&neither)
		requests.Store(0)
		got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_3", Body: []byte(testBody)})
		if got.Outcome != Failed || got.Code != code || requests.Load() != 2 {
			t.Errorf("%d: %+v after %d requests", code, got, requests.Load())
		}
		// When the overlap is over the former secret signs nothing.
		known := former
		knows.Store(&known)
		requests.Store(0)
		got = w.Attempt(t.Context(), Request{Target: target, EventID: "evt_4", Body: []byte(testBody), At: time.Now().Add(2 * time.Hour)})
		if got.Outcome != Failed || requests.Load() != 1 {
			t.Errorf("%d: %+v after %d requests without an overlap", code, got, requests.Load())
		}
	}
}

// If a receiver answers a wrong signature with any other status, the next attempt uses the other
// secret, so that a retry delivers.
func TestAttempt_ARotationTriesTheOtherSecretNextAfterAnyFailure(t *testing.T) {
	const former, current = "the-former-secret", "the-new-secret"
	for _, code := range []int{404, 422, 500, 302} {
		url := serve(t, func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mac := hmac.New(sha256.New, []byte(current))
			mac.Write(body)
			if r.Header.Get("X-Quintago-Signature") != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
				rw.WriteHeader(code)
			}
		})
		w := newTestWebhook(t, nil)
		target := rotating(w, url, secret.New(current), secret.New(former))
		for _, want := range []int{code, 200, 200} {
			if got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)}); got.Code != want {
				t.Errorf("%+v, want %d", got, want)
			}
		}
	}
}

// If the body of a first answer never ends, the other secret is still tried. If the second exchange
// gets no answer, the first answer is the result.
func TestAttempt_ARotationKnowsTheFirstAnswer(t *testing.T) {
	var requests atomic.Int64
	address := serveRaw(t, false, func(conn net.Conn) {
		if requests.Add(1)%2 == 1 {
			write(conn, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\nno")
			_, _ = io.Copy(io.Discard, conn)
		}
	})
	w := newTestWebhook(t, nil)
	target := rotating(w, "http://"+address, secret.New("the-new-secret"), secret.New("the-former-secret"))
	got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)})
	if requests.Load() != 2 || got.Code != 401 || got.Response != "no" {
		t.Errorf("%+v after %d requests", got, requests.Load())
	}
}

// A server that crashes because of a request gets it on one kept connection only, not on all of
// them.
func TestAttempt_GoesOnFewConnections(t *testing.T) {
	var deadly atomic.Int64
	var together sync.WaitGroup
	together.Add(10)
	address := serveRaw(t, true, func(conn net.Conn) {
		reader := bufio.NewReader(conn)
		for {
			request, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, request.Body)
			if request.Header.Get(HeaderID) == "evt_deadly" {
				deadly.Add(1)
				return
			}
			together.Done() // so that ten connections are made
			together.Wait()
			write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	w := newTestWebhook(t, func(c *WebhookConfig) { c.MaxIdlePerHost = 20 })
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { attempt(t, w, requestTo("http://"+address)) })
	}
	all.Wait()
	r := requestTo("http://" + address)
	r.EventID = "evt_deadly"
	checkClass(t, attempt(t, w, r), ClassConnectionReset, 0)
	if n := deadly.Load(); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// A failure on the second connection is judged by itself, as if the first had not been used. Our
// resolver may have failed meanwhile, for example.
func TestAttempt_JudgesTheConnectionThatItFailedOn(t *testing.T) {
	d := testenv.StartDNS(t)
	d.Say("moves.example.", dnsmessage.RCodeSuccess)
	address := serveRaw(t, true, func(conn net.Conn) {
		reader := bufio.NewReader(conn)
		for n := range 2 {
			request, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, request.Body)
			if n == 0 {
				write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}
	})
	_, port, _ := net.SplitHostPort(address)
	w := newNamedWebhook(t, d.Resolver(), time.Second)
	r := requestTo("http://moves.example:" + port)
	if got := attempt(t, w, r); got.Outcome != Succeeded {
		t.Fatalf("%+v", got)
	}
	d.Forget()
	d.Say(testenv.EveryName, dnsmessage.RCodeServerFailure)
	if got := attempt(t, w, r); got.Outcome != NotMade || got.Fault != FaultResolver {
		t.Errorf("%+v", got)
	}
}
