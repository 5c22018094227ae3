package sink

import (
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// trust has the roots be these.
func (r *roots) trust(pool *x509.CertPool) {
	r.read = func() (*x509.CertPool, error) { return pool, nil }
	r.pool, r.err = nil, nil
}

// otherRoots are those of an authority that has signed nothing.
func otherRoots(t *testing.T) *roots {
	_, w := serveTLS(t, nil, tls.VersionTLS13)
	return w.client.roots
}

// What keeps this host from judging certificates counts for nobody, and ends without a restart.
func TestAttempt_IsNoneWithoutRoots(t *testing.T) {
	base, w := serveTLS(t, nil, tls.VersionTLS13)
	trusted, err := w.client.roots.get()
	if err != nil {
		t.Fatal(err)
	}
	plain := serve(t, discard)
	for _, c := range []struct {
		name  string
		pool  *x509.CertPool
		err   error
		words []string
	}{
		{"no descriptor is left", nil, &fs.PathError{Op: "open", Path: "/etc/ssl/cert.pem", Err: syscall.EMFILE}, []string{"cannot be read", "/etc/ssl/cert.pem", "too many open files"}},
		{"not to be read", nil, &fs.PathError{Op: "open", Path: "/etc/ssl/cert.pem", Err: syscall.EACCES}, []string{"cannot be read", "permission denied"}},
		{"there are none", x509.NewCertPool(), nil, []string{"no root certificates", "ca-certificates", "restart"}},
	} {
		w.Close() // no kept connection
		w.client.roots.read = func() (*x509.CertPool, error) { return c.pool, c.err }
		w.client.roots.pool, w.client.roots.err = nil, nil
		got := attempt(t, w, requestTo(base))
		checkClass(t, got, ClassLocalFault, 0, c.words...)
		if got.Outcome != NotMade || got.Fault != FaultRoots {
			t.Errorf("%s: %+v", c.name, got)
		}
		if reason, remedy := w.CheckRoots(); got.Error != reason+": "+remedy {
			t.Errorf("%s: CheckRoots says %q, %q", c.name, reason, remedy)
		}
		checkClass(t, attempt(t, w, requestTo(plain)), "", 200)

		w.client.roots.read = func() (*x509.CertPool, error) { return trusted, nil }
		w.client.roots.at = time.Now().Add(-readRootsAgain)
		checkClass(t, attempt(t, w, requestTo(base)), "", 200)
		if reason, remedy := w.CheckRoots(); reason != "" || remedy != "" {
			t.Errorf("%s: CheckRoots says %q, %q afterwards", c.name, reason, remedy)
		}
	}
}

// The roots are read when a Webhook is made, and again every few seconds only while there are none.
func TestRoots_AreReadEarlyAndOnce(t *testing.T) {
	if r := newTestWebhook(t, nil).client.roots; r.at.IsZero() {
		t.Error("a Webhook that was just made has not read its roots")
	}
	_, w := serveTLS(t, nil, tls.VersionTLS13)
	trusted, err := w.client.roots.get()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		reads, pool := 0, x509.NewCertPool()
		r := &roots{read: func() (*x509.CertPool, error) { reads++; return pool, nil }}
		for i, c := range []struct {
			wait  time.Duration
			reads int
			ok    bool
		}{{0, 1, false}, {readRootsAgain - 1, 1, false}, {1, 2, false}, {1, 2, false}, {readRootsAgain, 3, true}, {time.Hour, 3, true}} {
			<-time.After(c.wait)
			if c.ok {
				pool = trusted
			}
			if _, err := r.get(); (err == nil) != c.ok || reads != c.reads {
				t.Errorf("look %d: %v after %d reads, want %d", i+1, err, reads, c.reads)
			}
		}
	})
}

// A host's clock that is wrong makes no certificate expired: they are judged by the time that is
// signed, which is the database's.
func TestAttempt_JudgesCertificatesByTheTimeThatIsSigned(t *testing.T) {
	base, w := serveTLS(t, nil, tls.VersionTLS13) // an hour before and behind this host's
	for _, c := range []struct {
		ahead time.Duration
		class Class
		word  string
	}{
		{0, "", ""},
		{2 * time.Hour, ClassTLSExpired, "expired"},
		{-2 * time.Hour, ClassTLSExpired, "not valid before"},
		{0, "", ""},
	} {
		w.Close() // no kept connection
		r := requestTo(base)
		r.At = time.Now().Add(c.ahead)
		got := attempt(t, w, r)
		if got.Class != c.class || !strings.Contains(got.Error, c.word) {
			t.Errorf("%v ahead: %+v", c.ahead, got)
		}
		_, clock, _ := strings.Cut(got.Error, "clock says ")
		if said, err := time.Parse(time.RFC3339, clock); c.class != "" && (err != nil || said.Sub(r.At).Abs() > 10*time.Minute) {
			t.Errorf("%v ahead: %q, want the time that is signed", c.ahead, got.Error)
		}
	}
}
