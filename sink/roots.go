package sink

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// readRootsAgain is how long roots that could not be read are not read again.
const readRootsAgain = 5 * time.Second

// roots are the certificates of the authorities that this host trusts. They are read before the
// first handshake. Package crypto/x509 would keep the error of its first reading for ever, so one
// moment without file descriptors would make every handshake fail until a restart. And without any
// roots, it would blame each server's certificate.
type roots struct {
	read func() (*x509.CertPool, error)

	mu   sync.Mutex
	pool *x509.CertPool // not empty, or nil
	err  error          // why pool is nil, at the time at
	at   time.Time
}

func newRoots() *roots {
	r := &roots{read: x509.SystemCertPool}
	_, _ = r.get() // whoever needs them gets the error
	return r
}

// get returns the roots, or an errNoRoots.
func (r *roots) get() (*x509.CertPool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pool != nil || r.err != nil && time.Since(r.at) < readRootsAgain {
		return r.pool, r.err
	}
	pool, err := r.read()
	switch {
	case err != nil:
		// The error is of package os: an operation and a path of this host.
		pool, err = nil, errNoRoots{fmt.Sprintf("this host's root certificates cannot be read (%v)", err), "put that right, or name a file in SSL_CERT_FILE"}
	case pool.Equal(x509.NewCertPool()):
		pool, err = nil, errNoRoots{"this host has no root certificates", "install ca-certificates, or name a file in SSL_CERT_FILE, and restart the agent"}
	}
	r.pool, r.err, r.at = pool, err, time.Now()
	return pool, err
}

// errNoRoots says why no certificate can be checked. It wraps no error, because an error about a
// file is not an error of an attempt.
type errNoRoots struct{ reason, remedy string }

func (e errNoRoots) Error() string { return e.reason + ": " + e.remedy }

// CheckRoots returns the reason why this host cannot check any server's certificate, and the
// remedy. Both are empty if it can.
func (w *Webhook) CheckRoots() (reason, remedy string) {
	_, err := w.client.roots.get()
	none, _ := errors.AsType[errNoRoots](err)
	return none.reason, none.remedy
}
