package agenttest

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// Parts returns what the API and the pages of an agent work with, without the agent: its database and
// its sender. No name of a host exists for the sender.
func Parts(t testing.TB, cfg *config.Config) (*outbox.DB, *sink.Webhook) {
	t.Helper()
	db, err := outbox.Open(t.Context(), cfg.OutboxConfig().ForPages())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	nowhere := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no resolver") }}
	webhook, err := cfg.NewWebhook(t.Context(), "test", 1, nowhere)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(webhook.Close)
	return db, webhook
}
