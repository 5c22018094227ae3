package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// TestMain gives the tests of this package one PostgreSQL, whose databases begin with the agent's
// schema and publications.
func TestMain(m *testing.M) {
	forget, err := trustZoo()
	if err != nil {
		fmt.Fprintln(os.Stderr, "trust the zoo:", err)
		os.Exit(1)
	}
	testenv.Main(m, testenv.Options{Template: agenttest.Template})
	removeBinaries()
	forget()
}

// start runs an agent until the test ends or End is called.
func start(t testing.TB, cfg *config.Config) *agenttest.Agent {
	t.Helper()
	return startWith(t, cfg, nil)
}

// startWith is start with a resolver for the names of endpoints.
func startWith(t testing.TB, cfg *config.Config, resolver *net.Resolver) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, cfg, func(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
		o := testOptions(cfg, log)
		o.Resolver = resolver
		return Run(ctx, o)
	})
}

// newWebhook returns a Webhook that may send over the Internet only.
func newWebhook(t testing.TB) *sink.Webhook {
	t.Helper()
	webhook, err := sink.NewWebhook(sink.WebhookConfig{Version: "test", Timeout: time.Second, MaxIdlePerHost: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(webhook.Close)
	return webhook
}

// testOptions are those of an agent that looks around more often than the product does.
func testOptions(cfg *config.Config, log *slog.Logger) Options {
	return Options{Config: cfg, Log: log, Version: "test", VitalsInterval: testVitals}
}

const testVitals = 2 * time.Second
