package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

const (
	testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	// patience is how long a test waits for what should come soon on a machine that is busy.
	patience = 3 * time.Minute
)

// testConfig is a configuration for an agent on a test's database, in the role that the README describes, with short waits between
// attempts.
func testConfig(env *testenv.DB) *Config {
	cfg := DefaultConfig()
	cfg.Database.URL = secret.New(env.LeastURL)
	cfg.Outbox.Slot = env.Slot
	cfg.Network.AllowHTTP = true
	cfg.Network.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	cfg.Admin.Listen = "127.0.0.1:0"
	cfg.Delivery.Retries = []time.Duration{50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond}
	cfg.Delivery.FailingInterval = 0 // most tests want many failures soon
	cfg.Delivery.ShutdownTimeout = 5 * time.Second
	return cfg
}

// ownersConfig is testConfig for an agent whose role owns the database, and so may mend what is published.
func ownersConfig(env *testenv.DB) *Config {
	cfg := testConfig(env)
	cfg.Database.URL = secret.New(env.URL)
	return cfg
}

// untuned leaves the garbage collector as it is: one agent's memory limit is not for all that run in a test binary.
func untuned(ByteSize, int) {}

// running is an agent in this process.
type running struct {
	t    testing.TB
	log  *syncBuffer
	stop context.CancelFunc
	done chan error // buffered, receives Run's result
	once sync.Once
}

// start runs an agent until the test ends or end is called.
func start(t testing.TB, cfg *Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, log: &syncBuffer{}, stop: cancel, done: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { r.done <- run(ctx, cfg, log, untuned) }()
	t.Cleanup(r.end)
	return r
}

// end stops the agent in good order and fails the test when it does not.
func (r *running) end() {
	r.t.Helper()
	r.once.Do(func() {
		r.stop()
		select {
		case err := <-r.done:
			if err != nil {
				r.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			r.t.Errorf("the agent did not end; its log:\n%s", r.log)
		}
		if r.t.Failed() {
			r.t.Logf("log of the agent:\n%s", r.log)
		}
	})
}

// waitLog waits until the agent has logged a text.
func (r *running) waitLog(text string) {
	r.t.Helper()
	testenv.Eventually(r.t, patience, func() error {
		if !bytes.Contains(r.log.Bytes(), []byte(text)) {
			return fmt.Errorf("the log has no %q:\n%s", text, r.log)
		}
		return nil
	})
}

var adminAddress = regexp.MustCompile(`admin=(\S+)`)

// adminURL returns where the agent's admin listener is.
func (r *running) adminURL() string {
	r.t.Helper()
	r.waitLog("admin=")
	return "http://" + string(adminAddress.FindSubmatch(r.log.Bytes())[1])
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *syncBuffer) String() string { return string(b.Bytes()) }

// addEndpoint registers an endpoint by SQL, as the app does, and returns its id.
func addEndpoint(t testing.TB, env *testenv.DB, venue, url string, events ...string) string {
	t.Helper()
	return testenv.QueryOne[string](t, env,
		`insert into webhooks.endpoints (venue, url, events, secret) values ($1, $2, $3, $4) returning id`, venue, url, events, testSecret)
}

// addEvent writes an event by SQL, as the app does, and returns its id.
func addEvent(t testing.TB, env *testenv.DB, venue, eventType, data string) string {
	t.Helper()
	return testenv.QueryOne[string](t, env,
		`insert into webhooks.outbox (type, venue, data) values ($1, $2, $3::json) returning id`, eventType, venue, data)
}

// refuseForgeries answers as a receiver written to the customers' page does.
func refuseForgeries(got testenv.Received) testenv.Answer {
	if got.SignatureErr != nil {
		return testenv.Answer{Status: 401}
	}
	return testenv.Answer{}
}

// waitStatus waits until the delivery of an event to an endpoint has a status.
func waitStatus(t testing.TB, env *testenv.DB, eventID, endpointID, want string) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		got := testenv.QueryOne[string](t, env, `select coalesce((select status || ', attempts ' || attempts || coalesce(', ' || last_error, '')
			from webhooks.deliveries where event_id = $1 and endpoint_id = $2), 'no row')`, eventID, endpointID)
		if len(got) < len(want) || got[:len(want)] != want {
			return fmt.Errorf("delivery of %s to %s is %s, want %s", eventID, endpointID, got, want)
		}
		return nil
	})
}

// hostOf returns the host and port of a URL.
func hostOf(t testing.TB, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal("the test's URL cannot be parsed")
	}
	return u.Host
}
