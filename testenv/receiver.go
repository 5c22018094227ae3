package testenv

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	maxBodyBytes = 16 << 20 // of one request; the rest is not read, so its signatures do not match
	maxKept      = 20_000   // how many requests are kept
	maxKeptBytes = 64 << 20 // of the bodies of all requests that are kept
)

// anyOtherPath stands for all paths that have no secret or answers of their own.
const anyOtherPath = ""

// Received is one request that arrived.
type Received struct {
	ID      string // Webhook-Id, the id of the event
	Path    string
	Header  http.Header
	Body    []byte
	At      time.Time // when the whole body had arrived
	Attempt int       // 1 for the first request with this id to this path
	// SignatureErr says what is wrong with the signatures. It is nil if both schemes verify.
	SignatureErr error
}

// Receiver plays a customer's server. It keeps the requests that arrive, verifies both signatures,
// and gives the answers that the test has set. It keeps the last 20,000 requests, with 64 MiB of
// bodies at most. It is an http.Handler; StartReceiver puts it behind a server. Any number of
// goroutines may call its methods.
type Receiver struct {
	URL     string         // "http://127.0.0.1:PORT", set by StartReceiver
	RootCAs *x509.CertPool // for clients of a TLS receiver, else nil

	mu        sync.Mutex // guards all below
	secrets   map[string]string
	answers   map[string]Answerer
	kept      []Received // by arrival
	keptBytes int
	attempts  map[attemptKey]int // for the requests in kept
	count     int
	arrived   chan struct{} // closed and replaced at each arrival
	released  chan struct{} // closed and replaced by Release
}

type attemptKey struct{ path, id string }

// NewReceiver returns a receiver that verifies signatures with secret and answers every request
// with 200.
func NewReceiver(secret string) *Receiver {
	return &Receiver{
		secrets:  map[string]string{anyOtherPath: secret},
		answers:  map[string]Answerer{anyOtherPath: Script(Answer{})},
		attempts: map[attemptKey]int{},
		arrived:  make(chan struct{}),
		released: make(chan struct{}),
	}
}

// StartReceiver serves a new receiver on a port of 127.0.0.1. The server ends with the test.
func StartReceiver(t testing.TB, secret string) *Receiver {
	t.Helper()
	r := NewReceiver(secret)
	server := httptest.NewServer(r)
	t.Cleanup(func() { r.stop(server) })
	r.URL = server.URL
	return r
}

// StartTLSReceiver does the same as StartReceiver, by https. Only RootCAs trusts the certificate.
func StartTLSReceiver(t testing.TB, secret string) *Receiver {
	t.Helper()
	r := NewReceiver(secret)
	server := httptest.NewTLSServer(r)
	t.Cleanup(func() { r.stop(server) })
	r.URL = server.URL
	r.RootCAs = x509.NewCertPool()
	r.RootCAs.AddCert(server.Certificate())
	return r
}

// stop ends the server. Its Close waits for requests under way, so those that hang are ended first.
func (r *Receiver) stop(server *httptest.Server) {
	server.CloseClientConnections()
	r.Release()
	server.Close()
}

// SetSecret sets the secret of the endpoint at a path. The path "" stands for all paths that have
// no secret of their own.
func (r *Receiver) SetSecret(path, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[path] = secret
}

// SetAnswer sets the answers to further requests to a path. The path "" stands for all paths that
// have no answers of their own.
func (r *Receiver) SetAnswer(path string, answers Answerer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[path] = answers
}

// Release ends the hanging of all requests that hang now, so that they are answered.
func (r *Receiver) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.released)
	r.released = make(chan struct{})
}

// ServeHTTP records the request and answers it.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, maxBodyBytes))
	if err != nil {
		return // the client broke off, so nothing counts as received
	}
	received := Received{
		ID:     req.Header.Get("Webhook-Id"),
		Path:   req.URL.Path,
		Header: req.Header.Clone(),
		Body:   body,
		At:     time.Now(),
	}
	answers, released := r.record(&received)
	answers(received).give(w, req, released)
}

// record verifies and keeps the request. It returns the Answerer for it, and the channel that
// Release closes.
func (r *Receiver) record(received *Received) (Answerer, <-chan struct{}) {
	r.mu.Lock()
	secret := ofPath(r.secrets, received.Path)
	r.mu.Unlock()
	received.SignatureErr = errors.Join(
		VerifyQuintago(received.Header.Get("X-Quintago-Signature"), received.Body, secret),
		VerifyStandard(received.Header, received.Body, secret, received.At),
	)

	r.mu.Lock()
	defer r.mu.Unlock()
	key := attemptKey{received.Path, received.ID}
	r.attempts[key]++
	received.Attempt = r.attempts[key]
	r.kept = append(r.kept, *received)
	r.keptBytes += len(received.Body)
	for len(r.kept) > maxKept || r.keptBytes > maxKeptBytes && len(r.kept) > 1 {
		r.forgetOldestLocked()
	}
	r.count++
	close(r.arrived)
	r.arrived = make(chan struct{})
	return ofPath(r.answers, received.Path), r.released
}

func (r *Receiver) forgetOldestLocked() {
	oldest := r.kept[0]
	r.kept[0] = Received{} // the array behind the slice must not keep the body
	r.kept = r.kept[1:]
	r.keptBytes -= len(oldest.Body)
	if key := (attemptKey{oldest.Path, oldest.ID}); r.attempts[key] == oldest.Attempt {
		delete(r.attempts, key) // no later request of this event is kept
	}
}

func ofPath[T any](values map[string]T, path string) T {
	if value, ok := values[path]; ok {
		return value
	}
	return values[anyOtherPath]
}

// Received returns the requests that are kept, in the order of arrival. The caller must not change
// their headers and bodies.
func (r *Receiver) Received() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.kept)
}

// Count returns how many requests have arrived, kept or not.
func (r *Receiver) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// Wait waits until n requests have arrived, and returns those that are kept. It fails the test if
// they do not arrive within timeout. Only the goroutine of the test may call it.
func (r *Receiver) Wait(t testing.TB, n int, timeout time.Duration) []Received {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		count, arrived := r.count, r.arrived
		r.mu.Unlock()
		if count >= n {
			return r.Received()
		}
		select {
		case <-arrived:
		case <-deadline.C:
			t.Fatalf("%d requests arrived within %s, want %d", count, timeout, n)
		}
	}
}
