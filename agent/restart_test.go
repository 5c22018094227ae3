package agent

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// restartable is a receiver whose server can be stopped, and started again at the same address.
type restartable struct {
	*testenv.Receiver
	t      *testing.T
	addr   string
	server *http.Server
}

func startRestartable(t *testing.T) *restartable {
	r := &restartable{Receiver: testenv.NewReceiver(agenttest.Secret), t: t, addr: "127.0.0.1:0"}
	r.up()
	t.Cleanup(r.down)
	return r
}

func (r *restartable) up() {
	r.t.Helper()
	listener, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.addr = listener.Addr().String()
	r.server = &http.Server{Handler: r.Receiver}
	go func() { _ = r.server.Serve(listener) }() // ends with down
}

func (r *restartable) down() { _ = r.server.Close() }

// A customer's server is deployed: it is away for two seconds at fifty events a second, with the
// product's own limits.
func TestRun_ARestartOfAReceiverDisablesNobodyAndMissesNothing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	cfg := agenttest.Config(env)
	cfg.Delivery = config.Default().Delivery
	receiver := startRestartable(t)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", "http://"+receiver.addr+"/", "*")
	start(t, cfg).WaitLog("leading")
	conn := connect(t, env)
	events := 0
	write := func(d time.Duration) {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(d); time.Now().Before(end); events++ {
			if _, err := conn.Exec(context.Background(), `insert into webhooks.outbox (type, venue, data) values ('lead.created', 'venue_1', '{}')`); err != nil {
				t.Fatal(err)
			}
			<-tick.C
		}
	}
	write(time.Second)
	receiver.down()
	write(2 * time.Second)
	down := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts`)
	receiver.up()
	began := time.Now()
	write(time.Second)
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != events {
			return fmt.Errorf("%d of %d deliveries succeeded", n, events)
		}
		return nil
	})
	took := time.Since(began)
	state := testenv.QueryOne[string](t, env, `select coalesce(disabled_reason, 'enabled') from webhooks.endpoints`)
	if down == 0 || state != "enabled" {
		t.Errorf("%d failures while it was down, the endpoint is %s", down, state)
	}
	t.Logf("%d events, %d failed attempts, all delivered %s after the return", events, testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts`), took)

	// What holds an endpoint is recorded, and shown.
	receiver.SetAnswer("/", testenv.Script(testenv.Answer{Status: http.StatusServiceUnavailable, Header: map[string]string{"Retry-After": "1800"}}))
	write(time.Millisecond)
	held := regexp.MustCompile(`next attempt  .*\(in (29|3[0-3])m.*: its server asked for a wait \(Retry-After\)`)
	listed := regexp.MustCompile(`enabled, next attempt in`)
	testenv.Eventually(t, agenttest.Patience, func() error {
		show, list := commandSucceeds(t, env, "endpoints", "show", endpoint), commandSucceeds(t, env, "endpoints", "list")
		if !held.MatchString(show) || !listed.MatchString(list) {
			return fmt.Errorf("list and show say:\n%s\n%s", list, show)
		}
		return nil
	})
}

// The receiver of the page for customers compares one header with the signature of one secret, and
// answers 401 if they differ. While events come, its secret is rotated, changed some time after
// that, rotated twice, and changed to the last one. The agent must find out which secret it uses
// now: it is none of the three that an agent without that knowledge would try first.
func TestRun_ARotationUnderLoadFailsNoDelivery(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	var knows atomic.Pointer[string]
	var refused atomic.Int64
	known := agenttest.Secret
	knows.Store(&known)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mac := hmac.New(sha256.New, []byte(*knows.Load()))
		mac.Write(body)
		if err != nil || !hmac.Equal([]byte(r.Header.Get("X-Quintago-Signature")), []byte("sha256="+hex.EncodeToString(mac.Sum(nil)))) {
			refused.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", server.URL, "*")
	start(t, agenttest.Config(env)).WaitLog("leading")
	write := func(events int) {
		for range events {
			agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
		}
	}
	write(20)
	succeeded := func(want int) {
		t.Helper()
		testenv.Eventually(t, agenttest.Patience, func() error {
			if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != want {
				return fmt.Errorf("%d of %d deliveries succeeded", n, want)
			}
			return nil
		})
	}
	rotate := func() (fresh string) {
		t.Helper()
		out := commandSucceeds(t, env, "endpoints", "rotate-secret", endpoint)
		if fresh = regexp.MustCompile(`whsec_\S+`).FindString(out); fresh == "" {
			t.Fatalf("rotate-secret prints: %s", out)
		}
		return fresh
	}
	second := rotate()
	write(50)
	knows.Store(&second)
	write(50)
	succeeded(120)
	rotate()
	write(50)
	fourth := rotate()
	write(50)
	knows.Store(&fourth)
	write(50)
	succeeded(270)
	if failed := testenv.QueryAll[string](t, env, `select error from webhooks.attempts`); len(failed) > 0 || refused.Load() == 0 {
		t.Errorf("failed attempts: %q; the receiver refused %d requests", failed, refused.Load())
	}
}
