package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/crashpoint"
)

const versionTable = "webhooks.schema_version"

// migrationLock is the key of the advisory lock that lets one migration run at a time. Its value is
// the bytes of "webhook" and a one.
const migrationLock int64 = 0x776562686f6f6b01

// Migrator brings the schema webhooks and the publications to the state that a binary needs. It may
// run under another role than the agent's: one that may create schemas and that owns the outbox
// table. Migrators that run at the same time wait for each other.
type Migrator struct {
	Config Config
	// Progress is called with what takes long (what waits for a lock and who holds it), and with what
	// was added to a publication. It may be nil.
	Progress func(text string)
	// Patience is how long it tries to get the locks of one thing, such as a migration. Zero means
	// 5 minutes.
	Patience time.Duration
}

// Migrate runs a Migrator that says nothing while it waits.
func Migrate(ctx context.Context, cfg Config) (from, to int, err error) {
	return Migrator{Config: cfg}.Run(ctx)
}

// Run returns the versions before and after. A schema that is newer than the binary, and works with
// it, is left as it is: so the migration of a release that is rolled back does not fail. If the
// schema is too new, the error is a Problem.
func (m Migrator) Run(ctx context.Context) (from, to int, err error) {
	cfg := m.Config
	cc, err := cfg.connConfig()
	if err != nil {
		return 0, 0, err
	}
	fix(&cc.Config, "lock_timeout", "0") // each migration has its own
	conn, err := connect(ctx, cc)
	if err != nil {
		return 0, 0, cfg.explain("connect", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	if err := lockMigrations(ctx, conn); err != nil {
		return 0, 0, cfg.explain("lock migrations", err)
	}
	if err := createSchema(ctx, conn); err != nil {
		return 0, 0, cfg.explain("create schema webhooks", err)
	}
	if err := prepareVersion(ctx, conn); err != nil {
		return 0, 0, cfg.explain("prepare "+versionTable, err)
	}
	schema, err := cfg.readSchema(ctx, conn)
	if err != nil {
		return 0, 0, cfg.explain("read "+versionTable, err)
	}
	if f := schema.judge(); f.fails() && schema.Version > schema.Binary {
		return schema.Version, schema.Version, f.problem()
	}
	ms, err := cfg.known()
	if err != nil {
		return 0, 0, err
	}
	for version := schema.Version + 1; version <= len(ms); version++ {
		if err := m.apply(ctx, conn, ms[version-1], version); err != nil {
			return 0, 0, cfg.explain("migrate "+ms[version-1].name, err)
		}
	}
	crashpoint.Hit(crashpoint.InMigration)
	if err := m.ensurePublications(ctx, conn); err != nil {
		return 0, 0, err
	}
	return schema.Version, max(schema.Version, len(ms)), nil
}

// lockMigrations waits until no other Migrator runs. The lock ends with the connection. It asks
// again and again: a session that waits in a statement has a snapshot, and an index that is built
// CONCURRENTLY waits for that.
func lockMigrations(ctx context.Context, conn *pgx.Conn) error {
	for {
		var locked bool
		if err := conn.QueryRow(ctx, `select pg_try_advisory_lock($1)`, migrationLock).Scan(&locked); err != nil || locked {
			return err
		}
		if !backoff.Sleep(ctx, migrationPause) {
			return context.Cause(ctx)
		}
	}
}

// The version is one row of a table without a key. The replica identity makes updates possible even
// if another system publishes all tables. Databases of early agents lack the identity.
const (
	selectVersionIdentified = `select relreplident = 'f' from pg_class where oid = to_regclass('` + versionTable + `')`
	createVersionTable      = `create table if not exists ` + versionTable + ` (version int4 not null)`
	identifyVersionTable    = `alter table ` + versionTable + ` replica identity full`
	insertVersion           = `insert into ` + versionTable + ` (version) values (0)`
)

// Migrations 18 and 19 gave the version its other columns.
const (
	hasCompatible = 18
	hasMigrated   = 19
)

// setVersion returns the assignments that say that the schema has a version.
func (m migration) setVersion(version int) string {
	switch {
	case version >= hasMigrated:
		return fmt.Sprintf("version = %d, compatible = %d, migrated = now()", version, m.compatible)
	case version >= hasCompatible:
		return fmt.Sprintf("version = %d, compatible = %d", version, m.compatible)
	}
	return fmt.Sprintf("version = %d", version)
}

// createSchema looks first: a role that owns the schema, and may create no other, can migrate.
func createSchema(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	err := conn.QueryRow(ctx, `select to_regnamespace('webhooks') is not null`).Scan(&exists)
	if err != nil || exists {
		return err
	}
	return exec(ctx, conn, `create schema if not exists webhooks`)
}

// prepareVersion makes the table of the version if it is missing. It looks first, so that a role
// that may not create tables can still find that there is nothing to do.
func prepareVersion(ctx context.Context, conn *pgx.Conn) error {
	var identified bool
	err := conn.QueryRow(ctx, selectVersionIdentified).Scan(&identified)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return exec(ctx, conn, createVersionTable+"; "+identifyVersionTable+"; "+insertVersion) // one transaction
	case err != nil || identified:
		return err
	}
	return exec(ctx, conn, identifyVersionTable)
}

// ExplainMigration returns the error of a Migrator in words for a role that PostgreSQL refused. If
// the role can see that the schema is newer than the binary, the error says so, since no privilege
// helps then. Otherwise it says who may migrate. Any other error is returned as it is.
func ExplainMigration(ctx context.Context, cfg Config, err error) error {
	refused, isProblem := errors.AsType[*Problem](err)
	if !isProblem || SQLState(err) != codeNoPrivilege {
		return err
	}
	db, openErr := Open(ctx, cfg)
	if openErr != nil {
		return err
	}
	defer db.Close()
	schema, lookErr := db.schemaIfReadable(ctx)
	if lookErr != nil {
		return err
	}
	if f := schema.judge(); schema.Version > schema.Binary && f.fails() {
		return f.problem()
	}
	return &Problem{Thing: refused.Thing, Reason: refused.Reason, Remedy: "run migrate as the owner of the database", Fatal: true, Err: err}
}

// schemaIfReadable returns the version of the schema, or 0 where the role cannot see it.
func (db *DB) schemaIfReadable(ctx context.Context) (schema SchemaInfo, err error) {
	err = db.look(ctx, "read "+versionTable, func(tx pgx.Tx) error {
		ok, err := readable(ctx, tx, versionTable)
		if err != nil || !ok {
			return err
		}
		schema, err = db.cfg.readSchema(ctx, tx)
		return err
	})
	return schema, err
}
