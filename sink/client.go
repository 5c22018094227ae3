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
	// connAge is the longest age of a connection. A name that has moved to other addresses is followed within it, although the
	// former server still answers. A quarter of it is taken away at random, so that connections of one age do not end together.
	connAge             = time.Minute
	tlsSessionCacheSize = 1024
)

// origin is where a connection leads. Endpoints of one origin share connections.
type origin struct {
	address    string // host:port
	serverName string // of the certificate; empty without TLS
}

// client makes POSTs over HTTP/1.1 (RFC 9110, RFC 9112), each on the goroutine of its caller, and one at a time on a connection. The
// package documentation has its rules.
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
			// Only this is spoken here: HTTP/2 brings nothing to one POST at a time, and a stranger's server can abuse more of it.
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(tlsSessionCacheSize),
		},
		idle:    newIdle(cfg.MaxIdlePerHost, cfg.MaxIdle),
		roots:   newRoots(),
		gateway: way,
	}
}

// post sends m and reads the answer. It goes once more, on a fresh connection, when a kept one turns out to have ended: servers close
// those whenever they like. Whether the request was read before is not known then; it may arrive twice, as any delivery may.
func (c *client) post(ctx context.Context, to origin, deadline time.Time, m *message, seen *progress) (answer, error) {
	if kept := c.idle.take(to); kept != nil {
		seen.reach(phaseSend)
		a, keep, err := kept.exchange(ctx, deadline, m, seen)
		if !isStale(&a, err) {
			if err == nil {
				c.idle.worked(to)
			}
			c.done(kept, keep)
			return a, err
		}
		c.done(kept, false)
		c.idle.lost(to)
		seen.restart()
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

// isStale reports whether what an exchange on a kept connection met is no answer to its request: the connection's end, bytes behind the
// answer before, or what some servers say before they close an idle connection (RFC 9110, section 15.5.9).
func isStale(a *answer, err error) bool {
	if _, ended := errors.AsType[errEnded](err); ended {
		return true
	}
	return errors.Is(err, errNoStatusLine) || err == nil && a.code == http.StatusRequestTimeout && a.last
}

// done keeps or closes a connection after an exchange.
func (c *client) done(used *conn, keep bool) {
	used.used = time.Now()
	if !keep {
		used.abandon()
	} else if !c.idle.put(used) {
		_ = used.Close() // nothing more is expected of it
	}
}

// connect opens a connection, with TLS if the origin has it. Certificates are judged by a clock that
// is so far ahead of this host's.
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
	if to.serverName != "" {
		seen.reach(phaseTLS)
		cfg := c.tls.Clone()
		cfg.ServerName = to.serverName
		cfg.RootCAs = trusted
		cfg.Time = func() time.Time { return time.Now().Add(ahead) }
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			seen.certificate.Store(true)
			return new(tls.Certificate), nil // none, as without this function
		}
		encrypted := tls.Client(opened, cfg)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			_ = opened.Close()
			return nil, err
		}
		opened = encrypted
	}
	age := connAge - rand.N(connAge/4)
	return newConn(opened, to, time.Now().Add(age)), nil
}
