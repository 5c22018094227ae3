package sink

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// script is a server that answers each request on a connection with what answer returns. It closes
// the connection when answer returns an empty text.
type script struct {
	connections, requests atomic.Int64
	answer                func(connection, request int64) string // empty to end the connection
}

// serve answers on one connection.
func (s *script) serve(conn net.Conn) {
	defer conn.Close()
	connection := s.connections.Add(1)
	reader := bufio.NewReader(conn)
	for n := int64(1); ; n++ {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return
		}
		s.requests.Add(1)
		text := s.answer(connection, n)
		if text == "" {
			return
		}
		write(conn, text)
	}
}

// startScript starts a script on loopback.
func startScript(t *testing.T, answer func(connection, request int64) string) (*script, string) {
	t.Helper()
	s := &script{answer: answer}
	return s, "http://" + serveRaw(t, true, s.serve)
}

const ok200 = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

// pipeScript makes a Webhook for a synctest bubble. Its connections are pipes to a script.
func pipeScript(t *testing.T, answer func(connection, request int64) string, change func(*WebhookConfig)) (*Webhook, *script) {
	s := &script{answer: answer}
	w := newTestWebhook(t, change)
	w.client.dial = func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go s.serve(server) // ends with the connection
		return client, nil
	}
	return w, s
}

// together is a connection that holds back its writes and sends them as one.
type together struct {
	net.Conn
	held []byte
	hold bool
}

func (c *together) Write(b []byte) (int, error) {
	if !c.hold {
		return c.Conn.Write(b)
	}
	c.held = append(c.held, b...)
	return len(b), nil
}

// serveTLSRaw calls handle for each connection after the TLS handshake, with the connection below
// it. The server offers these protocols, or ignores ALPN. It returns the URL and a Webhook that
// trusts the certificate.
func serveTLSRaw(t *testing.T, protocols []string, handle func(*tls.Conn, *together)) (string, *Webhook) {
	t.Helper()
	var trusted []tls.Certificate
	_, w := serveTLSWith(t, func(c *tls.Config) { trusted = c.Certificates })
	address := serveRaw(t, true, func(conn net.Conn) {
		held := &together{Conn: conn}
		encrypted := tls.Server(held, &tls.Config{Certificates: trusted, NextProtos: protocols})
		if encrypted.Handshake() == nil {
			handle(encrypted, held)
		}
	})
	return "https://" + address, w
}

// waitForBytes waits until bytes, or the end, have come over an idle connection that nobody reads.
func waitForBytes(t *testing.T, c *conn) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		var b [1]byte
		var looked error
		err := c.wire.socket.Control(func(fd uintptr) {
			_, _, looked = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		})
		if err != nil || time.Now().After(deadline) {
			t.Fatal("nothing comes")
		}
		if !errors.Is(looked, syscall.EAGAIN) {
			return
		}
	}
}
