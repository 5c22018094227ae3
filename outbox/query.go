package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// queryRows runs a query and collects what scan makes of each row.
func queryRows[T any](ctx context.Context, q rowQuerier, sql string, scan pgx.RowToFunc[T], args ...any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

// rowQuerier is a querier, or a replication connection.
type rowQuerier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// querier is a pool, a connection or a transaction.
type querier interface {
	rowQuerier
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// exec runs a statement without rows.
func exec(ctx context.Context, q querier, sql string, args ...any) error {
	_, err := q.Exec(ctx, sql, args...)
	return err
}

// unprepared is a querier for statements that run once in a while: preparing them first would be
// one more round trip for each, and where the database is far away, leading is a matter of round
// trips.
type unprepared struct{ querier }

// Query implements querier.
func (u unprepared) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return u.querier.Query(ctx, sql, slices.Insert(args, 0, any(pgx.QueryExecModeExec))...)
}

// QueryRow implements querier.
func (u unprepared) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return u.querier.QueryRow(ctx, sql, slices.Insert(args, 0, any(pgx.QueryExecModeExec))...)
}

// Exec implements querier.
func (u unprepared) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return u.querier.Exec(ctx, sql, slices.Insert(args, 0, any(pgx.QueryExecModeExec))...)
}

// unpreparedTx is a transaction of such statements.
type unpreparedTx struct {
	pgx.Tx
	q unprepared
}

func withoutPreparing(tx pgx.Tx) pgx.Tx { return unpreparedTx{tx, unprepared{tx}} }

// Query implements pgx.Tx.
func (u unpreparedTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return u.q.Query(ctx, sql, args...)
}

// QueryRow implements pgx.Tx.
func (u unpreparedTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return u.q.QueryRow(ctx, sql, args...)
}

// Exec implements pgx.Tx.
func (u unpreparedTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return u.q.Exec(ctx, sql, args...)
}

// lookTimeout bounds what a command reads, on the server too: a person waits, and the agent needs
// the machine.
const lookTimeout = 10 * time.Second

// beginLook begins such a transaction. Compiling a query takes longer than what people ask for.
const beginLook = `begin isolation level repeatable read read only; set local jit = off; set local statement_timeout = `

// codeQueryCanceled is what PostgreSQL answers when a statement_timeout ends a query.
const codeQueryCanceled = "57014"

// look runs the queries of do in one read-only transaction that sees one state and ends after
// lookTimeout for each query.
func (db *DB) look(ctx context.Context, operation string, do func(tx pgx.Tx) error) error {
	return db.lookFor(ctx, lookTimeout, operation, do)
}

// lookFor is look with another timeout.
func (db *DB) lookFor(ctx context.Context, timeout time.Duration, operation string, do func(tx pgx.Tx) error) error {
	options := pgx.TxOptions{BeginQuery: beginLook + strconv.FormatInt(timeout.Milliseconds(), 10)}
	err := pgx.BeginTxFunc(ctx, db.pool, options, func(tx pgx.Tx) error { return do(withoutPreparing(tx)) })
	if SQLState(err) == codeQueryCanceled {
		return &Problem{Thing: operation, Reason: fmt.Sprintf("it took more than %v", timeout),
			Remedy: "ask for less: one endpoint, a shorter time, a smaller limit", Err: errors.Join(ErrTooSlow, err)}
	}
	return db.explainBySchema(ctx, operation, err)
}

// moment scans a timestamptz for people, into a time that may be nil. The app may write infinity,
// or a year that JSON cannot hold: one such row must not hide the others, so it shows no time.
type moment struct{ to **time.Time }

// ScanTimestamptz implements pgtype.TimestamptzScanner.
func (m moment) ScanTimestamptz(v pgtype.Timestamptz) error {
	*m.to = nil
	if year := v.Time.UTC().Year(); v.Valid && v.InfinityModifier == pgtype.Finite && year >= 1 && year <= 9999 {
		*m.to = &v.Time
	}
	return nil
}
