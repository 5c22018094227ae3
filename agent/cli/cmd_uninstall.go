package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/outbox"
)

func (a *app) uninstallCommand() *cobra.Command {
	var yes, dropData bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Drop the slot and the publications, and with --drop-data the schema webhooks",
		Long: `uninstall removes from the database what costs something while no agent runs: the replication slot, which keeps WAL, and the
publications. The schema webhooks, with endpoints and the delivery log, stays unless --drop-data is given. Without --yes it
only prints what it would do. It refuses while an agent is connected, and touches nothing that is not the agent's: it also refuses
--drop-data while the schema holds what others made, or others depend on it.`,
		Example: `  webhook-agent uninstall                     print what would be dropped
  webhook-agent uninstall --yes               drop the slot and the publications, keep the data
  webhook-agent uninstall --yes --drop-data   drop the schema webhooks as well`,
		Args: noArguments,
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			plan, err := d.db.Uninstall(ctx, dropData, yes)
			if err != nil {
				return err
			}
			if d.out.asJSON {
				return d.out.json(struct {
					Done bool `json:"done"`
					outbox.Uninstallation
				}{yes, plan})
			}
			things := plan.Things()
			switch {
			case len(things) == 0:
				d.out.line("there is nothing to drop")
			case yes:
				d.out.line("dropped %s", strings.Join(things, ", "))
			default:
				d.out.line("would drop %s; run it with --yes to do so", strings.Join(things, ", "))
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it, instead of printing what would be done")
	cmd.Flags().BoolVar(&dropData, "drop-data", false, "also drop the schema webhooks: endpoints, delivery log, and the outbox if it is there")
	return cmd
}
