package agenttest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

const (
	// Secret is the signing secret of every endpoint of AddEndpoint.
	Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	// Patience is how long a test waits for something that should come soon. It is long because the
	// machine may be busy.
	Patience = 3 * time.Minute
)

// Config returns a configuration for an agent on a test's database. The agent has the role that the
// README describes, and the waits between attempts are short.
func Config(env *testenv.DB) *config.Config {
	cfg := config.Default()
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

// OwnersConfig is Config for an agent whose role owns the database and may repair what is
// published.
func OwnersConfig(env *testenv.DB) *config.Config {
	cfg := Config(env)
	cfg.Database.URL = secret.New(env.URL)
	return cfg
}

// Agent is an agent that runs in this process.
type Agent struct {
	t    testing.TB
	Log  *Buffer
	stop context.CancelFunc
	done chan error // receives the result of run; buffered
	once sync.Once  // guards the wait for done
}

// Start calls run in a goroutine. The agent ends with the test, or when End is called.
func Start(t testing.TB, cfg *config.Config, run func(context.Context, *config.Config, *slog.Logger) error) *Agent {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &Agent{t: t, Log: &Buffer{}, stop: cancel, done: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(r.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { r.done <- run(ctx, cfg, log) }()
	t.Cleanup(r.End)
	return r
}

// End stops the agent and waits for it. It fails the test when the agent does not end or returns an
// error. Only the first call does something.
func (r *Agent) End() {
	r.t.Helper()
	r.stop()
	if err := r.EndsBy(); err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// EndsBy waits until the agent ends by itself, and returns its error. It fails the test when the
// agent goes on. Only the first call of EndsBy or End does something.
func (r *Agent) EndsBy() (err error) {
	r.t.Helper()
	r.once.Do(func() {
		select {
		case err = <-r.done:
		case <-time.After(Patience):
			r.t.Errorf("the agent did not end")
		}
		if r.t.Failed() {
			r.t.Logf("log of the agent:\n%s", r.Log)
		}
	})
	return err
}

// WaitLog waits until the agent's log contains a text.
func (r *Agent) WaitLog(text string) {
	r.t.Helper()
	testenv.Eventually(r.t, Patience, func() error {
		if !bytes.Contains(r.Log.Bytes(), []byte(text)) {
			return fmt.Errorf("the log has no %q", text) // End shows the log
		}
		return nil
	})
}

var adminAddress = regexp.MustCompile(`admin=(\S+)`)

// AdminURL returns the URL of the agent's admin listener.
func (r *Agent) AdminURL() string {
	r.t.Helper()
	r.WaitLog("admin=")
	return "http://" + string(adminAddress.FindSubmatch(r.Log.Bytes())[1])
}

// Buffer is a bytes.Buffer that many goroutines may use.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// Bytes returns a copy of the content.
func (b *Buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *Buffer) String() string { return string(b.Bytes()) }

// AddEndpoint registers an endpoint by SQL, as the app does, and returns its id.
func AddEndpoint(t testing.TB, env *testenv.DB, venue, url string, events ...string) string {
	t.Helper()
	return testenv.QueryOne[string](t, env,
		`insert into webhooks.endpoints (venue, url, events, secret) values ($1, $2, $3, $4) returning id`, venue, url, events, Secret)
}

// AddEvent writes an event by SQL, as the app does, and returns its id.
func AddEvent(t testing.TB, env *testenv.DB, venue, eventType, data string) string {
	t.Helper()
	return testenv.QueryOne[string](t, env,
		`insert into webhooks.outbox (type, venue, data) values ($1, $2, $3::json) returning id`, eventType, venue, data)
}

// RefuseForgeries answers like a receiver that follows the page for customers: 401 for a wrong
// signature, 200 otherwise.
func RefuseForgeries(got testenv.Received) testenv.Answer {
	if got.SignatureErr != nil {
		return testenv.Answer{Status: 401}
	}
	return testenv.Answer{}
}

// WaitStatus waits until the status of an event's delivery to an endpoint begins with want.
func WaitStatus(t testing.TB, env *testenv.DB, eventID, endpointID, want string) {
	t.Helper()
	testenv.Eventually(t, Patience, func() error {
		got := testenv.QueryOne[string](t, env, `select coalesce((select status || ', attempts ' || attempts || coalesce(', ' || last_error, '')
			from webhooks.deliveries where event_id = $1 and endpoint_id = $2), 'no row')`, eventID, endpointID)
		if !strings.HasPrefix(got, want) {
			return fmt.Errorf("delivery of %s to %s is %s, want %s", eventID, endpointID, got, want)
		}
		return nil
	})
}

// HostOf returns the host and port of a URL.
func HostOf(t testing.TB, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal("the test's URL cannot be parsed")
	}
	return u.Host
}

// ConfigText returns a configuration file for a test's database at url.
func ConfigText(env *testenv.DB, url string) string {
	return fmt.Sprintf("[database]\nurl = %q\n[outbox]\nslot = %q\n[network]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n", url, env.Slot)
}

// WriteFile writes a configuration file and returns its path.
func WriteFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Decode parses the JSON that a command has printed.
func Decode[T any](t testing.TB, text string) (value T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return value
}

// Pass waits for the duration d in a synctest bubble, and then until every goroutine that is due at
// that time has done its work.
func Pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// ConnectURL opens a connection that is closed at the end of the test.
func ConnectURL(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}
