package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// operator plays the people who look after endpoints. By SQL it enables endpoints that the agent
// has disabled, and replays what was missed.
type operator struct {
	url        string // of a superuser, without a proxy
	endpoints  []*endpointInfo
	clock      stopwatch
	operations *journal[operation]
	random     *rand.Rand
	replays    int
}

// operatorPause is the time between two looks at the endpoints.
const operatorPause = 3 * time.Second

// run works until ctx ends. The end of ctx interrupts no statement. While PostgreSQL is down, it
// waits.
func (o *operator) run(ctx context.Context) {
	for n := 1; ; n++ {
		pause(ctx, operatorPause)
		if ctx.Err() != nil {
			return
		}
		// PostgreSQL is down now and then. The next look makes up for it.
		_ = o.work(context.WithoutCancel(ctx), func(ctx context.Context, conn *pgx.Conn) error {
			err := o.enable(ctx, conn, func(e *endpointInfo) bool {
				// Endpoints that keep failing are left alone for a while.
				return e.Behavior == healthy || e.Behavior == slow || e.Behavior == flaky || o.random.IntN(3) == 0
			})
			if n%3 == 0 {
				err = errors.Join(err, o.replaySome(ctx, conn))
			}
			err = errors.Join(err, o.steerSome(ctx, conn))
			return err
		})
	}
}

// work calls do with a new connection.
func (o *operator) work(ctx context.Context, do func(context.Context, *pgx.Conn) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, sqlTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, o.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	return do(ctx, conn)
}

const (
	selectDisabled = `
select e.id, e.generation, e.disabled_at, coalesce(e.disabled_reason, ''), coalesce(h.consecutive_failures, 0)
from webhooks.endpoints e
left join webhooks.endpoint_health h on h.endpoint_id = e.id and h.generation = e.generation
where e.disabled_at is not null order by e.id`

	enableEndpoint = `
update webhooks.endpoints set disabled_at = null where id = $1 and generation = $2 and disabled_at is not null`
)

// enable looks at the endpoints that are disabled, and enables those for which should returns true.
func (o *operator) enable(ctx context.Context, conn *pgx.Conn, should func(*endpointInfo) bool) error {
	rows, err := conn.Query(ctx, selectDisabled)
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f operation, err error) {
		var disabledAt time.Time
		err = row.Scan(&f.Endpoint, &f.Generation, &disabledAt, &f.Reason, &f.Failures)
		f.DisabledAt = o.clock.at(disabledAt)
		return f, err
	})
	if err != nil {
		return err
	}
	for _, f := range found {
		e := o.endpoint(f.Endpoint)
		if e == nil || !should(e) {
			continue
		}
		f.Enabled, f.At, f.Fate = true, o.clock.now(), unknown
		o.operations.add(f) // before it happens, because requests may arrive from here on
		f.Fate, err = outcome(conn.Exec(ctx, enableEndpoint, f.Endpoint, f.Generation))
		o.operations.add(f)
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	selectSucceeded = `
select coalesce(array_agg(event_id), '{}') from (
    select event_id from webhooks.deliveries
    where endpoint_id = $1 and status = 'succeeded' and created < now() - interval '5 seconds'
    order by random() limit 3) s`

	insertReplay = `insert into webhooks.replays (id, endpoint_id, event_ids, statuses) values ($1, $2, $3, $4)`
)

// replaySome asks for a replay: of a few events that have arrived already, or of everything that an
// endpoint has missed.
func (o *operator) replaySome(ctx context.Context, conn *pgx.Conn) error {
	e := o.endpoints[o.random.IntN(len(o.endpoints))]
	if o.random.IntN(2) == 0 {
		return o.replay(ctx, conn, e, nil, "missed", "failed")
	}
	var events []string
	if err := conn.QueryRow(ctx, selectSucceeded, e.ID).Scan(&events); err != nil {
		return err
	}
	if len(events) == 0 {
		return nil
	}
	return o.replay(ctx, conn, e, events, "succeeded")
}

// replay asks for one replay: of the named events, or of all events of the endpoint if events is
// nil.
func (o *operator) replay(ctx context.Context, conn *pgx.Conn, e *endpointInfo, events []string, statuses ...string) error {
	o.replays++
	r := operation{
		At: o.clock.now(), Endpoint: e.ID, Fate: unknown,
		Replay: fmt.Sprintf("rpl_torture_%03d", o.replays), Events: events, Statuses: statuses,
	}
	o.operations.add(r)
	var err error
	r.Fate, err = outcome(conn.Exec(ctx, insertReplay, r.Replay, e.ID, events, statuses))
	o.operations.add(r)
	return err
}

// Statements of the operator that steer replays say so, since a trigger records who resumes one (witness).
const (
	steerReplay = `
with me as materialized (select set_config('torture.operator', 'yes', true))
update webhooks.replays set state = $1 from me
where id = (select id from webhooks.replays where state in ('pending', 'running', 'paused') order by random() limit 1)`

	paceReplay = `
update webhooks.replays set per_second = $1
where id = (select id from webhooks.replays where state in ('pending', 'running', 'paused') order by random() limit 1)`

	resumeReplays = `
with me as materialized (select set_config('torture.operator', 'yes', true))
update webhooks.replays set state = 'running', per_second = null from me where state = 'paused' or state in ('pending', 'running') and per_second is not null`
)

// steerSome pauses, resumes, cancels or paces some replay that has not ended.
func (o *operator) steerSome(ctx context.Context, conn *pgx.Conn) error {
	var err error
	switch o.random.IntN(6) {
	case 0, 1, 2:
		_, err = conn.Exec(ctx, steerReplay, "paused")
	case 3:
		_, err = conn.Exec(ctx, steerReplay, "running")
	case 4:
		_, err = conn.Exec(ctx, steerReplay, "canceled")
	case 5:
		_, err = conn.Exec(ctx, paceReplay, 1+o.random.IntN(50))
	}
	return err
}

// resume has every replay go on, as fast as it can.
func (o *operator) resume(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, resumeReplays)
	return err
}

// outcome returns how a statement ended that was a transaction of its own.
func outcome(tag pgconn.CommandTag, err error) (fate, error) {
	switch {
	case err == nil && tag.RowsAffected() == 0:
		return rolledBack, nil
	case err == nil:
		return committed, nil
	case pgconn.SafeToRetry(err):
		return rolledBack, err
	}
	return unknown, err
}

func (o *operator) endpoint(id string) *endpointInfo {
	for _, e := range o.endpoints {
		if e.ID == id {
			return e
		}
	}
	return nil
}
