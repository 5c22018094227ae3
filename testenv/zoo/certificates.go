package zoo

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// certificateSpecies are the animals that speak TLS, or should.
func certificateSpecies() ([]species, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	list := []species{
		{name: "tls-plain-http", does: "speaks plain HTTP where TLS is expected", act: then(hears, says(response(400, "plain")))},
		{name: "tls-ssh", does: "is an SSH server where TLS is expected", act: says("SSH-2.0-OpenSSH_9.6\r\n")},
		{name: "tls-silent", does: "says nothing to a handshake", act: listens},
		{name: "tls-closes", does: "closes the connection in the middle of the handshake", act: then(hears, says("\x16\x03\x03"))},
		{name: "tls-refuses", does: "refuses the handshake", act: then(hears, says("\x15\x03\x03\x00\x02\x02\x28"), pauses)},
	}
	for _, c := range []struct {
		name, does string
		change     func(*x509.Certificate)
		version    uint16 // the newest TLS version that it speaks; 0 for all
	}{
		{"tls-expired", "has a certificate that expired in 2020", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
		}, 0},
		{"tls-early", "has a certificate that is valid from 2099 on", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
		}, 0},
		{"tls-self-signed", "has signed its certificate itself", func(*x509.Certificate) {}, 0},
		{"tls-wrong-host", "has a certificate for another host", func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"other.example"}
		}, 0},
		{"tls-many-names", "has a certificate for ten thousand other hosts", func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, hostNames(10_000)
		}, 0},
		{"tls-no-name", "has a certificate for no host", func(c *x509.Certificate) { c.IPAddresses = nil }, 0},
		{"tls-huge", "has a certificate of 300 kB, more than a handshake may hold", func(c *x509.Certificate) { c.DNSNames = hostNames(20_000) }, 0},
		{"tls-1.1", "speaks no newer TLS than 1.1", func(*x509.Certificate) {}, tls.VersionTLS11},
	} {
		certificate, err := selfSigned(key, c.change)
		if err != nil {
			return nil, fmt.Errorf("make the certificate of %s: %w", c.name, err)
		}
		cfg := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS10, MaxVersion: c.version}
		list = append(list, species{name: c.name, does: c.does, act: overTLS(cfg)})
	}
	trusted, err := signed(key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate that is trusted: %w", err)
	}
	certificates := []tls.Certificate{trusted}
	list = append(list,
		species{name: "tls-tame", does: "answers 200 over TLS", act: overTLS(&tls.Config{Certificates: certificates})},
		species{name: "tls-h2-only", does: "speaks HTTP/2 and nothing else over TLS: refuses any other ALPN, and wants none",
			act: speaksHTTP2(&tls.Config{Certificates: certificates, NextProtos: []string{"h2"}})},
		species{name: "tls-client-1.3", does: "requires a client certificate, by TLS 1.3", act: overTLS(&tls.Config{Certificates: certificates, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13})},
		species{name: "tls-client-1.2", does: "requires a client certificate, by TLS 1.2", act: overTLS(&tls.Config{Certificates: certificates, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12})},
	)
	for i := range list {
		list[i].tls, list[i].first = true, true
	}
	return list, nil
}

// authority signs the certificates that clients should trust. Each process has one.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

var newAuthority = sync.OnceValues(func() (a authority, err error) {
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return a, err
	}
	self, err := selfSigned(a.key, func(c *x509.Certificate) {
		c.Subject.CommonName, c.IPAddresses = "zoo authority", nil
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	if err != nil {
		return a, err
	}
	a.certificate, err = x509.ParseCertificate(self.Certificate[0])
	return a, err
})

// Authority returns the authority's certificate as PEM. A client that names its file in
// SSL_CERT_FILE trusts the animals whose certificates have nothing wrong.
func Authority() ([]byte, error) {
	a, err := newAuthority()
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}), nil
}

// signed returns a certificate for 127.0.0.1 that the authority has signed.
func signed(key *ecdsa.PrivateKey) (tls.Certificate, error) {
	a, err := newAuthority()
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template(), a.certificate, key.Public(), a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// template returns a certificate for 127.0.0.1 that is not signed yet.
func template() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "zoo"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
}

// selfSigned returns a self-signed certificate for 127.0.0.1. change may change it before it is
// signed.
func selfSigned(key *ecdsa.PrivateKey, change func(*x509.Certificate)) (tls.Certificate, error) {
	certificate := template()
	change(certificate)
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func hostNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.example", i)
	}
	return names
}

// overTLS makes the TLS handshake, and answers 200 to a client whose handshake succeeds.
func overTLS(cfg *tls.Config) func(net.Conn) {
	return func(c net.Conn) {
		conn := tls.Server(c, cfg)
		if readRequest(conn) { // reading makes the handshake first
			says(response(200, "over TLS"))(conn)
		}
	}
}

// speaksHTTP2 makes the TLS handshake, and then speaks HTTP/2 to a client whose handshake succeeds.
func speaksHTTP2(cfg *tls.Config) func(net.Conn) {
	return func(c net.Conn) {
		conn := tls.Server(c, cfg)
		hears(conn)
		then(says(settings+goaway), pauses)(conn)
	}
}

// hears reads what the client sends first.
func hears(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }
