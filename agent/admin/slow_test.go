package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// slack is what a busy machine may add to a bound.
const slack = 10 * time.Second

// trickle sends head at once and then a byte each second. It returns the status of the answer, -1
// where the connection ended without one, and how long that took.
func (w *wire) trickle(address, head string) (status int, took time.Duration) {
	conn := w.dial(address)
	defer conn.Close()
	began := time.Now()
	done := make(chan struct{})
	defer close(done)
	go func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for text := head; ; text = "1" {
			if _, err := io.WriteString(conn, text); err != nil {
				return
			}
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	}()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return -1, time.Since(began)
	}
	_ = response.Body.Close()
	return response.StatusCode, time.Since(began)
}

func TestListeners_EndWhatIsSlowAndServeOthersMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	nobody := "POST /api/v1/endpoints HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
	chunks := "Transfer-Encoding: chunked\r\n\r\n"
	var slow sync.WaitGroup
	for _, c := range []struct {
		what, head string
		want       int
		within     time.Duration
	}{
		{"a head", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", -1, headerTime},
		{"a request line", "GET /", 400, headerTime},
		{"nothing", "", 400, headerTime},
		{"a body", w.post("Content-Length: 1000\r\n\r\n"), 408, requestTime},
		{"a body in chunks", w.post(chunks) + "1000\r\n", 408, requestTime},
		{"the length of a chunk", w.post(chunks), 408, requestTime},
		{"a body without a token", nobody + "Content-Length: 1000\r\n\r\n", 401, requestTime},
		{"a body that nobody reads", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n", 200, requestTime},
		{"a body that is too large", w.post("Content-Length: 1000000\r\n\r\n"), 413, requestTime},
	} {
		for _, address := range []string{w.operators, w.venues} {
			for range 10 {
				slow.Go(func() {
					if status, took := w.trickle(address, c.head); status != c.want || took > c.within+slack {
						t.Errorf("%s that comes slowly: status %d after %v, want %d", c.what, status, took, c.want)
					}
				})
			}
		}
	}
	ended := make(chan struct{})
	go func() { slow.Wait(); close(ended) }()
	asked := 0
	for over := false; !over; asked++ {
		for _, address := range []string{w.operators, w.venues} {
			ctx, cancel := context.WithTimeout(t.Context(), headerTime)
			if err := get(ctx, "http://"+address+"/api/v1/endpoints", w.token); err != nil {
				t.Errorf("another caller meanwhile: %v", err)
			}
			cancel()
		}
		select {
		case <-ended:
			over = true
		default:
		}
	}
	t.Logf("%d other callers were served", asked)
}

// callersEnv makes the test binary a program that opens so many connections to callersTo and keeps
// them until its input ends. It is a process of its own, so that the file limit of the listener's
// process stays as it is.
const callersEnv, callersTo = "ADMIN_TEST_CALLERS", "ADMIN_TEST_ADDRESS"

// openConnections is that program. It opens all at once, silent ones and ones that have sent a part
// of a head.
func openConnections() {
	n, _ := strconv.Atoi(os.Getenv(callersEnv))
	var opened atomic.Int64
	var all sync.Map
	for i := range n {
		go func() {
			conn, err := (&net.Dialer{Timeout: time.Minute}).Dial("tcp", os.Getenv(callersTo))
			if err != nil {
				return
			}
			all.Store(i, conn) // or the collector would close it
			if i%2 == 0 {
				_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nX: ")
			}
			if opened.Add(1) == 4*adminConnections {
				fmt.Println("opened")
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// countingListener counts the connections that are open.
type countingListener struct {
	net.Listener
	open, most, total atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.total.Add(1)
	for open := l.open.Add(1); ; {
		if most := l.most.Load(); open <= most || l.most.CompareAndSwap(most, open) {
			break
		}
	}
	return &countedConn{Conn: conn, l: l}, nil
}

type countedConn struct {
	net.Conn
	l    *countingListener
	once sync.Once
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.l.open.Add(-1) })
	return err
}

func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func TestListeners_TenThousandConnectionsAreBoundedAndLeaveNothing(t *testing.T) {
	w := newWire(t)
	before := memory()
	callers := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this program
	callers.Env = append(os.Environ(), callersEnv+"=10000", callersTo+"="+w.venues)
	callers.Stderr = os.Stderr
	input, err := callers.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := callers.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := callers.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil {
		t.Errorf("the callers: %q, %v", line, err)
	}
	w.healthy(w.operators, headerTime) // the other listener
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := w.counted.total.Load(); n < 2*adminConnections {
			return fmt.Errorf("%d connections were accepted", n)
		}
		return nil
	})
	w.healthy(w.operators, headerTime)
	if grown := int64(memory()) - int64(before); grown > 32<<20 {
		t.Errorf("10,000 connections take %d MiB", grown>>20)
	}
	_ = input.Close()
	if err := callers.Wait(); err != nil {
		t.Error(err)
	}
	w.healthy(w.venues, slack)
	if most := w.counted.most.Load(); most > adminConnections {
		t.Errorf("%d connections were open at a time", most)
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := w.counted.open.Load(); n > 0 {
			return fmt.Errorf("%d connections are still open", n)
		}
		return nil
	})
	t.Logf("%d connections were accepted, %d at a time", w.counted.total.Load(), w.counted.most.Load())
}

// stream opens a stream and returns its connection and the status of the answer.
func (w *wire) stream() (net.Conn, int) {
	w.Helper()
	conn := w.dial(w.venues)
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := io.WriteString(conn, "GET /api/v1/deliveries/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n"+authorization(w.token)+"\r\n"); err != nil {
		w.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReaderSize(conn, 1<<10), nil)
	if err != nil {
		w.Fatal(err)
	}
	return conn, response.StatusCode
}

// fillStreams opens as many streams as a caller may have.
func (w *wire) fillStreams() (all []net.Conn) {
	w.Helper()
	for range 100 {
		conn, status := w.stream()
		if status != http.StatusOK {
			_ = conn.Close()
			return all
		}
		all = append(all, conn)
	}
	w.Fatal("there is no bound")
	return nil
}

// streamsAgain waits until a stream can be opened.
func (w *wire) streamsAgain() {
	w.Helper()
	testenv.Eventually(w, agenttest.Patience, func() error {
		conn, status := w.stream()
		_ = conn.Close()
		if status != http.StatusOK {
			return fmt.Errorf("status %d", status)
		}
		return nil
	})
}

func TestListeners_AStreamWhoseCallerIsGoneGivesItsPlaceBack(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	for what, leave := range map[string]func(net.Conn) error{
		"closes":          net.Conn.Close,
		"closes its side": func(c net.Conn) error { return c.(*net.TCPConn).CloseWrite() },
		"resets":          func(c net.Conn) error { _ = c.(*net.TCPConn).SetLinger(0); return c.Close() },
	} {
		all := w.fillStreams()
		if len(all) == 0 {
			t.Fatalf("no stream can be opened before one %s", what)
		}
		for _, conn := range all {
			if err := leave(conn); err != nil {
				t.Fatal(err)
			}
		}
		w.streamsAgain()
	}
}

func TestListeners_AStreamThatNobodyReadsEndsAndGivesItsPlaceBack(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.fillStreams()
	ctx, cancel := context.WithCancel(t.Context())
	var pump sync.WaitGroup
	pump.Go(func() { // an agent that records much
		row := &outbox.Record{Delivery: &outbox.Delivery{Venue: wireVenue, EventID: "evt_1", EndpointID: "ep_1", Type: "lead.created"},
			Status: outbox.Failed, Error: strings.Repeat("e", 1000)}
		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			w.feed.Recorded([]*outbox.Record{row, row, row, row})
			<-ticker.C
		}
	})
	defer pump.Wait()
	defer cancel()
	w.streamsAgain()
	w.healthy(w.venues, headerTime)
}
