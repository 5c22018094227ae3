package testenv

import (
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Answer says what a Receiver does with one request. The zero value is an empty answer of status
// 200.
type Answer struct {
	Status int               // 0 means 200
	Header map[string]string // such as Retry-After, or Location of a redirect
	Body   string
	Delay  time.Duration // the wait before the answer
	// Hang waits for Receiver.Release before the answer. There is none if the client gives up
	// first.
	Hang  bool
	Reset bool // resets the connection instead of answering
}

// Answerer returns the answer to a request. A Receiver calls it from several goroutines at the same
// time.
type Answerer func(Received) Answer

// Script gives the answers in order, one for each request. Later requests get the last one.
func Script(first Answer, further ...Answer) Answerer {
	answers := append([]Answer{first}, further...)
	var requests atomic.Int64
	return func(Received) Answer {
		return answers[min(int(requests.Add(1)), len(answers))-1]
	}
}

// Statuses is a Script of answers that have a status and nothing else.
func Statuses(first int, further ...int) Answerer {
	answers := make([]Answer, len(further))
	for i, code := range further {
		answers[i].Status = code
	}
	return Script(Answer{Status: first}, answers...)
}

// give sends the answer. It returns early if the client has gone.
func (a Answer) give(w http.ResponseWriter, r *http.Request, released <-chan struct{}) {
	if a.Hang {
		select {
		case <-released:
		case <-r.Context().Done():
			return
		}
	}
	if a.Delay > 0 {
		delay := time.NewTimer(a.Delay)
		defer delay.Stop()
		select {
		case <-delay.C:
		case <-r.Context().Done():
			return
		}
	}
	if a.Reset {
		reset(w)
		return
	}
	for name, value := range a.Header {
		w.Header().Set(name, value)
	}
	if a.Status != 0 {
		w.WriteHeader(a.Status)
	}
	_, _ = w.Write([]byte(a.Body)) // the client may have gone; its own side reports that
}

// reset makes the client see "connection reset by peer". A TCP connection that is closed with a
// linger of zero sends RST. Connections that are not TCP are just closed.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // net/http then closes the connection
	}
	inner := conn
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		inner = wrapped.NetConn()
	}
	if tcp, ok := inner.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = inner.Close()
}
