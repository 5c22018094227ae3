package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent"
	"github.com/quintago/webhook-agent/outbox"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say what is missing in the configuration and the database, with the remedy",
		Long: `check looks at everything the agent needs: the configuration, the server, the role and its privileges, the schema,
the outbox table, the publications, the slot, the clock and this host's root certificates. It changes nothing. It prints one line for each finding and
ends with status 1 when one of them keeps the agent from working. It looks as the role of database.url, or as the one that --database-url
names. (DATABASE_URL is used only where neither the file nor WEBHOOK_AGENT_DATABASE_URL sets database.url, and a notice says if it is not used.)`,
		Example: `  webhook-agent check
  webhook-agent check --database-url file:/etc/quintago/database-url
  webhook-agent check --json | jq '.[] | select(.level != "ok")'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			db, err := outbox.Open(cmd.Context(), cfg.OutboxConfig())
			if err != nil {
				return err
			}
			defer db.Close()
			findings, err := examine(cmd.Context(), db)
			if err != nil {
				return err
			}
			checker, err := cfg.Network.Checker()
			if err != nil {
				return err
			}
			defer checker.Close()
			files, roots := agent.OpenFilesFor(cfg.Delivery.Concurrency).Finding(), rootsFinding(checker.CheckRoots())
			return printFindings(a.printer(), slices.Insert(findings, 1, files, roots)) // after the finding about the configuration
		},
	}
}

// rootsFinding is that of sink.Webhook.CheckRoots.
func rootsFinding(reason, remedy string) outbox.Finding {
	f := outbox.Finding{Level: outbox.LevelOK, Thing: "root certificates", Reason: "this host has some", Remedy: remedy}
	if reason != "" {
		f.Level, f.Reason = outbox.LevelFail, reason+", so nothing is delivered over https"
	}
	return f
}

// examine returns the findings about a database. When the database cannot be reached, that is the
// only finding. The error is that of ctx.
func examine(ctx context.Context, db *outbox.DB) ([]outbox.Finding, error) {
	config := outbox.Finding{Level: outbox.LevelOK, Thing: "configuration", Reason: "it is complete"}
	if err := ping(ctx, db); err != nil {
		return []outbox.Finding{config, outbox.AsFinding(err)}, ctx.Err()
	}
	connection := outbox.Finding{Level: outbox.LevelOK, Thing: "connection", Reason: "the database answers"}
	return append([]outbox.Finding{config, connection}, db.Check(ctx)...), ctx.Err()
}

// printFindings prints one line for each finding. It returns errFindings if one of them is a
// failure.
func printFindings(out *printer, findings []outbox.Finding) error {
	counts := map[outbox.Level]int{}
	for _, f := range findings {
		counts[f.Level]++
	}
	if out.asJSON {
		if err := out.json(findings); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			text := f.Thing + ": " + f.Reason
			if f.Remedy != "" {
				text += "; remedy: " + f.Remedy
			}
			out.finding(string(f.Level), text)
		}
		out.line("%d ok, %d to look at, %d to put right", counts[outbox.LevelOK], counts[outbox.LevelWarn], counts[outbox.LevelFail])
	}
	if counts[outbox.LevelFail] > 0 {
		return errFindings
	}
	return nil
}
