package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// startReceiver starts the customers' servers: one listener, with a path for each endpoint. Each
// request is verified, counted and printed before it is answered. It returns the base URL, and a
// function that ends the servers.
func startReceiver(venues []*venue, tally *tally, out *printer) (base string, closeAll func(), err error) {
	receiver := testenv.NewReceiver("")
	for _, v := range venues {
		for _, e := range v.endpoints {
			receiver.SetSecret(e.path, e.secret)
			receiver.SetAnswer(e.path, func(received testenv.Received) testenv.Answer {
				answer := e.answers(received)
				out.arrival(tally.arrived(received, answer.Status))
				return answer
			})
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("start the receiver: %w", err)
	}
	server := &http.Server{Handler: receiver, ReadHeaderTimeout: 10 * time.Second}
	// The goroutine below sends once; it ends when the server is closed.
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	closeAll = func() {
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			out.problem("the receiver ended: %v", err)
		}
	}
	out.step("receiver on %s, verifying both signatures", listener.Addr())
	return "http://" + listener.Addr().String(), closeAll, nil
}
