package sink

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/secret"
)

func TestNewWebhook_NamesEveryProblem(t *testing.T) {
	_, err := NewWebhook(WebhookConfig{
		Version:       "1\n2",
		Timeout:       -time.Second,
		MaxIdle:       -7,
		AllowNetworks: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("ff00::/8")},
	})
	for _, want := range []string{"version", "delivery.timeout", "-1s", "idle connection", "-7", "169.254.0.0/16", "ff00::/8"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
}

func TestAttempt_SendsTheContractAndNothingElse(t *testing.T) {
	w := newTestWebhook(t, nil)
	var got *http.Request
	var body []byte
	r := requestTo(serve(t, func(_ http.ResponseWriter, req *http.Request) {
		got = req
		body, _ = io.ReadAll(req.Body)
	}))
	r.Previous = secret.New("sentinel-former-key")
	if result := attempt(t, w, r); result.Outcome != Succeeded || result.Code != 200 || result.Latency <= 0 {
		t.Fatalf("%+v", result)
	}
	if got.Method != http.MethodPost || got.RequestURI != sentinelPath+"?"+sentinelQuery || !bytes.Equal(body, r.Body) {
		t.Errorf("%s %s with body %s", got.Method, got.RequestURI, body)
	}
	if err := Verify(got.Header, body, time.Now(), r.Secret).Standard; err != nil {
		t.Error(err)
	}
	// A receiver written to the customers' page may still have the former secret.
	if err := Verify(got.Header, body, time.Now(), r.Previous).Err(); err != nil {
		t.Errorf("with the former secret: %v", err)
	}
	for _, signature := range []string{HeaderSignature, HeaderSignaturePrevious, HeaderStandardSignature, HeaderTimestamp} {
		got.Header.Del(signature) // verified above
	}
	want := http.Header{
		"Content-Type":   {"application/json"},
		"Content-Length": {strconv.Itoa(len(r.Body))},
		"User-Agent":     {"QuintaGo-Webhooks/1.2.3"},
		"Webhook-Id":     {"evt_1"},
	}
	if diff := cmp.Diff(want, got.Header); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

func TestAttempt_TheStatusLineDecides(t *testing.T) {
	w := newTestWebhook(t, nil)
	for _, c := range []struct {
		code    int
		outcome Outcome
		class   Class
	}{
		{200, Succeeded, ""}, {201, Succeeded, ""}, {204, Succeeded, ""}, {299, Succeeded, ""},
		{300, Failed, ClassRedirect}, {304, Failed, ClassRedirect}, {399, Failed, ClassRedirect},
		{400, Failed, ClassHTTPStatus}, {404, Failed, ClassHTTPStatus}, {409, Failed, ClassHTTPStatus}, {410, Gone, ClassHTTPStatus},
		{500, Failed, ClassHTTPStatus}, {999, Failed, ClassHTTPStatus},
	} {
		got := attempt(t, w, requestTo(serve(t, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(c.code) })))
		checkClass(t, got, c.class, c.code)
		if got.Outcome != c.outcome || (got.Error == "") != (c.outcome == Succeeded) {
			t.Errorf("%d: %+v", c.code, got)
		}
		if c.outcome != Succeeded && !strings.Contains(got.Error, strconv.Itoa(c.code)) {
			t.Errorf("%d: the sentence %q does not name the status", c.code, got.Error)
		}
	}
}

func TestAttempt_FollowsNoRedirect(t *testing.T) {
	w := newTestWebhook(t, nil)
	var reached atomic.Bool
	target := serve(t, func(http.ResponseWriter, *http.Request) { reached.Store(true) })
	for _, code := range []int{301, 302, 303, 307, 308} {
		got := attempt(t, w, requestTo(serve(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Location", target)
			rw.WriteHeader(code)
		})))
		checkClass(t, got, ClassRedirect, code, "not followed", "URL")
	}
	if reached.Load() {
		t.Error("a redirect was followed")
	}
}

func TestAttempt_UsesNoReasonPhrase(t *testing.T) {
	address := serveRaw(t, false, func(conn net.Conn) {
		write(conn, "HTTP/1.1 404 <script>phrase\x1b[2J</script>\r\nContent-Length: 0\r\n\r\n")
	})
	got := attempt(t, newTestWebhook(t, nil), requestTo("http://"+address))
	checkClass(t, got, ClassHTTPStatus, 404)
	if strings.Contains(got.Error, "phrase") || got.Response != "" {
		t.Errorf("%+v", got)
	}
}

func TestAttempt_ReadsRetryAfterOfWhateverIsNoSuccess(t *testing.T) {
	w := newTestWebhook(t, nil)
	for code, want := range map[int]time.Duration{200: 0, 204: 0, 301: 7 * time.Second, 410: 7 * time.Second, 429: 7 * time.Second, 500: 7 * time.Second, 503: 7 * time.Second} {
		got := attempt(t, w, requestTo(serve(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", "7")
			rw.WriteHeader(code)
		})))
		if got.RetryAfter != want {
			t.Errorf("%d: %v, want %v", code, got.RetryAfter, want)
		}
	}
}

func TestAttempt_KeepsFourKiBOfAFailuresBody(t *testing.T) {
	w := newTestWebhook(t, nil)
	for _, c := range []struct {
		code       int
		body, want string
	}{
		{500, "short", "short"},
		{500, strings.Repeat("x", 4096), strings.Repeat("x", 4096)},
		{500, strings.Repeat("x", 1<<20), strings.Repeat("x", 4096)},
		{500, "a\x00b\xffc", "a\uFFFDb\uFFFDc"},
		{410, "gone", "gone"},
		{200, "fine", ""},
	} {
		got := attempt(t, w, requestTo(serve(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(c.code)
			_, _ = io.WriteString(rw, c.body)
		})))
		if got.Response != c.want {
			t.Errorf("%d with a body of %d bytes: %d bytes kept: %.20q", c.code, len(c.body), len(got.Response), got.Response)
		}
	}
}

func TestAttempt_DoesNotInflate(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 10<<20))
	_ = z.Close()
	var accept atomic.Value
	got := attempt(t, newTestWebhook(t, nil), requestTo(serve(t, func(rw http.ResponseWriter, r *http.Request) {
		accept.Store(r.Header.Get("Accept-Encoding"))
		rw.Header().Set("Content-Encoding", "gzip")
		rw.WriteHeader(http.StatusInternalServerError)
		_, _ = rw.Write(bomb.Bytes())
	})))
	if accept.Load() != "" {
		t.Errorf("Accept-Encoding: %v", accept.Load())
	}
	if !strings.HasPrefix(got.Response, "\x1f\uFFFD") || !utf8.ValidString(got.Response) || len(got.Response) > 4096 {
		t.Errorf("response %.20q of %d bytes, want the compressed bytes", got.Response, len(got.Response))
	}
}

// countConns counts the connections that w dials.
func countConns(w *Webhook) *atomic.Int32 {
	var n atomic.Int32
	dial := w.client.dial
	w.client.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		n.Add(1)
		return dial(ctx, network, address)
	}
	return &n
}

func TestAttempt_ReusesTheConnectionAfterAShortBody(t *testing.T) {
	for _, c := range []struct {
		code, body int
		want       int32 // connections for four attempts
	}{
		{200, 0, 1}, {200, 2, 1}, {200, 4096, 1}, {500, 2, 1}, {500, 4096, 1}, {404, 0, 1},
		{200, 1 << 20, 4}, {500, 1 << 20, 4},
	} {
		w := newTestWebhook(t, nil)
		conns := countConns(w)
		base := serve(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", strconv.Itoa(c.body))
			rw.WriteHeader(c.code)
			_, _ = rw.Write(make([]byte, c.body))
		})
		for range 4 {
			if got := attempt(t, w, requestTo(base)); got.Code != c.code {
				t.Fatalf("%+v", got)
			}
		}
		if got := conns.Load(); got != c.want {
			t.Errorf("%d with %d bytes: %d connections, want %d", c.code, c.body, got, c.want)
		}
	}
}

// failingWrites is a connection that accepts some writes, and then fails each write with err before
// its first byte.
type failingWrites struct {
	net.Conn
	good int // writes that are left; only the transport's one writing goroutine uses it
	err  error
}

func (c *failingWrites) Write(b []byte) (int, error) {
	if c.good--; c.good < 0 {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: c.err}
	}
	return c.Conn.Write(b)
}

// failWrites makes each connection of w fail after some good writes.
func failWrites(w *Webhook, good int, err error) {
	dial := w.client.dial
	w.client.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, dialErr := dial(ctx, network, address)
		return &failingWrites{conn, good, err}, dialErr
	}
}

func TestAttempt_NamesAConnectionThatIsLostAsItWrites(t *testing.T) {
	base := serve(t, discard)
	for _, err := range []error{syscall.EPIPE, syscall.ECONNRESET, net.ErrClosed} {
		w := newTestWebhook(t, nil)
		failWrites(w, 0, err)
		checkClass(t, attempt(t, w, requestTo(base)), ClassConnectionReset, 0, "closed the connection")
	}
}

func TestAttempt_UsesAFreshConnectionWhenTheIdleOneIsDead(t *testing.T) {
	w := newTestWebhook(t, nil)
	failWrites(w, 1, syscall.EPIPE)
	conns := countConns(w)
	base := serve(t, discard)
	for range 2 {
		checkClass(t, attempt(t, w, requestTo(base)), "", 200)
	}
	if conns.Load() != 2 {
		t.Errorf("%d connections, want 2", conns.Load())
	}
}

func TestAttempt_IgnoresTheProxyEnvironment(t *testing.T) {
	var proxied atomic.Bool
	proxy := serve(t, func(http.ResponseWriter, *http.Request) { proxied.Store(true) })
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, proxy)
	}
	// Proxy variables never apply to loopback, so the request goes elsewhere. The dial shows where
	// it goes.
	w := newTestWebhook(t, nil)
	var dialed string
	w.client.dial = func(_ context.Context, _, address string) (net.Conn, error) {
		dialed = address
		return nil, io.EOF
	}
	attempt(t, w, requestTo("http://hooks.example.com"))
	if proxied.Load() || dialed != "hooks.example.com:80" {
		t.Errorf("dialed %q, proxy reached: %v", dialed, proxied.Load())
	}
}

func TestAttempt_OpensNoConnectionToARefusedAddress(t *testing.T) {
	var reached atomic.Bool
	base := serve(t, func(http.ResponseWriter, *http.Request) { reached.Store(true) })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(base, "http://"))

	// As a literal address the URL is refused. As a name only the guard can refuse it: allowing
	// ::1, where nothing listens, lets localhost pass the check of the text.
	w := newTestWebhook(t, func(c *WebhookConfig) { c.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("::1/128")} })
	got := attempt(t, w, requestTo(base))
	checkClass(t, got, ClassBlockedAddress, 0, "network.allow_networks")
	got = attempt(t, w, requestTo("http://localhost:"+port))
	checkClass(t, got, ClassBlockedAddress, 0, "localhost", "loopback", "network.allow_networks")
	if strings.Contains(got.Error, "127.0.0.1") {
		t.Errorf("the sentence tells what the name resolves to: %s", got.Error)
	}
	if reached.Load() {
		t.Error("a connection was opened")
	}
}

func TestAttempt_RefusesWhatCannotBeSent(t *testing.T) {
	w := newTestWebhook(t, nil)
	var reached atomic.Bool
	base := serve(t, func(http.ResponseWriter, *http.Request) { reached.Store(true) })
	for _, c := range []struct {
		change func(*testRequest)
		class  Class
	}{
		{func(r *testRequest) { r.URL = "https://user:sentinel@h.example/sentinel" }, ClassInvalidURL},
		{func(r *testRequest) { r.URL = "http://169.254.169.254/sentinel" }, ClassBlockedAddress},
		{func(r *testRequest) { r.Secret = secret.Text{} }, ClassInvalidSecret},
		{func(r *testRequest) { r.Secret = secret.New("whsec_sentinel!") }, ClassInvalidSecret},
		{func(r *testRequest) { r.EventID = "" }, ClassInvalidEventID},
		{func(r *testRequest) { r.EventID = "evt\r\nX: y" }, ClassInvalidEventID},
		{func(r *testRequest) { r.EventID = "évt" }, ClassInvalidEventID},
		{func(r *testRequest) { r.EventID = "evt_1." }, ClassInvalidEventID},
		{func(r *testRequest) { r.EventID = `evt_1.1674087231.{"a":1}` }, ClassInvalidEventID},
	} {
		r := requestTo(base)
		c.change(&r)
		got := attempt(t, w, r)
		checkClass(t, got, c.class, 0)
		if got.Outcome != Failed {
			t.Errorf("%+v", got)
		}
	}
	if reached.Load() {
		t.Error("a request was sent")
	}
}

func TestAttempt_SendsAnEmptyBody(t *testing.T) {
	r := requestTo(serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
			t.Errorf("Content-Length %d, Transfer-Encoding %v", r.ContentLength, r.TransferEncoding)
		}
	}))
	r.Body = nil
	checkClass(t, attempt(t, newTestWebhook(t, nil), r), "", 200)
}

// panickyContext panics inside Attempt, with a value that holds a sentinel.
type panickyContext struct {
	context.Context
	value any
}

func (c panickyContext) Deadline() (time.Time, bool) { panic(c.value) }

func TestAttempt_TurnsAPanicIntoAFailure(t *testing.T) {
	w := newTestWebhook(t, nil)
	r := requestTo("http://127.0.0.1:1")
	got := w.Attempt(panickyContext{t.Context(), "sentinel"}, r.of(w))
	checkClass(t, got, ClassInternalError, 0, "a fault of the agent itself", "string")
	if got.Panic == nil || !strings.HasPrefix(got.Panic.Place, "sink/webhook_test.go:") {
		t.Errorf("the result tells of %+v", got.Panic)
	}
	checkNoSentinel(t, got)

	var runtimeError any
	func() {
		defer func() { runtimeError = recover() }()
		_ = r.Body[len(r.Body):][0]
	}()
	checkClass(t, w.Attempt(panickyContext{t.Context(), runtimeError}, r.of(w)), ClassInternalError, 0, "index out of range")
}
