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
	Test    bool   // a sample, which Webhook-Test: true tells from a real event
	// At is the time that is signed and sent, and by which former secrets end and certificates are
	// judged; zero for this host's clock.
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
	Resolver       *net.Resolver  // of the names of URLs; nil for net.DefaultResolver
}

// Webhook delivers events by HTTP. Its methods may be called by any number of goroutines.
type Webhook struct {
	timeout   time.Duration
	userAgent string
	allowHTTP bool
	guard     *guard
	client    *client
	names     *names
	routes    func(network string) bool // routes; tests have another
}

// NewWebhook makes a Webhook. It fails, naming every problem, if a value of cfg is missing or out of range, or if
// cfg.AllowNetworks would open an address that is never allowed.
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

// Close closes idle connections. Attempts that are under way end as they would have.
func (w *Webhook) Close() { w.client.idle.close() }

// Attempt sends r once and reports what came of it. It returns after delivery.timeout at the latest, or when ctx ends, but for seven
// seconds more that it may take to find out whether it is our resolver that is silent. A panic on the way, ours or the standard
// library's, is a failed attempt of class internal_error.
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

// rotate is Attempt while former secrets sign as well. A receiver written to the customers' page reads X-Quintago-Signature
// alone, and changes to a new secret at a time of its own: what it refuses is sent once more with another secret.
//
// A 410 disables the endpoint at once, and may be what a receiver says to a wrong signature. So it counts as such until each
// secret has got it.
func (w *Webhook) rotate(ctx context.Context, r Request, start time.Time) (result Result) {
	choices := r.Target.choices(r.keys)
	for i, signer := range choices {
		next, sent := w.exchange(ctx, r, start, signer)
		if next.Code == 0 && next.Outcome != Canceled && i > 0 {
			r.Target.postpone(choices[:i]...)
			return result // which is what is known of the server
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
			r.Target.begin(signer)
		}
		break
	}
	return result
}

// refusesSignature reports whether a receiver that finds a signature wrong may answer so.
func refusesSignature(code int) bool {
	switch code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusGone:
		return true
	}
	return false
}

// exchange sends r, of an attempt that began at start and ends at the deadline or with ctx, and reads the answer. The key signer signs
// X-Quintago-Signature. It reports whether the server has all of the request, as far as this side knows.
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
		result = Result{Outcome: Canceled, Class: ClassCanceled, Error: "the attempt was interrupted; its result is unknown"}
	default:
		if p, ok := errors.AsType[*panics.Error](err); ok {
			panic(p) // of the goroutine that sends a long request
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
		if fault, sentence := w.local(began, err, f); fault != "" {
			result = notMade(fault, sentence)
		} else {
			result = failed(classify(err, f))
		}
	}
	result.Latency = latency
	return result, err == nil || phase(seen.phase.Load()) == phaseHeaders
}

// resultOf makes the result of an answer, which is decided by its status. Asked is the URL, and now is what Retry-After is reckoned from.
func resultOf(a *answer, asked *url.URL, now time.Time) Result {
	if succeeds(a.code) {
		return Result{Outcome: Succeeded, Code: a.code}
	}
	result := failed(classifyStatus(a.code, asked, a.location))
	result.Code = a.code // 000 cannot be told from none, but for the sentence
	result.Response = Sanitize(string(a.excerpt), maxBodyBytes)
	result.RetryAfter = a.retryAfter.wait(now)
	if a.code == http.StatusGone {
		result.Outcome = Gone
	}
	return result
}

// failed makes the result of an attempt that failed.
func failed(class Class, sentence string) Result {
	return Result{Outcome: Failed, Class: class, Error: Sanitize(Printable(sentence), maxErrorBytes)}
}

// visibleASCII reports whether s is fit for a header value: not empty, without spaces, controls and other alphabets.
func visibleASCII(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
