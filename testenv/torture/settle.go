package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	settleLook = 500 * time.Millisecond
	// idleWait bounds the wait for the agents to release what they used under load.
	idleWait = 10 * time.Second
)

// settle lets everything finish after the last fault and the last write. Endpoints that can answer
// do so, are enabled, and get replays of what they have missed. It ends when everything has
// arrived, or nothing has moved for as long as patience. The checker finds what is missing then.
func (w *world) settle(ctx context.Context, o *operator, patience time.Duration, say func(string, ...any)) error {
	w.customers.mend()
	best, since := -1, w.clock.now()
	said := ""
	for {
		var open int
		err := o.work(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
			if err := o.enable(ctx, conn, func(e *endpointInfo) bool { return e.Behavior.answers() }); err != nil {
				return err
			}
			if err := o.resume(ctx, conn); err != nil {
				return err
			}
			if err := w.replayMissed(ctx, conn, o); err != nil {
				return err
			}
			open, said, err = w.open(ctx, conn)
			return err
		})
		now := w.clock.now()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && open == 0:
			return nil
		case err == nil && (best < 0 || open < best):
			best, since = open, now
		case now-since > patience:
			say("nothing has moved for %s: %s%v", patience, said, errorOr(err))
			return nil
		}
		pause(ctx, settleLook)
	}
}

func errorOr(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

const selectMissed = `
select distinct d.endpoint_id from webhooks.deliveries d
join webhooks.endpoints e on e.id = d.endpoint_id and e.disabled_at is null
where d.endpoint_id = any($1) and d.status in ('missed', 'failed')
  and not exists (select from webhooks.replays r where r.endpoint_id = d.endpoint_id and r.finished is null)
order by 1`

// replayMissed asks for a replay for each endpoint that can answer and has missed something.
func (w *world) replayMissed(ctx context.Context, conn *pgx.Conn, o *operator) error {
	rows, err := conn.Query(ctx, selectMissed, w.answering())
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := o.replay(ctx, conn, o.endpoint(id), nil, "missed", "failed"); err != nil {
			return err
		}
	}
	return nil
}

// answering returns the ids of the endpoints that can answer with success.
func (w *world) answering() []string {
	var ids []string
	for _, e := range w.endpoints {
		if e.Behavior.answers() {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

const (
	selectEvents = `select venue, type, count(*) from webhooks.outbox group by 1, 2`
	countOpen    = `
select (select count(*) from webhooks.deliveries),
       (select count(*) from webhooks.deliveries where endpoint_id = any($1) and status <> 'succeeded'),
       (select count(*) from webhooks.replays where finished is null)`
)

// open returns how much is not done yet, as a number and in words.
func (w *world) open(ctx context.Context, conn *pgx.Conn) (open int, words string, err error) {
	rows, err := conn.Query(ctx, selectEvents)
	if err != nil {
		return 0, "", err
	}
	type group struct {
		venue, eventType string
		n                int
	}
	groups, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g group, err error) {
		err = row.Scan(&g.venue, &g.eventType, &g.n)
		return g, err
	})
	if err != nil {
		return 0, "", err
	}
	expected := 0
	for _, g := range groups {
		for _, e := range w.endpoints {
			if e.Venue == g.venue && e.wants(g.eventType) {
				expected += g.n
			}
		}
	}
	var deliveries, unfinished, replays int
	if err := conn.QueryRow(ctx, countOpen, w.answering()).Scan(&deliveries, &unfinished, &replays); err != nil {
		return 0, "", err
	}
	missing := max(0, expected-deliveries)
	words = fmt.Sprintf("%d deliveries without a row, %d that have not succeeded, %d replays open", missing, unfinished, replays)
	return missing + unfinished + replays, words, nil
}

// rest waits until the agents have released what they used under load, and measures them. They do
// so once their idle connections are closed.
func (w *world) rest(ctx context.Context) error {
	w.customers.closeIdle() // otherwise an agent would keep the connections for a minute
	base, err := load[resources](w.dir, resourcesFile)
	if err != nil {
		return err
	}
	for deadline := w.clock.now() + idleWait; w.clock.now() < deadline && ctx.Err() == nil; pause(ctx, settleLook) {
		calm := true
		for _, a := range w.agents {
			r, err := a.measure(ctx, "end")
			if err != nil {
				return err
			}
			calm = calm && r.wasteAbove(base) == ""
		}
		if calm {
			break
		}
	}
	return w.measure(ctx, "end")
}

// endAgents asks both agents to end, the standby first.
func (w *world) endAgents(ctx context.Context) error {
	agents := slices.Clone(w.agents)
	if agents[0].leads(ctx) {
		slices.Reverse(agents)
	}
	var errs []error
	for _, a := range agents {
		errs = append(errs, a.terminate())
	}
	return errors.Join(errs...)
}

// saveUnseen copies into a file what the agents' logs report about deliveries that had passed the
// stream unseen.
func (w *world) saveUnseen() error {
	var all []unseen
	for _, a := range w.agents {
		of, err := a.unseen()
		if err != nil {
			return err
		}
		all = append(all, of...)
	}
	return save(w.dir, unseenFile, all)
}

// dump copies the rows that the checker needs from the database into files.
func (w *world) dump(ctx context.Context) (err error) {
	conn, err := pgx.Connect(ctx, w.cluster.URL(databaseName))
	if err != nil {
		return fmt.Errorf("read the database: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	return errors.Join(
		dumpRows(ctx, conn, w.dir, outboxFile, `select id from webhooks.outbox`, pgx.RowTo[string]),
		dumpRows(ctx, conn, w.dir, deliveriesFile, `
select event_id, endpoint_id, venue, type, status, attempts, coalesce(last_code, 0), coalesce(replay_id, '')
from webhooks.deliveries`,
			func(row pgx.CollectableRow) (d deliveryRow, err error) {
				err = row.Scan(&d.Event, &d.Endpoint, &d.Venue, &d.Type, &d.Status, &d.Attempts, &d.Code, &d.Replay)
				return d, err
			}),
		dumpRows(ctx, conn, w.dir, attemptsFile, `
select event_id, endpoint_id, attempt, at, coalesce(code, 0), coalesce(class, '') from webhooks.attempts`,
			func(row pgx.CollectableRow) (a attemptRow, err error) {
				var at time.Time
				err = row.Scan(&a.Event, &a.Endpoint, &a.Attempt, &at, &a.Code, &a.Class)
				a.At = w.clock.at(at)
				return a, err
			}),
		dumpRows(ctx, conn, w.dir, rowsFile, `
select e.id, e.disabled_at, coalesce(e.disabled_reason, ''), e.generation,
       coalesce(h.consecutive_failures, 0), coalesce(h.generation, 0)
from webhooks.endpoints e left join webhooks.endpoint_health h on h.endpoint_id = e.id`,
			func(row pgx.CollectableRow) (e endpointRow, err error) {
				var at *time.Time
				err = row.Scan(&e.ID, &at, &e.Reason, &e.Generation, &e.Failures, &e.HealthGeneration)
				if e.Disabled = at != nil; e.Disabled {
					e.DisabledAt = w.clock.at(*at)
				}
				return e, err
			}),
		dumpRows(ctx, conn, w.dir, replaysFile, `select id, endpoint_id, state, coalesce(error, '') from webhooks.replays`,
			func(row pgx.CollectableRow) (r replayRow, err error) {
				err = row.Scan(&r.ID, &r.Endpoint, &r.State, &r.Error)
				return r, err
			}),
		dumpRows(ctx, conn, w.dir, rewrittenFile, `select event, endpoint, before, after, at from torture.rewritten`,
			func(row pgx.CollectableRow) (r rewrittenRow, err error) {
				var at time.Time
				err = row.Scan(&r.Event, &r.Endpoint, &r.Before, &r.After, &at)
				r.At = w.clock.at(at)
				return r, err
			}),
	)
}

func dumpRows[T any](ctx context.Context, conn *pgx.Conn, dir, name, sql string, scan pgx.RowToFunc[T]) error {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return fmt.Errorf("read the database for %s: %w", name, err)
	}
	records, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return fmt.Errorf("read the database for %s: %w", name, err)
	}
	return save(dir, name, records)
}

// hostOf returns the host:port of a URL.
func hostOf(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// The text is not shown: it may hold a password.
		return "", errors.New("the database has no usable URL")
	}
	return u.Host, nil
}
