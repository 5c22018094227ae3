package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

func (a *app) endpointsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "endpoints",
		Short: "List, add and change the endpoints that events are sent to",
		Example: `  webhook-agent endpoints list --state disabled
  webhook-agent endpoints add --venue venue_01H --url https://example.com/hook --events 'lead.*'`,
		Args: subcommandRequired,
		RunE: showHelp,
	}
	cmd.AddCommand(a.endpointsListCommand(), a.endpointsShowCommand(), a.endpointsAddCommand(), a.endpointsUpdateCommand(), a.endpointsEnableCommand(),
		a.endpointsDisableCommand(), a.endpointsRemoveCommand(), a.endpointsRotateCommand(), a.endpointsTestCommand())
	return cmd
}

var endpointStates = []string{outbox.StateEnabled, outbox.StateDisabled, outbox.StateUnusable}

func (a *app) endpointsListCommand() *cobra.Command {
	var (
		filter   outbox.EndpointFilter
		listed   listFlags
		repeated watchFlags
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List endpoints, their state and their failures in a row",
		Example: `  webhook-agent endpoints list
  webhook-agent endpoints list --venue venue_01H --state disabled
  webhook-agent endpoints list --all --ndjson | jq -r 'select(.consecutive_failures > 50) | .id'`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if filter.State != "" && !slices.Contains(endpointStates, filter.State) {
				return usagef(cmd, "--state is %s, must be %s", config.Quoted(filter.State), strings.Join(endpointStates, " or "))
			}
			return errors.Join(repeated.check(cmd), listed.check(cmd))
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) (err error) {
			if filter.After, err = d.loggedEndpointID(ctx, filter.After); err != nil {
				return err
			}
			listed.printer(d.out)
			return a.show(ctx, d, &repeated, "endpoints list", func(ctx context.Context, d *desk) error {
				return d.listEndpoints(ctx, &listed, filter)
			})
		}),
	}
	cmd.Flags().StringVar(&filter.Venue, "venue", "", "only of this `venue`")
	cmd.Flags().StringVar(&filter.State, "state", "", "only in this `state`: "+strings.Join(endpointStates, ", "))
	cmd.Flags().StringVar(&filter.After, "after", "", "only after this `id`, for the next page")
	listed.add(cmd, 200)
	repeated.add(cmd)
	return cmd
}

// listEndpoints prints one page of the endpoints, or all of them with --all.
func (d *desk) listEndpoints(ctx context.Context, listed *listFlags, filter outbox.EndpointFilter) error {
	filter.Limit = listed.rows()
	table := tableStream{p: d.out, columns: endpointTable, whole: !listed.all}
	more := false
	n, err := list(ctx, listed, d.out, func(ctx context.Context) (p page[outbox.EndpointInfo], err error) {
		endpoints, err := d.db.AllVenues().Endpoints(ctx, filter)
		if err != nil {
			return p, err
		}
		if more = len(endpoints) == filter.Limit; more {
			filter.After = endpoints[len(endpoints)-1].ID
		}
		hideURLs(endpoints)
		err = d.db.AllVenues().FindLastSuccesses(ctx, endpoints)
		if err == nil && d.out.asJSON {
			err = d.keepSigningOf(ctx, endpoints)
		}
		return page[outbox.EndpointInfo]{endpoints, more}, err
	}, func(endpoints []outbox.EndpointInfo) {
		table.add(d.endpointRows(endpoints, time.Now()))
	})
	switch {
	case err != nil || d.out.asJSON:
	case n == 0 && filter == (outbox.EndpointFilter{Limit: filter.Limit}):
		d.out.note("no endpoint; webhook-agent endpoints add registers one")
	case n == 0:
		d.out.note("no endpoint that fits")
	case more && !listed.all:
		d.out.note("there may be more: --after %s", filter.After)
	}
	return err
}

// keepSigningOf keeps the times of those former secrets that sign. An endpoint that was removed
// meanwhile stays as it was read.
func (d *desk) keepSigningOf(ctx context.Context, endpoints []outbox.EndpointInfo) error {
	for i := range endpoints {
		e := &endpoints[i]
		if e.PreviousSecretUntil == nil && len(e.OlderSecretsUntil) == 0 {
			continue
		}
		if err := d.keepSigning(ctx, e); err != nil && !errors.Is(err, outbox.ErrNotFound) {
			return err
		}
	}
	return nil
}

// emptyList returns a list that is never nil, so that JSON has [] and not null.
func emptyList[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// hideURLs keeps only the scheme and the host of each URL. The rest of a customer's URL may be a
// credential.
func hideURLs(endpoints []outbox.EndpointInfo) {
	for i := range endpoints {
		endpoints[i].URL = sink.RedactURL(endpoints[i].URL)
	}
}

// endpointTable are the columns of a list of endpoints.
var endpointTable = []column{{name: "id", id: true}, {name: "venue", id: true}, {name: "host", flexible: true, least: 12},
	{name: "events", flexible: true}, {name: "failures"}, {name: "last success", optional: 2}, {name: "state", flexible: true, state: true, least: 14},
	{name: "last error", flexible: true, least: 12, optional: 1}}

// endpointRows makes the rows of endpointTable. The caller has hidden the URLs.
func (d *desk) endpointRows(endpoints []outbox.EndpointInfo, now time.Time) (rows [][]string) {
	for _, e := range endpoints {
		rows = append(rows, []string{e.ID, e.Venue, strings.TrimPrefix(e.URL, "https://"), strings.Join(e.Events, ","),
			fmt.Sprintf("%d/%d", e.ConsecutiveFailures, d.cfg.Delivery.DisableAfter), formatAge(e.LastSuccessAt, now), stateText(e, now), lastError(e)})
	}
	return rows
}

// disabledReasons explains the values of endpoints.disabled_reason.
var disabledReasons = map[string]string{
	outbox.ReasonFailures: "too many failures in a row",
	outbox.ReasonManual:   "by hand",
	outbox.ReasonGone:     "its server answered 410 Gone",
}

// stateText describes the state of an endpoint, since when it lasts, and why.
func stateText(e outbox.EndpointInfo, now time.Time) string {
	switch e.State {
	case outbox.StateDisabled:
		return fmt.Sprintf("disabled %s: %s", formatAge(e.DisabledAt, now), disabledReasons[e.DisabledReason])
	case outbox.StateUnusable:
		return "unusable: " + e.Unusable
	}
	if e.HeldUntil != nil {
		return fmt.Sprintf("%s, next attempt %s: %s", e.State, formatAge(e.HeldUntil, now), heldReasons[e.HeldBy])
	}
	return e.State
}

// heldReasons explains the values of endpoint_health.held_by.
var heldReasons = map[string]string{
	outbox.HeldByFailures:   "it keeps failing",
	outbox.HeldByRetryAfter: "its server asked for a wait (Retry-After)",
}

// lastError returns the latest error while failures are counted. After a success it is of no
// interest any more.
func lastError(e outbox.EndpointInfo) string {
	if e.ConsecutiveFailures == 0 && e.State != outbox.StateDisabled {
		return ""
	}
	return e.LastError
}

func (a *app) endpointsShowCommand() *cobra.Command {
	var withSecret bool
	cmd := &cobra.Command{
		Use:   "show ENDPOINT_ID",
		Short: "Show one endpoint, without its secret",
		Long: `show prints everything about one endpoint except its secrets. Of the URL it prints the scheme and the host, since the rest may be a
credential; select url from webhooks.endpoints prints it. With --secret it also prints the current secret as the customer has
it, and in the form that libraries of Standard Webhooks expect. For a secret that does not begin with whsec_, that form is
whsec_ and the base64 of its bytes.`,
		Example: `  webhook-agent endpoints show ep_01K5M2
  webhook-agent endpoints show ep_01K5M2 --json
  webhook-agent endpoints show ep_01K5M2 --secret --json | jq -r .library_secret`,
		Args: exactly(1, "an endpoint id"),
		RunE: a.withEndpoint(func(ctx context.Context, d *desk, id string) error {
			found, err := d.db.AllVenues().Endpoint(ctx, id)
			if err != nil {
				return err
			}
			shownOnes := []outbox.EndpointInfo{found}
			if err := d.db.AllVenues().FindLastSuccesses(ctx, shownOnes); err != nil {
				return err
			}
			e := shownOnes[0]
			e.URL = sink.RedactURL(e.URL)
			if err := d.keepSigning(ctx, &e); err != nil {
				return err
			}
			var shown shownSecret
			if withSecret {
				if shown, err = d.revealSecret(ctx, e.ID); err != nil {
					return err
				}
			}
			if d.out.asJSON {
				return d.out.json(struct {
					outbox.EndpointInfo
					shownSecret
				}{e, shown})
			}
			now := time.Now()
			d.out.fields([]field{
				{"id", e.ID},
				{"venue", e.Venue},
				{"url", e.URL},
				{"events", strings.Join(e.Events, ", ")},
				{"description", e.Description},
				{"state", stateText(e, now)},
				{"disabled", formatTime(e.DisabledAt, now)},
				{"managed by", managedText(e)},
				{"failures", failuresText(e, d.cfg.Delivery.DisableAfter, now)},
				{"last failure", formatTime(e.LastFailureAt, now)},
				{"last error", e.LastError},
				{"next attempt", heldText(e, now)},
				{"last success", formatTime(e.LastSuccessAt, now)},
				{"secret", shown.Secret},
				{"for libraries", shown.LibrarySecret},
				{"former secret", formerSecretText(e, now)},
				{"created", formatTime(e.Created, now)},
				{"updated", formatTime(e.Updated, now)},
			})
			return nil
		}),
	}
	cmd.Flags().BoolVar(&withSecret, "secret", false, "also show the current secret, and its form for libraries of Standard Webhooks")
	return cmd
}

// shownSecret is the secret of an endpoint, for a person who has asked for it.
type shownSecret struct {
	Secret        string `json:"secret,omitempty"`
	LibrarySecret string `json:"library_secret,omitempty"` // "" for a secret that cannot sign
}

func (d *desk) revealSecret(ctx context.Context, id string) (shown shownSecret, err error) {
	e, err := d.db.AllVenues().EndpointWithSecret(ctx, id)
	if err != nil {
		return shown, err
	}
	opened, err := d.cfg.Keyring().Open(e.ID, e.Secret)
	if err != nil {
		return shown, fmt.Errorf("endpoint %s: %w", e.ID, err)
	}
	shown.Secret = opened.Reveal()
	if library, err := sink.StandardSecret(opened); err == nil {
		shown.LibrarySecret = library.Reveal()
	}
	return shown, nil
}

// keepSigning keeps only the times of former secrets with which an attempt signs. Each secret
// counts once. The current secret, and secrets that cannot sign, do not count. info has the times
// that are not over by the database's clock.
func (d *desk) keepSigning(ctx context.Context, info *outbox.EndpointInfo) error {
	e, err := d.db.AllVenues().EndpointWithSecret(ctx, info.ID)
	if err != nil {
		return err
	}
	untils := info.OlderSecretsUntil
	if info.PreviousSecretUntil != nil {
		untils = append([]time.Time{*info.PreviousSecretUntil}, untils...)
	}
	info.PreviousSecretUntil, info.OlderSecretsUntil = nil, []time.Time{}
	var signing []secret.Text
	if current, err := d.cfg.Keyring().Open(e.ID, e.Secret); err == nil {
		signing = append(signing, current)
	}
	for _, f := range e.Former() {
		s, err := d.cfg.Keyring().Open(e.ID, f.Secret)
		if err != nil || sink.CheckSecret(s) != nil || !slices.ContainsFunc(untils, f.Until.Equal) || slices.ContainsFunc(signing, s.Equal) {
			continue
		}
		signing = append(signing, s)
		if info.PreviousSecretUntil == nil {
			info.PreviousSecretUntil = &f.Until
		} else {
			info.OlderSecretsUntil = append(info.OlderSecretsUntil, f.Until)
		}
	}
	return nil
}

func managedText(e outbox.EndpointInfo) string {
	if e.ManagedBy == "" {
		return ""
	}
	return "the configuration file"
}

// failuresText describes how many of the failures that disable an endpoint it has made.
func failuresText(e outbox.EndpointInfo, limit int, now time.Time) string {
	text := fmt.Sprintf("%d in a row", e.ConsecutiveFailures)
	if e.FirstFailureAt != nil {
		text += " since " + formatTime(e.FirstFailureAt, now)
	}
	return fmt.Sprintf("%s; at %d the endpoint is disabled", text, limit)
}

// heldText describes when the next attempt may start. It is "" when nothing holds the endpoint.
func heldText(e outbox.EndpointInfo, now time.Time) string {
	if e.HeldUntil == nil {
		return ""
	}
	return fmt.Sprintf("not before %s: %s", formatTime(e.HeldUntil, now), heldReasons[e.HeldBy])
}

func formerSecretText(e outbox.EndpointInfo, now time.Time) string {
	untils := slices.Clone(e.OlderSecretsUntil)
	if e.PreviousSecretUntil != nil {
		untils = slices.Insert(untils, 0, *e.PreviousSecretUntil)
	}
	var times []string
	for _, until := range untils {
		times = append(times, formatTime(&until, now))
	}
	switch len(times) {
	case 0:
		return ""
	case 1:
		return "also signs until " + times[0]
	}
	return fmt.Sprintf("%d also sign, until %s", len(times), strings.Join(times, ", "))
}
