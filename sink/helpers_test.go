package sink

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// The sentinels stand in the places of a customer's secrets. Nothing may show them.
const (
	sentinelSecret = "sentinel-signing-key"
	sentinelPath   = "/sentinel-path"
	sentinelQuery  = "token=sentinel-query"
	testBody       = `{"id":"evt_1","type":"lead.created","created":"2025-05-10T14:32:00Z","venue":"venue_1","data":{}}`
)

// newTestWebhook makes a Webhook that may reach loopback over http. change may adjust its
// configuration.
func newTestWebhook(t testing.TB, change func(*WebhookConfig)) *Webhook {
	t.Helper()
	cfg := WebhookConfig{
		Version:        "1.2.3",
		Timeout:        10 * time.Second,
		AllowHTTP:      true,
		AllowNetworks:  []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		MaxIdlePerHost: 4,
	}
	if change != nil {
		change(&cfg)
	}
	w, err := NewWebhook(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// testRequest is a Request, and what its Target is made from.
type testRequest struct {
	URL              string
	Secret, Previous secret.Text
	Request
}

// of returns the Request with the Target that w makes.
func (r testRequest) of(w *Webhook) Request {
	r.Target = rotating(w, r.URL, r.Secret, r.Previous)
	return r.Request
}

// rotating returns a Target that also has former secrets, which sign for an hour.
func rotating(w *Webhook, url string, current secret.Text, former ...secret.Text) *Target {
	var until []Former
	for _, s := range former {
		until = append(until, Former{s, time.Now().Add(time.Hour)})
	}
	return w.Target(url, current, until...)
}

// requestTo makes a request with sentinels in all its secret parts. base is the scheme and host of
// the URL.
func requestTo(base string) testRequest {
	return testRequest{
		URL:     base + sentinelPath + "?" + sentinelQuery,
		Secret:  secret.New(sentinelSecret),
		Request: Request{EventID: "evt_1", Body: []byte(testBody)},
	}
}

// attempt makes one attempt and fails the test if a sentinel is in what it returns.
func attempt(t testing.TB, w *Webhook, r testRequest) Result {
	t.Helper()
	result := w.Attempt(t.Context(), r.of(w))
	checkNoSentinel(t, result)
	return result
}

// serve starts an HTTP server on loopback and returns its scheme and host.
func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// serveRaw calls handle for each connection to a new listener on loopback. The request was read
// before, unless handle should speak first. The connection is closed when handle returns. It
// returns the listener's host:port.
func serveRaw(t testing.TB, speakFirst bool, handle func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed by the cleanup
			}
			handlers.Go(func() {
				defer conn.Close()
				if !speakFirst && !readRequest(conn) {
					return
				}
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		handlers.Wait()
	})
	return listener.Addr().String()
}

// readRequest reads one request to its end. A connection that is closed with unread data would send
// a reset.
func readRequest(conn net.Conn) bool {
	request, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, request.Body)
	return err == nil
}

// write sends text. It ignores errors, because the other side may have closed the connection.
func write(conn net.Conn, text string) { _, _ = io.WriteString(conn, text) }

func checkClass(t testing.TB, got Result, class Class, code int, words ...string) {
	t.Helper()
	if got.Class != class || got.Code != code {
		t.Errorf("class %q and code %d, want %q and %d (%s)", got.Class, got.Code, class, code, got.Error)
	}
	for _, word := range words {
		if !strings.Contains(got.Error, word) {
			t.Errorf("the sentence %q lacks %q", got.Error, word)
		}
	}
	if len(got.Error) > maxErrorBytes {
		t.Errorf("the sentence has %d bytes: %s", len(got.Error), got.Error)
	}
}

// checkNoSentinel fails the test if any way to print v shows a sentinel.
func checkNoSentinel(t testing.TB, v any) {
	t.Helper()
	encoded, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(encoded), fmt.Sprintf("%v %+v %#v", v, v, v)} {
		if strings.Contains(text, "sentinel") {
			t.Errorf("a secret is shown: %s", text)
		}
	}
}
