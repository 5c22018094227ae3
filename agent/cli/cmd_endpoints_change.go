package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/manage"
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
	Notes               []string   `json:"notes,omitempty"` // what may be a mistake
}

func (a *app) endpointsAddCommand() *cobra.Command {
	var (
		venue, url, description string
		events                  []string
		force                   bool
	)
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Register an endpoint",
		Long: `add registers an endpoint of a venue. Events that commit from now on are sent to it. Without --secret it makes one and prints
it: give it to the customer. What is most likely a mistake is refused without --force: an event type
that the catalogue (webhooks.event_types) does not have and that is like one of it, and a URL that the venue has already. Of other
types that the catalogue does not have it warns.`,
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
			if strings.TrimSpace(venue) != venue && !force { // a column of the type char(n) has such venues
				return usagef(cmd, "--venue ends with a blank; remove it, or give --force if the venue is called so")
			}
			return nil
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			s, err := a.secretFlag()
			if err != nil {
				return err
			}
			desk, done, err := d.manage()
			if err != nil {
				return err
			}
			defer done()
			notes, err := checkMistakes(ctx, desk, endpointDraft{venue: venue, url: url, events: events}, force)
			if err != nil {
				return err
			}
			added, err := desk.Add(ctx, manage.NewEndpoint{Venue: venue, URL: secret.New(url), Events: events, Description: description, Secret: s})
			if err != nil {
				return flagError(err)
			}
			if !s.IsZero() {
				added.Secret = "" // the person has it, and may have kept it out of sight
			}
			return d.answerChange(endpointChange{ID: added.ID, Change: "added", Secret: shown(added.Secret), Notes: notes},
				"added %s: %s events of %s go to %s", added.ID, strings.Join(events, ", "), venue, sink.RedactURL(url))
		}),
	}
	cmd.Flags().StringVar(&venue, "venue", "", "the `venue` whose events are sent")
	cmd.Flags().StringVar(&url, "url", "", "where to, an https `URL`")
	cmd.Flags().StringSliceVar(&events, "events", nil, "event `types`, separated by commas: lead.created, lead.* or *")
	cmd.Flags().StringVar(&a.secret, "secret", "", "the signing `secret`, better as env:NAME or file:/path; made when absent")
	cmd.Flags().StringVar(&description, "description", "", "a `text` for people")
	cmd.Flags().BoolVar(&force, "force", false, "take what looks like a mistake")
	return cmd
}

// secretFlag resolves the value of the flag --secret. Without the flag it returns the zero secret.
// (checkGiven refuses an empty value.)
func (a *app) secretFlag() (s secret.Text, err error) {
	if a.secret == "" {
		return s, nil
	}
	if s, err = config.ResolveSecret(a.secret, a.getenv); err == nil {
		err = sink.CheckSecret(s)
	}
	if err != nil {
		return s, badValue{fmt.Errorf("--secret: %w", err)}
	}
	return s, nil
}

// manage returns what commands work with. It checks by the agent's own rules. The caller calls
// done.
func (d *desk) manage() (desk *manage.Desk, done func(), err error) {
	checker, err := d.cfg.Network.Checker()
	if err != nil {
		return nil, nil, err
	}
	return &manage.Desk{Config: d.cfg, View: d.db.AllVenues().View(), Webhook: checker}, checker.Close, nil
}

// flagError names the flags in an error of what was given.
func flagError(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var parts []error
		for _, part := range joined.Unwrap() {
			parts = append(parts, flagError(part))
		}
		return errors.Join(parts...)
	}
	if field, ok := errors.AsType[*manage.FieldError](err); ok {
		if strings.HasPrefix(field.Err.Error(), field.Field+" ") { // the sentence names it
			return badValue{fmt.Errorf("--%w", field.Err)}
		}
		return badValue{fmt.Errorf("--%s: %w", strings.ReplaceAll(field.Field, "_", "-"), field.Err)}
	}
	return err
}

// shown returns a secret that is printed, and nil for none.
func shown(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// answerChange prints what was changed, and a secret that was just made.
func (d *desk) answerChange(c endpointChange, format string, args ...any) error {
	if d.out.asJSON {
		return d.out.json(c)
	}
	d.out.line(format, args...)
	for _, note := range c.Notes {
		d.out.line("note: %s", note)
	}
	if c.Secret != nil {
		d.out.line("secret: %s", *c.Secret)
		d.out.line("Give it to the receiver. webhook-agent endpoints show %s --secret shows it again.", c.ID)
	}
	return nil
}

func (a *app) endpointsEnableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "enable ENDPOINT_ID",
		Short: "Enable an endpoint and begin a new failure counter",
		Long: `enable lets events flow to an endpoint again and sets its failure counter to zero. What it missed, and what failed before, is
sent by deliveries replay.`,
		Example: `  webhook-agent endpoints enable ep_01K5M2
  webhook-agent deliveries replay --endpoint ep_01K5M2`,
		Args: exactly(1, "an endpoint id"),
		RunE: a.withEndpoint(func(ctx context.Context, d *desk, id string) error {
			changed, err := d.db.AllVenues().EnableEndpoint(ctx, id)
			if err != nil {
				return err
			}
			if !changed {
				return d.answerChange(endpointChange{ID: id, Change: "none"}, "%s is enabled already", id)
			}
			return d.answerChange(endpointChange{ID: id, Change: "enabled"},
				"enabled %s; webhook-agent deliveries replay --endpoint %s sends what it missed and what failed", id, id)
		}),
	}
}

func (a *app) endpointsDisableCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "disable ENDPOINT_ID",
		Short:   "Send nothing more to an endpoint and keep its events as missed",
		Example: "  webhook-agent endpoints disable ep_01K5M2",
		Args:    exactly(1, "an endpoint id"),
		RunE: a.withEndpoint(func(ctx context.Context, d *desk, id string) error {
			changed, err := d.db.AllVenues().DisableEndpoint(ctx, id)
			if err != nil {
				return err
			}
			if !changed {
				return d.answerChange(endpointChange{ID: id, Change: "none"}, "%s is disabled already", id)
			}
			return d.answerChange(endpointChange{ID: id, Change: "disabled"},
				"disabled %s; its events are kept as missed", id)
		}),
	}
}

func (a *app) endpointsRotateCommand() *cobra.Command {
	var overlapText string
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
			if overlap, err = config.ParseDuration(overlapText); err != nil || overlap < 0 || overlap > manage.LongestOverlap {
				return usagef(cmd, "--overlap is %s, must be a duration between 0s and %s", config.Quoted(overlapText), config.FormatDuration(manage.LongestOverlap))
			}
			return nil
		},
		RunE: a.withEndpoint(func(ctx context.Context, d *desk, id string) error {
			s, err := a.secretFlag()
			if err != nil {
				return err
			}
			return d.rotateSecret(ctx, id, manage.Rotation{Secret: s, Overlap: overlap})
		}),
	}
	cmd.Flags().StringVar(&a.secret, "secret", "", "the new `secret`, better as env:NAME or file:/path; made when absent")
	cmd.Flags().StringVar(&overlapText, "overlap", "24h", "how long the former secret also signs, a `duration`")
	return cmd
}

// rotateSecret gives an endpoint another secret and prints what came of it.
func (d *desk) rotateSecret(ctx context.Context, id string, r manage.Rotation) error {
	desk, done, err := d.manage()
	if err != nil {
		return err
	}
	defer done()
	before, err := desk.View.EndpointWithSecret(ctx, id)
	if err != nil {
		return err
	}
	former, broken := d.cfg.Keyring().Open(id, before.Secret)
	if broken == nil {
		broken = sink.CheckSecret(former)
	}
	rotated, err := desk.Rotate(ctx, id, r)
	until := rotated.FormerUntil
	switch {
	case err != nil:
		return flagError(err)
	case rotated.Ended:
		return d.answerChange(endpointChange{ID: id, Change: "former secrets ended"}, "%s has this secret already; its former secrets sign no more", id)
	case !rotated.Changed:
		return d.answerChange(endpointChange{ID: id, Change: "none"}, "%s has this secret already; nothing changed", id)
	case until == nil:
		return d.answerChange(endpointChange{ID: id, Change: "secret rotated", Secret: shown(rotated.Secret)}, "%s has a new secret; the former secret signs no more", id)
	case broken != nil: // the agent leaves out what cannot sign
		return d.answerChange(endpointChange{ID: id, Change: "secret rotated", Secret: shown(rotated.Secret)}, "%s has a new secret; the former secret does not sign: %v", id, broken)
	}
	return d.answerChange(endpointChange{ID: id, Change: "secret rotated", Secret: shown(rotated.Secret), PreviousSecretUntil: until},
		"%s has a new secret; the former secret also signs until %s", id, formatTime(until, time.Now()))
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
		RunE: a.withEndpoint(func(ctx context.Context, d *desk, id string) error {
			webhook, err := d.cfg.NewWebhook(ctx, agentVersion(), 1, nil)
			if err != nil {
				return err
			}
			defer webhook.Close()
			desk := manage.Desk{Config: d.cfg, View: d.db.AllVenues().View(), Webhook: webhook}
			sample, err := desk.Send(ctx, id, "")
			if err != nil {
				return err
			}
			return d.answerTest(sample)
		}),
	}
}

// answerTest prints the result of an attempt. When it failed, the command ends with status 1.
func (d *desk) answerTest(r manage.Sample) error {
	if d.out.asJSON {
		if err := d.out.json(r); err != nil {
			return err
		}
	} else if r.Succeeded {
		d.out.line("%s took %s (%s): status %d after %d ms", r.Host, r.Type, r.EventID, r.Code, r.LatencyMS)
	} else {
		d.out.line("%s did not take %s (%s): %s, after %d ms", r.Host, r.Type, r.EventID, r.Error, r.LatencyMS)
		if r.Response != "" {
			d.out.line("it said: %s", r.Response)
		}
	}
	if !r.Succeeded {
		return errFindings
	}
	return nil
}
