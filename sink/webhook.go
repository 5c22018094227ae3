package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

const (
	maxBodyBytes = 4 << 10 // what is read of a response body

	// drainTimeout is what a connection's reuse is worth: after a 2xx the attempt waits no longer than this for the body.
	drainTimeout = 50 * time.Millisecond
	// excerptTimeout is what the body of another answer is worth, of which the log shows the beginning.
	excerptTimeout = time.Second
)

// Request is what one attempt sends.
type Request struct {
	Target  *Target
	EventID string
	Body    []byte // the envelope, sent and signed as it is; Attempt does not change it
	Test    bool   // a sample, which Webhook-Test: true tells from a real event
	// At is the time that is signed and sent, and by which former secrets end; zero for this host's clock.
	At time.Time

	keys []*signingKey // Target's at the time At
}

// Outcome is what an attempt means for its delivery.
type Outcome int

const (
	Succeeded Outcome = iota // a 2xx status line arrived
	Failed                   // anything else
	Gone                     // the server answered 410: the endpoint is to be disabled
	Canceled                 // the caller's context ended first; whether the server got the event is unknown
	NotMade                  // what failed is on this side of the wire (Result.Fault): it was no attempt
)

// Result is what came of one attempt.
type Result struct {
	Outcome    Outcome
	Code       int           // HTTP status; 0 when no status line arrived
	Class      Class         // empty on success
	Error      string        // one sentence of at most 300 bytes, fit for PostgreSQL and a terminal; empty on success
	Latency    time.Duration // from the call to the status line, or to the failure
	Response   string        // the first 4 KiB of the body, sanitized, not yet Printable; failures only
	RetryAfter time.Duration // what an answer other than 2xx asked for, at most an hour; 0 when nothing usable
	Panic      *panics.Error // with ClassInternalError
	Fault      Fault         // with NotMade
}

// WebhookConfig configures a Webhook.
type WebhookConfig struct {
	Version        string         // the User-Agent is QuintaGo-Webhooks/<Version>
	Timeout        time.Duration  // delivery.timeout: one deadline for DNS, connect, TLS, request, headers and body
	AllowHTTP      bool           // network.allow_http: http:// URLs are accepted
	AllowNetworks  []netip.Prefix // network.allow_networks
	DenyAddrs      []netip.Addr   // the host's and the database's addresses, refused unless AllowNetworks covers them
	MaxIdlePerHost int            // idle connections kept open to one host
	MaxIdle        int            // and to all hosts together; 0 for DefaultMaxIdle
}

// Webhook delivers events by HTTP. Its methods may be called by any number of goroutines.
type Webhook struct {
	timeout   time.Duration
	userAgent []string // shared by all requests; net/http does not change it
	allowHTTP bool
	guard     *guard
	transport *http.Transport
	names     *names
	routes    func(network string) bool // routes; tests have another
}

// NewWebhook makes a Webhook. It fails, naming every problem, if a value of cfg is missing or out of range, or if
// cfg.AllowNetworks would open an address that is never allowed.
func NewWebhook(cfg WebhookConfig) (*Webhook, error) { return newWebhook(cfg, nil) }

// newWebhook is NewWebhook with a resolver, nil for net.DefaultResolver.
func newWebhook(cfg WebhookConfig, resolver *net.Resolver) (*Webhook, error) {
	var problems []error
	if !visibleASCII(cfg.Version) {
		problems = append(problems, errors.New("the version must be visible ASCII, for it is sent as part of the User-Agent"))
	}
	if cfg.Timeout <= 0 {
		problems = append(problems, fmt.Errorf("delivery.timeout must be positive, not %v", cfg.Timeout))
	}
	if cfg.MaxIdlePerHost < 1 {
		problems = append(problems, fmt.Errorf("at least one idle connection per host must be kept, not %d", cfg.MaxIdlePerHost))
	}
	g, err := newGuard(cfg.AllowNetworks, cfg.DenyAddrs)
	if err := errors.Join(append(problems, err)...); err != nil {
		return nil, err
	}
	n := &names{resolver: resolver}
	return &Webhook{
		timeout:   cfg.Timeout,
		userAgent: []string{"QuintaGo-Webhooks/" + cfg.Version},
		allowHTTP: cfg.AllowHTTP,
		guard:     g,
		transport: newTransport(cfg, g, n),
		names:     n,
		routes:    routes,
	}, nil
}

// Close closes idle connections. Attempts that are under way end as they would have.
func (w *Webhook) Close() { w.transport.CloseIdleConnections() }

// errDeadline is the cause of an attempt's own deadline and tells it from an end of the caller's context.
var errDeadline = errors.New("delivery.timeout has passed")

// contentType is shared by all requests; net/http does not change it.
var contentType = []string{"application/json"}

// idempotencyKey without a value is not sent. It has net/http send a request once more, on another connection, that it has sent on a
// kept one which then ended before a byte of an answer: servers close kept connections whenever they like. It may arrive twice then,
// as any delivery may.
const idempotencyKey = "Idempotency-Key"

var noValue = []string{}

// requestHeaders is how many headers a request has, so that the map is allocated once.
const requestHeaders = 8

// Attempt sends r once and reports what came of it. It returns after delivery.timeout at the latest, or when ctx ends, but for seven
// seconds more that it may take to find out whether it is our resolver that is silent. A
// panic on the way, ours or the standard library's, is a failed attempt of class internal_error, unless it happens on one of
// net/http's own goroutines outside the dial, where nothing can recover it.
func (w *Webhook) Attempt(ctx context.Context, r Request) (result Result) {
	start := time.Now()
	defer func() {
		if p := panics.Recovered(recover()); p != nil {
			result = failed(ClassInternalError, p.Error())
			result.Panic = p
			result.Latency = time.Since(start)
		}
	}()

	if err := r.Target.err; err != nil {
		return failed(r.Target.class, err.Error())
	}
	if !visibleASCII(r.EventID) {
		return failed(ClassInvalidEventID, "the event's id must be visible ASCII, for it is sent in a header")
	}
	if strings.Contains(r.EventID, ".") {
		return failed(ClassInvalidEventID, "the event's id has a dot, which parts it from time and body in what Standard Webhooks signs; use an id without dots")
	}
	if r.At.IsZero() {
		r.At = start
	}
	ctx, cancel := context.WithTimeoutCause(ctx, w.timeout, errDeadline)
	defer cancel()
	r.keys = r.Target.valid(r.At)
	if len(r.keys) == 1 {
		return w.exchange(ctx, r, start, r.keys[0])
	}
	return w.rotate(ctx, r, start)
}

// rotate is Attempt while former secrets sign as well. A receiver written to the customers' page reads X-Quintago-Signature
// alone, and changes to a new secret at a time of its own: what it refuses is sent once more with another secret.
func (w *Webhook) rotate(ctx context.Context, r Request, start time.Time) (result Result) {
	choices := r.Target.choices(r.keys)
	for i, signer := range choices {
		next := w.exchange(ctx, r, start, signer)
		if next.Code == 0 && next.Outcome != Canceled && i > 0 {
			r.Target.postpone(choices[:i]...)
			return result // which is what is known of the server
		}
		result = next
		switch {
		case refusesSignature(result.Code):
			if i+1 < len(choices) && result.RetryAfter == 0 && ctx.Err() == nil {
				continue
			}
			r.Target.postpone(choices[:i+1]...)
		case result.Outcome == Failed && result.Code != 0 && i == 0:
			r.Target.postpone(signer) // some answer 500 to a signature that is wrong: the next attempt tries another
		case result.Code != 0:
			r.Target.begin(signer)
		}
		break
	}
	return result
}

// refusesSignature reports whether a receiver that finds a signature wrong may answer so.
func refusesSignature(code int) bool {
	return code == http.StatusBadRequest || code == http.StatusUnauthorized || code == http.StatusForbidden
}

// exchange sends r, of an attempt that began at start and ends with ctx, and reads the answer. The key signer signs X-Quintago-Signature.
func (w *Webhook) exchange(ctx context.Context, r Request, start time.Time, signer *signingKey) (result Result) {
	seen, began, header := new(progress), time.Now(), w.header(r, signer)
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	crashpoint.Hit(crashpoint.BeforeDial)
	response, err := w.transport.RoundTrip(newRequest(observe(reading, seen, header), r.Target.url, header, r.Body))
	if p, ok := errors.AsType[*panics.Error](err); ok {
		panic(p) // of the dial
	}
	latency := time.Since(start)
	ended := context.Cause(ctx) // read once, for it may end at any moment; nil while it has not
	switch {
	case err == nil:
		crashpoint.Hit(crashpoint.AfterResponse)
		result = read(response, cancel, r.Target.url, r.At.Add(latency))
	case ended != nil && !errors.Is(ended, errDeadline):
		result = Result{Outcome: Canceled, Class: ClassCanceled, Error: "the attempt was interrupted; its result is unknown"}
	default:
		f := failure{
			host:     r.Target.url.Hostname(),
			timeout:  w.timeout,
			deadline: ended != nil,
			phase:    phase(seen.phase.Load()),
			blocked:  seen.blocked.Load(),
		}
		if fault, sentence := w.local(began, err, f); fault != "" {
			result = notMade(fault, sentence)
		} else {
			result = failed(classify(err, f))
		}
	}
	result.Latency = latency
	return result
}

// header makes the complete header of a request. The key signer signs X-Quintago-Signature.
func (w *Webhook) header(r Request, signer *signingKey) http.Header {
	h := make(http.Header, requestHeaders)
	h["Content-Type"] = contentType
	h["User-Agent"] = w.userAgent
	signAll(h, r.EventID, r.At, r.Body, r.keys, signer)
	h[idempotencyKey] = noValue
	if r.Test {
		h[HeaderTest] = []string{"true"}
	}
	return h
}

// mostConnections is how many connections a request is sent on at most, while kept ones end before a byte of an answer. A server that
// dies of a request must not lose all that are kept to it.
const mostConnections = 3

// observe lets the transport report to p. It is asked for another connection, on the goroutine of RoundTrip, when a kept one has ended.
func observe(ctx context.Context, p *progress, header http.Header) context.Context {
	connections := 0
	return httptrace.WithClientTrace(context.WithValue(ctx, progressKey{}, p), &httptrace.ClientTrace{
		GetConn: func(string) {
			p.phase.Store(int32(phaseStart))
			p.blocked.Store(nil)
			if connections++; connections == mostConnections {
				delete(header, idempotencyKey)
			}
		},
		TLSHandshakeStart: func() { p.reach(phaseTLS) },
		GotConn:           func(httptrace.GotConnInfo) { p.reach(phaseSend) },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				p.reach(phaseHeaders)
			}
		},
	})
}

// newRequest builds the request without http.NewRequest, which would parse the URL again.
//
// The body is a type that net/http knows, so that header and body go out in one write. GetBody allows it to use a second
// connection if a kept one was found dead (idempotencyKey).
func newRequest(ctx context.Context, target *url.URL, header http.Header, body []byte) *http.Request {
	request := &http.Request{Method: http.MethodPost, URL: target, Header: header, ContentLength: int64(len(body))}
	if len(body) > 0 { // with a Body of no bytes the length would count as unknown
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		request.Body, _ = open()
		request.GetBody = open
	}
	return request.WithContext(ctx)
}

// read turns a response into a result, which is decided before the body is looked at. It closes the body; the connection is
// reused if the body ended within maxBodyBytes. cancel ends the reading; asked is the URL, and now is what Retry-After is reckoned from.
func read(response *http.Response, cancel context.CancelFunc, asked *url.URL, now time.Time) Result {
	defer response.Body.Close()
	code := response.StatusCode
	if 200 <= code && code < 300 {
		if response.ContentLength != 0 {
			slow := time.AfterFunc(drainTimeout, cancel)
			defer slow.Stop()
			_, _ = io.CopyN(io.Discard, response.Body, maxBodyBytes)
		}
		return Result{Outcome: Succeeded, Code: code}
	}

	result := failed(classifyStatus(code, asked, response.Header.Get("Location")))
	result.Code = code // 000 cannot be told from none, but for the sentence
	// After 101 the body is the bare connection, and no context ends a read from it.
	if code != http.StatusSwitchingProtocols {
		slow := time.AfterFunc(excerptTimeout, cancel)
		defer slow.Stop()
		excerpt := make([]byte, maxBodyBytes)
		n, _ := io.ReadFull(response.Body, excerpt) // what came before an error is worth keeping
		result.Response = Sanitize(string(excerpt[:n]), maxBodyBytes)
	}
	result.RetryAfter = parseRetryAfter(response.Header.Get("Retry-After"), now)
	if code == http.StatusGone {
		result.Outcome = Gone
	}
	return result
}

// failed makes the result of an attempt that failed.
func failed(class Class, sentence string) Result {
	return Result{Outcome: Failed, Class: class, Error: Sanitize(Printable(sentence), maxErrorBytes)}
}

// visibleASCII tells whether s is fit for a header value: not empty, without spaces, controls and other alphabets.
func visibleASCII(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
