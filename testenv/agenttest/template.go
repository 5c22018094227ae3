package agenttest

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// Template prepares the database from which those of the tests are cloned. It makes the schema and
// gives the agent's role the rights that migrate --print-grants names, and no others.
func Template(ctx context.Context, address string) error {
	cfg := config.Default()
	cfg.Database.URL = secret.New(address)
	if _, _, err := outbox.Migrate(ctx, cfg.OutboxConfig()); err != nil {
		return err
	}
	agent, err := url.Parse(address)
	if err != nil {
		return err
	}
	agent.User = url.User(testenv.LeastRole)
	cfg.Database.URL = secret.New(agent.String())
	var grants strings.Builder // all in one connection, which costs more than the statements
	for grant := range strings.Lines(outbox.PrintGrants(cfg.OutboxConfig())) {
		if strings.HasSuffix(grant, ` TO "`+testenv.LeastRole+"\";\n") { // neither a comment nor for another role
			grants.WriteString(grant)
		}
	}
	if err := testenv.ExecSQL(ctx, address, grants.String()); err != nil {
		return fmt.Errorf("grant the rights of %s: %w", testenv.LeastRole, err)
	}
	return nil
}
