package sink

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// page is a receiver written to the customers' page: it reads X-Quintago-Signature and knows one
// secret.
type page struct {
	url      string
	knows    atomic.Pointer[string]
	requests atomic.Int64
	answers  atomic.Int64 // status for a signature that is wrong
}

func servePage(t *testing.T, knows string) *page {
	p := &page{}
	p.knows.Store(&knows)
	p.answers.Store(http.StatusUnauthorized)
	p.url = serve(t, func(rw http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		body, _ := io.ReadAll(r.Body)
		if Verify(r.Header, body, time.Now(), secret.New(*p.knows.Load())).Quintago != nil {
			rw.WriteHeader(int(p.answers.Load()))
		}
	})
	return p
}

// After several rotations within an overlap there are several former secrets, and the receiver may
// have any of them.
func TestAttempt_FindsTheSecretThatTheReceiverIsOn(t *testing.T) {
	w := newTestWebhook(t, nil)
	send := func(target *Target) Result {
		return w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)})
	}
	secrets := func(texts string) (all []secret.Text) {
		for _, text := range strings.Fields(texts) {
			all = append(all, secret.New(text))
		}
		return all
	}
	for _, c := range []struct {
		secrets, knows string // the current one first, then the former ones, the newest first
		requests       []int64
	}{
		{"c b a", "a", []int64{1}}, // the oldest: who has just been there since before the rotations
		{"c b a", "c", []int64{2}}, // then the newest: what a receiver changes to
		{"c b a", "b", []int64{3}},
		{"d c b a", "d", []int64{2}},
		{"d c b a", "b", []int64{3, 1}}, // not in the first attempt, which makes three requests at most
		{"f e d c b a", "b", []int64{3, 3}},
		{"f e d c b a", "c", []int64{3, 2}},
		{"f e d c b a", "none", []int64{3, 3, 3, 3}},
	} {
		p := servePage(t, c.knows)
		all := secrets(c.secrets)
		target := rotating(w, p.url, all[0], all[1:]...)
		for i, want := range c.requests {
			got := send(target)
			if n := p.requests.Swap(0); n != want || (got.Outcome == Succeeded) != (i+1 == len(c.requests) && c.knows != "none") {
				t.Errorf("%s, the receiver knows %s: attempt %d made %d requests, want %d: %+v", c.secrets, c.knows, i+1, n, want, got)
			}
		}
		if c.knows == "none" {
			continue
		}
		for range 2 {
			if got := send(target); got.Outcome != Succeeded || p.requests.Swap(0) != 1 {
				t.Errorf("%s, the receiver knows %s: what was accepted is not remembered: %+v", c.secrets, c.knows, got)
			}
		}
		// Another rotation does not change which secret the receiver has.
		next := rotating(w, p.url, secret.New("new"), all...)
		next.Follow(target)
		if got := send(next); got.Outcome != Succeeded || p.requests.Swap(0) != 1 {
			t.Errorf("%s, the receiver knows %s: after another rotation: %+v", c.secrets, c.knows, got)
		}
	}

	// Anything that is not 400, 401 or 403 ends the attempt, and the next one tries another secret.
	p := servePage(t, "b")
	p.answers.Store(http.StatusInternalServerError)
	target := rotating(w, p.url, secret.New("c"), secrets("b a")...)
	for i, want := range []int{500, 500, 200, 200} {
		if got := send(target); got.Code != want || p.requests.Swap(0) != 1 {
			t.Errorf("attempt %d: %+v", i+1, got)
		}
	}
}

// If an attempt with another secret fails before an answer, that says nothing about the secret. The
// next attempt begins with it.
func TestAttempt_GoesOnWithTheSecretThatGotNoAnswer(t *testing.T) {
	w := newTestWebhook(t, nil)
	var requests atomic.Int64
	url := serve(t, func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if requests.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
		if Verify(r.Header, body, time.Now(), secret.New("new")).Quintago != nil {
			rw.Header().Set("Connection", "close") // one that is kept would be tried again
			rw.WriteHeader(http.StatusUnauthorized)
		}
	})
	target := rotating(w, url, secret.New("new"), secret.New("old"))
	for i, want := range []int{401, 200} {
		got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)})
		if n := requests.Load(); got.Code != want || n != int64(2+i) {
			t.Errorf("attempt %d: %+v after %d requests", i+1, got, n)
		}
	}
}

// Each secret ends at its own time. The time that is signed decides.
func TestAttempt_SignsWithEachFormerSecretUntilItsTime(t *testing.T) {
	w := newTestWebhook(t, nil)
	var header atomic.Pointer[http.Header]
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { header.Store(&r.Header) })
	now := time.Now()
	target := w.Target(url, secret.New("d"),
		Former{secret.New("c"), now.Add(2 * time.Minute)},
		Former{secret.New("d"), now.Add(time.Hour)}, // rotated to and fro
		Former{secret.New("b"), now.Add(time.Minute)},
		Former{secret.New("a"), now.Add(3 * time.Minute)},
		Former{secret.New("c"), now.Add(time.Hour)})
	for _, c := range []struct {
		after    time.Duration
		sign     string // Webhook-Signature
		previous string
	}{
		{0, "d c b a", "c"},
		{time.Minute, "d c a", "c"},
		{2 * time.Minute, "d a", "a"},
		{3 * time.Minute, "d", ""},
	} {
		at := now.Add(c.after)
		got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody), At: at})
		checkClass(t, got, "", 200)
		h := *header.Load()
		texts := strings.Fields(c.sign)
		if n := len(strings.Fields(h.Get(HeaderStandardSignature))); n != len(texts) {
			t.Errorf("after %s %d entries in %s, want %d", c.after, n, HeaderStandardSignature, len(texts))
		}
		for _, text := range texts {
			if err := Verify(h, []byte(testBody), at, secret.New(text)).Standard; err != nil {
				t.Errorf("after %s, with %s: %v", c.after, text, err)
			}
		}
		previous := ""
		if c.previous != "" {
			previous = sign(t, "evt_1", testBody, c.previous, "", at).Get(HeaderSignature)
		}
		if got := h.Get(HeaderSignaturePrevious); got != previous || len(h.Values(HeaderSignaturePrevious)) > 1 {
			t.Errorf("after %s %s is %s, want that of %q", c.after, HeaderSignaturePrevious, got, c.previous)
		}
	}
}

// A receiver need not answer a signature that is wrong: it may end the connection, say what is no
// HTTP, or be silent. The next attempt tries another secret, and none is tried twice within one.
func TestAttempt_TriesAnotherSecretBehindARequestThatGotNoAnswer(t *testing.T) {
	for name, refuse := range map[string]func(net.Conn){
		"the end":  func(net.Conn) {},
		"no HTTP":  func(conn net.Conn) { write(conn, "wrong signature\r\n") },
		"silence":  func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) },
		"half one": func(conn net.Conn) { write(conn, "HTTP/1.1 401 No\r\nConte") },
	} {
		for _, size := range []int{len(testBody), 2 * oneWrite} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var requests atomic.Int64
					w := pipeWebhook(t, phaseConnect, func(conn net.Conn) {
						request, err := http.ReadRequest(bufio.NewReader(conn))
						if err != nil {
							return
						}
						body, err := io.ReadAll(request.Body)
						if err != nil {
							return
						}
						requests.Add(1)
						if Verify(request.Header, body, time.Now(), secret.New("new")).Quintago != nil {
							refuse(conn)
							return
						}
						write(conn, ok200)
						_, _ = io.Copy(io.Discard, conn)
					})
					defer w.Close()
					target := rotating(w, "http://hooks.example.com", secret.New("new"), secret.New("old"))
					for i, want := range []int{0, 200, 200} {
						w.Close() // one that is kept has one request here
						got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: make([]byte, size)})
						if n := requests.Load(); got.Code != want || n != int64(1+i) {
							t.Errorf("attempt %d: %+v after %d requests", i+1, got, n)
						}
					}
				})
			})
		}
	}
}

// Before a request was sent nothing is known of its signature.
func TestAttempt_KeepsToTheSecretOfARequestThatWasNotSent(t *testing.T) {
	w := newTestWebhook(t, nil)
	address := serveRaw(t, true, func(net.Conn) {})
	target := rotating(w, "https://"+address, secret.New("new"), secret.New("old"))
	first := (*target.order.Load())[0]
	got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)})
	if got.Outcome != Failed || (*target.order.Load())[0] != first {
		t.Errorf("%+v, and the order has changed: %v", got, (*target.order.Load())[0] != first)
	}
}

// A 410 may be what a receiver says to a wrong signature. It is believed once each secret got it.
func TestAttempt_Believes410OnceEachSecretGotIt(t *testing.T) {
	w := newTestWebhook(t, nil)
	send := func(target *Target) Result {
		return w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)})
	}
	targetOf := func(p *page, texts ...string) *Target {
		var all []secret.Text
		for _, text := range texts {
			all = append(all, secret.New(text))
		}
		return rotating(w, p.url, all[0], all[1:]...)
	}
	for _, c := range []struct {
		secrets  string
		knows    string
		outcomes []Outcome
		requests []int64
	}{
		{"b", "none", []Outcome{Gone}, []int64{1}},
		{"b a", "b", []Outcome{Succeeded, Succeeded}, []int64{2, 1}},
		{"b a", "none", []Outcome{Gone}, []int64{2}},
		{"d c b a", "b", []Outcome{Failed, Succeeded}, []int64{3, 1}},
		{"d c b a", "none", []Outcome{Failed, Gone}, []int64{3, 1}},
		{"f e d c b a", "none", []Outcome{Failed, Gone}, []int64{3, 3}},
	} {
		p := servePage(t, c.knows)
		p.answers.Store(http.StatusGone)
		target := targetOf(p, strings.Fields(c.secrets)...)
		for i, want := range c.outcomes {
			got := send(target)
			if n := p.requests.Swap(0); got.Outcome != want || n != c.requests[i] {
				t.Errorf("%s, the receiver knows %s: attempt %d made %d requests, want %d: %+v", c.secrets, c.knows, i+1, n, c.requests[i], got)
			}
			if got.Outcome == Failed && (got.Code != 410 || got.Class != ClassHTTPStatus || !strings.Contains(got.Error, "410")) {
				t.Errorf("%+v", got)
			}
		}
	}

	// Another answer in between begins anew.
	p := servePage(t, "none")
	target := targetOf(p, "d", "c", "b", "a")
	for i, step := range []struct {
		answer  int64
		outcome Outcome
	}{{410, Failed}, {503, Failed}, {503, Failed}, {503, Failed}, {503, Failed}, {410, Failed}, {410, Gone}} {
		p.answers.Store(step.answer)
		if got := send(target); got.Outcome != step.outcome || got.Code != int(step.answer) {
			t.Errorf("step %d: %+v", i+1, got)
		}
	}
}
