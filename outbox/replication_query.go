package outbox

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// replicationQuerier sends queries over a replication connection. Such a connection knows only the
// simple protocol, so the arguments are written into the statement. A query before the stream
// begins then needs no connection of its own, and the server that streams answers it. Arguments are
// texts and lists of texts. A statement has at most nine.
type replicationQuerier struct{ conn *pgconn.PgConn }

// Query implements rowQuerier.
func (q replicationQuerier) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	var replace []string
	for i, arg := range args {
		literal, err := literalOf(arg)
		if err != nil {
			return nil, err
		}
		replace = append(replace, fmt.Sprintf("$%d", i+1), literal)
	}
	results := q.conn.Exec(ctx, strings.NewReplacer(replace...).Replace(sql))
	if !results.NextResult() {
		return nil, results.Close()
	}
	return &replicationRows{Rows: pgx.RowsFromResultReader(pgtype.NewMap(), results.ResultReader()), results: results}, nil
}

// literalOf writes an argument as an SQL literal.
func literalOf(arg any) (string, error) {
	switch arg := arg.(type) {
	case string:
		return quoteText(arg), nil
	case []string:
		quoted := make([]string, len(arg))
		for i, text := range arg {
			quoted[i] = quoteText(text)
		}
		return "array[" + strings.Join(quoted, ", ") + "]", nil
	default:
		return "", fmt.Errorf("a replication connection takes no argument of type %T", arg)
	}
}

// replicationRows are the rows of a statement. Close frees the connection for the next one.
type replicationRows struct {
	pgx.Rows
	results *pgconn.MultiResultReader
	err     error // the error with which the statement ended
}

// Close implements pgx.Rows.
func (r *replicationRows) Close() {
	r.Rows.Close()
	if err := r.results.Close(); r.err == nil {
		r.err = err
	}
}

// Err implements pgx.Rows.
func (r *replicationRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}
