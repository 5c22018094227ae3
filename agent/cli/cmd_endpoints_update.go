package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// endpointDraft is what a person has given of an endpoint. What is empty is not looked at.
type endpointDraft struct {
	id, venue, url string // id is that of an endpoint that is changed
	events         []string
}

// checkMistakes returns an error for what is most likely a mistake, unless it is forced, and notes
// about what may be one.
func checkMistakes(ctx context.Context, desk *manage.Desk, draft endpointDraft, force bool) (notes []string, err error) {
	_, _, hints, err := desk.CheckEndpoint(ctx, "", draft.events)
	if err != nil {
		return nil, err
	}
	var likely []error
	for _, hint := range hints {
		unknown := fmt.Sprintf("%s, which the catalogue of event types does not have", config.Quoted(hint.Given))
		switch {
		case hint.Meant == "":
			notes = append(notes, "--events has "+unknown+"; it gets nothing until the app writes such events")
		case force:
			notes = append(notes, fmt.Sprintf("--events has %s; it has %s", unknown, config.Quoted(hint.Meant)))
		default:
			likely = append(likely, fmt.Errorf("--events has %s; did you mean %s? Correct it, or take it with --force", unknown, config.Quoted(hint.Meant)))
		}
	}
	if draft.url != "" {
		twins, err := desk.SameURL(ctx, draft.venue, draft.url, draft.id)
		switch {
		case err != nil:
			return nil, err
		case len(twins) > 0 && force:
			notes = append(notes, fmt.Sprintf("%s has this URL as well, so its server gets each event once for each of them", strings.Join(twins, ", ")))
		case len(twins) > 0:
			likely = append(likely, fmt.Errorf("--url: venue %s has this URL already, as %s; change that one by webhook-agent endpoints update, or add another with --force",
				draft.venue, strings.Join(twins, ", ")))
		}
	}
	if len(likely) > 0 {
		return notes, badValue{errors.Join(likely...)}
	}
	return notes, nil
}

func (a *app) endpointsUpdateCommand() *cobra.Command {
	var (
		url, description string
		events           []string
		force            bool
		patch            outbox.EndpointPatch
	)
	cmd := &cobra.Command{
		Use:   "update ENDPOINT_ID",
		Short: "Change the URL, the event types or the description of an endpoint",
		Long: `update changes what is given and leaves the rest. --events replaces the whole list. What is pending goes to the new URL.
Events of types that are new to the endpoint are sent from now on. The same is checked, and refused without --force, as by
endpoints add. The secret is changed by rotate-secret, the state by enable and disable.`,
		Example: `  webhook-agent endpoints update ep_01K5M2 --url https://example.com/new-hook
  webhook-agent endpoints update ep_01K5M2 --events lead.created,payment.received --description 'book-keeping'`,
		Args: exactly(1, "an endpoint id"),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("url") {
				text := secret.New(url)
				patch.URL = &text
			}
			if cmd.Flags().Changed("events") {
				patch.Events = &events
			}
			if cmd.Flags().Changed("description") {
				patch.Description = &description
			}
			if patch.URL == nil && patch.Events == nil && patch.Description == nil {
				return usagef(cmd, "give --url, --events or --description")
			}
			return nil
		},
		RunE: a.withEndpoint(func(ctx context.Context, d *desk, id string) error { return d.updateEndpoint(ctx, id, patch, force) }),
	}
	cmd.Flags().StringVar(&url, "url", "", "where to, an https `URL`")
	cmd.Flags().StringSliceVar(&events, "events", nil, "event `types`, separated by commas: lead.created, lead.* or *")
	cmd.Flags().StringVar(&description, "description", "", "a `text` for people; empty to take it away")
	cmd.Flags().BoolVar(&force, "force", false, "take what looks like a mistake")
	return cmd
}

// updateEndpoint changes an endpoint and prints what it is then.
func (d *desk) updateEndpoint(ctx context.Context, id string, patch outbox.EndpointPatch, force bool) error {
	desk, done, err := d.manage()
	if err != nil {
		return err
	}
	defer done()
	before, err := desk.View.Endpoint(ctx, id)
	if err != nil {
		return err
	}
	draft := endpointDraft{id: id, venue: before.Venue}
	if patch.URL != nil {
		draft.url = patch.URL.Reveal()
	}
	if patch.Events != nil {
		draft.events = *patch.Events
	}
	notes, err := checkMistakes(ctx, desk, draft, force)
	if err != nil {
		return err
	}
	now, err := desk.Change(ctx, id, patch)
	if err != nil {
		return flagError(err)
	}
	return d.answerChange(endpointChange{ID: id, Change: "updated", Notes: notes},
		"updated %s: %s events of %s go to %s", id, strings.Join(now.Events, ", "), now.Venue, sink.RedactURL(now.URL))
}

func (a *app) endpointsRemoveCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove ENDPOINT_ID",
		Short: "Remove an endpoint; its delivery log stays",
		Long: `remove deletes an endpoint. Its delivery log stays, and what is pending for it is kept as missed, or as what it was
before a replay; nothing can be sent to it any more. It asks before that, and needs --yes where there is no terminal to ask on.`,
		Example: `  webhook-agent endpoints remove ep_01K5M2
  webhook-agent endpoints remove ep_01K5M2 --yes
  webhook-agent endpoints disable ep_01K5M2   keeps it, and its events as missed, instead`,
		Args: exactly(1, "an endpoint id"),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if !yes && (a.keyboard == nil || a.asJSON) {
				return usagef(cmd, "to remove an endpoint needs --yes where nobody can be asked")
			}
			return nil
		},
		RunE: a.withEndpoint(func(ctx context.Context, d *desk, id string) error { return d.removeEndpoint(ctx, id, !yes) }),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// removeEndpoint removes an endpoint, after a question where that is wanted.
func (d *desk) removeEndpoint(ctx context.Context, id string, ask bool) error {
	desk, done, err := d.manage()
	if err != nil {
		return err
	}
	defer done()
	e, err := desk.View.Endpoint(ctx, id)
	if err != nil {
		return err
	}
	pending, err := d.db.AllVenues().CountPending(ctx, id)
	if err != nil {
		return err
	}
	left := "nothing is pending for it"
	if pending == 1 {
		left = "1 pending delivery is kept as missed"
	} else if pending > 1 {
		left = countText(pending) + " pending deliveries are kept as missed"
	}
	if ask && e.ManagedBy == "" {
		err := d.confirm(ctx, "Remove %s of %s, %s? %s; its log stays. endpoints disable keeps the endpoint.", id, e.Venue, sink.RedactURL(e.URL), left)
		if err != nil {
			return err
		}
	}
	if err := desk.Remove(ctx, id, nil); err != nil {
		return err
	}
	return d.answerChange(endpointChange{ID: id, Change: "removed"}, "removed %s; %s", id, left)
}
