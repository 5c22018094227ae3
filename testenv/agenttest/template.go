package agenttest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// Template prepares the database from which those of the tests are cloned. It makes the schema and
// gives the agent's role the rights that the README names.
func Template(ctx context.Context, url string) error {
	cfg := config.Default()
	cfg.Database.URL = secret.New(url)
	if _, _, err := outbox.Migrate(ctx, cfg.OutboxConfig()); err != nil {
		return err
	}
	_, here, _, _ := runtime.Caller(0)
	readme, err := os.ReadFile(filepath.Join(filepath.Dir(here), "../../README.md"))
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

// grants matches the GRANT statements of the README for the role that runs the agent.
var grants = regexp.MustCompile(`(?m)^GRANT (?s:.+?) TO ` + testenv.LeastRole + `;`)
