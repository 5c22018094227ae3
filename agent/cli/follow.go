package cli

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

const (
	// followWindow is how far back from the newest event each look goes. A delivery is found when
	// its event was created within it: the log has no order of recording, and one more index would
	// cost each delivery.
	followWindow = 10 * time.Minute
	// followRows and followParts bound a look.
	followRows, followParts = 1000, 3
)

// follower finds what is new in the delivery log.
type follower struct {
	search searcher
	filter outbox.DeliveryFilter
	// seen has the deliveries of the window that were found, and their state at that time. It never
	// has more than one look brings.
	seen  map[deliveryKey]deliveryState
	floor time.Time // where a look ends
}

// searcher searches a part of the log.
type searcher func(context.Context, outbox.DeliveryFilter) (outbox.DeliveryPage, error)

type deliveryKey struct{ event, endpoint string }

type deliveryState struct {
	status   outbox.Status
	attempts int
}

// start returns the newest deliveries, oldest event first, as the command finds them without
// --follow: by search, which goes further back than a look. What is recorded already is not new.
func (f *follower) start(ctx context.Context, search searcher, limit int, now time.Time) ([]outbox.DeliveryInfo, error) {
	f.floor = now.Add(-followWindow)
	if _, _, err := f.look(ctx, now); err != nil {
		return nil, err
	}
	filter := f.filter
	filter.Limit = limit
	page, err := search(ctx, filter)
	for _, d := range page.Deliveries {
		f.seen[deliveryKey{d.EventID, d.EndpointID}] = deliveryState{d.Status, d.Attempts}
	}
	slices.Reverse(page.Deliveries)
	return page.Deliveries, err
}

// look returns the deliveries that were recorded or have changed since the look before, oldest
// event first. more reports that there were more than a look takes.
func (f *follower) look(ctx context.Context, now time.Time) (found []outbox.DeliveryInfo, more bool, err error) {
	filter := f.filter
	filter.Limit = followRows
	if filter.Since == nil || filter.Since.Before(f.floor) {
		filter.Since = new(f.floor)
	}
	seen := map[deliveryKey]deliveryState{}
	var newest, reached *time.Time
	rows, more := 0, true
	for part := 0; part < followParts && more; part++ {
		page, err := f.search(ctx, filter)
		if err != nil {
			return nil, false, err
		}
		for _, d := range page.Deliveries {
			key, state := deliveryKey{d.EventID, d.EndpointID}, deliveryState{d.Status, d.Attempts}
			if before, known := f.seen[key]; !known || before != state {
				found = append(found, d)
			}
			seen[key] = state
			if reached = d.Created; newest == nil {
				newest = d.Created
			}
		}
		if page.SearchedTo != nil {
			reached = page.SearchedTo
		}
		rows, more = rows+len(page.Deliveries), page.Next != ""
		filter.Before = page.Next
	}
	f.seen = seen
	f.advance(newest, reached, more, now)
	slices.Reverse(found)
	return found, more && rows > 0 && rows == len(found), nil
}

// advance moves the floor up. What a look could not reach is left behind. An app may write times of
// the future, which must not hide what comes now.
func (f *follower) advance(newest, reached *time.Time, more bool, now time.Time) {
	if newest != nil {
		latest := *newest
		if latest.After(now) {
			latest = now
		}
		if at := latest.Add(-followWindow); at.After(f.floor) {
			f.floor = at
		}
	}
	if more && reached != nil && reached.After(f.floor) && !reached.After(now) {
		f.floor = *reached
	}
}

// follow prints the newest deliveries, and then new ones as they are recorded, until ctx ends.
func (a *app) follow(ctx context.Context, d *desk, every time.Duration, filter outbox.DeliveryFilter, limit int) error {
	f := follower{search: d.db.AllVenues().Deliveries, filter: filter}
	out := d.out
	out.compact = out.asJSON
	table := tableStream{p: out, columns: deliveryTable}
	failing := false
	return repeat(ctx, every, func(first bool) error {
		if first {
			newest, err := f.start(ctx, d.search, limit, time.Now())
			if err == nil && len(newest) == 0 && !out.asJSON {
				out.note("no delivery yet; new ones follow, Ctrl-C ends")
			}
			return errors.Join(err, printFollowed(&table, newest))
		}
		found, more, err := f.look(ctx, time.Now())
		if err != nil {
			if !failing && ctx.Err() == nil {
				a.complain(err)
			}
			failing = true
			return nil
		}
		failing = false
		if more && !out.asJSON {
			out.note("(more than %s since the look before; the older ones are left out)", formatCount(len(found)))
		}
		return printFollowed(&table, found)
	})
}

// printFollowed prints deliveries as rows, or as one line of JSON each.
func printFollowed(table *tableStream, found []outbox.DeliveryInfo) error {
	if !table.p.asJSON {
		table.add(deliveryRows(table.p, found, time.Now()))
		return nil
	}
	for _, delivery := range found {
		if err := table.p.json(delivery); err != nil {
			return err
		}
	}
	return nil
}
