package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

// Request is what one attempt sends.
type Request struct {
	Target  *Target
	EventID string
	Body    []byte // the envelope, sent and signed as it is; Attempt does not change it
	Test    bool   // a sample: the header Webhook-Test: true marks it
	// Traceparent is sent as the header of that name unless it is "". It must have the form of W3C
	// Trace Context.
	Traceparent string
	// At is the time that is signed and sent. It also decides which former secrets still sign, and
	// certificates are judged by it. Zero means the time of this host's clock.
	At time.Time

	keys []*signingKey // those of Target that sign at the time At
}

// Outcome says what an attempt means for its delivery.
type Outcome int

const (
	Succeeded Outcome = iota // a 2xx status line arrived
	Failed                   // anything else
	Gone                     // the server answered 410: the caller should disable the endpoint
	// The caller's context ended first. Nobody knows whether the server got the event.
	Canceled
	NotMade // this side of the wire failed (Result.Fault), so it was no attempt
)

// Result is the result of one attempt. Which fields are set follows from the Outcome.
type Result struct {
	Outcome Outcome
	Code    int   // HTTP status; 0 when no status line arrived
	Class   Class // empty on success
	// Error is one sentence of at most 300 bytes, fit for PostgreSQL and a terminal. It is empty on
	// success.
	Error   string
	Latency time.Duration // from the call to the status line, or to the failure
	// Response is at most 4 KiB of the body, for failures only. Sanitize was applied, Printable was
	// not.
	Response string
	// RetryAfter is the wait that an answer other than 2xx asked for, at most an hour, or 0 for
	// none.
	RetryAfter time.Duration
	Panic      *panics.Error // set with ClassInternalError only
	Fault      Fault         // set with NotMade only
}

// WebhookConfig configures a Webhook.
type WebhookConfig struct {
	Version string // the User-Agent is QuintaGo-Webhooks/<Version>
	// Timeout is delivery.timeout: one deadline for DNS, connect, TLS, request, headers and body.
	Timeout       time.Duration
	AllowHTTP     bool           // network.allow_http: http:// URLs are accepted
	AllowNetworks []netip.Prefix // network.allow_networks
	// DenyAddrs are the host's and the database's addresses. They are refused unless AllowNetworks
	// covers them.
	DenyAddrs      []netip.Addr
	MaxIdlePerHost int           // idle connections kept open to one host
	MaxIdle        int           // idle connections kept open to all hosts; 0 for DefaultMaxIdle
	Resolver       *net.Resolver // looks up the hosts of URLs; nil for net.DefaultResolver
}

// Webhook delivers events by HTTP. Any number of goroutines may call its methods at the same time.
type Webhook struct {
	timeout   time.Duration
	userAgent string
	allowHTTP bool
	guard     *guard
	client    *client
	names     *names
	routes    func(network string) bool // the function routes; tests set another
}

// NewWebhook makes a Webhook. It starts nothing. It fails if a value of cfg is missing or out of
// range, or if cfg.AllowNetworks would allow an address that is always refused. The error names
// every problem.
func NewWebhook(cfg WebhookConfig) (*Webhook, error) {
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
	if cfg.MaxIdle < 0 {
		problems = append(problems, fmt.Errorf("the idle connections to all hosts cannot be %d", cfg.MaxIdle))
	}
	g, err := newGuard(cfg.AllowNetworks, cfg.DenyAddrs)
	if err := errors.Join(append(problems, err)...); err != nil {
		return nil, err
	}
	n := &names{resolver: cfg.Resolver}
	return &Webhook{
		timeout:   cfg.Timeout,
		userAgent: "QuintaGo-Webhooks/" + cfg.Version,
		allowHTTP: cfg.AllowHTTP,
		guard:     g,
		client:    newClient(cfg, g, n),
		names:     n,
		routes:    routes,
	}, nil
}

// Close closes the idle connections, and keeps none from then on. Attempts under way end normally.
func (w *Webhook) Close() { w.client.idle.close() }

// CloseIdle closes the connections that are idle now.
func (w *Webhook) CloseIdle() { w.client.idle.drop() }

// Attempt makes one attempt to send r and returns its result.
//
// It returns when ctx ends, and after delivery.timeout at the latest. One case takes up to
// seven seconds more: it has to find out whether our own resolver fails. A panic, in this package or in
// the standard library, becomes a failed attempt of class internal_error.
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
	r.keys = r.Target.valid(r.At)
	if len(r.keys) == 1 {
		result, _ := w.exchange(ctx, r, start, r.keys[0])
		return result
	}
	return w.rotate(ctx, r, start)
}

// rotate makes the attempt while former secrets sign as well. A receiver written to the customers'
// page reads X-Quintago-Signature alone, and changes to a new secret at a time of its own. So if it
// refuses a request, rotate sends the request again with another secret.
//
// A 410 disables the endpoint at once, and a receiver may answer so to a wrong signature. It counts
// once each secret has got it.
func (w *Webhook) rotate(ctx context.Context, r Request, start time.Time) (result Result) {
	choices := r.Target.choices(r.keys)
	for i, signer := range choices {
		next, sent := w.exchange(ctx, r, start, signer)
		if next.Code == 0 && next.Outcome != Canceled && i > 0 {
			r.Target.postpone(choices[:i]...)
			return result // the answer before says more about the server than this failure
		}
		result = next
		if result.Code != 0 && r.Target.gone(r.keys, signer, result.Outcome == Gone) {
			return result
		}
		if result.Outcome == Gone {
			result.Outcome = Failed
			result.Error = "the server answered 410, which counts as a refused signature until each secret of the rotation has got it"
		}
		switch {
		case refusesSignature(result.Code):
			if i+1 < len(choices) && result.RetryAfter == 0 && ctx.Err() == nil {
				continue
			}
			r.Target.postpone(choices[:i+1]...)
		case result.Outcome == Failed && sent && i == 0:
			// Some answer 500 to a signature that is wrong, some end the connection, and some are silent.
			r.Target.postpone(signer) // so the next attempt tries another
		case result.Code != 0:
			r.Target.prefer(signer)
		}
		break
	}
	return result
}

// refusesSignature reports whether code is one that receivers use to refuse a wrong signature.
func refusesSignature(code int) bool {
	switch code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusGone:
		return true
	}
	return false
}

// exchange sends r once and reads the answer. The attempt began at start, and ends at its deadline
// or with ctx. signer is the key that signs X-Quintago-Signature. It reports whether the server has
// all of the request, as far as this side knows.
func (w *Webhook) exchange(ctx context.Context, r Request, start time.Time, signer *signingKey) (result Result, sent bool) {
	seen, began, deadline := new(progress), time.Now(), start.Add(w.timeout)
	m := w.newMessage(r, start, signer)
	defer m.free()
	crashpoint.Hit(crashpoint.BeforeDial)
	a, err := w.client.post(ctx, r.Target.origin, deadline, m, seen)
	latency := time.Since(start)
	switch {
	case err == nil:
		latency = a.at.Sub(start)
		result = resultOf(&a, r.Target.url, r.At.Add(latency))
	case ctx.Err() != nil:
		result = canceled()
	default:
		if p, ok := errors.AsType[*panics.Error](err); ok {
			panic(p) // it happened on the goroutine that sends a long body; Attempt recovers it
		}
		f := failure{
			host:        r.Target.url.Hostname(),
			tls:         r.Target.origin.serverName != "",
			timeout:     w.timeout,
			deadline:    !time.Now().Before(deadline),
			phase:       phase(seen.phase.Load()),
			blocked:     seen.blocked.Load(),
			certificate: seen.certificate.Load(),
			now:         time.Now().Add(m.ahead),
		}
		switch fault, sentence := w.local(ctx, began, err, f); {
		case fault != "":
			result = notMade(fault, sentence)
		case ctx.Err() != nil:
			result = canceled()
		default:
			result = failed(classify(err, f))
		}
	}
	result.Latency = latency
	return result, err == nil || phase(seen.phase.Load()) == phaseHeaders
}

// canceled returns the result of an attempt whose context has ended.
func canceled() Result {
	return Result{Outcome: Canceled, Class: ClassCanceled, Error: "the attempt was interrupted; its result is unknown"}
}

// resultOf returns the result for an answer. The status alone decides. asked is the URL of the
// request. A Retry-After is counted from now.
func resultOf(a *answer, asked *url.URL, now time.Time) Result {
	if succeeds(a.code) {
		return Result{Outcome: Succeeded, Code: a.code}
	}
	result := failed(classifyStatus(a.code, asked, a.location))
	result.Code = a.code // a status 000 looks like no status line here; only the sentence shows it
	result.Response = Sanitize(string(a.excerpt), maxBodyBytes)
	result.RetryAfter = a.retryAfter.wait(now)
	if a.code == http.StatusGone {
		result.Outcome = Gone
	}
	return result
}

// failed returns the result of a failed attempt.
func failed(class Class, sentence string) Result {
	return Result{Outcome: Failed, Class: class, Error: Sanitize(Printable(sentence), maxErrorBytes)}
}

// visibleASCII reports whether s can be a header value: it is not empty, and has no spaces,
// controls or characters of other alphabets.
func visibleASCII(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// UserAgent returns the field User-Agent of every request.
func (w *Webhook) UserAgent() string { return w.userAgent }
