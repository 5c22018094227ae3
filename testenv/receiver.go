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
	maxBodyBytes = 16 << 20 // of one request; the rest is not read, and its signatures do not match
	maxKept      = 20_000   // requests
	maxKeptBytes = 64 << 20 // of their bodies
)

// anyOtherPath stands for all paths without a secret or answers of their own.
const anyOtherPath = ""

// Received is one request that arrived.
type Received struct {
	ID      string // Webhook-Id, the id of the event
	Path    string
	Header  http.Header
	Body    []byte
	At      time.Time // when its body had arrived
	Attempt int       // 1 for the first request with this id to this path
	// SignatureErr tells what is wrong with the signatures. It is nil when both schemes verify.
	SignatureErr error
}

// Receiver plays a customer's server: it keeps what arrives, verifies both signatures, and answers as told. It is an
// http.Handler; StartReceiver puts it behind a server. It keeps the last 20,000 requests, of 64 MiB of bodies at most.
type Receiver struct {
	URL     string         // "http://127.0.0.1:PORT", set by StartReceiver
	RootCAs *x509.CertPool // trusts the server of a TLS receiver, else nil

	mu        sync.Mutex // guards all below
	secrets   map[string]string
	answers   map[string]Answerer
	kept      []Received // by arrival
	keptBytes int
	attempts  map[attemptKey]int // of those in kept
	count     int
	arrived   chan struct{} // closed and replaced at each arrival
	released  chan struct{} // closed and replaced by Release
}

type attemptKey struct{ path, id string }

// NewReceiver returns a receiver that answers every request with 200 and verifies signatures with secret.
func NewReceiver(secret string) *Receiver {
	return &Receiver{
		secrets:  map[string]string{anyOtherPath: secret},
		answers:  map[string]Answerer{anyOtherPath: Script(Answer{})},
		attempts: map[attemptKey]int{},
		arrived:  make(chan struct{}),
		released: make(chan struct{}),
	}
}

// StartReceiver serves a new receiver on a port of 127.0.0.1 until the end of the test.
func StartReceiver(t testing.TB, secret string) *Receiver {
	t.Helper()
	r := NewReceiver(secret)
	server := httptest.NewServer(r)
	t.Cleanup(func() { r.stop(server) })
	r.URL = server.URL
	return r
}

// StartTLSReceiver is StartReceiver with https, by a certificate that only RootCAs knows.
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

// stop ends the server, which waits for its requests: those that hang are cut off first.
func (r *Receiver) stop(server *httptest.Server) {
	server.CloseClientConnections()
	r.Release()
	server.Close()
}

// SetSecret sets the secret of the endpoint at a path; "" stands for all paths without one of their own.
func (r *Receiver) SetSecret(path, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[path] = secret
}

// SetAnswer sets how requests to a path are answered from now on; "" stands for all paths without answers of their own.
func (r *Receiver) SetAnswer(path string, answers Answerer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[path] = answers
}

// Release lets all requests go on that hang now.
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
		return // the client broke off: nothing was received
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

// record verifies and keeps the request, and returns how to answer it.
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

// Received returns the requests that are kept, by arrival. Their headers and bodies must not be changed.
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

// Wait returns the requests that are kept as soon as n have arrived, and fails the test when they do not within timeout. It
// must be called from the goroutine of the test.
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
