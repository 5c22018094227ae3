package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// endpointChange is the answer of a command that has changed an endpoint. Secret is set only when
// one was just made.
type endpointChange struct {
	ID                  string     `json:"id"`
	Change              string     `json:"change"`
	Secret              *string    `json:"secret,omitempty"`
	PreviousSecretUntil *time.Time `json:"previous_secret_until,omitempty"`
}

func (a *app) endpointsAddCommand() *cobra.Command {
	var (
		venue, url, given, description string
		events                         []string
	)
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Register an endpoint",
		Long: `add registers an endpoint of a venue. Events that commit from now on are sent to it. Without --secret it makes one and prints
it once: give it to the customer, it is not shown again.`,
		Example: `  webhook-agent endpoints add --venue venue_01H --url https://example.com/hook --events lead.created,payment.received
  webhook-agent endpoints add --venue venue_01H --url https://example.com/hook --events 'lead.*' --secret env:HOOK_SECRET`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if venue == "" || url == "" || len(events) == 0 {
				return usagef(cmd, "--venue, --url and --events are required")
			}
			if err := outbox.CheckVenue(venue); err != nil {
				return usagef(cmd, "--venue %v", err)
			}
			return nil
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			s, made, err := a.secretFlag(given)
			if err != nil {
				return err
			}
			if err := checkNewEndpoint(d.cfg, url, events); err != nil {
				return err
			}
			id, err := d.db.AllVenues().AddEndpoint(ctx, outbox.Endpoint{Venue: venue, URL: secret.New(url), Events: events, Secret: s}, description)
			if err != nil {
				return err
			}
			return d.answerChange(endpointChange{ID: id, Change: "added", Secret: revealed(s, made)},
				"added %s: %s events of %s go to %s", id, strings.Join(events, ", "), venue, sink.RedactURL(url))
		}),
	}
	cmd.Flags().StringVar(&venue, "venue", "", "the `venue` whose events are sent")
	cmd.Flags().StringVar(&url, "url", "", "where to, an https `URL`")
	cmd.Flags().StringSliceVar(&events, "events", nil, "event `types`, separated by commas: lead.created, lead.* or *")
	cmd.Flags().StringVar(&given, "secret", "", "the signing `secret`, better as env:NAME or file:/path; made when absent")
	cmd.Flags().StringVar(&description, "description", "", "a `text` for people")
	return cmd
}

// secretFlag resolves the value of a --secret flag. Without the flag it makes a new secret, and made
// is true. (checkGiven refuses an empty value.)
func (a *app) secretFlag(given string) (s secret.Text, made bool, err error) {
	if given == "" {
		return sink.GenerateSecret(), true, nil
	}
	s, err = config.ResolveSecret(given, a.getenv)
	if err == nil {
		err = sink.CheckSecret(s)
	}
	if err != nil {
		return s, false, fmt.Errorf("--secret: %w", err)
	}
	return s, false, nil
}

// checkNewEndpoint returns an error for an endpoint that the agent could not send to. It uses the
// agent's own rules.
func checkNewEndpoint(cfg *config.Config, url string, events []string) error {
	webhook, err := cfg.Network.Checker()
	if err != nil {
		return err
	}
	defer webhook.Close()
	if err := webhook.CheckURL(url); err != nil {
		return fmt.Errorf("--url: %w", err)
	}
	if _, err := outbox.ParsePatterns(events); err != nil {
		return fmt.Errorf("--%w", err) // the sentence begins with "events"
	}
	return nil
}

// revealed returns a secret that was just made, because it is shown only once. Otherwise it returns
// nil.
func revealed(s secret.Text, made bool) *string {
	if !made {
		return nil
	}
	text := s.Reveal()
	return &text
}

// answerChange prints what was changed, and a secret that was just made.
func (d *desk) answerChange(c endpointChange, format string, args ...any) error {
	if d.out.asJSON {
		return d.out.json(c)
	}
	d.out.line(format, args...)
	if c.Secret != nil {
		d.out.line("secret: %s", *c.Secret)
		d.out.line("Give it to the receiver now; it is not shown again.")
	}
	return nil
}

func (a *app) endpointsEnableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "enable ENDPOINT_ID",
		Short: "Enable an endpoint and begin a new failure counter",
		Long: `enable lets events flow to an endpoint again and sets its failure counter to zero. What it missed is sent by
deliveries replay.`,
		Example: `  webhook-agent endpoints enable ep_01K5M2
  webhook-agent deliveries replay --endpoint ep_01K5M2 --status missed`,
		Args: exactly(1, "an endpoint id"),
		RunE: a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
			changed, err := d.db.AllVenues().EnableEndpoint(ctx, args[0])
			if err != nil {
				return err
			}
			if !changed {
				return d.answerChange(endpointChange{ID: args[0], Change: "none"}, "%s is enabled already", args[0])
			}
			return d.answerChange(endpointChange{ID: args[0], Change: "enabled"},
				"enabled %s; webhook-agent deliveries replay --endpoint %s --status missed sends what it missed", args[0], args[0])
		}),
	}
}

func (a *app) endpointsDisableCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "disable ENDPOINT_ID",
		Short:   "Send nothing more to an endpoint and keep its events as missed",
		Example: "  webhook-agent endpoints disable ep_01K5M2",
		Args:    exactly(1, "an endpoint id"),
		RunE: a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
			changed, err := d.db.AllVenues().DisableEndpoint(ctx, args[0])
			if err != nil {
				return err
			}
			if !changed {
				return d.answerChange(endpointChange{ID: args[0], Change: "none"}, "%s is disabled already", args[0])
			}
			return d.answerChange(endpointChange{ID: args[0], Change: "disabled"},
				"disabled %s; its events are kept as missed", args[0])
		}),
	}
}

func (a *app) endpointsRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ENDPOINT_ID",
		Short: "Remove an endpoint; its delivery log stays",
		Example: `  webhook-agent endpoints remove ep_01K5M2
  webhook-agent endpoints disable ep_01K5M2   keeps its events as missed instead`,
		Args: exactly(1, "an endpoint id"),
		RunE: a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
			if err := d.refuseManaged(ctx, args[0]); err != nil {
				return err
			}
			if err := d.db.AllVenues().RemoveEndpoint(ctx, args[0]); err != nil {
				return err
			}
			return d.answerChange(endpointChange{ID: args[0], Change: "removed"}, "removed %s; what was pending for it is kept as missed", args[0])
		}),
	}
}

// refuseManaged returns an error for an endpoint of the configuration file. The agent would undo
// its change at the next start.
func (d *desk) refuseManaged(ctx context.Context, id string) error {
	e, err := d.db.AllVenues().Endpoint(ctx, id)
	if err != nil {
		return err
	}
	if e.ManagedBy != "" {
		return fmt.Errorf("endpoint %s is managed by the configuration file; change its [[endpoint]] there and restart the agent", id)
	}
	return nil
}

func (a *app) endpointsRotateCommand() *cobra.Command {
	var given, overlapText string
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate-secret ENDPOINT_ID",
		Short: "Give an endpoint a new secret; the former one also signs for a while",
		Long: `rotate-secret sets a new secret. For the overlap each request carries signatures of both, so that the receiver can change
over at any time in between. Former secrets of earlier rotations, five together at most, also sign until their own times;
--overlap 0s ends them all.`,
		Example: `  webhook-agent endpoints rotate-secret ep_01K5M2
  webhook-agent endpoints rotate-secret ep_01K5M2 --overlap 7d --secret file:/run/secrets/hook
  webhook-agent endpoints rotate-secret ep_01K5M2 --overlap 0s   when the former secret has leaked`,
		Args: exactly(1, "an endpoint id"),
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			const longest = 30 * config.Day
			if overlap, err = config.ParseDuration(overlapText); err != nil || overlap < 0 || overlap > longest {
				return usagef(cmd, "--overlap is %s, must be a duration between 0s and %s", config.Quoted(overlapText), config.FormatDuration(longest))
			}
			return nil
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
			s, made, err := a.secretFlag(given)
			if err != nil {
				return err
			}
			return d.rotateSecret(ctx, args[0], s, made, overlap)
		}),
	}
	cmd.Flags().StringVar(&given, "secret", "", "the new `secret`, better as env:NAME or file:/path; made when absent")
	cmd.Flags().StringVar(&overlapText, "overlap", "24h", "how long the former secret also signs, a `duration`")
	return cmd
}

// rotateSecret gives an endpoint a secret, which made reports to be a new one, and prints what came of it.
func (d *desk) rotateSecret(ctx context.Context, id string, s secret.Text, made bool, overlap time.Duration) error {
	if err := d.refuseManaged(ctx, id); err != nil {
		return err
	}
	e, err := d.db.AllVenues().EndpointWithSecret(ctx, id)
	if err != nil {
		return err
	}
	now, err := d.cfg.Keyring().Open(e.ID, e.Secret)
	same := err == nil && now.Equal(s)
	until, err := d.db.AllVenues().RotateSecret(ctx, id, s, overlap)
	switch {
	case errors.Is(err, outbox.ErrSameSecret):
		return d.answerChange(endpointChange{ID: id, Change: "none"}, "%s has this secret already; nothing changed", id)
	case err != nil:
		return err
	case same:
		return d.answerChange(endpointChange{ID: id, Change: "former secrets ended"}, "%s has this secret already; its former secrets sign no more", id)
	case until == nil:
		return d.answerChange(endpointChange{id, "secret rotated", revealed(s, made), nil}, "%s has a new secret; the former secret signs no more", id)
	}
	return d.answerChange(endpointChange{id, "secret rotated", revealed(s, made), until},
		"%s has a new secret; the former secret also signs until %s", id, formatTime(until, time.Now()))
}

// testResult is the answer of the command endpoints test.
type testResult struct {
	EndpointID string `json:"endpoint_id"`
	EventID    string `json:"event_id"`
	Type       string `json:"type"`
	Succeeded  bool   `json:"succeeded"`
	Code       int    `json:"code"` // 0 when no status arrived
	Class      string `json:"class"`
	Error      string `json:"error"`
	LatencyMS  int64  `json:"latency_ms"`
	Response   string `json:"response"`
}

func (a *app) endpointsTestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "test ENDPOINT_ID",
		Short: "Send a sample event to an endpoint, now and once",
		Long: `test makes one real attempt from this machine: a sample event of the first type that the endpoint has asked for, signed with
its secret. Its id begins with evt_test_, and it has the header Webhook-Test: true, so that a receiver can tell it. It is
not logged and does not count, neither as a failure nor as a success; a disabled endpoint can be tested before it is
enabled. The command ends with status 1 when the attempt failed.`,
		Example: `  webhook-agent endpoints test ep_01K5M2
  webhook-agent endpoints test ep_01K5M2 --json | jq .error`,
		Args: exactly(1, "an endpoint id"),
		RunE: a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
			e, err := d.db.AllVenues().EndpointWithSecret(ctx, args[0])
			if err != nil {
				return err
			}
			if _, err := outbox.ParsePatterns(e.Events); err != nil {
				return fmt.Errorf("endpoint %s: %w", e.ID, err)
			}
			event, err := d.db.AllVenues().SampleEvent(ctx, e)
			if err != nil {
				return err
			}
			webhook, err := d.cfg.NewWebhook(ctx, version, 1, nil)
			if err != nil {
				return err
			}
			defer webhook.Close()
			target, err := agent.OpenTarget(webhook, d.cfg.Keyring(), &e)
			if err != nil && !errors.Is(err, target.Err()) { // the secret cannot be opened
				return fmt.Errorf("endpoint %s: %w", e.ID, err)
			}
			request := sink.Request{Target: target, EventID: event.ID, Body: event.Envelope(), Test: true}
			return d.answerTest(ctx, e, event, webhook.Attempt(ctx, request))
		}),
	}
}

// answerTest prints the result of an attempt. When it failed, the command ends with status 1.
func (d *desk) answerTest(ctx context.Context, e outbox.Endpoint, event outbox.Event, r sink.Result) error {
	if r.Outcome == sink.Canceled {
		return ctx.Err()
	}
	result := testResult{e.ID, event.ID, event.Type, r.Outcome == sink.Succeeded, r.Code, string(r.Class), r.Error, r.Latency.Milliseconds(), r.Response}
	if d.out.asJSON {
		if err := d.out.json(result); err != nil {
			return err
		}
	} else if result.Succeeded {
		d.out.line("%s took %s (%s): status %d after %d ms", sink.RedactURL(e.URL.Reveal()), event.Type, event.ID, r.Code, result.LatencyMS)
	} else {
		d.out.line("%s did not take %s (%s): %s, after %d ms", sink.RedactURL(e.URL.Reveal()), event.Type, event.ID, r.Error, result.LatencyMS)
		if r.Response != "" {
			d.out.line("it said: %s", r.Response)
		}
	}
	if !result.Succeeded {
		return errFindings
	}
	return nil
}
