package outbox

import "context"

// Slot has what a leader needs of the database: whatever goes by the name of a replication slot, or by
// a term of its leadership. Several slots of one DB do not know of each other. Its methods are safe
// for concurrent use.
type Slot struct {
	db     *DB
	cfg    Config // the DB's, with the name of this slot
	mapped mappings
}

// Slot returns what concerns the replication slot of this name, which need not exist: PrepareSlot
// makes it. The Ledger and the Tailer that belong to it have the same Config.Slot.
func (db *DB) Slot(name string) *Slot {
	slot := &Slot{db: db, cfg: db.cfg}
	slot.cfg.Slot = name
	return slot
}

// configured returns the slot that Config names, at which Check, Adopt, Uninstall and Overview look.
func (db *DB) configured() *Slot { return db.Slot(db.cfg.Slot) }

// mapping returns what the outbox's columns are, as this slot saw them last.
func (slot *Slot) mapping(ctx context.Context) (*mapping, error) {
	return slot.mapped.load(ctx, slot.cfg, slot.db.pool)
}
