package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func (a *app) adoptCommand() *cobra.Command {
	var disable bool
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Let the agent go on in a restored, copied or upgraded database",
		Long: `A checkpoint names the server and the database of the agent that wrote it. Where it is of another one (a restored dump, a
copy, pg_upgrade) no agent leads until adopt has said that this is where it goes on: it then compares the outbox with the
delivery log and sends what is missing or pending, to the real endpoints. With --disable-endpoints the database is a copy
that sends nothing: all endpoints are disabled, pending deliveries become missed, and open replays are ended. A failover to
a standby needs no adopt.`,
		Example: `  webhook-agent adopt                       after a restore that replaces the original, and after pg_upgrade
  webhook-agent adopt --disable-endpoints   in a copy, like a staging system`,
		Args: noArguments,
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			host, err := os.Hostname()
			if err != nil {
				return fmt.Errorf("find the host's name: %w", err)
			}
			done, err := d.db.Adopt(ctx, fmt.Sprintf("%s/%d (adopt)", host, os.Getpid()), disable)
			if err != nil {
				return err
			}
			switch {
			case d.out.asJSON:
				return d.out.json(done)
			case !done.Adopted:
				d.out.line("the checkpoint is of this server and database already")
			case disable:
				d.out.line("the checkpoint is of this server and database (%s) now; %s endpoints were disabled and %s replays ended",
					done.Database, formatCount(done.DisabledEndpoints), formatCount(done.EndedReplays))
			default:
				d.out.line("the checkpoint is of this server and database (%s) now; the next leader compares the outbox with the log and sends what is missing",
					done.Database)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&disable, "disable-endpoints", false, "disable all endpoints, for a copy that must send nothing")
	return cmd
}
