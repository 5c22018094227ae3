package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

func (a *app) deliveriesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deliveries",
		Short: "Look into the delivery log, and send again what was missed",
		Example: `  webhook-agent deliveries list --endpoint ep_01K5M2 --status failed,missed --since 2d
  webhook-agent deliveries show evt_01K5M3
  webhook-agent deliveries replay --endpoint ep_01K5M2 --since 2d`,
		Args: subcommandRequired,
		RunE: showHelp,
	}
	cmd.AddCommand(a.deliveriesListCommand(), a.deliveriesShowCommand(), a.deliveriesReplayCommand())
	return cmd
}

var deliveryStatuses = []outbox.Status{outbox.Pending, outbox.Succeeded, outbox.Failed, outbox.Missed}

// deliveryFlags are the filters that list and replay share, as the user typed them.
type deliveryFlags struct {
	endpoint, since, until string
	statuses               []string
}

// add declares the flags. allowed are the statuses that the command knows.
func (f *deliveryFlags) add(cmd *cobra.Command, allowed []outbox.Status) {
	cmd.Flags().StringVar(&f.endpoint, "endpoint", "", "only to this endpoint `id`")
	cmd.Flags().StringSliceVar(&f.statuses, "status", nil, "only in this `status`, several separated by commas: "+joinStatuses(allowed))
	cmd.Flags().StringVar(&f.since, "since", "", "only events created from this `time` on: 24h, 2w, 2026-11-28, '2026-11-28 14:00', yesterday")
	cmd.Flags().StringVar(&f.until, "until", "", "only events created before this `time`")
}

// parse returns the filter for the flags at the time now. allowed are the statuses that the command
// accepts.
func (f *deliveryFlags) parse(cmd *cobra.Command, allowed []outbox.Status, now time.Time) (filter outbox.DeliveryFilter, err error) {
	filter.EndpointID = f.endpoint
	for _, status := range f.statuses {
		if !slices.Contains(allowed, outbox.Status(status)) {
			return filter, usagef(cmd, "--status has %s, must be of %s", config.Quoted(status), joinStatuses(allowed))
		}
		filter.Statuses = append(filter.Statuses, outbox.Status(status))
	}
	if filter.Since, err = parseTime(cmd, "since", f.since, now); err != nil {
		return filter, err
	}
	if filter.Until, err = parseTime(cmd, "until", f.until, now); err != nil {
		return filter, err
	}
	if filter.Since != nil && filter.Until != nil && !filter.Since.Before(*filter.Until) {
		return filter, usagef(cmd, "--since is not before --until")
	}
	return filter, nil
}

func joinStatuses(statuses []outbox.Status) string {
	var names []string
	for _, s := range statuses {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

func (a *app) deliveriesListCommand() *cobra.Command {
	var (
		flags                    deliveryFlags
		filter                   outbox.DeliveryFilter
		venue, eventType, before string
		limit                    int
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List deliveries, newest event first",
		Example: `  webhook-agent deliveries list --since 1h
  webhook-agent deliveries list --venue venue_01H --type 'lead.*' --status failed,missed
  webhook-agent deliveries list --endpoint ep_01K5M2 --json | jq -r '.[].event_id'`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			if filter, err = flags.parse(cmd, deliveryStatuses, time.Now()); err != nil {
				return err
			}
			filter.Venue, filter.Type, filter.Before, filter.Limit = venue, eventType, before, limit
			return checkLimit(cmd, limit)
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			page, err := d.search(ctx, filter)
			if err != nil {
				return err
			}
			if d.out.asJSON {
				return d.out.json(emptyList(page.Deliveries))
			}
			now := time.Now()
			if len(page.Deliveries) > 0 {
				printDeliveries(d.out, page.Deliveries, now)
			} else {
				d.out.line("no delivery")
			}
			switch {
			case page.SearchedTo != nil:
				d.out.line("searched back to %s; it goes on there with --before %s", formatTime(page.SearchedTo, now), page.Next)
			case page.Next != "":
				d.out.line("there may be more: --before %s", page.Next)
			}
			return nil
		}),
	}
	flags.add(cmd, deliveryStatuses)
	cmd.Flags().StringVar(&venue, "venue", "", "only of this `venue`")
	cmd.Flags().StringVar(&eventType, "type", "", "only of this event `type`: lead.created, or lead.* for all of lead")
	cmd.Flags().StringVar(&before, "before", "", "only older than this `cursor`, for the next page")
	cmd.Flags().IntVar(&limit, "limit", 50, "at most this `many`")
	return cmd
}

func printDeliveries(out *printer, deliveries []outbox.DeliveryInfo, now time.Time) {
	columns := []column{{name: "created"}, {name: "event", id: true}, {name: "type", flexible: true}, {name: "endpoint", id: true},
		{name: "status", state: true}, {name: "tries"}, {name: "result", flexible: true}}
	layout := createdLayout(out, deliveries, now)
	var rows [][]string
	for _, d := range deliveries {
		rows = append(rows, []string{createdText(d.Created, layout), d.EventID, d.Type, d.EndpointID, string(d.Status),
			fmt.Sprint(d.Attempts), deliveryResult(d, now)})
	}
	out.table(columns, rows)
}

// createdLayout returns how the creation times of events are written in a table: without the day
// on a terminal where all are of today, whole where programs read.
func createdLayout(out *printer, deliveries []outbox.DeliveryInfo, now time.Time) string {
	if !out.terminal {
		return "2006-01-02 15:04:05"
	}
	today := now.Local().Format(time.DateOnly)
	if slices.ContainsFunc(deliveries, func(d outbox.DeliveryInfo) bool {
		return d.Created != nil && d.Created.Local().Format(time.DateOnly) != today
	}) {
		return "01-02 15:04:05"
	}
	return "15:04:05"
}

// createdText formats the creation time of an event for a narrow column of a table.
func createdText(t *time.Time, layout string) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format(layout)
}

// deliveryResult describes in a few words what happened to a delivery and what comes next.
func deliveryResult(d outbox.DeliveryInfo, now time.Time) string {
	var parts []string
	if d.Status == outbox.Pending && d.NextAttemptAt != nil {
		parts = append(parts, "next "+formatAge(d.NextAttemptAt, now))
	}
	if d.LastError != "" && d.Status != outbox.Succeeded {
		parts = append(parts, d.LastError)
	} else if d.LastCode != nil {
		parts = append(parts, fmt.Sprintf("status %d", *d.LastCode))
	}
	if d.LastLatencyMS != nil {
		parts = append(parts, fmt.Sprintf("%d ms", *d.LastLatencyMS))
	}
	return strings.Join(parts, ", ")
}

// eventDeliveries is the answer of the command deliveries show.
type eventDeliveries struct {
	EventID    string                  `json:"event_id"`
	Venue      string                  `json:"venue"`
	Type       string                  `json:"type"`
	Created    *time.Time              `json:"created"`
	Deliveries []outbox.DeliveryDetail `json:"deliveries"`
}

func (a *app) deliveriesShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show EVENT_ID [ENDPOINT_ID]",
		Short: "Show where an event went, attempt by attempt, and what comes next",
		Example: `  webhook-agent deliveries show evt_01K5M3
  webhook-agent deliveries show evt_01K5M3 ep_01K5M2 --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usagef(cmd, "%s takes an event id and may take an endpoint id, got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
			endpointID := ""
			if len(args) == 2 {
				endpointID = args[1]
			}
			details, err := d.db.AllVenues().EventDeliveries(ctx, args[0], endpointID)
			if err != nil {
				return err
			}
			first := details[0]
			event := eventDeliveries{first.EventID, first.Venue, first.Type, first.Created, details}
			if d.out.asJSON {
				return d.out.json(event)
			}
			printEventDeliveries(d, event, time.Now())
			return nil
		}),
	}
}

// maxSearches is how many parts of the log one command searches.
const maxSearches = 50

// search searches the log until the page is full, in as many parts as that takes.
func (d *desk) search(ctx context.Context, f outbox.DeliveryFilter) (page outbox.DeliveryPage, err error) {
	limit := f.Limit
	var found []outbox.DeliveryInfo
	for range maxSearches {
		if page, err = d.db.AllVenues().Deliveries(ctx, f); err != nil {
			return page, err
		}
		found = append(found, page.Deliveries...)
		if page.Next == "" || len(found) == limit {
			break
		}
		f.Before, f.Limit = page.Next, limit-len(found)
	}
	page.Deliveries = found
	return page, nil
}

func printEventDeliveries(d *desk, event eventDeliveries, now time.Time) {
	d.out.fields([]field{
		{"event", event.EventID},
		{"type", event.Type},
		{"venue", event.Venue},
		{"created", formatTime(event.Created, now)},
	})
	for _, delivery := range event.Deliveries {
		d.out.line("")
		d.out.fields([]field{
			{"endpoint", delivery.EndpointID},
			{"status", fmt.Sprintf("%s: %s", delivery.Status, deliveryReason(delivery, 1+len(d.cfg.Delivery.Retries), now))},
			{"finished", formatTime(delivery.Finished, now)},
			{"replay", delivery.ReplayID},
		})
		if len(delivery.FailedAttempts) == 0 {
			continue
		}
		d.out.line("failed attempts:")
		var rows [][]string
		for _, attempt := range delivery.FailedAttempts {
			rows = append(rows, []string{fmt.Sprintf("%d.", attempt.Attempt), attempt.At.Local().Format("2006-01-02 15:04:05"),
				numberText(attempt.Code), numberText(attempt.LatencyMS), attempt.Error, attempt.Response})
		}
		d.out.table([]column{{name: "try"}, {name: "at"}, {name: "code"}, {name: "ms"}, {name: "error", flexible: true},
			{name: "response", flexible: true}}, rows)
	}
}

// deliveryReason explains the status of a delivery in one sentence. limit is the greatest number of
// attempts.
func deliveryReason(d outbox.DeliveryDetail, limit int, now time.Time) string {
	replay := "webhook-agent deliveries replay " + d.EventID + " sends it"
	if !d.InOutbox {
		replay = "it cannot be sent again, since its row is no longer in the outbox"
	}
	badID := d.LastClass == string(sink.ClassInvalidEventID) || strings.Contains(d.EventID, ".")
	if badID {
		replay = "it cannot be sent under this id; write the event anew, with an id without a dot"
	}
	switch d.Status {
	case outbox.Pending:
		if d.Attempts == 0 {
			return "no attempt was recorded yet; the first is due " + formatAge(d.NextAttemptAt, now)
		}
		return fmt.Sprintf("%d of %d attempts failed; the next is due %s", d.Attempts, limit, formatAge(d.NextAttemptAt, now))
	case outbox.Succeeded:
		return fmt.Sprintf("status %s after %s ms, at attempt %d", numberText(d.LastCode), numberText(d.LastLatencyMS), d.Attempts)
	case outbox.Failed:
		switch {
		case badID:
			return fmt.Sprintf("not sent: %s; %s", d.LastError, replay)
		case d.Attempts < limit && d.LastClass == "" && d.LastError != "": // no attempt could be made
			return "not sent: " + d.LastError
		case d.InOutbox:
			replay += " again"
		}
		return fmt.Sprintf("all %d attempts failed; %s", d.Attempts, replay)
	default:
		if d.InOutbox && !badID {
			replay = "once the endpoint is enabled, " + replay
		}
		return fmt.Sprintf("not sent: %s; %s", d.LastError, replay)
	}
}

// numbered writes how many things there are, with the word for one or for several.
func numbered(n int64, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

func numberText(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
