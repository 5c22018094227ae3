package main

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The first part of a path decides how the receiver behaves. The rest only makes the URLs of
// endpoints different.
const (
	sound  = "/sound/"  // answers at once
	slow   = "/slow/"   // after slowAnswer
	late   = "/late/"   // after lateAnswer
	silent = "/silent/" // never
	bulk   = "/bulk/"   // at once; arrivals are not kept

	slowAnswer = 20 * time.Millisecond
	lateAnswer = 10 * time.Second
)

// customers plays all customers' servers, at all addresses of 127.0.0.0/8.
type customers struct {
	port, tlsPort int
	ca            []byte // PEM; trusts the TLS server
	servers       []*http.Server
	serving       sync.WaitGroup
	released      chan struct{} // closed by close

	answered atomic.Int64 // requests that were answered with 200, without those to late

	mu       sync.Mutex // guards arrivals
	arrivals []arrival  // filled while keep is set
	keep     atomic.Bool
}

// arrival is a request that has arrived.
type arrival struct {
	id string // of the event
	at time.Time
}

func startCustomers() (c *customers, err error) {
	c = &customers{released: make(chan struct{})}
	// Only the certificate of this server is needed.
	example := httptest.NewTLSServer(http.NotFoundHandler())
	defer example.Close()
	c.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: example.Certificate().Raw})
	if c.port, err = c.serve(nil); err != nil {
		return nil, err
	}
	if c.tlsPort, err = c.serve(&tls.Config{Certificates: example.TLS.Certificates}); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// serve starts a server, with TLS if cfg is not nil. Its goroutine ends with close.
func (c *customers) serve(cfg *tls.Config) (port int, err error) {
	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		return 0, fmt.Errorf("start the receiver: %w", err)
	}
	port = listener.Addr().(*net.TCPAddr).Port
	if cfg != nil {
		listener = tls.NewListener(listener, cfg)
	}
	server := &http.Server{Handler: c, ErrorLog: nil, IdleTimeout: 5 * time.Minute}
	c.servers = append(c.servers, server)
	c.serving.Go(func() { _ = server.Serve(listener) }) // it returns when close closes it
	return port, nil
}

func (c *customers) close() error {
	close(c.released)
	var errs []error
	for _, s := range c.servers {
		errs = append(errs, s.Close())
	}
	c.serving.Wait()
	return errors.Join(errs...)
}

// url returns the URL of the endpoint with this number that behaves as path says.
func (c *customers) url(path string, number int) string {
	return fmt.Sprintf("http://127.0.0.1:%d%s%d", c.port, path, number)
}

// hostURL does the same as url, at an address of its own, as most customers have.
func (c *customers) hostURL(path string, number int) string {
	return fmt.Sprintf("http://127.1.%d.%d:%d%s%d", number/250, number%250+1, c.port, path, number)
}

// tlsURL does the same as url, over TLS.
func (c *customers) tlsURL(path string, number int) string {
	return fmt.Sprintf("https://127.0.0.1:%d%s%d", c.tlsPort, path, number)
}

// writeCA writes the certificate to trust to a file.
func (c *customers) writeCA(path string) error { return os.WriteFile(path, c.ca, 0o644) }

// ServeHTTP receives a request and answers as its path says.
func (c *customers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	if c.keep.Load() && (strings.HasPrefix(r.URL.Path, sound) || strings.HasPrefix(r.URL.Path, slow)) {
		a := arrival{r.Header.Get("Webhook-Id"), time.Now()}
		c.mu.Lock()
		c.arrivals = append(c.arrivals, a)
		c.mu.Unlock()
	}
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, slow):
		c.wait(r, slowAnswer)
	case strings.HasPrefix(path, late):
		c.wait(r, lateAnswer)
		return
	case strings.HasPrefix(path, silent):
		c.wait(r, time.Hour)
		return
	}
	c.answered.Add(1)
}

func (c *customers) wait(r *http.Request, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	case <-c.released:
	}
}

// keepArrivals decides whether arrivals are kept from now on. It returns those that were kept
// before.
func (c *customers) keepArrivals(keep bool) []arrival {
	c.keep.Store(keep)
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.arrivals
	c.arrivals = nil
	return kept
}
