package outbox

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"

	"github.com/quintago/webhook-agent/crashpoint"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

const versionTable = "webhooks.schema_version"

// migrationLock is the key of the advisory lock that lets one migration run at a time: the bytes of "webhook" and a
// one.
const migrationLock int64 = 0x776562686f6f6b01

// migrations returns the embedded migrations, first to last. They only go forward.
func migrations() ([]*migrate.Migration, error) {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return nil, err
	}
	m, err := migrate.NewMigrator(context.Background(), nil, versionTable)
	if err != nil {
		return nil, err
	}
	if err := m.LoadMigrations(files); err != nil {
		return nil, fmt.Errorf("load migrations: %w", err)
	}
	return m.Migrations, nil
}

// SchemaVersion is the version of the schema that this binary works with.
func SchemaVersion() int {
	ms, err := migrations()
	if err != nil {
		panic(err) // the files are embedded: only a broken build gets here
	}
	return len(ms)
}

// Migrate brings the schema webhooks and the publications to the state this binary needs, and returns the versions
// before and after. It may run under another role than the agent: one that may create schemas and owns the outbox
// table. Migrations that run at the same time wait for each other. A schema newer than the binary is a Problem.
func Migrate(ctx context.Context, cfg Config) (from, to int, err error) {
	cc, err := cfg.connConfig()
	if err != nil {
		return 0, 0, err
	}
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return 0, 0, cfg.explain("connect", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	// The lock goes with the connection. tern takes one of its own, but only after it has made its version table.
	if _, err := conn.Exec(ctx, `select pg_advisory_lock($1)`, migrationLock); err != nil {
		return 0, 0, cfg.explain("lock migrations", err)
	}
	if _, err := conn.Exec(ctx, `create schema if not exists webhooks`); err != nil {
		return 0, 0, cfg.explain("create schema webhooks", err)
	}
	m, err := migrate.NewMigrator(ctx, conn, versionTable)
	if err != nil {
		return 0, 0, cfg.explain("create "+versionTable, err)
	}
	if m.Migrations, err = migrations(); err != nil {
		return 0, 0, err
	}
	if err := identifyVersion(ctx, conn); err != nil {
		return 0, 0, cfg.explain("prepare "+versionTable, err)
	}
	version, err := m.GetCurrentVersion(ctx)
	if err != nil {
		return 0, 0, cfg.explain("read "+versionTable, err)
	}
	if int(version) > len(m.Migrations) {
		return int(version), int(version), schemaNewer(int(version))
	}
	if err := m.Migrate(ctx); err != nil {
		if me, ok := errors.AsType[migrate.MigrationPgError](err); ok {
			return 0, 0, cfg.explain("migrate "+me.MigrationName, me.PgError)
		}
		return 0, 0, cfg.explain("migrate", err)
	}
	crashpoint.Hit(crashpoint.InMigration)
	if err := cfg.ensurePublications(ctx, conn); err != nil {
		return 0, 0, err
	}
	return int(version), len(m.Migrations), nil
}

const (
	selectVersionIdentified = `select relreplident = 'f' from pg_class where oid = '` + versionTable + `'::regclass`
	identifyVersionTable    = `alter table ` + versionTable + ` replica identity full`
)

// identifyVersion lets the table of the version, which has no key, be updated also when another system publishes all tables.
func identifyVersion(ctx context.Context, conn *pgx.Conn) error {
	var identified bool
	if err := conn.QueryRow(ctx, selectVersionIdentified).Scan(&identified); err != nil || identified {
		return err
	}
	return exec(ctx, conn, identifyVersionTable)
}

// PrintMigrations returns the SQL that Migrate would run on an empty database, for people who run their own migrations:
// one transaction, so that it leaves nothing behind when it fails.
func PrintMigrations(cfg Config) (string, error) {
	ms, err := migrations()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("-- The schema of the webhook agent, for an empty database: one that holds no schema webhooks.\n\nbegin;\n\n")
	b.WriteString("create schema if not exists webhooks;\n")
	fmt.Fprintf(&b, "create table if not exists %s (version int4 not null);\n%s;\n", versionTable, identifyVersionTable)
	for _, m := range ms {
		fmt.Fprintf(&b, "\n-- %s\n%s\n", m.Name, m.UpSQL)
	}
	fmt.Fprintf(&b, "\ninsert into %s (version) values (%d);\n\n", versionTable, len(ms))
	for _, p := range cfg.publications() {
		b.WriteString(p.create() + ";\n")
	}
	b.WriteString("\ncommit;\n")
	return b.String(), nil
}

// publication is one of the two that the agent streams.
type publication struct {
	name    string
	tables  []string // quoted
	publish string
	options string // further ones
}

// publications returns what must exist before the slot does: a change that is decoded at a position where its
// publication did not exist yet ends the stream.
func (c Config) publications() []publication {
	return []publication{
		{c.Publication, []string{c.table(), "webhooks.replays"}, "insert", ""},
		{c.endpointsPublication(), []string{"webhooks.endpoints"}, "insert, update, delete, truncate", ""},
	}
}

func (p publication) create() string {
	return fmt.Sprintf("create publication %s for table %s with (publish = '%s', publish_via_partition_root = true%s)",
		quoteIdent(p.name), strings.Join(p.tables, ", "), p.publish, p.options)
}

func (c Config) ensurePublications(ctx context.Context, conn *pgx.Conn) error {
	publications, err := c.publicationsOn(ctx, conn)
	if err != nil {
		return c.explain("look at the outbox", err)
	}
	for _, p := range publications {
		var exists bool
		err := conn.QueryRow(ctx, `select exists (select from pg_publication where pubname = $1)`, p.name).Scan(&exists)
		if err != nil {
			return c.explain("look for publication "+p.name, err)
		}
		if exists {
			continue
		}
		if _, err := conn.Exec(ctx, p.create()); err != nil {
			if pe, ok := errors.AsType[*pgconn.PgError](err); ok && pe.Code == codeNoTable {
				return &Problem{Thing: "outbox.table " + c.Table, Reason: "there is no such table", Remedy: "correct outbox.table or create it", Fatal: true, Err: err}
			}
			if pe, ok := errors.AsType[*pgconn.PgError](err); ok && slices.Contains([]string{codeWrongObject, codeInvalidParameter, codeFeature}, pe.Code) {
				return &Problem{Thing: "outbox.table " + c.Table, Reason: "it cannot be streamed, since it is a view, or a foreign, unlogged or temporary table",
					Remedy: "name the logged table that the app inserts into (ALTER TABLE " + c.table() + " SET LOGGED for an unlogged one)", Fatal: true, Err: err}
			}
			return c.explain("create publication "+p.name, err)
		}
	}
	return nil
}

func schemaNewer(version int) error {
	return &Problem{Thing: "schema webhooks", Reason: fmt.Sprintf("it has version %d, this binary knows versions up to %d", version, SchemaVersion()),
		Remedy: "run a newer webhook-agent", Fatal: true}
}
