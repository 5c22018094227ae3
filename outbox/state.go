package outbox

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// State is what the agent holds in memory about endpoints when a term begins.
type State struct {
	Endpoints []EndpointState
	// Snapshot says which transactions the state contains already. Their changes in the stream
	// bring nothing new.
	Snapshot Snapshot
	// Due has the earliest next_attempt_at of each endpoint that has pending deliveries, also of
	// endpoints that are gone.
	Due map[string]time.Time
	// Replays are the replays that are not done, oldest first.
	Replays []Replay
}

// EndpointState is an endpoint with its failure counter.
type EndpointState struct {
	*Endpoint
	// Failures is the number of consecutive failed attempts of this generation.
	Failures     int
	FirstFailure time.Time
	Unusable     string
	HeldUntil    time.Time // as in Health
	HeldBy       string
	// Announced is the level that others know of the endpoint: see Notice.
	Announced int
	// FormerHealth reports that the recorded health is that of a removed endpoint with the same id.
	// The fields above have nothing of it.
	FormerHealth bool
}

// isFormerHealth is the condition that the row h of endpoint_health is of an endpoint that was
// removed, and not of e, which has its id. The agent deletes such a row when it sees the removal, but
// it may not run then. All attempts of e are later than its registration.
const isFormerHealth = `(e.reused and coalesce(greatest(h.last_failure_at, h.last_success_at) < e.created, true))`

const selectEndpoints = `
select e.id, e.venue, e.url, e.events::text, e.secret, coalesce(e.previous_secret, ''),
       case when isfinite(e.previous_secret_until) then e.previous_secret_until end,
       e.disabled_at is not null, coalesce(e.disabled_reason, ''), e.generation,
       case when isfinite(e.created) then e.created else 'epoch' end,
       case when isfinite(e.subscribed) then e.subscribed end,
       case when h.generation = e.generation then h.consecutive_failures else 0 end,
       case when h.generation = e.generation then h.first_failure_at end,
       coalesce(h.unusable, ''),
       e.older_secrets::text, e.older_secrets_until::text, e.reused,
       case when h.generation = e.generation and isfinite(h.held_until) then h.held_until end, coalesce(h.held_by, ''),
       case when h.notified_generation = e.generation then abs(h.notified) else least(abs(coalesce(h.notified, 0)), 1) end,
       e.reused and exists (select from webhooks.endpoint_health h where h.endpoint_id = e.id and ` + isFormerHealth + `)
from webhooks.endpoints e
left join webhooks.endpoint_health h on h.endpoint_id = e.id and not ` + isFormerHealth

// selectDue goes from endpoint to endpoint in the index deliveries_pending (a loose index scan). So
// its cost depends on the number of endpoints with pending deliveries, not on the number of
// deliveries.
const selectDue = `
with recursive due as (
    (select endpoint_id, next_attempt_at from webhooks.deliveries
     where status = 'pending' order by endpoint_id, next_attempt_at limit 1)
    union all
    select next.* from due, lateral (
        select endpoint_id, next_attempt_at from webhooks.deliveries
        where status = 'pending' and endpoint_id > due.endpoint_id
        order by endpoint_id, next_attempt_at limit 1) next
)
select endpoint_id, coalesce(next_attempt_at, now()) from due`

const selectOpenReplays = `
select id from webhooks.replays where finished is null order by created`

// LoadState reads the endpoints, their health, the due times and the open replays, all in one
// snapshot.
func (slot *Slot) LoadState(ctx context.Context) (State, error) {
	s := State{Due: map[string]time.Time{}}
	err := pgx.BeginTxFunc(ctx, slot.db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var snapshot string
		tx = withoutPreparing(tx)
		if err := tx.QueryRow(ctx, `select pg_current_snapshot()::text`).Scan(&snapshot); err != nil {
			return err
		}
		var err error
		if s.Snapshot, err = ParseSnapshot(snapshot); err != nil {
			return err
		}
		if s.Endpoints, err = queryRows(ctx, tx, selectEndpoints, scanEndpointState); err != nil {
			return err
		}
		type due struct {
			id string
			at time.Time
		}
		dues, err := queryRows(ctx, tx, selectDue, func(row pgx.CollectableRow) (d due, err error) {
			err = row.Scan(&d.id, &d.at)
			return d, err
		})
		if err != nil {
			return err
		}
		for _, d := range dues {
			s.Due[d.id] = d.at
		}
		s.Replays, err = queryRows(ctx, tx, selectOpenReplays, func(row pgx.CollectableRow) (r Replay, err error) {
			err = row.Scan(&r.ID)
			return r, err
		})
		return err
	})
	return s, slot.cfg.explain("load the endpoints", err)
}

func scanEndpointState(row pgx.CollectableRow) (e EndpointState, err error) {
	var (
		url, secretText, previous string
		until, firstFailure       *time.Time
		subscribed, held          *time.Time
		events, older, olderUntil string
	)
	e.Endpoint = &Endpoint{}
	err = row.Scan(&e.ID, &e.Venue, &url, &events, &secretText, &previous, &until, &e.Disabled, &e.DisabledReason,
		&e.Generation, &e.Created, &subscribed, &e.Failures, &firstFailure, &e.Unusable, &older, &olderUntil, &e.Reused, &held, &e.HeldBy, &e.Announced, &e.FormerHealth)
	if err != nil {
		return e, fmt.Errorf("endpoint %s: %w", strconv.Quote(e.ID), err)
	}
	e.Events = parseTextArray(events)
	e.URL, e.Secret = secret.New(url), secret.New(secretText)
	if previous != "" && until != nil {
		e.Previous, e.PreviousUntil = secret.New(previous), *until
	}
	e.Older, e.OlderUntil = parseOlder(older, olderUntil)
	if subscribed != nil {
		e.Subscribed = *subscribed
	}
	if firstFailure != nil {
		e.FirstFailure = *firstFailure
	}
	if held != nil {
		e.HeldUntil = *held
	}
	return e, nil
}
