package outbox

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5"
)

const (
	// connectionsNeeded is the most connections that one agent opens: the pool, that of the pages,
	// the Ledger's, the stream's, the one that reads the database's time zone if the outbox's times
	// have none, and one of a command that runs beside it.
	connectionsNeeded = poolSize + pagePool + 4
	// leastConnections is how many connections a leader needs at least: one of the pool, the
	// Ledger's, and the stream's.
	leastConnections = 3
)

const selectEncoding = `select current_setting('server_encoding')`

// checkEncoding reports the encoding of the database. The agent's own connections always use UTF8.
func (db *DB) checkEncoding(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	var encoding string
	if err := tx.QueryRow(ctx, selectEncoding).Scan(&encoding); err != nil {
		return nil, err
	}
	switch encoding {
	case "UTF8":
		return []Finding{fine("encoding", "UTF8")}, nil
	case "SQL_ASCII":
		return []Finding{warning("encoding", "move the app to a database whose encoding is UTF8",
			"the database's is SQL_ASCII: what is not UTF-8 in an event fails its delivery")}, nil
	}
	return []Finding{fine("encoding", "the database's is %s; the agent reads it as UTF8", encoding)}, nil
}

// selectLimits returns -1 where there is no limit, as for superusers. Of the connections of the
// server, some are reserved for superusers, and since PostgreSQL 16 some for another role.
const selectLimits = `
select r.rolname::text, case when r.rolsuper then -1 else r.rolconnlimit end,
       d.datname::text, case when r.rolsuper then -1 else d.datconnlimit end,
       current_setting('max_connections')::int
       - case when r.rolsuper then 0 else current_setting('superuser_reserved_connections')::int end
       - case when pg_has_role(to_regrole('pg_use_reserved_connections'), 'USAGE') then 0
              else coalesce(current_setting('reserved_connections', true)::int, 0) end
from pg_roles r, pg_database d where r.rolname = current_user and d.datname = current_database()`

// checkConnections compares the limits of the role, of the database and of the server with what the
// agent needs. That of the server does not count the stream (max_wal_senders does).
func (db *DB) checkConnections(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	var (
		role, database                        string
		roleLimit, databaseLimit, serverLimit int
	)
	if err := tx.QueryRow(ctx, selectLimits).Scan(&role, &roleLimit, &database, &databaseLimit, &serverLimit); err != nil {
		return nil, err
	}
	const stream = 1
	for _, of := range []struct {
		limit, beside  int
		reason, remedy string
	}{
		{roleLimit, 0, "the connection limit of " + role + " is", "ALTER ROLE " + quoteIdent(role) + " CONNECTION LIMIT -1"},
		{databaseLimit, 0, "the connection limit of " + database + " is", "ALTER DATABASE " + quoteIdent(database) + " CONNECTION LIMIT -1"},
		{serverLimit, stream, "the connections that max_connections leaves to the role are", "raise max_connections and restart PostgreSQL"},
	} {
		if of.limit < 0 || of.limit >= connectionsNeeded-of.beside {
			continue
		}
		say := warning
		if of.limit < leastConnections-of.beside {
			say = failure
		}
		found = append(found, say("connections", of.remedy, "%s %d, the agent needs %d", of.reason, of.limit, connectionsNeeded-of.beside))
	}
	if len(found) == 0 {
		found = append(found, fine("connections", "the limits leave room for %d", connectionsNeeded))
	}
	return found, nil
}

// checkReplication opens a replication connection as the agent does. pg_hba.conf, a pooler or a
// limit may refuse it although ordinary connections work.
func (db *DB) checkReplication(ctx context.Context) Finding {
	const thing = "replication connection"
	ctx, cancel := answered(ctx)
	defer cancel()
	tailer := NewTailer(db.cfg, slog.New(slog.DiscardHandler))
	defer tailer.Close()
	if err := tailer.Connect(ctx); err != nil {
		if SQLState(err) == codeNoPrivilege && tailer.System.SystemID != "" {
			return fine(thing, "the server opens it") // checkPrivileges says what the role may not read over it
		}
		f := AsFinding(err)
		f.Thing, f.Reason = thing, "it cannot be opened: "+f.Thing+": "+f.Reason
		if SQLState(err) == codeTooManyConnections {
			// An agent may hold them; the checks of the limits say what is too low.
			f.Level = LevelWarn
		}
		return f
	}
	return fine(thing, "the server opens it")
}
