package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/outbox"
)

var replayStates = []string{outbox.ReplayPending, outbox.ReplayRunning, outbox.ReplayPaused, outbox.ReplayDone, outbox.ReplayFailed, outbox.ReplayCanceled}

func (a *app) replaysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replays",
		Short: "Look at replays, and pause, resume, cancel or pace them",
		Example: `  webhook-agent replays list --state running
  webhook-agent replays pause rpl_01K5M4`,
		Args: subcommandRequired,
		RunE: showHelp,
	}
	change := func(use, short string, do func(outbox.AllVenues, context.Context, string) (outbox.ReplayInfo, error)) *cobra.Command {
		return &cobra.Command{
			Use: use + " ID", Short: short, Args: exactly(1, "a replay id"), Example: "  webhook-agent replays " + use + " rpl_01K5M4",
			RunE: a.withReplay(func(ctx context.Context, d *desk, id string) error {
				r, err := do(d.db.AllVenues(), ctx, id)
				return d.answerReplays(r, err)
			}),
		}
	}
	cmd.AddCommand(a.replaysListCommand(),
		a.replaysShowCommand(),
		change("pause", "Pause a replay; the fewer than 500 deliveries that are pending already are sent", outbox.AllVenues.PauseReplay),
		change("resume", "Resume a paused replay", outbox.AllVenues.ResumeReplay),
		change("cancel", "End a replay; what it has not sent is again what it was", outbox.AllVenues.CancelReplay),
		a.replaysPaceCommand())
	return cmd
}

func (a *app) replaysShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show how far a replay is, and what came of it", Args: exactly(1, "a replay id"), Example: "  webhook-agent replays show rpl_01K5M4",
		RunE: a.withReplay(func(ctx context.Context, d *desk, id string) error { return d.showReplay(ctx, id) }),
	}
}

// showReplay prints one replay and, once it has ended, what came of it.
func (d *desk) showReplay(ctx context.Context, id string) error {
	r, err := d.db.AllVenues().Replay(ctx, id)
	if err != nil {
		return err
	}
	answer := replayShown{ReplayInfo: r}
	if r.Ended() && r.Finished != nil {
		outcome, err := d.db.AllVenues().ReplayOutcome(ctx, r)
		if err != nil && !errors.Is(err, outbox.ErrTooSlow) {
			return err
		}
		if err == nil {
			answer.Outcome = &outcome
		}
	}
	if d.out.asJSON {
		return d.out.json(answer)
	}
	leading, err := d.db.Leading(ctx)
	if err != nil {
		return err
	}
	printReplay(d.out, answer, leading, time.Now())
	return nil
}

// replayShown is a replay and, once it has ended, what came of it.
type replayShown struct {
	outbox.ReplayInfo
	Outcome *outbox.ReplayOutcome `json:"outcome"`
}

func printReplay(out *printer, r replayShown, leading outbox.Leading, now time.Time) {
	what, pace, outcome, waits := "what was created up to "+formatTime(&r.Created, now), "", "", ""
	switch {
	case r.Events != nil:
		what = numbered(int64(*r.Events), "named event", "named events")
	case r.Until != nil:
		what = "what was created before " + formatTime(r.Until, now)
	}
	if r.Events == nil && r.Since != nil {
		what += ", from " + formatTime(r.Since, now) + " on"
	}
	if r.PerSecond != nil {
		pace = fmt.Sprintf("%d a second at most", *r.PerSecond)
	}
	if r.Outcome != nil {
		outcome = outcomeText(*r.Outcome)
	}
	if !leading.Leads() && r.Finished == nil && r.State != outbox.ReplayPaused {
		waits = nobodyLeads(leading)
	}
	out.fields([]field{
		{"replay", r.ID},
		{"endpoint", r.EndpointID},
		{"venue", r.Venue},
		{"of", what + ", " + joinStatuses(r.Statuses)},
		{"state", replayStateText(r.ReplayInfo)},
		{"waits", waits},
		{"progress", fmt.Sprintf("%d have ended and %d were not sent, of %d set back", r.Done, r.Unsent, r.Total)},
		{"outcome", outcome},
		{"pace", pace},
		{"error", r.Error},
		{"created", formatTime(&r.Created, now)},
		{"paused", formatTime(r.PausedAt, now)},
		{"finished", formatTime(r.Finished, now)},
	})
}

// replayStateText is the state of a replay, and whether a canceled one is being taken back still.
func replayStateText(r outbox.ReplayInfo) string {
	if r.State == outbox.ReplayCanceled && r.Finished == nil {
		return r.State + " (being taken back)"
	}
	return r.State
}

func (a *app) replaysListCommand() *cobra.Command {
	var (
		filter outbox.ReplayFilter
		listed listFlags
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List replays, newest first",
		Example: `  webhook-agent replays list --endpoint ep_01K5M2
  webhook-agent replays list --state running,paused --json`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range filter.States {
				if !slices.Contains(replayStates, s) {
					return usagef(cmd, "--state has %q, must be of %s", s, strings.Join(replayStates, ", "))
				}
			}
			if filter.Before != "" && !outbox.IsCursor(filter.Before) {
				return usagef(cmd, "--before is no cursor of this list; copy it from the end of the page before")
			}
			return listed.check(cmd)
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			var err error
			if filter.EndpointID, err = d.loggedEndpointID(ctx, filter.EndpointID); err != nil {
				return err
			}
			listed.printer(d.out)
			return d.listReplays(ctx, &listed, filter)
		}),
	}
	cmd.Flags().StringVar(&filter.EndpointID, "endpoint", "", "only to the endpoint with this `id`")
	cmd.Flags().StringSliceVar(&filter.States, "state", nil, "only in these `states`: "+strings.Join(replayStates, ", "))
	cmd.Flags().StringVar(&filter.Before, "before", "", "only before this `cursor`, for the next page")
	listed.add(cmd, 50)
	return cmd
}

// listReplays prints one page of the replays, or all of them with --all.
func (d *desk) listReplays(ctx context.Context, listed *listFlags, filter outbox.ReplayFilter) error {
	filter.Limit = listed.rows()
	table := tableStream{p: d.out, columns: replayTable, whole: !listed.all}
	n, err := list(ctx, listed, d.out, func(ctx context.Context) (p page[outbox.ReplayInfo], err error) {
		p.rows, filter.Before, err = d.db.AllVenues().ListReplays(ctx, filter)
		p.more = filter.Before != ""
		return p, err
	}, func(replays []outbox.ReplayInfo) {
		table.add(replayRows(d.out, replays, time.Now()))
	})
	switch {
	case err != nil || d.out.asJSON:
	case n == 0:
		d.out.note("no replay")
	case filter.Before != "":
		d.out.note("there are more: --before %s", filter.Before)
	}
	return err
}

func (a *app) replaysPaceCommand() *cobra.Command {
	var perSecond int
	cmd := &cobra.Command{
		Use:     "pace ID",
		Short:   "Change how many deliveries a replay sends in a second",
		Example: "  webhook-agent replays pace rpl_01K5M4 --per-second 20",
		Args:    exactly(1, "a replay id"),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("per-second") {
				return usagef(cmd, "--per-second is required; 0 takes the pace away")
			}
			return nil
		},
		RunE: a.withReplay(func(ctx context.Context, d *desk, id string) error {
			r, err := d.db.AllVenues().SetReplayPace(ctx, id, perSecond)
			return d.answerReplays(r, err)
		}),
	}
	cmd.Flags().IntVar(&perSecond, "per-second", 0, "send at most this `many` in a second; 0 for as many as the endpoint takes")
	return cmd
}

// answerReplays prints one replay, unless there is an error.
func (d *desk) answerReplays(r outbox.ReplayInfo, err error) error {
	if err != nil {
		return err
	}
	if d.out.asJSON {
		return d.out.json(r)
	}
	d.out.table(replayTable, replayRows(d.out, []outbox.ReplayInfo{r}, time.Now()))
	return nil
}

// replayTable are the columns of a list of replays.
var replayTable = []column{{name: "id", id: true}, {name: "endpoint", id: true}, {name: "venue", id: true, optional: 4}, {name: "state", state: true}, {name: "ended"},
	{name: "not sent", optional: 1}, {name: "set back", optional: 2}, {name: "expected", optional: 3}, {name: "per second", optional: 5}, {name: "created"}, {name: "error", flexible: true}}

// replayRows makes the rows of replayTable. Programs that read them get numbers without commas.
func replayRows(out *printer, replays []outbox.ReplayInfo, now time.Time) (rows [][]string) {
	count := formatCount[int64]
	if !out.terminal {
		count = func(n int64) string { return fmt.Sprint(n) }
	}
	for _, r := range replays {
		expected, pace := "", ""
		if r.Expected != nil {
			expected = count(*r.Expected)
		}
		if r.PerSecond != nil {
			pace = count(int64(*r.PerSecond))
		}
		rows = append(rows, []string{r.ID, r.EndpointID, r.Venue, replayStateText(r), count(r.Done), count(r.Unsent), count(r.Total), expected, pace,
			formatAge(&r.Created, now), r.Error})
	}
	return rows
}
