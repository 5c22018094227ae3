package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// Vitals are what a running agent watches in the database.
type Vitals struct {
	// LagBytes is how far the slot's confirmed position is behind the server's.
	LagBytes int64
	// RetainedBytes is the WAL that the slot keeps on the server's disk.
	RetainedBytes int64
	// WALStatus is reserved, extended, unreserved or lost; "" when there is no slot.
	WALStatus string
	// Pending counts pending deliveries, at most MaxOverviewCount.
	Pending int64
	// ClockSkew is the server's clock minus this host's.
	ClockSkew time.Duration
}

const selectVitals = `
select coalesce(pg_current_wal_lsn() - s.confirmed_flush_lsn, 0)::bigint, coalesce(pg_current_wal_lsn() - s.restart_lsn, 0)::bigint,
       coalesce(s.wal_status, ''),
       (select count(*) from (select from webhooks.deliveries where status = 'pending' limit $2) p)
from (select) here left join pg_replication_slots s on s.slot_name = $1`

// Vitals reads them, and sets Clock right.
func (slot *Slot) Vitals(ctx context.Context) (v Vitals, err error) {
	if v.ClockSkew, err = slot.db.readClock(ctx, slot.db.pool); err != nil {
		return v, slot.cfg.explain("read the clock", err)
	}
	row := slot.db.pool.QueryRow(ctx, selectVitals, slot.cfg.Slot, MaxOverviewCount)
	err = row.Scan(&v.LagBytes, &v.RetainedBytes, &v.WALStatus, &v.Pending)
	return v, slot.cfg.explain("look at the slot", err)
}

// retainedBytes is the expression for the WAL that a slot keeps, 0 when there is none.
const retainedBytes = `coalesce((select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end - restart_lsn
          from pg_replication_slots where slot_name = $1), 0)::bigint`

const selectRetainedBytes = `select ` + retainedBytes

// RetainedBytes returns how much WAL the slot keeps on the server's disk. It asks the catalogue alone, so that it can be asked whatever
// is wrong with the schema.
func (slot *Slot) RetainedBytes(ctx context.Context) (bytes int64, err error) {
	err = slot.db.pool.QueryRow(ctx, selectRetainedBytes, slot.cfg.Slot).Scan(&bytes)
	return bytes, slot.cfg.explain("look at the slot", err)
}

const selectEpoch = `
select epoch from webhooks.checkpoint where slot = $1`

// CheckEpoch returns ErrFenced when the term is over because another agent has taken over.
func (slot *Slot) CheckEpoch(ctx context.Context, term Term) error {
	var epoch int64
	err := slot.db.pool.QueryRow(ctx, selectEpoch, slot.cfg.Slot).Scan(&epoch)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && epoch != term.Epoch {
		return ErrFenced
	}
	return slot.cfg.explain("read the checkpoint", err)
}

const selectSlotMoved = `
select s.confirmed_flush_lsn > c.lsn or c.lsn < $2 or pg_current_wal_insert_lsn() < $3
from webhooks.checkpoint c join pg_replication_slots s on s.slot_name = c.slot where c.slot = $1`

// CheckSlot returns ErrSlotMoved when slot, checkpoint and server do not stand where the stream of t left them: while it was away,
// someone has advanced the slot or made it anew, or put back an earlier state of the server. It must be asked before
// the stream is started again, which would pass over what is in between without a word.
func (slot *Slot) CheckSlot(ctx context.Context, t *Tailer) error {
	var moved bool
	err := slot.db.pool.QueryRow(ctx, selectSlotMoved, slot.cfg.Slot, LSN(t.confirmed.Load()), LSN(t.received.Load())).Scan(&moved)
	if moved {
		return ErrSlotMoved
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrSlotGone
	}
	return slot.cfg.explain("look at the slot", err)
}

// ManagedEndpoint is an endpoint of the configuration file. Venue and URL identify it.
type ManagedEndpoint struct {
	Venue       string
	URL         secret.Text
	Events      []string
	Secret      secret.Text
	Description string
}

const (
	// setBrief has the server end a transaction that waits for a row of the app's, or whose agent was cut off.
	setBrief = `select set_config('lock_timeout', '1s', true), set_config('idle_in_transaction_session_timeout', '5s', true)`

	updateManaged = `
update webhooks.endpoints set events = $2, secret = $3, description = $4
where id = $1 and (events, secret, description) is distinct from ($2::text[], $3::text, $4::text)`

	// dropOldestSecret makes place for a rotation: what the file says must not keep the agent from
	// leading.
	dropOldestSecret = `
update webhooks.endpoints
set older_secrets = older_secrets[:cardinality(older_secrets) - 1], older_secrets_until = older_secrets_until[:cardinality(older_secrets) - 1]
where id = $1 and 1 + cardinality(older_secrets) >= $2
  and not exists (select from unnest(previous_secret_until || older_secrets_until) u where u <= clock_timestamp())`

	selectManaged = `
select id, venue, url, secret from webhooks.endpoints where managed_by = 'file' order by created, id`

	deleteManaged = `
delete from webhooks.endpoints where id = any($1) and managed_by = 'file'`
)

// ManagedOverlap is how long the former secret of an endpoint of the file also signs when the file
// has another one.
const ManagedOverlap = 24 * time.Hour

// SyncManaged makes the endpoints that are marked as managed by the file those of the file: it
// adds, changes and removes. Other endpoints it leaves alone, and what a person disabled stays
// disabled. A secret that has changed is a rotation with ManagedOverlap; the oldest of
// MostFormerSecrets gives way.
func (db *DB) SyncManaged(ctx context.Context, endpoints []ManagedEndpoint) error {
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		tx = withoutPreparing(tx)
		if err := exec(ctx, tx, setBrief); err != nil {
			return err
		}
		type row struct{ id, venue, url, secret string }
		rows, err := queryRows(ctx, tx, selectManaged, func(r pgx.CollectableRow) (m row, err error) {
			err = r.Scan(&m.id, &m.venue, &m.url, &m.secret)
			return m, err
		})
		if err != nil {
			return err
		}
		type key struct{ venue, url string }
		known := map[key]row{}
		wanted := map[key]bool{}
		for _, e := range endpoints {
			wanted[key{e.Venue, e.URL.Reveal()}] = true
		}
		var remove []string
		for _, r := range rows {
			k := key{r.venue, r.url}
			if _, twice := known[k]; twice || !wanted[k] {
				remove = append(remove, r.id)
				continue
			}
			known[k] = r
		}
		for _, e := range endpoints {
			r, exists := known[key{e.Venue, e.URL.Reveal()}]
			if exists {
				// A secret that is the same stays as it is stored: to seal it is not worth waiting for whoever holds the row.
				stored := secret.New(r.secret)
				is, notOpened := db.cfg.Keys.Open(r.id, stored)
				switch {
				case notOpened != nil: // it has signed nothing
					stored = db.cfg.Keys.Seal(r.id, e.Secret)
				case !is.Equal(e.Secret):
					if err := exec(ctx, tx, dropOldestSecret, r.id, MostFormerSecrets); err != nil {
						return err
					}
					stored = db.cfg.Keys.Seal(r.id, e.Secret)
					if _, err := (narrowed{tx, db.AllVenues().view}).Exec(ctx, rotateSecret, r.id, stored.Reveal(), ManagedOverlap); err != nil {
						return err
					}
				}
				err = exec(ctx, tx, updateManaged, r.id, e.Events, stored.Reveal(), e.Description)
			} else {
				_, err = db.insertEndpoint(ctx, tx, Endpoint{Venue: e.Venue, URL: e.URL, Events: e.Events, Secret: e.Secret}, e.Description, "file")
			}
			if err != nil {
				return fmt.Errorf("endpoint of venue %q: %w", e.Venue, err)
			}
		}
		if len(remove) == 0 {
			return nil
		}
		return exec(ctx, tx, deleteManaged, remove)
	})
	return db.cfg.explain("take over the endpoints of the configuration file", err)
}
