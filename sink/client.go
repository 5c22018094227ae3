package sink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

const (
	// connAge is the longest age of a connection. If a name moves to other addresses, the agent
	// follows within this time, even if the former server still answers. A random part, up to a
	// quarter, is taken away, so that connections of the same age do not all end together.
	connAge             = time.Minute
	tlsSessionCacheSize = 1024
)

// origin is the server that a connection leads to. Endpoints of one origin share connections.
type origin struct {
	address    string // host:port
	serverName string // the name that the certificate must have; empty without TLS
}

// client makes POSTs over HTTP/1.1 (RFC 9110, RFC 9112). Each runs on the goroutine of its caller,
// and a connection carries one at a time. The package documentation has the rules.
type client struct {
	dial dialFunc
	tls  *tls.Config
	idle *idle
	// roots judge the servers' certificates.
	roots   *roots
	gateway *gateway
}

func newClient(cfg WebhookConfig, g *guard, n *names) *client {
	way := &gateway{behind: public}
	return &client{
		dial: newDial(g, n, way),
		tls: &tls.Config{
			MinVersion: tls.VersionTLS12,
			// No other protocol is offered. HTTP/2 has no advantage for one POST at a time, and
			// gives a hostile server more to abuse.
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(tlsSessionCacheSize),
		},
		idle:    newIdle(cfg.MaxIdlePerHost, cfg.MaxIdle),
		roots:   newRoots(),
		gateway: way,
	}
}

// post sends m and reads the answer. If a kept connection turns out to have ended, it sends m again
// on a fresh one, because servers close idle connections whenever they like. Nobody knows then
// whether the server has read the first request. It may arrive twice, as any delivery may.
func (c *client) post(ctx context.Context, to origin, deadline time.Time, m *message, seen *progress) (answer, error) {
	for kept := c.idle.take(to); kept != nil; kept = c.idle.take(to) {
		seen.reach(phaseSend)
		a, keep, err := kept.exchange(ctx, deadline, m, seen)
		stale := isStale(&a, err)
		if !errors.Is(err, errUnsent) && !stale {
			if err == nil {
				c.idle.worked(to)
			}
			c.done(kept, keep)
			return a, err
		}
		c.done(kept, false)
		seen.restart()
		if stale {
			c.idle.lost(to)
			break
		}
	}
	fresh, err := c.connect(ctx, to, deadline, m.ahead, seen)
	if err != nil {
		return answer{}, err
	}
	seen.reach(phaseSend)
	a, keep, err := fresh.exchange(ctx, deadline, m, seen)
	c.done(fresh, keep)
	return a, err
}

// isStale reports whether an exchange on a kept connection failed because the connection was stale,
// so that the server has not answered this request. Signs of that are: the connection ended; there
// were bytes behind the answer before; or the server sent the 408 that some servers send before
// they close an idle connection (RFC 9110, section 15.5.9).
func isStale(a *answer, err error) bool {
	if _, ended := errors.AsType[errEnded](err); ended {
		return true
	}
	return errors.Is(err, errNoStatusLine) || err == nil && a.code == http.StatusRequestTimeout && a.last
}

// done keeps a connection for the next exchange, or closes it.
func (c *client) done(used *conn, keep bool) {
	used.used = time.Now()
	if !keep {
		used.abandon()
	} else if !c.idle.put(used) {
		_ = used.Close() // an error has no effect: nobody uses it again
	}
}

// connect opens a connection to an origin, with TLS if the origin has a server name. Certificates
// are judged by a clock that is so far ahead of this host's.
func (c *client) connect(ctx context.Context, to origin, deadline time.Time, ahead time.Duration, seen *progress) (*conn, error) {
	ctx, cancel := context.WithDeadline(context.WithValue(ctx, progressKey{}, seen), deadline)
	defer cancel()
	var trusted *x509.CertPool
	if to.serverName != "" {
		var err error
		if trusted, err = c.roots.get(); err != nil {
			return nil, err
		}
	}
	opened, err := c.dial(ctx, "tcp", to.address)
	if err != nil {
		return nil, err
	}
	below := newWire(opened, to.serverName != "")
	opened = below
	if to.serverName != "" {
		seen.reach(phaseTLS)
		cfg := c.tls.Clone()
		cfg.ServerName = to.serverName
		cfg.RootCAs = trusted
		cfg.Time = func() time.Time { return time.Now().Add(ahead) }
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			seen.certificate.Store(true)
			return new(tls.Certificate), nil // an empty one means none, the default
		}
		encrypted := tls.Client(opened, cfg)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			_ = opened.Close()
			return nil, err
		}
		opened = encrypted
	}
	age := connAge - rand.N(connAge/4)
	return newConn(opened, below, to, time.Now().Add(age)), nil
}
