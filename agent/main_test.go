package agent

import (
	"context"
	"fmt"
	"os"
	"regexp"
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
	forget, err := trustZoo()
	if err != nil {
		fmt.Fprintln(os.Stderr, "trust the zoo:", err)
		os.Exit(1)
	}
	testenv.Main(m, testenv.Options{Template: migrateTemplate})
	removeBinaries()
	forget()
}

// migrateTemplate prepares the database that those of the tests are clones of.
func migrateTemplate(ctx context.Context, url string) error {
	cfg := DefaultConfig()
	cfg.Database.URL = secret.New(url)
	if _, _, err := outbox.Migrate(ctx, cfg.outbox()); err != nil {
		return err
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		return err
	}
	for _, grant := range grants.FindAllString(string(readme), -1) {
		if err := testenv.ExecSQL(ctx, url, grant); err != nil {
			return fmt.Errorf("%s: %w", grant, err)
		}
	}
	return nil
}

// grants finds what the README gives to the role that runs the agent.
var grants = regexp.MustCompile(`(?m)^GRANT (?s:.+?) TO ` + testenv.LeastRole + `;`)
