package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
)

func (a *app) statusCommand() *cobra.Command {
	var repeated watchFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show where the agent stands: leader, slot, deliveries, endpoints",
		Long: `status asks the database, so it works wherever the database can be reached, and also while no agent runs. It counts
within bounds, so it is quick at any size of the delivery log.`,
		Example: `  webhook-agent status
  webhook-agent status --watch --interval 5s
  webhook-agent status --json | jq .deliveries.pending`,
		Args:    noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return repeated.check(cmd) },
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			return a.show(ctx, d, &repeated, "status", printStatus)
		}),
	}
	repeated.add(cmd)
	return cmd
}

func printStatus(ctx context.Context, d *desk) error {
	overview, err := d.db.Overview(ctx)
	if err != nil {
		return err
	}
	hideURLs(overview.NotSending)
	if err := d.db.AllVenues().FindLastSuccesses(ctx, overview.NotSending); err != nil {
		return err
	}
	if d.out.asJSON {
		return d.out.json(overview)
	}
	printOverview(d, overview, time.Now())
	return nil
}

func printOverview(d *desk, o outbox.Overview, now time.Time) {
	d.out.fields([]field{
		{"schema", schemaText(o.Schema, now)},
		{"leader", leaderText(o, now)},
		{"slot", slotText(d.cfg, o.Slot)},
		{"pending", pendingText(o.Deliveries, now)},
		{"last hour", fmt.Sprintf("%s succeeded, %s failed, %s missed",
			countText(o.Deliveries.Succeeded), countText(o.Deliveries.Failed), countText(o.Deliveries.Missed))},
		{"endpoints", fmt.Sprintf("%s enabled, %s disabled, %s unusable",
			formatCount(o.Endpoints.Enabled), formatCount(o.Endpoints.Disabled), formatCount(o.Endpoints.Unusable))},
	})
	if len(o.NotSending) == 0 {
		return
	}
	d.out.line("")
	d.out.line("Nothing is sent to:")
	d.out.table(endpointTable, d.endpointRows(o.NotSending, now))
	if rest := o.Endpoints.Disabled + o.Endpoints.Unusable - int64(len(o.NotSending)); rest > 0 {
		d.out.line("and %s more: webhook-agent endpoints list --state disabled (or unusable)", formatCount(rest))
	}
}

func schemaText(s outbox.SchemaInfo, now time.Time) string {
	text := fmt.Sprintf("version %d", s.Version)
	if s.Migrated != nil {
		text += ", migrated " + formatAge(s.Migrated, now)
	}
	if s.Note != "" {
		text += "; " + s.Note
	}
	return text
}

func leaderText(o outbox.Overview, now time.Time) string {
	l := o.Leader
	if l == nil {
		return "none: no agent has run with this slot yet; webhook-agent run starts one"
	}
	text := fmt.Sprintf("%s, epoch %d, recorded up to %s, %s", l.Holder, l.Epoch, l.LSN, formatAge(&l.Updated, now))
	if o.Slot == nil || !o.Slot.Active {
		text += "; NOT CONNECTED: no agent runs"
	}
	if l.Recovering {
		text += "; recovering from the outbox"
	}
	return text
}

func slotText(cfg *config.Config, s *outbox.SlotInfo) string {
	if s == nil {
		return fmt.Sprintf("%s does not exist; the first run creates it", cfg.Outbox.Slot)
	}
	state := "no agent is connected"
	if s.Active {
		state = "active"
	}
	text := fmt.Sprintf("%s, %s, confirmed %s, %s behind, WAL %s (%s kept)",
		s.Name, state, s.ConfirmedLSN, formatBytes(s.LagBytes), s.WALStatus, formatBytes(s.RetainedWAL))
	if s.WALStatus == "lost" {
		text += "; webhook-agent check says what to do"
	}
	return text
}

func pendingText(c outbox.DeliveryCounts, now time.Time) string {
	if c.Pending == 0 {
		return "none"
	}
	return fmt.Sprintf("%s, the oldest from %s, next attempt %s", countText(c.Pending), formatAge(c.OldestPending, now), formatAge(c.NextAttempt, now))
}

// countText formats a count, and marks one that has stopped at its bound.
func countText(n int64) string {
	if n >= outbox.MaxOverviewCount {
		return formatCount(n) + " or more"
	}
	return formatCount(n)
}
