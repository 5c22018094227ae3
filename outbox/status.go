package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Overview is the state of the agent, as far as the database shows it.
type Overview struct {
	Schema     SchemaInfo     `json:"schema"`
	Leader     *LeaderInfo    `json:"leader"` // nil before the first agent has run
	Slot       *SlotInfo      `json:"slot"`   // nil when there is none
	Deliveries DeliveryCounts `json:"deliveries"`
	Endpoints  EndpointCounts `json:"endpoints"`
	// Disabled and unusable endpoints, those that changed last first, at most overviewEndpoints.
	NotSending []EndpointInfo `json:"not_sending"`
}

// LeaderInfo is the checkpoint: who records deliveries, and up to where.
type LeaderInfo struct {
	Holder     string    `json:"holder"`
	Epoch      int64     `json:"epoch"`
	LSN        string    `json:"lsn"`
	Recovering bool      `json:"recovering"` // the slot is new, the outbox is being swept
	Updated    time.Time `json:"updated"`
}

// SlotInfo is the replication slot.
type SlotInfo struct {
	Name         string `json:"name"`
	Active       bool   `json:"active"` // an agent is connected
	ConfirmedLSN string `json:"confirmed_lsn"`
	LagBytes     int64  `json:"lag_bytes"`     // between the confirmed position and the server's
	RetainedWAL  int64  `json:"retained_wal"`  // bytes of WAL that the slot keeps on disk
	WALStatus    string `json:"wal_status"`    // reserved, extended, unreserved or lost
	SafeWALBytes *int64 `json:"safe_wal_size"` // what may be written before the slot is lost; nil without a limit
}

// DeliveryCounts are counted up to MaxOverviewCount each. Capped reports that one of them stopped
// there.
type DeliveryCounts struct {
	Pending       int64      `json:"pending"`
	OldestPending *time.Time `json:"oldest_pending"` // when the oldest of them was created, among those counted
	NextAttempt   *time.Time `json:"next_attempt"`   // when the first of them is due; in the past when the agent is behind
	// Of the events created in the last hour, the newest first.
	Succeeded int64 `json:"succeeded_last_hour"`
	Failed    int64 `json:"failed_last_hour"`
	Missed    int64 `json:"missed_last_hour"`
	Capped    bool  `json:"capped"`
}

// EndpointCounts counts endpoints by state.
type EndpointCounts struct {
	Enabled  int64 `json:"enabled"`
	Disabled int64 `json:"disabled"`
	Unusable int64 `json:"unusable"`
}

// MaxOverviewCount bounds what Overview counts: the log may hold a hundred million rows.
const MaxOverviewCount = 100_000

// overviewEndpoints is how many endpoints the overview names.
const overviewEndpoints = 10

const selectLeaderInfo = `
select holder, epoch, lsn::text, recovering, updated from webhooks.checkpoint where slot = $1 and epoch > 0`

const selectSlotInfo = `
select slot_name, active, coalesce(confirmed_flush_lsn::text, ''), coalesce(here.lsn - confirmed_flush_lsn, 0)::bigint,
       coalesce(here.lsn - restart_lsn, 0)::bigint, coalesce(wal_status, ''), safe_wal_size
from pg_replication_slots,
     (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end as lsn) here
where slot_name = $1`

// selectPending walks the partial index of pending deliveries.
const selectPending = `
select count(*), min(created), min(next_attempt_at) from (
    select created, next_attempt_at from webhooks.deliveries where status = 'pending' limit $1
) pending`

// selectRecent walks the index on created from its end.
const selectRecent = `
select count(*) filter (where status = 'succeeded'), count(*) filter (where status = 'failed'), count(*) filter (where status = 'missed'), count(*)
from (
    select status from webhooks.deliveries where created >= now() - interval '1 hour' order by created desc limit $1
) recent`

const selectEndpointCounts = `
select count(*) filter (where e.disabled_at is null and h.unusable is null), count(*) filter (where e.disabled_at is not null),
       count(*) filter (where e.disabled_at is null and h.unusable is not null)
from webhooks.endpoints e
left join webhooks.endpoint_health h on h.endpoint_id = e.id`

const selectNotSending = endpointInfos + `
where state <> 'enabled'
order by updated desc, id limit $1`

// Overview looks at the agent's tables and its slot. It counts within bounds only, so it is cheap
// at any size of the log.
func (db *DB) Overview(ctx context.Context) (o Overview, err error) {
	err = db.look(ctx, "read the status", func(tx pgx.Tx) error {
		if o.Schema, err = db.cfg.readSchema(ctx, tx); err != nil {
			return err
		}
		if f := o.Schema.judge(); f.fails() {
			return f.problem()
		}
		leading, err := readLeading(ctx, tx, db.cfg.Slot)
		if err != nil {
			return err
		}
		o.Leader, o.Slot = leading.Leader, leading.Slot
		d := &o.Deliveries
		if err := tx.QueryRow(ctx, selectPending, MaxOverviewCount).Scan(&d.Pending, moment{&d.OldestPending}, moment{&d.NextAttempt}); err != nil {
			return err
		}
		var recent int64
		if err := tx.QueryRow(ctx, selectRecent, MaxOverviewCount).Scan(&d.Succeeded, &d.Failed, &d.Missed, &recent); err != nil {
			return err
		}
		d.Capped = d.Pending == MaxOverviewCount || recent == MaxOverviewCount
		e := &o.Endpoints
		if err := tx.QueryRow(ctx, selectEndpointCounts).Scan(&e.Enabled, &e.Disabled, &e.Unusable); err != nil {
			return err
		}
		o.NotSending, err = queryRows(ctx, tx, selectNotSending, scanEndpointInfo, overviewEndpoints)
		return err
	})
	return o, err
}

func scanSlotInfo(row pgx.CollectableRow) (s SlotInfo, err error) {
	err = row.Scan(&s.Name, &s.Active, &s.ConfirmedLSN, &s.LagBytes, &s.RetainedWAL, &s.WALStatus, &s.SafeWALBytes)
	return s, err
}
