package sink

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/quintago/webhook-agent/secret"
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
			for range 5 {
				if got := attempt(t, w, requestTo("http://"+address)); got.Outcome != Succeeded {
					t.Errorf("%+v", got)
				}
			}
			if c, r := connections.Load(), requests.Load(); c != 5 || r != 9 {
				t.Errorf("%d connections, %d requests, want 5 and 9: each but the first went twice", c, r)
			}
		})
	}
}

// A connection that is fresh is not tried again: the server was there, and has seen the event.
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

// The receiver of the customers' page reads one header and knows one secret. It changes to the new one whenever it likes.
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
	w := newTestWebhook(t, nil)
	for _, code = range []int{400, 401, 403} {
		target := w.Target(url, secret.New(current), secret.New(former))
		for step, known := range []string{former, former, current, current, former, current} {
			knows.Store(&known)
			requests.Store(0)
			got := w.Attempt(t.Context(), Request{Target: target, Rotates: true, EventID: "evt_1", Body: []byte(testBody)})
			if got.Outcome != Succeeded || requests.Load() > 2 {
				t.Errorf("%d, step %d: %+v after %d requests", code, step, got, requests.Load())
			}
			got = w.Attempt(t.Context(), Request{Target: target, Rotates: true, EventID: "evt_2", Body: []byte(testBody)})
			if got.Outcome != Succeeded || requests.Load() > 3 {
				t.Errorf("%d, step %d: what was accepted is not remembered: %+v after %d requests", code, step, got, requests.Load())
			}
		}
		// One that knows neither fails, after both.
		neither := "another"
		knows.Store(&neither)
		requests.Store(0)
		got := w.Attempt(t.Context(), Request{Target: target, Rotates: true, EventID: "evt_3", Body: []byte(testBody)})
		if got.Outcome != Failed || got.Code != code || requests.Load() != 2 {
			t.Errorf("%d: %+v after %d requests", code, got, requests.Load())
		}
		// When the overlap is over the former secret signs nothing.
		known := former
		knows.Store(&known)
		requests.Store(0)
		got = w.Attempt(t.Context(), Request{Target: target, EventID: "evt_4", Body: []byte(testBody)})
		if got.Outcome != Failed || requests.Load() != 1 {
			t.Errorf("%d: %+v after %d requests without an overlap", code, got, requests.Load())
		}
	}
}
