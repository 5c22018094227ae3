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
	// Outcome is what came of it; nil while it has not ended, and where counting takes too long.
	Outcome *outbox.ReplayOutcome `json:"outcome"`
}

func (a *app) deliveriesReplayCommand() *cobra.Command {
	var (
		flags   deliveryFlags
		request outbox.ReplayRequest
		mode    replayMode
		noWait  bool
	)
	cmd := &cobra.Command{
		Use:   "replay [EVENT_ID...]",
		Short: "Send deliveries again: single events, or a time range of one endpoint",
		Long: `replay sends deliveries again that have ended: the named events, or those of an endpoint in a range of time (by default what
was missed or failed). A named event is sent again also where it was delivered; on a terminal the command asks before that. Endpoints
that nothing can be sent to are left out and named. An event keeps its id and its bytes, and gets the full retry schedule. The
agent does it in the background, also when this command is interrupted or the agent is restarted in the middle. At the end the
command says how many succeeded, failed and were missed, and ends with status 1 unless all succeeded. Any beginning of an id is
enough as long as no other id begins so.`,
		Example: `  webhook-agent deliveries replay evt_01K5M3 evt_01K5M4
  webhook-agent deliveries replay --endpoint ep_01K5M2 --since 2d --dry-run
  webhook-agent deliveries replay --endpoint ep_01K5M2 --status missed --since 2026-01-31T09:00:00Z --until 2026-01-31T12:00:00Z`,
		PreRunE: func(cmd *cobra.Command, args []string) error {
			filter, err := flags.parse(cmd, manage.ReplayStatuses, time.Now())
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("per-second") {
				if err := outbox.CheckPace(mode.options.PerSecond); err != nil {
					return usagef(cmd, "--per-second: %v", err)
				}
			}
			request = outbox.ReplayRequest{EndpointID: filter.EndpointID, EventIDs: args, Statuses: filter.Statuses, Since: filter.Since, Until: filter.Until}
			return checkReplay(cmd, &request)
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			mode.follow = !noWait
			return d.replay(ctx, request, mode)
		}),
	}
	flags.add(cmd, manage.ReplayStatuses)
	cmd.Flags().IntVar(&mode.options.PerSecond, "per-second", 0, "send at most this `many` in a second")
	cmd.Flags().BoolVar(&mode.dryRun, "dry-run", false, "only say how many deliveries it concerns")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait for the end, nor show the progress")
	cmd.Flags().BoolVar(&mode.yes, "yes", false, "do not ask before something is sent again that was delivered")
	return cmd
}

// replayMode is how a replay is asked for.
type replayMode struct {
	options             outbox.ReplayOptions
	dryRun, follow, yes bool
}

// replay plans replays, starts them, and shows their progress.
func (d *desk) replay(ctx context.Context, request outbox.ReplayRequest, mode replayMode) (err error) {
	if request.EndpointID, err = d.loggedEndpointID(ctx, request.EndpointID); err != nil {
		return err
	}
	if request.EventIDs, err = d.eventIDs(ctx, request.EventIDs); err != nil {
		return err
	}
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
	if mode.dryRun || len(answers) == 0 {
		return d.answerReplay(answers, refused)
	}
	if !mode.yes && d.asks() {
		if err := d.confirmAgain(ctx, desk, request); err != nil {
			return err
		}
	}
	if err := d.startReplay(ctx, answers, mode.options); err != nil {
		return err
	}
	if mode.follow {
		err = d.followReplay(ctx, answers)
	} else {
		err = d.sayWhoLeads(ctx)
	}
	if answered := d.answerReplay(answers, refused); err == nil {
		err = answered
	}
	if err == nil && mode.follow && len(refused) > 0 {
		err = errFindings // what was left out has not succeeded
	}
	return err
}

// confirmAgain asks before named events are sent once more that were delivered. Where the statuses
// were named as well, that was meant. It returns an error where the answer is no.
func (d *desk) confirmAgain(ctx context.Context, desk *manage.Desk, request outbox.ReplayRequest) error {
	if len(request.EventIDs) == 0 || len(request.Statuses) > 0 {
		return nil
	}
	request.Statuses = []outbox.Status{outbox.Succeeded}
	plans, err := desk.Plan(ctx, request)
	if errors.Is(err, outbox.ErrRefused) || errors.Is(err, outbox.ErrNotFound) { // nothing can be sent where it was delivered
		return nil
	}
	if err != nil {
		return flagError(err)
	}
	var delivered int64
	for _, plan := range plans {
		if plan.Refused == "" {
			delivered += plan.Deliveries
		}
	}
	if delivered == 0 {
		return nil
	}
	return d.confirm(ctx, "%s already, and the receiver gets the event once more. Go on?", numbered(delivered, "of them was delivered", "of them were delivered"))
}

// sayWhoLeads says so where no agent leads, since nothing is sent until then.
func (d *desk) sayWhoLeads(ctx context.Context) error {
	leading, err := d.db.Leading(ctx)
	if err == nil && !leading.Leads() && !d.out.asJSON {
		d.out.line("%s", nobodyLeads(leading))
	}
	return err
}

// nobodyLeads says why nothing is sent.
func nobodyLeads(l outbox.Leading) string {
	if l.Leader == nil {
		return "no agent has run with this slot yet; the replay begins when one does: webhook-agent run"
	}
	return fmt.Sprintf("no agent leads, the last one was %s; the replay goes on when one runs: webhook-agent run", l.Leader.Holder)
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
			out.line("%s to %s", planText(plan), plan.EndpointID)
		}
	}
	if len(answers) == 0 && !out.asJSON {
		out.line("nothing to replay: no delivery that has ended matches")
	}
	return answers, refused
}

// planText says how many deliveries a replay is of, and what they are now.
func planText(plan outbox.ReplayPlan) string {
	count, what := formatCount(plan.Deliveries), "deliveries"
	switch plan.Deliveries {
	case 1:
		what = "delivery"
	case outbox.MaxReplayCount:
		count += " or more"
	}
	return count + " " + eitherOf(plan.Statuses) + " " + what
}

// startReplay creates the replays in the database and says how they are called. The agent then
// executes them.
func (d *desk) startReplay(ctx context.Context, answers []replayAnswer, options outbox.ReplayOptions) error {
	for i := range answers {
		started, _, err := d.db.AllVenues().StartReplay(ctx, answers[i].ReplayPlan, options)
		if err != nil {
			return err
		}
		answers[i].Replay = &started
		if !d.out.asJSON {
			d.out.line("started %s", started.ID)
		}
	}
	return nil
}

// followReplay shows the progress until all replays have ended, and then what came of them. An
// interruption ends only the showing, not the replays.
func (d *desk) followReplay(ctx context.Context, answers []replayAnswer) error {
	ticker := time.NewTicker(replayPoll)
	defer ticker.Stop()
	p := &progress{out: d.out}
	for {
		leading, err := d.refreshReplay(ctx, answers)
		if ctx.Err() != nil {
			p.clear()
			return d.detached(answers)
		}
		if err != nil {
			p.clear()
			return err
		}
		if hasEnded(answers) {
			p.clear()
			return d.concludeReplay(ctx, answers)
		}
		replayProgress(p, answers, leading, time.Now())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			p.clear()
			return d.detached(answers)
		}
	}
}

// concludeReplay says what came of replays that have ended. It returns an error unless all
// succeeded.
func (d *desk) concludeReplay(ctx context.Context, answers []replayAnswer) error {
	var sum outbox.ReplayOutcome
	var refused []error
	counted, all := true, true
	for i := range answers {
		r := answers[i].Replay
		outcome, err := d.db.AllVenues().ReplayOutcome(ctx, *r)
		switch {
		case errors.Is(err, outbox.ErrTooSlow):
			counted = false
		case err != nil:
			return err
		default:
			answers[i].Outcome = &outcome
			sum.Succeeded, sum.Failed = sum.Succeeded+outcome.Succeeded, sum.Failed+outcome.Failed
			sum.Missed, sum.ReplayedSince = sum.Missed+outcome.Missed, sum.ReplayedSince+outcome.ReplayedSince
		}
		all = all && r.State == outbox.ReplayDone && err == nil && outcome.AllSucceeded()
		switch r.State {
		case outbox.ReplayFailed:
			refused = append(refused, fmt.Errorf("replay to %s: %s", r.EndpointID, r.Error))
		case outbox.ReplayCanceled:
			refused = append(refused, fmt.Errorf("replay to %s: it was canceled; what it had not sent is what it was before", r.EndpointID))
		}
	}
	switch {
	case d.out.asJSON:
	case counted:
		d.out.line("ended: %s", outcomeText(sum))
	default:
		d.out.line("ended; counting what came of it takes too long: webhook-agent deliveries list shows it")
	}
	if len(refused) == 0 && !all {
		return errFindings
	}
	return errors.Join(refused...)
}

// detached prints that the replays go on although their progress is no longer shown.
func (d *desk) detached(answers []replayAnswer) error {
	shows := "list"
	if len(answers) == 1 {
		shows = "show " + answers[0].Replay.ID
	}
	if !d.out.asJSON {
		d.out.line("the replay goes on in the background; webhook-agent replays %s shows how far it is", shows)
	}
	return errFindings
}

func outcomeText(o outbox.ReplayOutcome) string {
	text := fmt.Sprintf("%d succeeded, %d failed, %d missed", o.Succeeded, o.Failed, o.Missed)
	if o.ReplayedSince > 0 {
		text += fmt.Sprintf(", %d replayed again since", o.ReplayedSince)
	}
	return text
}

// refreshReplay reads the progress of the replays, and who leads.
func (d *desk) refreshReplay(ctx context.Context, answers []replayAnswer) (leading outbox.Leading, err error) {
	var ids []string
	for _, answer := range answers {
		ids = append(ids, answer.Replay.ID)
	}
	replays, err := d.db.AllVenues().Replays(ctx, ids)
	if err != nil {
		return leading, err
	}
	for i := range answers {
		at := slices.IndexFunc(replays, func(r outbox.ReplayInfo) bool { return r.ID == answers[i].Replay.ID })
		if at >= 0 {
			answers[i].Replay = &replays[at]
			continue
		}
		// Its row was deleted before the agent came to it, which cancels it.
		gone := *answers[i].Replay
		now := time.Now()
		gone.State, gone.Finished = outbox.ReplayCanceled, &now
		answers[i].Replay = &gone
	}
	return d.db.Leading(ctx)
}

// hasEnded reports whether all replays have ended, and the canceled ones have put back what they
// had set back.
func hasEnded(answers []replayAnswer) bool {
	return !slices.ContainsFunc(answers, func(a replayAnswer) bool {
		return !a.Replay.Ended() || a.Replay.State == outbox.ReplayCanceled && a.Replay.Finished == nil
	})
}

// replayProgress shows the progress of all replays: a line that is written over, or a sentence
// where people have to do something.
func replayProgress(p *progress, answers []replayAnswer, leading outbox.Leading, now time.Time) {
	var total, done int64
	waiting, paused := true, ""
	for _, answer := range answers {
		r := answer.Replay
		done += r.Done + r.Unsent
		if r.Expected != nil && !r.Ended() { // the total grows while the replay looks for its deliveries
			total += max(r.Total, *r.Expected)
		} else {
			total += r.Total
		}
		waiting = waiting && r.State == outbox.ReplayPending
		if r.State == outbox.ReplayPaused {
			paused = r.ID
		}
	}
	resting := !slices.ContainsFunc(answers, func(a replayAnswer) bool { return a.Replay.State != outbox.ReplayPaused && !a.Replay.Ended() })
	far := fmt.Sprintf("%d of %d deliveries have ended", done, total)
	switch {
	case waiting && !leading.Leads():
		p.tell(nobodyLeads(leading))
	case !leading.Leads():
		p.tell(far + "; " + nobodyLeads(leading))
	case resting && paused != "":
		p.tell(far + "; paused: webhook-agent replays resume " + paused + " goes on")
	case waiting:
		p.say("waiting for the agent to begin")
	case p.out.width > 0:
		p.say(p.bar(done, total, now))
	default:
		p.say(far)
	}
}

// answerReplay prints the answer for a program. A person has read everything already.
func (d *desk) answerReplay(answers, refused []replayAnswer) error {
	if d.out.asJSON {
		return d.out.json(emptyList(slices.Concat(answers, refused)))
	}
	return nil
}
