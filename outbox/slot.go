package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// Slot is what a leader needs of the database: everything that belongs to a replication slot, or to
// a term of its leadership. Several slots of one DB do not know of each other. Its methods are safe
// for concurrent use.
type Slot struct {
	db     *DB
	cfg    Config // the Config of the DB, with the name of this slot
	mapped mappings
}

// Slot returns the replication slot of this name. The slot need not exist, since PrepareSlot makes
// it. The Ledger and the Tailer that belong to it have the same Config.Slot.
func (db *DB) Slot(name string) *Slot {
	slot := &Slot{db: db, cfg: db.cfg}
	slot.cfg.Slot = name
	return slot
}

// configured returns the slot that Config names. Check, Adopt, Uninstall and Overview use it.
func (db *DB) configured() *Slot { return db.Slot(db.cfg.Slot) }

// mapping returns the columns of the outbox as this slot saw them last.
func (slot *Slot) mapping(ctx context.Context) (*mapping, error) {
	return slot.mapped.load(ctx, slot.cfg, slot.db.pool)
}

// Vitals are the values that a running agent watches in the database.
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
select coalesce(pg_current_wal_lsn() - s.confirmed_flush_lsn, 0)::bigint, ` + retainedBytes + `,
       coalesce(s.wal_status, ''),
       (select count(*) from (select from webhooks.deliveries where status = 'pending' limit $2) p)
from (select) here left join pg_replication_slots s on s.slot_name = $1`

// Vitals reads them, and sets the Clock.
func (slot *Slot) Vitals(ctx context.Context) (v Vitals, err error) {
	if v.ClockSkew, err = slot.db.readClock(ctx, slot.db.pool); err != nil {
		return v, slot.cfg.explain("read the clock", err)
	}
	row := slot.db.pool.QueryRow(ctx, selectVitals, slot.cfg.Slot, MaxOverviewCount)
	err = row.Scan(&v.LagBytes, &v.RetainedBytes, &v.WALStatus, &v.Pending)
	return v, slot.cfg.explain("look at the slot", err)
}

// retainedBytes is the SQL expression for the bytes of WAL that a slot keeps. It is 0 if there is
// no slot.
const retainedBytes = `coalesce((select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end - restart_lsn
          from pg_replication_slots where slot_name = $1), 0)::bigint`

const selectRetainedBytes = `select ` + retainedBytes

// RetainedBytes returns how many bytes of WAL the slot keeps on the server's disk. It reads only
// the catalogue, so it works whatever is wrong with the schema.
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

// CheckSlot returns ErrSlotMoved if the slot, the checkpoint or the server is no longer where the
// stream of t left it. That happens if, while the stream was away, somebody advanced the slot or
// made it anew, or restored an earlier state of the server. CheckSlot must be called before the
// stream is started again. Otherwise the stream would silently skip what lies in between.
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
