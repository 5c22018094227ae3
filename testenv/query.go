package testenv

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// objectInUse is the SQLSTATE of dropping a database that has an active replication slot.
const objectInUse = "55006"

// ExecSQL runs statements without parameters on a connection of its own.
func ExecSQL(ctx context.Context, url, sql string) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

// Exec runs one statement as the owner of the database, as the app would. It returns the number of
// rows that the statement affected.
func (db *DB) Exec(t testing.TB, sql string, args ...any) int64 {
	t.Helper()
	db.mu.Lock()
	defer db.mu.Unlock()
	tag, err := db.connectLocked(t).Exec(context.Background(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// QueryOne returns the value of a query with one row and one column. It runs as the owner of the
// database.
func QueryOne[T any](t testing.TB, db *DB, sql string, args ...any) T {
	t.Helper()
	values := QueryAll[T](t, db, sql, args...)
	if len(values) != 1 {
		t.Fatalf("%s: %d rows, want one", sql, len(values))
	}
	return values[0]
}

// QueryAll returns the values of a query with one column. It runs as the owner of the database.
func QueryAll[T any](t testing.TB, db *DB, sql string, args ...any) []T {
	t.Helper()
	db.mu.Lock()
	defer db.mu.Unlock()
	rows, err := db.connectLocked(t).Query(context.Background(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return values
}

// connectLocked returns the connection of the database. It opens a new one if a restart of the
// server, or the test itself, has ended the last one. db.mu must be held. It does not use the
// context of the test, which ends before the test's clean-up functions run.
func (db *DB) connectLocked(t testing.TB) *pgx.Conn {
	t.Helper()
	if db.conn != nil && db.conn.Ping(context.Background()) == nil {
		return db.conn
	}
	conn, err := pgx.Connect(context.Background(), db.URL)
	if err != nil {
		t.Fatalf("connect to database %s: %v", db.Name, err)
	}
	db.conn = conn
	return conn
}

// drop drops the database, and with it its replication slots. It tries again while a slot is
// active, until ctx ends.
func (db *DB) drop(ctx context.Context) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.conn != nil {
		_ = db.conn.Close(ctx) // an error does not matter: dropping ends the connection
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := db.cluster.maintainSQL(ctx, "drop database if exists "+db.Name+" with (force)")
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != objectInUse {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: a replication connection was left open: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
