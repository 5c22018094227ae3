package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Uninstallation names what Uninstall drops.
type Uninstallation struct {
	Slot         string   `json:"slot,omitempty"`
	Publications []string `json:"publications"`
	Schema       string   `json:"schema,omitempty"`
}

// Things lists in words what is dropped.
func (u Uninstallation) Things() (things []string) {
	if u.Slot != "" {
		things = append(things, "slot "+u.Slot)
	}
	for _, name := range u.Publications {
		things = append(things, "publication "+name)
	}
	if u.Schema != "" {
		things = append(things, "schema "+u.Schema)
	}
	return things
}

const (
	// selectOwnPublications skips publications that only have the same names as the agent's. The
	// agent's own hold a table of the agent or are empty.
	selectOwnPublications = `
select p.pubname::text from pg_publication p
where p.pubname = any($1) and not p.puballtables
  and (not exists (select from pg_publication_rel r where r.prpubid = p.oid) and not exists (select from pg_publication_tables t where t.pubname = p.pubname)
       or exists (select from pg_publication_rel r join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
                  where r.prpubid = p.oid and (n.nspname = 'webhooks' or (n.nspname, c.relname) = ($2, $3))))
order by p.pubname`

	selectSchemaExists = `select exists (select from pg_namespace where nspname = 'webhooks')`
)

// Uninstall drops the slot and the publications. With dropData it also drops the schema webhooks.
// Without do it only returns what it would drop. Objects that are already gone are no error.
// Uninstall refuses while an agent is connected, and if the slot belongs to another system.
func (db *DB) Uninstall(ctx context.Context, dropData, do bool) (u Uninstallation, err error) {
	if err := db.look(ctx, "look for what to drop", func(tx pgx.Tx) (err error) {
		u, err = db.uninstallation(ctx, tx, dropData)
		return err
	}); err != nil || !do {
		return u, err
	}
	if u.Slot != "" {
		_, err := db.pool.Exec(ctx, dropSlot, u.Slot)
		switch SQLState(err) {
		case codeObjectInUse:
			return u, slotInUse(u.Slot)
		case codeNoObject: // gone meanwhile
		default:
			if err != nil {
				return u, db.cfg.explain("drop the slot", err)
			}
		}
	}
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		for _, name := range u.Publications {
			if err := exec(ctx, tx, "drop publication if exists "+quoteIdent(name)); err != nil {
				return err
			}
		}
		if u.Schema == "" {
			return nil
		}
		return exec(ctx, tx, "drop schema if exists webhooks cascade")
	})
	if SQLState(err) == codeNoPrivilege {
		reason := "the role may not drop the publications or the schema"
		if u.Slot != "" {
			reason = "the slot " + u.Slot + " is dropped, so no WAL is kept any more, but " + reason
		}
		return u, &Problem{Thing: "uninstall", Reason: reason, Remedy: "run it again as their owner", Fatal: true, Err: err}
	}
	return u, db.cfg.explain("drop the publications", err)
}

func (db *DB) uninstallation(ctx context.Context, tx pgx.Tx, dropData bool) (u Uninstallation, err error) {
	var (
		plugin, database, walStatus string
		ours, active, temporary     bool
	)
	err = tx.QueryRow(ctx, selectSlotState, db.cfg.Slot).Scan(&plugin, &database, &ours, &active, &walStatus, &temporary)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return u, err
	case !ours:
		return u, &Problem{Thing: fmt.Sprintf("replication slot %q", db.cfg.Slot),
			Reason: fmt.Sprintf("it belongs to something else (database %s, plugin %s)", database, plugin), Remedy: "correct outbox.slot", Fatal: true}
	case active:
		return u, slotInUse(db.cfg.Slot)
	default:
		u.Slot = db.cfg.Slot
	}
	schema, table := db.cfg.tableName()
	u.Publications, err = queryRows(ctx, tx, selectOwnPublications, pgx.RowTo[string],
		[]string{db.cfg.Publication, db.cfg.endpointsPublication()}, schema, table)
	if err != nil || !dropData {
		return u, err
	}
	var exists bool
	if err = tx.QueryRow(ctx, selectSchemaExists).Scan(&exists); exists {
		u.Schema = "webhooks"
	}
	return u, err
}

func slotInUse(slot string) *Problem {
	return &Problem{Thing: fmt.Sprintf("replication slot %q", slot), Reason: "an agent is connected", Remedy: "stop it first", Fatal: true}
}
