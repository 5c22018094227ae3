// Package zoo is a collection of servers that treat a webhook agent as customers' servers do. They
// do not answer, answer for ever, answer nonsense, redirect, or show certificates of every wrong
// kind. Each animal is one behaviour at one URL. Command serve opens the zoo to visitors.
//
// Most animals live at 127.0.0.1. Those about names live below .zoo.example, which only Zoo.DNS
// knows.
package zoo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

// Animal is one behaviour at one URL.
type Animal struct {
	Name string // lower-case letters, digits and hyphens
	Does string // what it does, as text for a person
	URL  string
	// Named reports whether the host of URL is a name that only Zoo.DNS knows.
	Named bool
}

// Zoo is all animals, from Open to Close.
type Zoo struct {
	Animals []Animal
	DNS     netip.AddrPort // answers for the names of the animals, by UDP and by TCP

	full    int // port of an animal that accepts no connection
	serving sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	open   map[io.Closer]struct{}
	closed bool
}

// species describes an animal that has a port of its own.
type species struct {
	name, does string
	// act gets a connection whose request has been read, or a fresh connection if first is set. The
	// connection is closed afterwards.
	act   func(net.Conn)
	first bool
	// tls makes the URL begin with https. act must do the handshake itself.
	tls bool
}

// Open starts all animals. The caller must call Close.
func Open() (z *Zoo, err error) {
	z = &Zoo{open: map[io.Closer]struct{}{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, z.Close())
		}
	}()
	tame, err := z.addSpecies()
	if err != nil {
		return z, err
	}
	if err := z.addUnreachable(); err != nil {
		return z, err
	}
	err = z.addNamed(tame)
	return z, err
}

// Start opens a zoo for a test, and closes it at the end of the test.
func Start(t testing.TB) *Zoo {
	t.Helper()
	z, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := z.Close(); err != nil {
			t.Error(err)
		}
	})
	return z
}

// addSpecies starts the animals that have a port each. It returns the port of the first one, which
// is harmless.
func (z *Zoo) addSpecies() (tame int, err error) {
	certificates, err := certificateSpecies()
	if err != nil {
		return 0, err
	}
	for i, s := range slices.Concat(httpSpecies(), keepingSpecies(), certificates) {
		port, err := z.serve(s)
		if err != nil {
			return 0, fmt.Errorf("start %s: %w", s.name, err)
		}
		scheme := "http"
		if s.tls {
			scheme = "https"
		}
		if i == 0 {
			tame = port
		}
		z.add(Animal{Name: s.name, Does: s.does, URL: fmt.Sprintf("%s://127.0.0.1:%d/%s", scheme, port, s.name)})
	}
	return tame, nil
}

func (z *Zoo) add(a Animal) { z.Animals = append(z.Animals, a) }

// serve starts a listener for a species and returns its port. Its goroutines end with Close.
func (z *Zoo) serve(s species) (port int, err error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	z.keep(listener)
	z.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // Close has closed it
			}
			if !z.keep(conn) {
				return
			}
			z.serving.Go(func() {
				defer z.release(conn)
				if s.first || readRequest(conn) {
					s.act(conn)
				}
			})
		}
	})
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// readRequest reads one request to its end. A connection that is closed with unread data would send
// a reset.
func readRequest(conn net.Conn) bool {
	request, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, request.Body)
	return err == nil
}

// keep makes Close close c. After Close it closes c at once and returns false.
func (z *Zoo) keep(c io.Closer) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.closed {
		_ = c.Close()
		return false
	}
	z.open[c] = struct{}{}
	return true
}

func (z *Zoo) release(c io.Closer) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.open, c)
	_ = c.Close() // an animal may have closed it itself
}

// Close ends all animals and waits for their goroutines.
func (z *Zoo) Close() error {
	z.mu.Lock()
	z.closed = true
	for c := range z.open {
		_ = c.Close() // an error does not matter any more
	}
	z.mu.Unlock()
	z.serving.Wait()
	return nil
}
