package testenv

import (
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Answer is what a Receiver does with one request. The zero value is an empty answer of status 200.
type Answer struct {
	Status int               // 0 is 200
	Header map[string]string // such as Retry-After, or Location of a redirect
	Body   string
	Delay  time.Duration // before the answer
	Hang   bool          // answers only after Receiver.Release, or never when the client gives up before
	Reset  bool          // resets the connection instead of answering
}

// Answerer decides the answer to a request. A Receiver calls it from several goroutines.
type Answerer func(Received) Answer

// Script answers the first request with the first answer, the next with the next, and all further ones with the last.
func Script(first Answer, further ...Answer) Answerer {
	answers := append([]Answer{first}, further...)
	var requests atomic.Int64
	return func(Received) Answer {
		return answers[min(int(requests.Add(1)), len(answers))-1]
	}
}

// Statuses is a Script of plain status codes.
func Statuses(first int, further ...int) Answerer {
	answers := make([]Answer, len(further))
	for i, code := range further {
		answers[i].Status = code
	}
	return Script(Answer{Status: first}, answers...)
}

// give carries out the answer. It returns early when the client has gone.
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
	_, _ = w.Write([]byte(a.Body)) // the client may have gone, which its own side tells
}

// reset ends the connection so that the client sees "connection reset by peer": a TCP connection closed without lingering
// sends RST. Other connections are just closed.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // what cannot be hijacked is closed by this
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
