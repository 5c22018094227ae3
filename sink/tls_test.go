package sink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// serveTLS starts a TLS server with a certificate for 127.0.0.1 that change may have changed. It
// returns the server and a Webhook that trusts the certificate as an authority.
func serveTLS(t *testing.T, change func(*x509.Certificate), maxVersion uint16) (string, *Webhook) {
	t.Helper()
	return serveTLSAs(t, change, func(c *tls.Config) { c.MaxVersion = maxVersion })
}

// serveTLSWith does the same with a sound certificate. configure may change the server.
func serveTLSWith(t *testing.T, configure func(*tls.Config)) (string, *Webhook) {
	t.Helper()
	return serveTLSAs(t, nil, configure)
}

func serveTLSAs(t *testing.T, change func(*x509.Certificate), configure func(*tls.Config)) (string, *Webhook) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are what these tests are about
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS10,
	}
	configure(server.TLS)
	server.StartTLS()
	t.Cleanup(server.Close)

	w := newTestWebhook(t, nil)
	trusted := x509.NewCertPool()
	trusted.AddCert(certificate)
	w.client.roots.trust(trusted)
	return server.URL, w
}

func TestAttempt_DeliversOverTLSWithHTTP1(t *testing.T) {
	base, w := serveTLSWith(t, func(c *tls.Config) {
		c.NextProtos = []string{"h2", "http/1.1"}
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != "http/1.1" {
				t.Errorf("negotiated %q", s.NegotiatedProtocol)
			}
			return nil
		}
	})
	checkClass(t, attempt(t, w, requestTo(base)), "", 200)
}

func TestAttempt_TellsCertificateFailuresApart(t *testing.T) {
	for _, c := range []struct {
		name      string
		change    func(*x509.Certificate)
		untrusted bool
		class     Class
		words     []string
	}{
		{"self-signed", nil, true, ClassTLSUntrusted, []string{"known authority", "self-signed"}},
		{"for clients alone", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
			false, ClassTLSUntrusted, []string{"may not be used for this server"}},
		{"expired", func(c *x509.Certificate) {
			c.NotAfter = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
			c.NotBefore = c.NotAfter.Add(-time.Hour)
		}, false, ClassTLSExpired, []string{"expired on 2020-01-02T03:04:05Z", "clock"}},
		{"not valid yet", func(c *x509.Certificate) {
			c.NotBefore = time.Date(2999, 1, 2, 3, 4, 5, 0, time.UTC)
			c.NotAfter = c.NotBefore.Add(time.Hour)
		}, false, ClassTLSExpired, []string{"not valid before 2999-01-02T03:04:05Z", "clock"}},
		{"wrong host", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"other.example"} },
			false, ClassTLSWrongHost, []string{"for other.example, not for 127.0.0.1"}},
		{"wrong address", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} },
			false, ClassTLSWrongHost, []string{"for 127.0.0.2, not for 127.0.0.1"}},
		{"no name", func(c *x509.Certificate) { c.IPAddresses = nil },
			false, ClassTLSWrongHost, []string{"for no host"}},
		{"too many names, too long", func(c *x509.Certificate) {
			c.IPAddresses = nil
			for i := range 1000 {
				c.DNSNames = append(c.DNSNames, fmt.Sprintf("n%d.%s.example", i, strings.Repeat("x.", 60)))
			}
		}, false, ClassTLSWrongHost, []string{"n0.", "n2.", "and 997 more, not for 127.0.0.1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, w := serveTLS(t, c.change, tls.VersionTLS13)
			if c.untrusted {
				w.client.roots = otherRoots(t)
			}
			checkClass(t, attempt(t, w, requestTo(base)), c.class, 0, c.words...)
		})
	}
}

func TestAttempt_NamesAnOldTLSVersion(t *testing.T) {
	base, w := serveTLS(t, nil, tls.VersionTLS11)
	checkClass(t, attempt(t, w, requestTo(base)), ClassTLSError, 0, "protocol version not supported")
}

func TestAttempt_NamesAPortWithoutTLS(t *testing.T) {
	w := newTestWebhook(t, nil)
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	checkClass(t, attempt(t, w, requestTo(strings.Replace(plain, "http:", "https:", 1))), ClassTLSError, 0, "plain HTTP")

	ssh := serveRaw(t, true, func(conn net.Conn) {
		write(conn, "SSH-2.0-OpenSSH_9.7\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	checkClass(t, attempt(t, w, requestTo("https://"+ssh)), ClassTLSError, 0, "does not speak TLS")

	silent := serveRaw(t, true, func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
	checkClass(t, attempt(t, w, requestTo("https://"+silent)), ClassConnectionReset, 0, "before the request was sent")
}
