package outbox

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/crashpoint"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

const versionTable = "webhooks.schema_version"

// migrationLock is the key of the advisory lock that lets one migration run at a time. Its value is
// the bytes of "webhook" and a one.
const migrationLock int64 = 0x776562686f6f6b01

// migration brings the schema from one version to the next.
type migration struct{ name, sql string }

// migrations returns the embedded migrations, first to last. Number n leads to version n. They only
// go forward, and they change no setting of the session.
func migrations() ([]migration, error) {
	paths, err := fs.Glob(migrationFiles, "migrations/*.sql") // sorted by name
	if err != nil {
		return nil, err
	}
	var ms []migration
	for _, p := range paths {
		sql, err := migrationFiles.ReadFile(p)
		if err != nil {
			return nil, err
		}
		ms = append(ms, migration{name: path.Base(p), sql: strings.TrimSpace(string(sql))})
	}
	return ms, nil
}

// SchemaVersion is the version of the schema that this binary works with.
func SchemaVersion() int {
	ms, err := migrations()
	if err != nil {
		panic(err) // the files are embedded, so only a broken build gets here
	}
	return len(ms)
}

// Migrate brings the schema webhooks and the publications to the state that this binary needs. It
// returns the versions before and after. It may run under another role than the agent's: one that
// may create schemas and that owns the outbox table. Migrations that run at the same time wait for
// each other. If the schema is newer than the binary, the error is a Problem.
func Migrate(ctx context.Context, cfg Config) (from, to int, err error) {
	cc, err := cfg.connConfig()
	if err != nil {
		return 0, 0, err
	}
	conn, err := connect(ctx, cc)
	if err != nil {
		return 0, 0, cfg.explain("connect", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	// The lock ends with the connection.
	if _, err := conn.Exec(ctx, `select pg_advisory_lock($1)`, migrationLock); err != nil {
		return 0, 0, cfg.explain("lock migrations", err)
	}
	if _, err := conn.Exec(ctx, `create schema if not exists webhooks`); err != nil {
		return 0, 0, cfg.explain("create schema webhooks", err)
	}
	ms, err := migrations()
	if err != nil {
		return 0, 0, err
	}
	if err := prepareVersion(ctx, conn); err != nil {
		return 0, 0, cfg.explain("prepare "+versionTable, err)
	}
	version, err := readVersion(ctx, conn)
	if err != nil {
		return 0, 0, cfg.explain("read "+versionTable, err)
	}
	if version > len(ms) {
		return version, version, schemaNewer(version)
	}
	for i, m := range ms[version:] {
		if err := m.apply(ctx, conn, version+i+1); err != nil {
			return 0, 0, cfg.explain("migrate "+m.name, err)
		}
	}
	crashpoint.Hit(crashpoint.InMigration)
	if err := cfg.ensurePublications(ctx, conn); err != nil {
		return 0, 0, err
	}
	return version, len(ms), nil
}

// The version is one row of a table without a key. The replica identity makes updates possible even
// if another system publishes all tables. Databases of early agents lack the identity.
const (
	selectVersionIdentified = `select relreplident = 'f' from pg_class where oid = to_regclass('` + versionTable + `')`
	createVersionTable      = `create table if not exists ` + versionTable + ` (version int4 not null)`
	identifyVersionTable    = `alter table ` + versionTable + ` replica identity full`
	insertVersion           = `insert into ` + versionTable + ` (version) values (0)`
	updateVersion           = `update ` + versionTable + ` set version = $1`
)

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

// readVersion returns the version of the schema, 0 before the first migration.
func readVersion(ctx context.Context, q querier) (version int, err error) {
	err = q.QueryRow(ctx, selectSchemaVersion).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && version < 0 {
		return 0, &Problem{Thing: versionTable, Reason: "it does not say which version the schema has",
			Remedy: "give it one row, with the schema number that webhook-agent version shows of the binary that migrated last", Fatal: true, Err: err}
	}
	return version, err
}

// apply runs the migration and records its version, both or neither.
func (m migration) apply(ctx context.Context, conn *pgx.Conn, version int) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := exec(ctx, tx, m.sql); err != nil {
			return err
		}
		return exec(ctx, tx, updateVersion, version)
	})
}

// PrintMigrations returns the SQL that Migrate would run on an empty database. It is for people who
// run their migrations themselves. It is one transaction, so a failure leaves nothing behind.
func PrintMigrations(cfg Config) (string, error) {
	ms, err := migrations()
	if err != nil {
		return "", err
	}
	return printMigrations(cfg, ms), nil
}

func printMigrations(cfg Config, ms []migration) string {
	var b strings.Builder
	b.WriteString("-- The schema of the webhook agent, for an empty database: one that holds no schema webhooks.\n\nbegin;\n\n")
	b.WriteString("create schema if not exists webhooks;\n")
	b.WriteString(createVersionTable + ";\n" + identifyVersionTable + ";\n")
	for _, m := range ms {
		fmt.Fprintf(&b, "\n-- %s\n%s\n", m.name, m.sql)
	}
	fmt.Fprintf(&b, "\ninsert into %s (version) values (%d);\n\n", versionTable, len(ms))
	for _, p := range cfg.publications() {
		b.WriteString(p.create() + ";\n")
	}
	b.WriteString("\ncommit;\n")
	return b.String()
}

func schemaNewer(version int) error {
	return &Problem{Thing: "schema webhooks", Reason: fmt.Sprintf("it has version %d, this binary knows versions up to %d", version, SchemaVersion()),
		Remedy: "run a newer webhook-agent", Fatal: true}
}
