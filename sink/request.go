package sink

import (
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// oneWrite is the longest body, in bytes, that is written together with the head (without TLS in
// one system call). The socket's buffers take that much even if the server reads nothing. So the
// same goroutine can write it and then read the answer.
const oneWrite = 32 << 10

// message is a request in the form in which it is sent.
type message struct {
	first []byte // the head, and the body if it is short
	rest  []byte // the body if it is long
	// ahead is the time that is signed, minus this host's clock.
	ahead time.Duration
}

// messages is a pool, so that the buffers of message.first are used again.
var messages = sync.Pool{New: func() any { return new(message) }}

// free gives a message back to the pool. The caller must not use it any more.
func (m *message) free() {
	m.rest = nil
	messages.Put(m)
}

// newMessage returns the bytes of a request, of an attempt that began at start. signer is the key
// that signs X-Quintago-Signature.
func (w *Webhook) newMessage(r Request, start time.Time, signer *signingKey) *message {
	m := messages.Get().(*message)
	b := m.first[:0]
	b = append(b, r.Target.start...)
	b = append(b, "\r\nUser-Agent: "...)
	b = append(b, w.userAgent...)
	b = append(b, "\r\nContent-Type: application/json\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(r.Body)), 10)
	b = r.appendSignatures(b, signer)
	if r.Test {
		b = append(b, "\r\n"+HeaderTest+": true"...)
	}
	if r.Traceparent != "" {
		b = append(b, "\r\n"+HeaderTraceparent+": "...)
		b = append(b, r.Traceparent...)
	}
	b = append(b, "\r\n\r\n"...)
	if len(r.Body) <= oneWrite {
		b = append(b, r.Body...)
	} else {
		m.rest = r.Body
	}
	m.first, m.ahead = b, r.At.Round(0).Sub(start)
	return m
}

// appendSignatures appends the fields that Sign sets. Each is preceded by the end of the line
// before it.
func (r *Request) appendSignatures(b []byte, signer *signingKey) []byte {
	var scratch [20]byte
	timestamp := strconv.AppendInt(scratch[:0], r.At.Unix(), 10)
	b = append(b, "\r\n"+HeaderID+": "...)
	b = append(b, r.EventID...)
	b = append(b, "\r\n"+HeaderTimestamp+": "...)
	b = append(b, timestamp...)
	b = append(b, "\r\n"+HeaderStandardSignature+":"...)
	for _, key := range r.keys {
		b = key.appendStandard(append(b, ' '), r.EventID, timestamp, r.Body)
	}
	if len(r.keys) > 1 {
		b = append(b, "\r\n"+HeaderSignaturePrevious+": "...)
		b = r.keys[1].appendQuintago(b, r.Body)
	}
	b = append(b, "\r\n"+HeaderSignature+": "...)
	return signer.appendQuintago(b, r.Body)
}

// startOf returns the first lines of a request, which are the same for every request to a URL.
func startOf(u *url.URL) []byte {
	return []byte("POST " + u.RequestURI() + " HTTP/1.1\r\nHost: " + strings.TrimSuffix(u.Host, ":"))
}

// originOf returns the address of a URL's server, and its name for TLS.
func originOf(u *url.URL) origin {
	o := origin{address: net.JoinHostPort(u.Hostname(), port(u))}
	if u.Scheme == "https" {
		o.serverName = u.Hostname()
	}
	return o
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
