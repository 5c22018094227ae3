package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
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

// eitherOf joins statuses to words of a sentence: missed, failed or succeeded.
func eitherOf(statuses []outbox.Status) string {
	text := joinStatuses(statuses)
	if end := strings.LastIndex(text, ", "); end >= 0 {
		text = text[:end] + " or " + text[end+2:]
	}
	return text
}

func (a *app) deliveriesListCommand() *cobra.Command {
	var (
		flags                    deliveryFlags
		listed                   listFlags
		repeated                 watchFlags
		following                bool
		filter                   outbox.DeliveryFilter
		venue, eventType, before string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List deliveries, newest event first",
		Long: `list prints the delivery log, the newest event first. With --follow it prints the newest deliveries, and then new ones as they
are recorded, and again those that have changed, as long as their events were created within the latest ten minutes.`,
		Example: `  webhook-agent deliveries list --since 1h
  webhook-agent deliveries list --venue venue_01H --type 'lead.*' --status failed,missed
  webhook-agent deliveries list --endpoint ep_01K5M2 --follow
  webhook-agent deliveries list --since yesterday --all --ndjson | jq -r .event_id`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			if filter, err = flags.parse(cmd, deliveryStatuses, time.Now()); err != nil {
				return err
			}
			filter.Venue, filter.Type = venue, eventType
			if filter.Before = before; !outbox.IsCursor(before) {
				filter.Before, filter.BeforeEvent = "", before
			}
			if following {
				return checkFollow(cmd, &listed, &repeated)
			}
			return errors.Join(repeated.check(cmd), listed.check(cmd))
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, _ []string) error {
			var err error
			if filter.EndpointID, err = d.loggedEndpointID(ctx, filter.EndpointID); err != nil {
				return err
			}
			if filter.BeforeEvent, err = d.eventID(ctx, filter.BeforeEvent); err != nil {
				return err
			}
			listed.printer(d.out)
			if following {
				return a.follow(ctx, d, repeated.interval.every, filter, listed.limit)
			}
			return a.show(ctx, d, &repeated, "deliveries list", func(ctx context.Context, d *desk) error {
				return d.listDeliveries(ctx, &listed, filter)
			})
		}),
	}
	flags.add(cmd, deliveryStatuses)
	cmd.Flags().StringVar(&venue, "venue", "", "only of this `venue`")
	cmd.Flags().StringVar(&eventType, "type", "", "only of this event `type`: lead.created, or lead.* for all of lead")
	cmd.Flags().StringVar(&before, "before", "", "only behind this event `id` or cursor, for the next page")
	cmd.Flags().BoolVarP(&following, "follow", "f", false, "print new deliveries as they are recorded, until interrupted")
	listed.add(cmd, 50)
	repeated.add(cmd)
	return cmd
}

// checkFollow returns a usage error for flags that mean nothing together with --follow.
func checkFollow(cmd *cobra.Command, listed *listFlags, repeated *watchFlags) error {
	for _, name := range []string{"watch", "all", "before", "until"} {
		if cmd.Flags().Changed(name) {
			return usagef(cmd, "--follow and --%s exclude each other; leave one out", name)
		}
	}
	return errors.Join(repeated.interval.check(cmd, "", true), listed.check(cmd))
}

// listDeliveries prints one page of the log, or all of it with --all.
func (d *desk) listDeliveries(ctx context.Context, listed *listFlags, filter outbox.DeliveryFilter) error {
	var last outbox.DeliveryPage
	filter.Limit = listed.rows()
	table := tableStream{p: d.out, columns: deliveryTable, whole: !listed.all}
	n, err := list(ctx, listed, d.out, func(ctx context.Context) (p page[outbox.DeliveryInfo], err error) {
		if last, err = d.search(ctx, filter); err != nil {
			return p, err
		}
		filter.Before, filter.BeforeEvent = last.Next, ""
		return page[outbox.DeliveryInfo]{last.Deliveries, last.Next != ""}, nil
	}, func(deliveries []outbox.DeliveryInfo) {
		table.add(deliveryRows(d.out, deliveries, time.Now()))
	})
	if err != nil || d.out.asJSON {
		return err
	}
	if n == 0 {
		d.out.note("no delivery")
	}
	switch {
	case listed.all:
	case last.SearchedTo != nil:
		d.out.note("searched back to %s; it goes on there with --before %s", formatTime(last.SearchedTo, time.Now()), last.Next)
	case last.Next != "":
		d.out.note("there may be more: --before %s", cmp.Or(last.NextEvent, last.Next))
	}
	return nil
}

// deliveryTable are the columns of a list of deliveries.
var deliveryTable = []column{{name: "created"}, {name: "event", id: true}, {name: "type", flexible: true, least: 11}, {name: "endpoint", id: true},
	{name: "status", state: true}, {name: "tries", optional: 1}, {name: "result", flexible: true, least: 17}}

// deliveryRows makes the rows of deliveryTable.
func deliveryRows(out *printer, deliveries []outbox.DeliveryInfo, now time.Time) (rows [][]string) {
	layout := createdLayout(out, deliveries, now)
	for _, d := range deliveries {
		rows = append(rows, []string{createdText(d.Created, layout), d.EventID, d.Type, d.EndpointID, string(d.Status),
			fmt.Sprint(d.Attempts), deliveryResult(d, now)})
	}
	return rows
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
		when := "next "
		if d.NextAttemptAt.Before(now) {
			when = "due "
		}
		parts = append(parts, when+formatAge(d.NextAttemptAt, now))
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

// numbered writes how many things there are, with the word for one or for several.
func numbered(n int64, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return formatCount(n) + " " + several
}

func numberText(n *int) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}
