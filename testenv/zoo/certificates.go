package zoo

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
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
		version    uint16 // the newest that it speaks; 0 for all
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
	for i := range list {
		list[i].tls, list[i].first = true, true
	}
	return list, nil
}

// selfSigned makes a certificate for 127.0.0.1, unless change makes another one of it.
func selfSigned(key *ecdsa.PrivateKey, change func(*x509.Certificate)) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "zoo"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func hostNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.example", i)
	}
	return names
}

// overTLS shakes hands and answers 200 to whoever gets so far.
func overTLS(cfg *tls.Config) func(net.Conn) {
	return func(c net.Conn) {
		conn := tls.Server(c, cfg)
		if readRequest(conn) { // which shakes hands first
			says(response(200, "over TLS"))(conn)
		}
	}
}

// hears reads what there is to read at first.
func hears(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }
