package outbox

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// poolSize bounds the connections beside the replication and the recording one: refilling lanes, looking up, monitoring.
const poolSize = 4

// DB is the agent's small pool of ordinary connections. Its methods are safe for concurrent use.
type DB struct {
	pool       *pgxpool.Pool
	cfg        Config
	idTypeName atomic.Pointer[string] // set by loadIDType
}

// Open prepares a pool; it connects when it is first used. It fails only on a URL that cannot be parsed.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	cc, err := cfg.connConfig()
	if err != nil {
		return nil, err
	}
	// An empty URL parses to the defaults; the parsed configuration then replaces them.
	pc, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, fmt.Errorf("prepare connection pool: %w", err)
	}
	pc.ConnConfig = cc
	pc.MaxConns = poolSize
	pc.MaxConnIdleTime = 5 * time.Minute
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("prepare connection pool: %w", err)
	}
	return &DB{pool: pool, cfg: cfg}, nil
}

// Close closes all connections of the pool.
func (db *DB) Close() { db.pool.Close() }

// ServerAddrs returns the addresses that the configured hosts of the database resolve to, for the sink's deny list. A Unix socket has none.
func (c Config) ServerAddrs(ctx context.Context, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)) ([]netip.Addr, error) {
	cc, err := c.connConfig()
	if err != nil {
		return nil, err
	}
	hosts := []string{cc.Host}
	for _, f := range cc.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	var addrs []netip.Addr
	for _, host := range hosts {
		if host == "" || strings.HasPrefix(host, "/") {
			continue
		}
		found, err := lookup(ctx, "ip", host)
		if err != nil {
			return nil, fmt.Errorf("resolve database host %s: %w", host, err)
		}
		addrs = append(addrs, found...)
	}
	return addrs, nil
}

const selectPreflight = `
select current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'),
       coalesce((select rolreplication or rolsuper from pg_roles where rolname = current_user), false),
       to_regclass('webhooks.schema_version') is not null, current_user`

const selectSchemaVersion = `select version from webhooks.schema_version`

// minServerVersion is the oldest PostgreSQL whose pgoutput and snapshot functions the agent relies on.
const minServerVersion = 140000

// Preflight returns the first Problem that keeps an agent from streaming, or nil. Command check tells more.
func (db *DB) Preflight(ctx context.Context) error {
	var (
		version                            int
		recovery, mayReplicate, haveSchema bool
		walLevel, user                     string
	)
	err := db.pool.QueryRow(ctx, selectPreflight).Scan(&version, &recovery, &walLevel, &mayReplicate, &haveSchema, &user)
	if err != nil {
		return db.cfg.explain("look at the server", err)
	}
	switch {
	case version < minServerVersion:
		return &Problem{Thing: "PostgreSQL", Reason: fmt.Sprintf("version %d is too old", version/10000), Remedy: "use version 14 or newer", Fatal: true}
	case recovery:
		return &Problem{Thing: "PostgreSQL", Reason: "this server is a standby, which cannot record deliveries", Remedy: "point database.url at the primary"}
	case walLevel != "logical":
		return &Problem{Thing: "wal_level", Reason: "it is " + walLevel + ", the stream needs logical",
			Remedy: "ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL", Fatal: true}
	case !mayReplicate:
		// Managed services grant the right by membership instead of the attribute, so this one is left to START_REPLICATION there.
		member, err := db.replicationByMembership(ctx)
		if err != nil {
			return err
		}
		if !member {
			return &Problem{Thing: fmt.Sprintf("role %q", user), Reason: "it lacks the REPLICATION attribute",
				Remedy: "ALTER ROLE " + quoteIdent(user) + " REPLICATION", Fatal: true}
		}
	}
	if !haveSchema {
		return &Problem{Thing: "schema webhooks", Reason: "it is missing in this database", Remedy: "run webhook-agent migrate", Fatal: true}
	}
	var schema int
	if err := db.pool.QueryRow(ctx, selectSchemaVersion).Scan(&schema); err != nil {
		return db.cfg.explain("read the schema version", err)
	}
	switch want := SchemaVersion(); {
	case schema < want:
		return &Problem{Thing: "schema webhooks", Reason: fmt.Sprintf("it has version %d, this binary needs %d", schema, want),
			Remedy: "run webhook-agent migrate", Fatal: true}
	case schema > want:
		return schemaNewer(schema)
	}
	return db.preflightPublications(ctx)
}

const selectReplicationMembership = `
select exists (select from pg_roles where rolname = 'rds_replication' and pg_has_role(current_user, oid, 'member'))`

func (db *DB) replicationByMembership(ctx context.Context) (member bool, err error) {
	err = db.pool.QueryRow(ctx, selectReplicationMembership).Scan(&member)
	return member, db.cfg.explain("look at the role", err)
}

const selectPublished = `
select pubname from pg_publication_tables
where (pubname = $1 and schemaname = $2 and tablename = $3)
   or (pubname = $1 and schemaname = 'webhooks' and tablename = 'replays')
   or (pubname = $4 and schemaname = 'webhooks' and tablename = 'endpoints')`

// preflightPublications sees that the tables are published. A table that is not would be skipped without a word.
func (db *DB) preflightPublications(ctx context.Context) error {
	schema, table := db.cfg.tableName()
	rows, err := db.pool.Query(ctx, selectPublished, db.cfg.Publication, schema, table, db.cfg.endpointsPublication())
	if err != nil {
		return db.cfg.explain("look at the publications", err)
	}
	defer rows.Close()
	found := map[string]int{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return db.cfg.explain("look at the publications", err)
		}
		found[name]++
	}
	if err := rows.Err(); err != nil {
		return db.cfg.explain("look at the publications", err)
	}
	for name, want := range map[string]int{db.cfg.Publication: 2, db.cfg.endpointsPublication(): 1} {
		if found[name] < want {
			return &Problem{Thing: fmt.Sprintf("publication %q", name), Reason: "it is missing or does not hold its tables",
				Remedy: "run webhook-agent migrate, or correct outbox.table and outbox.publication", Fatal: true}
		}
	}
	return nil
}
