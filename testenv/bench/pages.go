package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	secrets "github.com/quintago/webhook-agent/secret"
)

// The scenario of this file is what people look at while the delivery log is large: the first page of a
// list and those behind it, with each kind of filter. The log has a month of deliveries to endpoints of
// very different size.

const (
	// skewedEndpoints are registered. The first has an eighth of all deliveries, the last ones some
	// hundred.
	skewedEndpoints = 5000
	pageRows        = 50
	pageRounds      = 5 // measurements of the first page, and pages behind it
)

// insertSkewed registers the endpoints: three of a venue, 100 of another, 700 of the next, and the
// others in turn of 2,000 venues. Endpoint 5000 has few deliveries, all of a month ago.
const insertSkewed = `
insert into webhooks.endpoints (id, venue, url, events, secret, description)
select 'ep_' || lpad(i::text, 5, '0'),
       case when i < 3 then 'venue_busy' when i < 103 then 'venue_hundred' when i < 803 then 'venue_wide' when i = $1::int then 'venue_few' else 'venue_' || i % 2000 end,
       'https://customer-' || i || '.example/hooks', '{*}', 's', 'books'
from generate_series(0, $1::int) i`

// insertSkewedLog inserts deliveries $1 to $2 of $3. Of the busiest endpoint the first ones have failed
// or are pending, of the others every two thousandth.
const insertSkewedLog = `
insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, last_code, last_latency_ms, created, finished)
select 'evt_' || lpad(i::text, 26, '0'), e.id, e.venue, 'lead.updated', x.status, 1, case when x.status = 'pending' then at end, 200, i % 500, at, case when x.status <> 'pending' then at end
from (
    select i, n, now() - interval '30 days' * (1 - i::float8 / $3) as at,
           case when i < $3 / 10000 and n = 0 then case i % 10 when 0 then 'pending' when 1 then 'missed' else 'failed' end
                when i % 2000 = 0 and n > 0 then 'failed' else 'succeeded' end as status
    from (select i, case when i < $3 / 100000 then $4::int else floor($4 * power((i * 7919 % 1000003) / 1000003.0, 4))::int end as n from generate_series($1::bigint, $2::bigint) i) y
) x
join webhooks.endpoints e on e.id = 'ep_' || lpad(n::text, 5, '0')
order by i`

// The indexes are made after the rows: that is several times as quick.
const (
	selectIndexes = `select array_agg(pg_get_indexdef(indexrelid)) from pg_index where indrelid = 'webhooks.deliveries'::regclass and not indisprimary`
	dropIndexes   = `
do $$ declare name text; begin
    for name in select indexrelid::regclass::text from pg_index where indrelid = 'webhooks.deliveries'::regclass and not indisprimary loop
        execute 'drop index ' || name;
    end loop;
end $$;
alter table webhooks.deliveries drop constraint deliveries_pkey`
	makePrimaryKey = `alter table webhooks.deliveries add primary key (event_id, endpoint_id)`
)

// skew fills the database.
func (d *database) skew(ctx context.Context) error {
	if _, err := d.conn.Exec(ctx, insertSkewed, skewedEndpoints); err != nil {
		return fmt.Errorf("register endpoints: %w", err)
	}
	var indexes []string
	if err := d.conn.QueryRow(ctx, selectIndexes).Scan(&indexes); err != nil {
		return fmt.Errorf("list the indexes of the log: %w", err)
	}
	if _, err := d.conn.Exec(ctx, dropIndexes); err != nil {
		return fmt.Errorf("drop the indexes of the log: %w", err)
	}
	total := d.b.config.log
	for first := 1; first <= total; first += logStep {
		if _, err := d.conn.Exec(ctx, insertSkewedLog, first, min(first+logStep-1, total), total, skewedEndpoints); err != nil {
			return fmt.Errorf("fill the log: %w", err)
		}
	}
	for _, sql := range append([]string{makePrimaryKey}, indexes...) {
		if _, err := d.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("make the indexes of the log: %w", err)
		}
	}
	return d.settle(ctx)
}

// pages measures lists over a large log.
func (b *bench) pages(ctx context.Context) (err error) {
	d, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	began := time.Now()
	if err := d.skew(ctx); err != nil {
		return err
	}
	b.say("  %d deliveries after %s", b.config.log, time.Since(began).Round(time.Second))
	db, err := outbox.Open(ctx, outbox.Config{
		URL: secrets.New(b.cluster.URL(d.name)), Table: "webhooks.outbox", Slot: d.slot(), Publication: "webhooks_outbox",
		Columns: outbox.Columns{ID: "id", Type: "type", Venue: "venue", Data: "data", Created: "created"},
	}.ForPages())
	if err != nil {
		return err
	}
	defer db.Close()
	for _, list := range pageLists(db) {
		if err := b.measurePages(ctx, list); err != nil {
			return fmt.Errorf("%s: %w", list.name, err)
		}
	}
	return b.consolePages(ctx, d)
}

// pageList is a list whose pages are measured: page returns the cursor of the next one, "" at the end.
type pageList struct {
	name string
	page func(ctx context.Context, before string) (next string, err error)
}

// viewer is what the views of one venue and of all have.
type viewer interface {
	Deliveries(context.Context, outbox.DeliveryFilter) (outbox.DeliveryPage, error)
	Endpoints(context.Context, outbox.EndpointFilter) ([]outbox.EndpointInfo, error)
	EndpointStats(context.Context, string, time.Duration) (outbox.EndpointStats, error)
}

func pageLists(db *outbox.DB) (lists []pageList) {
	deliveries := func(name string, v viewer, f outbox.DeliveryFilter) {
		f.Limit = pageRows
		lists = append(lists, pageList{name, func(ctx context.Context, before string) (string, error) {
			f.Before = before
			page, err := v.Deliveries(ctx, f)
			return page.Next, err
		}})
	}
	endpoints := func(name string, v viewer, f outbox.EndpointFilter) {
		f.Limit = pageRows
		lists = append(lists, pageList{name, func(ctx context.Context, after string) (string, error) {
			f.After = after
			found, err := v.Endpoints(ctx, f)
			if err != nil || len(found) < pageRows {
				return "", err
			}
			return found[pageRows-1].ID, nil
		}})
	}
	stats := func(name string, v viewer, window time.Duration) {
		lists = append(lists, pageList{name, func(ctx context.Context, _ string) (string, error) {
			_, err := v.EndpointStats(ctx, "ep_00000", window)
			return "", err
		}})
	}
	const busiest = "ep_00000"
	middle := time.Now().Add(-15 * 24 * time.Hour)
	unsuccessful, pending, succeeded := []outbox.Status{outbox.Failed, outbox.Missed}, []outbox.Status{outbox.Pending}, []outbox.Status{outbox.Succeeded}
	all := db.AllVenues()
	deliveries("all", all, outbox.DeliveryFilter{})
	deliveries("all, until the middle", all, outbox.DeliveryFilter{Until: &middle})
	deliveries("all, failed and missed", all, outbox.DeliveryFilter{Statuses: unsuccessful})
	deliveries("all, pending", all, outbox.DeliveryFilter{Statuses: pending})
	deliveries("all, a type that never occurs", all, outbox.DeliveryFilter{Type: "venue.closed"})
	deliveries("all, an event", all, outbox.DeliveryFilter{EventID: fmt.Sprintf("evt_%026d", 777)})
	deliveries("the busiest endpoint", all, outbox.DeliveryFilter{EndpointID: busiest})
	deliveries("the busiest endpoint, until the middle", all, outbox.DeliveryFilter{EndpointID: busiest, Until: &middle})
	deliveries("the busiest endpoint, failed and missed", all, outbox.DeliveryFilter{EndpointID: busiest, Statuses: unsuccessful})
	deliveries("the busiest endpoint, missed", all, outbox.DeliveryFilter{EndpointID: busiest, Statuses: []outbox.Status{outbox.Missed}})
	deliveries("the busiest endpoint, pending", all, outbox.DeliveryFilter{EndpointID: busiest, Statuses: pending})
	deliveries("the busiest endpoint, a type that never occurs", all, outbox.DeliveryFilter{EndpointID: busiest, Type: "venue.closed"})
	for _, venue := range []string{"venue_few", "venue_busy", "venue_hundred", "venue_wide"} {
		v := db.Venue(venue)
		deliveries(venue, v, outbox.DeliveryFilter{})
		deliveries(venue+", failed and missed", v, outbox.DeliveryFilter{Statuses: unsuccessful})
		deliveries(venue+", pending", v, outbox.DeliveryFilter{Statuses: pending})
		deliveries(venue+", succeeded", v, outbox.DeliveryFilter{Statuses: succeeded})
		deliveries(venue+", a type that never occurs", v, outbox.DeliveryFilter{Type: "venue.closed"})
	}
	endpoints("endpoints, all", all, outbox.EndpointFilter{})
	endpoints("endpoints, disabled", all, outbox.EndpointFilter{State: outbox.StateDisabled})
	endpoints("endpoints, a part of a host", all, outbox.EndpointFilter{Query: "customer-4999"})
	endpoints("endpoints of venue_wide", db.Venue("venue_wide"), outbox.EndpointFilter{})
	stats("statistics of the busiest endpoint, an hour", all, time.Hour)
	stats("statistics of the busiest endpoint, 30 days", all, 30*24*time.Hour)
	return lists
}

// measurePages measures the first page of a list once it is in memory, and those behind it once each.
func (b *bench) measurePages(ctx context.Context, list pageList) error {
	timed := func(before string) (next string, took time.Duration, err error) {
		began := time.Now()
		next, err = list.page(ctx, before)
		return next, time.Since(began), err
	}
	next, cold, err := timed("")
	var first, others []time.Duration
	for range pageRounds {
		if err != nil {
			return err
		}
		var took time.Duration
		_, took, err = timed("")
		first = append(first, took)
	}
	for range pageRounds {
		if err != nil {
			return err
		}
		if next == "" {
			break
		}
		var took time.Duration
		next, took, err = timed(next)
		others = append(others, took)
	}
	if err != nil {
		return err
	}
	slices.Sort(first)
	warm, slowest := first[len(first)/2], slices.Max(append(others, cold))
	b.say("  %-60s first %s (%s at first), slowest behind it %s", list.name, milliseconds(warm), milliseconds(cold), milliseconds(slices.Max(append(others, 0))))
	b.report.add(row{
		scenario: "log: " + list.name, value: "first page " + milliseconds(warm) + ", slowest page " + milliseconds(slowest),
		goal:    fmt.Sprintf("at most %s, %s", milliseconds(goalFirstPage), milliseconds(goalPage)),
		reached: warm <= goalFirstPage && slowest <= goalPage,
	})
	return nil
}
