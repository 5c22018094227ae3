package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/outbox"
)

func (a *app) migrateCommand() *cobra.Command {
	var printSQL, printGrants bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Create or update the schema webhooks",
		Long: `migrate brings the schema webhooks and the publications to the state that this binary needs. It may run under another
role than the agent: one that may create a schema and owns the outbox table. Name that role by --database-url. (DATABASE_URL is used only
where neither the file nor WEBHOOK_AGENT_DATABASE_URL sets database.url, and a notice says if it is not used.) It only goes forward, and
several at a time wait for each other.`,
		Example: `  webhook-agent migrate
  webhook-agent migrate --database-url env:OWNER_URL   as the role that OWNER_URL in the environment names
  webhook-agent migrate --print > webhooks.sql   in an empty database, for people who run their own migrations
  webhook-agent migrate --print-grants           what the roles of the agent, of the app and of people need`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			if printGrants {
				_, err := io.WriteString(a.stdout, outbox.PrintGrants(cfg.OutboxConfig()))
				return err
			}
			if printSQL {
				return printMigrations(a.stdout, cfg.OutboxConfig())
			}
			return migrate(cmd.Context(), a.printer(), cfg.OutboxConfig())
		},
	}
	cmd.Flags().BoolVar(&printSQL, "print", false, "print the SQL instead of running it")
	cmd.Flags().BoolVar(&printGrants, "print-grants", false, "only print what the roles of the agent, of the app and of people need")
	return cmd
}

func printMigrations(w io.Writer, cfg outbox.Config) error {
	sql, err := outbox.PrintMigrations(cfg)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, sql)
	return err
}

func migrate(ctx context.Context, out *printer, cfg outbox.Config) error {
	from, to, err := outbox.Migrate(ctx, cfg)
	if err != nil {
		return outbox.ExplainMigration(ctx, cfg, err)
	}
	if out.asJSON {
		return out.json(struct {
			From int `json:"from"`
			To   int `json:"to"`
		}{from, to})
	}
	if from == to {
		out.line("the schema webhooks has version %d already", to)
		return nil
	}
	was := "did not exist"
	if from > 0 {
		was = fmt.Sprintf("had version %d", from)
	}
	out.line("the schema webhooks %s and has version %d now", was, to)
	return nil
}
