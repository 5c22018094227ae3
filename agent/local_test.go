package agent

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// serveEverywhere starts a receiver at each loopback address. It returns its port and the number of
// requests that have come. keeps says whether it keeps connections open.
func serveEverywhere(t *testing.T, keeps bool) (port string, requests *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	requests = new(atomic.Int64)
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) })}}
	server.Config.SetKeepAlivesEnabled(keeps)
	server.Start()
	t.Cleanup(server.Close)
	_, port, err = net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, requests
}

// A hundred working endpoints, each at an address of its own, and an agent that may open 48 files:
// no attempt to them fails.
func TestRun_AnAgentThatMayOpenFewFilesDisablesNobody(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	port, requests := serveEverywhere(t, true)
	const endpoints, events = 100, 20
	for i := range endpoints {
		agenttest.AddEndpoint(t, env, "venue_1", fmt.Sprintf("http://127.0.1.%d:%s/", i+1, port), "*")
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	few := filepath.Join(t.TempDir(), "few-files")
	if err := os.WriteFile(few, []byte("#!/bin/sh\nulimit -n 48\nexec "+path+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := launch{binary: func() (string, error) { return few, nil }}.start(t, env)
	p.awaitReady(t, "leading\n")
	for range events {
		agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != endpoints*events {
			return fmt.Errorf("%d deliveries succeeded, %d requests have come; log:\n%s", n, requests.Load(), p.stderr)
		}
		return nil
	})
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts`); n != 0 {
		t.Errorf("%d failed attempts", n)
	}
	if log := p.stderr.String(); !strings.Contains(log, "only 48 may be open here") || !strings.Contains(log, "LimitNOFILE") {
		t.Errorf("the log does not name the limit:\n%s", log)
	}
}

// A resolver that answers for no name fails no attempt.
func TestRun_AResolverThatAnswersForNobodyCountsAgainstNobody(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	dns := testenv.StartDNS(t)
	dns.Say(testenv.EveryName, dnsmessage.RCodeServerFailure)
	port, requests := serveEverywhere(t, false)
	for _, name := range []string{"a", "b"} {
		agenttest.AddEndpoint(t, env, "venue_1", fmt.Sprintf("http://%s.example:%s/", name, port), "*")
	}
	s := newQuietOutage(t, env) // whose receiver is at an address, and gets what it is sent
	s.cfg.Delivery = config.Default().Delivery
	s.agent = startWith(t, s.cfg, dns.Resolver())
	s.ready()
	events := make([]string, 50)
	for i := range events {
		events[i] = s.event()
	}
	s.wait(events...)
	s.unready("attempts cannot be made", "answers for no name", "/etc/resolv.conf")
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts`); n != 0 {
		t.Errorf("%d failed attempts", n)
	}
	if health := testenv.QueryAll[int](t, env, `select consecutive_failures from webhooks.endpoint_health`); len(health) > 0 {
		t.Errorf("failures are counted: %v", health)
	}
	dns.Forget()
	dns.Say(testenv.EveryName, dnsmessage.RCodeSuccess)
	s.eventually(func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != 3*len(events) {
			return fmt.Errorf("%d deliveries succeeded, %d requests have come", n, requests.Load())
		}
		return nil
	})
	s.ready()
	s.agent.WaitLog("attempts can be made again")
	if _, metrics := get(t, s.agent.AdminURL()+"/metrics"); !strings.Contains(metrics, `attempts_not_made_total{fault="resolver"}`) {
		t.Errorf("the metrics do not count them:\n%s", metrics)
	}

	// One name that fails beside others is its owner's.
	dns.Say("a.example.", dnsmessage.RCodeServerFailure)
	s.event()
	s.eventually(func() error {
		if class := testenv.QueryAll[string](t, env, `select distinct class from webhooks.attempts`); len(class) != 1 || class[0] != "dns_error" {
			return fmt.Errorf("failed attempts of the classes %q", class)
		}
		return nil
	})
	s.ready()
}
