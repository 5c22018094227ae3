package admin

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const (
	wireKey   = "signing-key-0123456789abcdef0123456789"
	wireVenue = "venue_1"
	// newHook is the body of a request that creates an endpoint.
	newHook = `{"url": "https://example.com/hook", "events": ["*"]}`
)

// wire has both listeners as an agent opens them, on a database of its own.
type wire struct {
	testing.TB
	operators, venues string // their addresses
	token             string // of a venue
	feed              *feed.Feed
	counted           *countingListener // that of the venues
}

func newWire(t testing.TB) *wire {
	t.Helper()
	env := testenv.NewDB(t)
	cfg := agenttest.Config(env)
	cfg.Admin.Token = secret.New(testToken)
	cfg.Admin.Hosts = []string{"agent.internal"}
	cfg.Console.Keys = []secret.Text{secret.New(wireKey)}
	cfg.Console.URL = "https://hooks.example.com"
	db, webhook := agenttest.Parts(t, cfg)
	w := &wire{TB: t, feed: feed.New()}
	all, err := api.New(api.Config{
		Config: cfg, DB: db, Webhook: webhook, Version: "test", Feed: w.feed, Limits: limits.New(limits.Unlimited), Log: slog.New(slog.DiscardHandler),
		Terms: func() []api.TermInfo { return []api.TermInfo{{Slot: cfg.Outbox.Slot, State: "leading"}} },
	}, access.NewVerifier(cfg.Admin.Token, cfg.ConsoleKeys()))
	if err != nil {
		t.Fatal(err)
	}
	token, err := cfg.ConsoleKeys().Mint(wireVenue, access.ScopeManage, 5*time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.token = token.Reveal()
	caught := func(p *panics.Error) { t.Errorf("panic: %v", p) }
	w.operators = w.serve(Operators(Config{
		Admin: cfg.Admin, Console: cfg.Console, Ready: func() (string, error) { return "leading", nil },
		Metrics: prometheus.NewRegistry(), API: all, Pages: http.NotFoundHandler(), Caught: caught,
	}), caught)
	w.venues = w.serve(Venues(VenueConfig{
		Console: cfg.Console, API: all.For(access.NewVerifier(secret.Text{}, cfg.ConsoleKeys())), Pages: http.NotFoundHandler(), Caught: caught,
	}), caught)
	return w
}

// serve serves a handler until the test ends, and returns the address.
func (w *wire) serve(handler http.Handler, caught func(*panics.Error)) string {
	w.Helper()
	l, err := Listen(w.Context(), "admin.listen", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	w.counted = &countingListener{Listener: l}
	go func(l net.Listener) { ended <- Serve(ctx, l, handler, caught) }(w.counted)
	w.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	})
	return l.Addr().String()
}

// dial connects to a listener. The connection ends with the test, and gives up after a while.
func (w *wire) dial(address string) net.Conn {
	w.Helper()
	conn, err := new(net.Dialer).DialContext(w.Context(), "tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		w.Fatal(err)
	}
	return conn
}

// send sends bytes on a new connection and returns the statuses of the answers, until one closes the
// connection or there are most of them. -1 stands for an end without an answer.
func (w *wire) send(address, text string, most int) (statuses []int) {
	w.Helper()
	conn := w.dial(address)
	defer conn.Close()
	go func() { _, _ = io.WriteString(conn, text) }() // the server may end the connection before it has read all
	reader := bufio.NewReader(conn)
	for range most {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return append(statuses, -1)
		}
		statuses = append(statuses, response.StatusCode)
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return append(statuses, -1)
		}
		if response.Close {
			return statuses
		}
	}
	return statuses
}

// authorization returns the header line of a token.
func authorization(token string) string { return "Authorization: Bearer " + token + "\r\n" }

// healthy fails the test when a request on a new connection is not answered within a time.
func (w *wire) healthy(address string, within time.Duration) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), within)
	defer cancel()
	if err := get(ctx, "http://"+address+"/healthz", ""); err != nil {
		w.Errorf("healthz of %s: %v", address, err)
	}
}

// get asks on a connection of its own and returns an error unless the answer is 200.
func get(ctx context.Context, url, token string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

func TestListeners_KnowTheirNamesOnTheWire(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	list := "/api/v1/endpoints"
	for _, c := range []struct {
		what            string
		request         string // between the method and the headers that end
		onOperators, on int
	}{
		{"an address", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:8480\r\n", 200, 200},
		{"an IPv6 literal", "GET /healthz HTTP/1.1\r\nHost: [::1]:8480\r\n", 200, 200},
		{"an IPv6 literal without a port", "GET /healthz HTTP/1.1\r\nHost: [::1]\r\n", 200, 200},
		{"localhost with a trailing dot", "GET /healthz HTTP/1.1\r\nHost: localhost.:8480\r\n", 200, 200},
		{"a known name", "GET /healthz HTTP/1.1\r\nHost: hooks.example.com\r\n", 200, 200},
		{"a known name with a trailing dot and a port", "GET /healthz HTTP/1.1\r\nHost: Hooks.Example.Com.:443\r\n", 200, 200},
		{"a name of the operator's", "GET /healthz HTTP/1.1\r\nHost: agent.internal\r\n", 200, 421},
		{"a foreign name", "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n", 421, 421},
		{"a foreign name with a port", "GET " + list + " HTTP/1.1\r\nHost: evil.example:8480\r\n", 421, 421},
		{"a foreign name that begins like an address", "GET " + list + " HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n", 421, 421},
		{"a foreign name in the target", "GET http://evil.example" + list + " HTTP/1.1\r\nHost: 127.0.0.1\r\n", 421, 421},
		{"a foreign name in the target of healthz", "GET http://evil.example/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", 421, 421},
		{"an address in the target, a foreign name beside it", "GET http://127.0.0.1" + list + " HTTP/1.1\r\nHost: evil.example\r\n", 401, 401},
		{"a foreign name and a cookie", "GET " + list + " HTTP/1.1\r\nHost: evil.example\r\nCookie: session=" + w.token + "\r\n", 421, 421},
		{"a foreign name with a venue's token", "GET " + list + " HTTP/1.1\r\nHost: evil.example\r\n" + authorization(w.token), 200, 200},
		{"a foreign name with the operator's token", "GET " + list + " HTTP/1.1\r\nHost: evil.example\r\n" + authorization(testToken), 200, 401},
		{"a foreign name with a wrong token", "GET " + list + " HTTP/1.1\r\nHost: evil.example\r\n" + authorization(w.token+"x"), 401, 401},
		{"a foreign name, a token, and no API", "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n" + authorization(w.token), 421, 421},
		{"two names", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n", 400, 400},
		{"a name that is none", "GET /healthz HTTP/1.1\r\nHost: a b\r\n", 400, 400},
		{"no name", "GET /healthz HTTP/1.1\r\n", 400, 400},
		{"HTTP/1.0 without a name", "GET /healthz HTTP/1.0\r\n", 200, 200},
		{"HTTP/1.0 with a foreign name", "GET /healthz HTTP/1.0\r\nHost: evil.example\r\n", 421, 421},
		{"HTTP/1.0 without a name or token", "GET " + list + " HTTP/1.0\r\n", 401, 401},
		{"HTTP/1.0 with a token", "GET " + list + " HTTP/1.0\r\n" + authorization(w.token), 200, 200},
		{"HTTP/2 in clear text", "PRI * HTTP/2.0\r\n", 400, 400},
		{"CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n", 421, 421},
		{"OPTIONS of everything", "OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n", 421, 421},
		{"metrics without a token", "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n", 401, 404},
		{"a path with two slashes", "GET //evil.example/api/v1/endpoints HTTP/1.1\r\nHost: evil.example\r\n", 421, 421},
		{"long headers", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + strings.Repeat("x", 22<<10) + "\r\n", 431, 431},
	} {
		for address, want := range map[string]int{w.operators: c.onOperators, w.venues: c.on} {
			if got := w.send(address, c.request+"\r\n", 1); got[0] != want {
				t.Errorf("%s, operators %t: status %d, want %d", c.what, address == w.operators, got[0], want)
			}
		}
	}
}

// post returns the head of a request that creates an endpoint; more are further headers.
func (w *wire) post(more string) string {
	return "POST /api/v1/endpoints HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" + authorization(w.token) + more
}

func TestListeners_BoundBodies(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	const size = 10 << 20
	filler := strings.Repeat("a", size)
	chunk := strconv.FormatInt(size, 16) + "\r\n" + filler + "\r\n0\r\n\r\n"
	length := "Content-Length: " + strconv.Itoa(size) + "\r\n\r\n"
	chunked := "Transfer-Encoding: chunked\r\n\r\n"
	get := "GET /api/v1/endpoints HTTP/1.1\r\nHost: 127.0.0.1\r\n" + authorization(w.token)
	nobody := "POST /api/v1/endpoints HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
	// The server does not wait for the whole body. So the end of the connection may come before the
	// client has read the answer.
	for name, c := range map[string]struct {
		request string
		want    int
	}{
		"with its length":       {w.post(length) + filler, 413},
		"in chunks":             {w.post(chunked) + chunk, 413},
		"without a token":       {nobody + length + filler, 401},
		"no token, in chunks":   {nobody + chunked + chunk, 401},
		"of a GET":              {get + "Content-Type: application/json\r\n" + length + filler, 413},
		"of a GET, in chunks":   {get + "Content-Type: application/json\r\n" + chunked + chunk, 413},
		"of a probe":            {"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + length + filler, 200},
		"of a probe, in chunks": {"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + chunked + chunk, 200},
	} {
		for _, address := range []string{w.operators, w.venues} {
			if got := w.send(address, c.request, 2); got[0] != c.want && got[0] != -1 || len(got) > 1 && got[1] != -1 {
				t.Errorf("a body of 10 MiB %s: statuses %d, want %d and the end", name, got, c.want)
			}
		}
	}
	for name, c := range map[string]struct {
		request string
		want    []int
	}{
		"expected, and asked for": {w.post("Content-Length: "+strconv.Itoa(len(newHook))+"\r\nExpect: 100-continue\r\n\r\n") + newHook, []int{100, 201}},
		"expected, and too large": {w.post("Content-Length: 10485760\r\nExpect: 100-continue\r\n\r\n"), []int{413}},
		"expected, no token":      {nobody + "Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", []int{401}},
		"expected, unknown":       {w.post("Content-Length: 100\r\nExpect: sentinel\r\n\r\n"), []int{417}},
		"a chunk that is none":    {w.post(chunked) + "sentinel\r\n", []int{400}},
		"a length that is none":   {w.post("Content-Length: sentinel\r\n\r\n"), []int{400}},
		"two lengths":             {w.post("Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), []int{400}},
		"of an unknown encoding":  {w.post("Transfer-Encoding: gzip\r\n\r\n"), []int{501}},
		"a length and chunks, of which a proxy may take the other": {
			w.post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), []int{400}},
	} {
		if got := w.send(w.venues, c.request, len(c.want)); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("a body %s: statuses %d, want %d", name, got, c.want)
		}
	}
}

func TestListeners_AnswerPipelinedRequestsInTheirOrder(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	ask := "GET /api/v1/endpoints HTTP/1.1\r\nHost: 127.0.0.1\r\n" + authorization(w.token) + "\r\n"
	create := w.post("Content-Length: "+strconv.Itoa(len(newHook))+"\r\n\r\n") + newHook
	foreign := "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n"
	nobody := "GET /api/v1/endpoints HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
	want := []int{200, 201, 421, 200, 401, 200}
	// A request has what it brings itself, and nothing of the one before it.
	if got := w.send(w.venues, ask+create+foreign+ask+nobody+ask, len(want)); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("statuses %d, want %d", got, want)
	}
}
