package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
)

// replayPoll is the time between two looks at the progress of a replay.
const replayPoll = time.Second

// replayAnswer is the answer of the command deliveries replay for one endpoint.
type replayAnswer struct {
	outbox.ReplayPlan
	Replay *outbox.ReplayInfo `json:"replay"` // nil after --dry-run and when the plan is refused
}

func (a *app) deliveriesReplayCommand() *cobra.Command {
	var (
		flags          deliveryFlags
		request        outbox.ReplayRequest
		options        outbox.ReplayOptions
		dryRun, noWait bool
	)
	cmd := &cobra.Command{
		Use:   "replay [EVENT_ID...]",
		Short: "Send deliveries again: single events, or a time range of one endpoint",
		Long: `replay sends deliveries again that have ended: the named events, or those of an endpoint in a range of time (by default what
was missed or failed). Endpoints that nothing can be sent to are left out and named. An event keeps its id and its bytes, and gets the full retry schedule. The agent does it in the
background, also when this command is interrupted or the agent is restarted in the middle.`,
		Example: `  webhook-agent deliveries replay evt_01K5M3 evt_01K5M4
  webhook-agent deliveries replay --endpoint ep_01K5M2 --since 2d --dry-run
  webhook-agent deliveries replay --endpoint ep_01K5M2 --status missed --since 2026-01-31T09:00:00Z --until 2026-01-31T12:00:00Z`,
		PreRunE: func(cmd *cobra.Command, args []string) error {
			filter, err := flags.parse(cmd, manage.ReplayStatuses, time.Now())
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("per-second") {
				if err := outbox.CheckPace(options.PerSecond); err != nil {
					return usagef(cmd, "--per-second: %v", err)
				}
			}
			request = outbox.ReplayRequest{EndpointID: filter.EndpointID, EventIDs: args, Statuses: filter.Statuses, Since: filter.Since, Until: filter.Until}
			return checkReplay(cmd, &request)
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			return d.replay(ctx, request, options, dryRun, !noWait)
		}),
	}
	flags.add(cmd, manage.ReplayStatuses)
	cmd.Flags().IntVar(&options.PerSecond, "per-second", 0, "send at most this `many` in a second")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say how many deliveries it concerns")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not show the progress")
	return cmd
}

// replay plans replays, starts them, and shows their progress.
func (d *desk) replay(ctx context.Context, request outbox.ReplayRequest, options outbox.ReplayOptions, dryRun, follow bool) error {
	desk, done, err := d.manage()
	if err != nil {
		return err
	}
	defer done()
	plans, err := desk.Plan(ctx, request)
	if err != nil {
		return flagError(err)
	}
	answers, refused := announceReplay(d.out, plans)
	if dryRun || len(answers) == 0 {
		return d.answerReplay(answers, refused)
	}
	if err := d.startReplay(ctx, answers, options); err != nil {
		return err
	}
	if follow {
		if err := d.followReplay(ctx, answers); err != nil {
			return err
		}
	}
	return d.answerReplay(answers, refused)
}

// checkReplay returns a usage error for a request that names nothing or too much.
func checkReplay(cmd *cobra.Command, r *outbox.ReplayRequest) error {
	single := len(r.EventIDs) > 0
	switch {
	case !single && r.EndpointID == "":
		return usagef(cmd, "name event ids, or an endpoint by --endpoint")
	case single && (r.Since != nil || r.Until != nil):
		return usagef(cmd, "--since and --until are for a whole endpoint, not for single events")
	case len(r.EventIDs) > outbox.MaxReplayEvents:
		return usagef(cmd, "%d events are too many, at most %d; use --endpoint with --since and --until", len(r.EventIDs), outbox.MaxReplayEvents)
	}
	return nil
}

// announceReplay prints how many deliveries are replayed and what is left out. It returns the plans
// that have deliveries, and the plans that are refused.
func announceReplay(out *printer, plans []outbox.ReplayPlan) (answers, refused []replayAnswer) {
	for _, plan := range plans {
		if plan.Refused != "" {
			refused = append(refused, replayAnswer{ReplayPlan: plan})
			if !out.asJSON {
				out.line("left out: %s", plan.Refused)
			}
			continue
		}
		if plan.Deliveries == 0 {
			continue
		}
		answers = append(answers, replayAnswer{ReplayPlan: plan})
		if !out.asJSON {
			more := ""
			if plan.Deliveries == outbox.MaxReplayCount {
				more = " or more"
			}
			what := "deliveries"
			if plan.Deliveries == 1 {
				what = "delivery"
			}
			out.line("%d%s %s %s to %s", plan.Deliveries, more, joinStatuses(plan.Statuses), what, plan.EndpointID)
		}
	}
	if len(answers) == 0 && !out.asJSON {
		out.line("nothing to replay: no delivery that has ended matches")
	}
	return answers, refused
}

// startReplay creates the replays in the database. The agent then executes them.
func (d *desk) startReplay(ctx context.Context, answers []replayAnswer, options outbox.ReplayOptions) error {
	for i := range answers {
		started, _, err := d.db.AllVenues().StartReplay(ctx, answers[i].ReplayPlan, options)
		if err != nil {
			return err
		}
		answers[i].Replay = &started
	}
	return nil
}

// followReplay prints the progress until all replays have ended. An interruption ends only the
// printing, not the replays.
func (d *desk) followReplay(ctx context.Context, answers []replayAnswer) error {
	ticker := time.NewTicker(replayPoll)
	defer ticker.Stop()
	shown := ""
	for {
		if err := d.refreshReplay(ctx, answers); err != nil {
			if ctx.Err() != nil {
				return d.detached()
			}
			return err
		}
		text, ended, err := replayProgress(answers)
		if text != shown && !d.out.asJSON {
			d.out.line("%s", text)
			shown = text
		}
		if ended {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return d.detached()
		}
	}
}

// detached prints that the replays go on although their progress is no longer shown.
func (d *desk) detached() error {
	if !d.out.asJSON {
		d.out.line("the replay goes on in the background; webhook-agent deliveries list shows what comes of it")
	}
	return nil
}

// refreshReplay reads the progress of the replays.
func (d *desk) refreshReplay(ctx context.Context, answers []replayAnswer) error {
	var ids []string
	for _, answer := range answers {
		ids = append(ids, answer.Replay.ID)
	}
	replays, err := d.db.AllVenues().Replays(ctx, ids)
	if err != nil {
		return err
	}
	for _, replay := range replays {
		for i := range answers {
			if answers[i].Replay.ID == replay.ID {
				answers[i].Replay = &replay
			}
		}
	}
	return nil
}

// replayProgress describes the progress of all replays in one line, and reports whether they have
// ended. It returns an error when a replay has ended without sending everything.
func replayProgress(answers []replayAnswer) (text string, ended bool, err error) {
	var (
		total, done, unsent int64
		refused             []error
	)
	ended, waiting := true, true
	for _, answer := range answers {
		r := answer.Replay
		total, done, unsent = total+r.Total, done+r.Done, unsent+r.Unsent
		ended = ended && r.Ended()
		waiting = waiting && r.State == outbox.ReplayPending
		if r.State == outbox.ReplayFailed {
			refused = append(refused, fmt.Errorf("replay to %s: %s", r.EndpointID, r.Error))
		}
	}
	switch {
	case waiting:
		text = "waiting for the agent to begin"
	case ended && unsent > 0:
		text = fmt.Sprintf("ended: %s, %s not sent", endedText(done), numbered(unsent, "was", "were"))
	case ended && len(refused) > 0:
		text = "ended: " + endedText(done)
	case ended:
		text = "done: " + endedText(done)
	default:
		text = fmt.Sprintf("%d of %d deliveries have ended", done+unsent, total)
	}
	return text, ended, errors.Join(refused...)
}

func endedText(n int64) string { return numbered(n, "delivery has ended", "deliveries have ended") }

// answerReplay prints the answer for a program. A person has read everything already.
func (d *desk) answerReplay(answers, refused []replayAnswer) error {
	if d.out.asJSON {
		return d.out.json(emptyList(slices.Concat(answers, refused)))
	}
	return nil
}
