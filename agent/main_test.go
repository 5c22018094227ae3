package agent

import (
	"context"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// TestMain gives the tests of this package one PostgreSQL, whose databases begin with the agent's schema and publications.
func TestMain(m *testing.M) {
	vitalsInterval = 2 * time.Second
	resolveZoo()
	testenv.Main(m, testenv.Options{Template: migrateTemplate})
	removeBinaries()
}

// migrateTemplate prepares the database that those of the tests are clones of.
func migrateTemplate(ctx context.Context, url string) error {
	cfg := DefaultConfig()
	cfg.Database.URL = secret.New(url)
	_, _, err := outbox.Migrate(ctx, cfg.outbox())
	return err
}
