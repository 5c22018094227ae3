package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// maxBody is much more than the writers write.
const maxBody = 4 << 20

// customers plays all customers' servers: one listener, with a path for each endpoint. Each request
// is written down before it is answered, and its answer after that.
type customers struct {
	// endpoints is by path, without the slash. It is complete before the first request.
	endpoints map[string]*endpointInfo
	clock     stopwatch
	requests  *journal[request]
	answers   *journal[answer]

	server   *http.Server
	listener net.Listener
	served   chan error     // the goroutine that serves sends once
	open     sync.WaitGroup // requests under way
	last     atomic.Int64
	mended   atomic.Bool // resetting endpoints answer from now on

	mu     sync.Mutex // guards all below
	random *rand.Rand
	bodies map[string]struct{} // event and hash of each body that is in the file
}

func startCustomers(clock stopwatch, seed uint64, requests *journal[request], answers *journal[answer]) (*customers, error) {
	c := &customers{
		endpoints: map[string]*endpointInfo{}, clock: clock, requests: requests, answers: answers, served: make(chan error, 1),
		random: rand.New(rand.NewPCG(seed, 2)), bodies: map[string]struct{}{},
	}
	var err error
	if c.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("start the receivers: %w", err)
	}
	c.server = &http.Server{Handler: c, ReadHeaderTimeout: time.Minute}
	go func() { c.served <- c.server.Serve(c.listener) }() // ends when close closes the server
	return c, nil
}

func (c *customers) address() string { return c.listener.Addr().String() }

// serve sets the endpoints. It must be called before the first request.
func (c *customers) serve(endpoints []*endpointInfo) {
	for _, e := range endpoints {
		c.endpoints[e.ID] = e
	}
}

// mend makes endpoints answer that have reset connections so far.
func (c *customers) mend() { c.mended.Store(true) }

// closeIdle closes idle connections, and each other connection after its next answer.
func (c *customers) closeIdle() { c.server.SetKeepAlivesEnabled(false) }

func (c *customers) close() error {
	_ = c.server.Close()
	err := <-c.served
	c.open.Wait() // each request writes down how it ended
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the receivers ended: %w", err)
	}
	return nil
}

// ServeHTTP receives one request and answers it.
func (c *customers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.open.Add(1)
	defer c.open.Done()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return // the request was cut off, so no server would have received it
	}
	arrived := c.clock.now()
	e := c.endpoints[strings.TrimPrefix(r.URL.Path, "/")]
	if e == nil {
		e = &endpointInfo{ID: "no endpoint: " + r.URL.Path}
	}
	record := request{
		N: c.last.Add(1), At: arrived, Endpoint: e.ID, Event: r.Header.Get("Webhook-Id"),
		Agent: strings.TrimPrefix(r.UserAgent(), "QuintaGo-Webhooks/"),
	}
	hash := sha256.Sum256(body)
	record.Hash = hex.EncodeToString(hash[:])
	record.Quintago = text(testenv.VerifyQuintago(r.Header.Get("X-Quintago-Signature"), body, e.secret))
	// The checker judges the time in the headers, because it knows which clock was moved when.
	seconds, err := strconv.ParseInt(r.Header.Get("Webhook-Timestamp"), 10, 64)
	if err != nil {
		record.Standard = "Webhook-Timestamp is no number"
	} else {
		record.Ahead = time.Duration(seconds-time.Now().Unix()) * time.Second
		record.Standard = text(testenv.VerifyStandard(r.Header, body, e.secret, time.Unix(seconds, 0)))
	}
	wait := c.behave(e, &record, string(body))
	c.requests.add(record)
	status := c.give(w, r, e, record.Plan, wait)
	c.answers.add(answer{record.N, c.clock.now(), status})
}

// behave decides how to answer a request, and records whether its body is new.
func (c *customers) behave(e *endpointInfo, r *request, body string) (wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.bodies[r.Event+r.Hash]; !known {
		c.bodies[r.Event+r.Hash] = struct{}{}
		r.Body = body
	}
	r.Plan = http.StatusOK
	switch e.Behavior {
	case slow:
		wait = time.Duration(between(c.random, 0.3, 0.9) * float64(time.Second))
	case flaky:
		if c.random.IntN(5) == 0 {
			r.Plan = http.StatusInternalServerError
		}
	case resetting:
		if !c.mended.Load() {
			r.Plan = 0
		}
	case hung:
		r.Plan = 0
	case healthy, dead:
	default:
		r.Plan = http.StatusNotFound
	}
	return wait
}

// give answers a request and returns the status that was written, or 0 if none was.
func (c *customers) give(w http.ResponseWriter, r *http.Request, e *endpointInfo, status int, wait time.Duration) int {
	gone := r.Context().Done()
	if e.Behavior == hung {
		<-gone
		return 0
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	if wait > 0 {
		<-ctx.Done()
		select {
		case <-gone:
			return 0
		default:
		}
	}
	if status == 0 {
		reset(w)
		return 0
	}
	w.WriteHeader(status)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return 0
	}
	return status
}

// reset breaks the connection of a request by RST.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // net/http then closes the connection
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// text returns the text of an error, or "" if there is none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
