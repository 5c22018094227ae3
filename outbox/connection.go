package outbox

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const applicationName = "webhook-agent"

// sessionSettings are the same on every connection, whatever is set for the role, for the database,
// in the environment or in the URL: a parameter of the startup message takes precedence over all of
// them. All of these parameters exist since PostgreSQL 14. settle sets those that only some
// versions know, or that depend on the role.
var sessionSettings = map[string]string{
	// What is read is then signed and sent as UTF-8.
	"client_encoding": "UTF8",
	// Row-level security would hide rows from queries that the stream brings. With "off", such a
	// query fails. That is better than a comparison that finds nothing.
	"row_security": "off",
	// A time without zone means UTC, in queries and in the stream, whatever the server's own zone
	// is.
	"timezone": "UTC",
	// This is the text form of values, which the stream and some queries bring.
	"datestyle":          "ISO",
	"intervalstyle":      "iso_8601",
	"bytea_output":       "hex",
	"extra_float_digits": "1",
	// This fixes how the text of SQL is read, also in migrations.
	"standard_conforming_strings": "on",
	// default_transaction_read_only is left as it is. Managed servers set it when the disk is
	// nearly full.
	"default_transaction_isolation":  "read committed",
	"default_transaction_deferrable": "off",
	// The messages that a role asks PostgreSQL for do not belong in the agent's log.
	"client_min_messages": "warning",
	// A connection of the pool may wait long for its next use.
	"idle_session_timeout": "0",
	// No transaction of the agent waits long between its statements. An agent that was frozen must
	// not keep its locks for ever.
	"idle_in_transaction_session_timeout": "5min",
}

// fix sets a parameter of the session, even if the URL spells its name in another way.
func fix(cc *pgconn.Config, name, value string) {
	for other := range cc.RuntimeParams {
		if strings.EqualFold(other, name) {
			delete(cc.RuntimeParams, other)
		}
	}
	cc.RuntimeParams[name] = value
}

// connConfig parses URL and sets sessionSettings.
func (c Config) connConfig() (*pgx.ConnConfig, error) {
	cc, _, err := parseURL(c.URL)
	if err != nil {
		return nil, err
	}
	if _, ok := cc.RuntimeParams["application_name"]; !ok {
		cc.RuntimeParams["application_name"] = applicationName
	}
	for name, value := range sessionSettings {
		fix(&cc.Config, name, value)
	}
	return cc, nil
}

// replicationConfig returns the configuration of the replication connection. It sets
// wal_sender_timeout for the session, so that a standby takes over within seconds. It turns the
// other timeouts off, because they would end the wait for a new slot.
func (c Config) replicationConfig() (*pgconn.Config, error) {
	cc, err := c.connConfig()
	if err != nil {
		return nil, err
	}
	pc := cc.Config.Copy()
	pc.RuntimeParams["replication"] = "database"
	fix(pc, "wal_sender_timeout", fmt.Sprintf("%dms", senderTimeout.Milliseconds()))
	fix(pc, "statement_timeout", "0")
	fix(pc, "lock_timeout", "0")
	return pc, nil
}

// settings overrides synchronous_commit = off and leaves any other value as it is. What the
// checkpoint holds is confirmed to the server, which then removes the WAL before it. So a commit
// must be on disk when it returns. settings also puts PostgreSQL's own functions before functions
// of the same name in the role's search_path. The rest of search_path stays, since the types of an
// outbox may need it.
const settings = `
select case when current_setting('synchronous_commit') = 'off' then set_config('synchronous_commit', 'local', false) end,
       set_config('search_path', concat_ws(', ', 'pg_catalog', nullif(current_setting('search_path'), '')), false)`

// settle makes the settings of an ordinary connection that the startup message cannot make.
func settle(ctx context.Context, conn *pgx.Conn) error { return settleServer(ctx, conn.PgConn()) }

// settleServer does the same as settle, also for a replication connection. It takes one round trip.
func settleServer(ctx context.Context, conn *pgconn.PgConn) error {
	sql := []string{settings}
	if conn.ParameterStatus("server_encoding") == "SQL_ASCII" {
		// Texts are read without conversion. The server does not know their encoding. It would end
		// a whole statement, or the stream, at a byte that is not UTF-8. The agent finds such bytes
		// row by row (unfit).
		sql = append(sql, "set client_encoding = 'SQL_ASCII'")
	}
	version, _, _ := strings.Cut(conn.ParameterStatus("server_version"), ".")
	if major, err := strconv.Atoi(version); err == nil && major >= 17 {
		// The stream counts as a transaction for PostgreSQL, and that of a large transaction lasts
		// as long as its consumer takes.
		sql = append(sql, "set transaction_timeout = 0")
	}
	_, err := conn.Exec(ctx, strings.Join(sql, "; ")).ReadAll()
	return err
}

// connect opens an ordinary connection outside the pool. The caller decides how long its statements
// may take. The statement_timeout of the role does not apply: it would end an attempt to build an
// index again and again.
func connect(ctx context.Context, cc *pgx.ConnConfig) (*pgx.Conn, error) {
	fix(&cc.Config, "statement_timeout", "0")
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return nil, err
	}
	if err := settle(ctx, conn); err != nil {
		closeConn(conn)
		return nil, err
	}
	return conn, nil
}
