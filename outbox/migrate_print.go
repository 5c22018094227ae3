package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// PrintMigrations returns the SQL that Migrate would run on a database whose schema has the version
// from; 0 stands for a database without the schema. It is for people who run their migrations
// themselves. It is one transaction, so a failure leaves nothing behind.
func PrintMigrations(cfg Config, from int) (string, error) {
	ms, err := cfg.known()
	if err != nil {
		return "", err
	}
	return printMigrations(cfg, ms, from), nil
}

func printMigrations(cfg Config, ms []migration, from int) string {
	var b strings.Builder
	if from == 0 {
		b.WriteString("-- The schema of the webhook agent, for an empty database: one that holds no schema webhooks.\n\nbegin;\n\n")
		b.WriteString("create schema if not exists webhooks;\n")
	} else {
		fmt.Fprintf(&b, "-- The schema of the webhook agent, for a database whose schema webhooks has version %d (webhook-agent status shows it).\n", from)
		b.WriteString("-- Where a lock is not to be had within a second, it fails and leaves nothing behind: run it again.\n\nbegin;\n\n")
		fmt.Fprintf(&b, "set local lock_timeout = '%dms';\n", longLockTimeout.Milliseconds())
		fmt.Fprintf(&b, requireVersion, from, from)
	}
	b.WriteString(createVersionTable + ";\n" + identifyVersionTable + ";\n")
	for _, m := range ms[from:] {
		fmt.Fprintf(&b, "\n-- %s\n%s\n", m.name, m.sql)
	}
	if from == 0 {
		b.WriteString("\n" + insertVersion + ";")
	}
	if from < len(ms) {
		fmt.Fprintf(&b, "\nupdate %s set %s;\n", versionTable, ms[len(ms)-1].setVersion(len(ms)))
	}
	b.WriteString("\n")
	for _, p := range cfg.publications() {
		fmt.Fprintf(&b, createMissingPublication, quoteText(p.name), p.create())
		for _, table := range p.tables {
			fmt.Fprintf(&b, addMissingTable, holds(quoteText(p.name), quoteText(table)+"::regclass"), p.add([]string{table}))
		}
		b.WriteString(endPublication)
	}
	b.WriteString("\ncommit;\n")
	return b.String()
}

// requireVersion ends the transaction in a database of another version.
const requireVersion = `do $$
begin
    if (select version from ` + versionTable + `) is distinct from %d then
        raise exception 'this is for a database whose schema webhooks has version %d, and here it has %%', (select version from ` + versionTable + `);
    end if;
end
$$;
`

// These are the parts of a statement that makes a publication, or adds the tables that it lacks. The
// agent adds children by inheritance that came after the publication.
const (
	createMissingPublication = `do $publication$
begin
    if not exists (select from pg_publication where pubname = %s) then
        %s;
    end if;
`
	addMissingTable = `    if not %s then
        %s;
    end if;
`
	endPublication = `end
$publication$;
`
)

// MigrationPlan is what a Migrator would do.
type MigrationPlan struct {
	From         int             `json:"from"`
	To           int             `json:"to"`
	Migrations   []PlannedChange `json:"migrations"`
	Publications []string        `json:"publications"` // that would be created
	// Additions are the tables that would be added to publications that exist.
	Additions []PlannedAddition `json:"additions"`
}

// PlannedAddition is what a publication lacks that exists.
type PlannedAddition struct {
	Publication string   `json:"publication"`
	Tables      []string `json:"tables"`
}

// PlannedChange is one migration of a plan.
type PlannedChange struct {
	Name       string        `json:"name"`
	Expansion  bool          `json:"expansion"`  // every binary that works with the schema before works with the one after
	Compatible int           `json:"compatible"` // the oldest binary that works with the schema after, by the schema that it knows
	Locks      []PlannedLock `json:"locks"`
	Costs      string        `json:"costs"` // empty where the time does not go by the number of rows
}

// PlannedLock is a lock that others may have to wait for, if only a VACUUM.
type PlannedLock struct {
	Table string `json:"table"`
	Mode  string `json:"mode"`
	Rows  int64  `json:"rows"` // about as many as PostgreSQL believes that the table has; 0 if the table is new
}

const selectRowEstimate = `
select coalesce(max(greatest(c.reltuples, 0)), 0)::bigint from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname || '.' || c.relname = $1`

// PlanMigration says what a Migrator would do. It changes nothing.
func (db *DB) PlanMigration(ctx context.Context) (plan MigrationPlan, err error) {
	err = db.look(ctx, "plan the migration", func(tx pgx.Tx) error {
		plan = MigrationPlan{Migrations: []PlannedChange{}, Publications: []string{}, Additions: []PlannedAddition{}}
		schema := SchemaInfo{Binary: db.cfg.binary()}
		var exists bool
		err := tx.QueryRow(ctx, selectSchema).Scan(&exists)
		if err == nil && exists {
			schema, err = db.cfg.readSchema(ctx, tx)
		}
		if err != nil {
			return err
		}
		if f := schema.judge(); f.fails() && schema.Version > schema.Binary {
			return f.problem()
		}
		if err := db.cfg.planChanges(ctx, tx, &plan, schema.Version); err != nil {
			return err
		}
		return db.cfg.planPublications(ctx, tx, &plan)
	})
	return plan, err
}

func (c Config) planPublications(ctx context.Context, tx pgx.Tx, plan *MigrationPlan) error {
	for _, p := range c.publications() {
		state, err := c.publicationState(ctx, tx, p)
		if err != nil {
			return err
		}
		lacking := slices.Concat(state.missing, state.absent)
		switch {
		case !state.exists:
			plan.Publications = append(plan.Publications, p.name)
		case len(lacking) > 0:
			if err := c.obstacle(ctx, tx, p, state); err != nil {
				return err
			}
			plan.Additions = append(plan.Additions, PlannedAddition{p.name, lacking})
		}
	}
	return nil
}

func (c Config) planChanges(ctx context.Context, tx pgx.Tx, plan *MigrationPlan, from int) error {
	ms, err := c.known()
	if err != nil {
		return err
	}
	plan.From, plan.To = from, max(from, len(ms))
	for _, m := range ms[min(from, len(ms)):] {
		change := PlannedChange{Name: m.name, Expansion: m.expansion, Compatible: m.compatible, Locks: []PlannedLock{}, Costs: m.costs}
		for _, lock := range m.locks {
			planned := PlannedLock{Table: lock.table, Mode: lock.mode}
			if err := tx.QueryRow(ctx, selectRowEstimate, lock.table).Scan(&planned.Rows); err != nil {
				return err
			}
			change.Locks = append(change.Locks, planned)
		}
		plan.Migrations = append(plan.Migrations, change)
	}
	return nil
}
