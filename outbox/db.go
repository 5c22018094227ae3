package outbox

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/quintago/webhook-agent/panics"
)

// poolSize bounds the connections beside the replication and the recording one: refilling lanes,
// looking up, monitoring, comparing, pruning.
const poolSize = 5

const (
	// connLifetime is how long a setting that was changed for the role or the database may stay
	// with a connection of the pool.
	connLifetime = time.Minute
	// answerTimeout is how long a statement may take, but for those that are unhurried. A
	// connection whose other end is gone without a word is noticed by it: behind a proxy or a
	// network translator, nothing else shows that.
	answerTimeout = 15 * time.Second
	pingTimeout   = 5 * time.Second
	closeTimeout  = 5 * time.Second
)

var errNoAnswer = fmt.Errorf("no answer from PostgreSQL in %s", answerTimeout)

// answered bounds the wait for an answer.
func answered(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
}

// DB is the agent's small pool of ordinary connections. Its own methods concern the database as a
// whole. What a leader needs is a Slot; what people see and change is a Venue, or AllVenues for the
// operator. All methods are safe for concurrent use.
type DB struct {
	pool  *pgxpool.Pool
	cfg   Config
	clock Clock
}

// Open prepares a pool; it connects when it is first used. It fails only on a URL that cannot be
// parsed.
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
	if cfg.pages {
		pc.MaxConns = pagePool
	}
	pc.MaxConnLifetime = connLifetime
	pc.AfterConnect = settle
	pc.PingTimeout = pingTimeout
	if cfg.Watchful {
		// What walks the outbox may take longer than is set for the role, and would begin anew for
		// ever.
		fix(&cc.Config, "statement_timeout", "0")
		fix(&cc.Config, "lock_timeout", "0")
		cc.Tracer = deadlines{}
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("prepare connection pool: %w", err)
	}
	return &DB{pool: pool, cfg: cfg}, nil
}

// deadlines gives each statement answerTimeout. It implements pgx.QueryTracer, whose context is the
// statement's.
type deadlines struct{}

type (
	cancelKey    struct{} // of the function that frees a statement's deadline
	unhurriedKey struct{} // of a mark that a statement has none
)

// unhurried lets a statement take as long as it takes.
func unhurried(ctx context.Context) context.Context {
	return context.WithValue(ctx, unhurriedKey{}, true)
}

// TraceQueryStart implements pgx.QueryTracer.
func (deadlines) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	if ctx.Value(unhurriedKey{}) != nil {
		return ctx
	}
	ctx, cancel := answered(ctx)
	return context.WithValue(ctx, cancelKey{}, cancel)
}

// TraceQueryEnd implements pgx.QueryTracer.
func (deadlines) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

// Close closes all connections of the pool. It waits for the server for closeTimeout at most.
func (db *DB) Close() {
	closed := make(chan struct{})
	go panics.GuardFunc(db.cfg.Caught, func() { // ends with the pool
		defer close(closed)
		db.pool.Close()
	})()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
	}
}

// Reset closes the idle connections. Later calls use new ones.
func (db *DB) Reset() { db.pool.Reset() }

// ServerAddrs returns the addresses that the configured hosts of the database resolve to, for the
// sink's deny list. A Unix socket has none. The error is a Problem if a name cannot be resolved.
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
			return nil, &Problem{Thing: "database host " + host, Reason: "its name cannot be resolved: " + err.Error(),
				Remedy: "correct database.url, or this host's DNS", Err: err}
		}
		addrs = append(addrs, found...)
	}
	return addrs, nil
}

// minServerVersion is the oldest PostgreSQL whose pgoutput and snapshot functions the agent relies
// on.
const minServerVersion = 140000

const selectServerVersion = `select current_setting('server_version_num')::int`

func (db *DB) serverVersion(ctx context.Context) (version int, err error) {
	err = db.pool.QueryRow(ctx, selectServerVersion).Scan(&version)
	return version, db.cfg.explain("read the server's version", err)
}

const selectReplicationMembership = `
select exists (select from pg_roles where rolname = 'rds_replication' and pg_has_role(current_user, oid, 'member'))`

func (db *DB) replicationByMembership(ctx context.Context) (member bool, err error) {
	err = db.pool.QueryRow(ctx, selectReplicationMembership).Scan(&member)
	return member, db.cfg.explain("look at the role", err)
}
