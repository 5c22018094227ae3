package outbox

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// SchemaInfo is the version of the schema in a database, seen by a binary.
type SchemaInfo struct {
	Version    int        `json:"version"`    // of the last migration
	Compatible int        `json:"compatible"` // the oldest binary that works with it, by the schema that it knows
	Binary     int        `json:"binary"`     // the schema that this binary knows
	Migrated   *time.Time `json:"migrated"`   // when it got this version; nil where that is not known
	Note       string     `json:"note"`       // what is to be done about it; empty when binary and schema are of the same version
}

// binary is the number of the schema that this binary knows.
func (c Config) binary() int { return cmp.Or(c.Schema, SchemaVersion()) }

// known returns the migrations that this binary knows.
func (c Config) known() ([]migration, error) {
	ms, err := migrations()
	if err != nil {
		return nil, err
	}
	return ms[:min(c.binary(), len(ms))], nil
}

// selectSchemaInfo reads the row as JSON, since older schemas lack some of its columns.
const selectSchemaInfo = `
select v.version, coalesce((to_jsonb(v) ->> 'compatible')::int, v.version), (to_jsonb(v) ->> 'migrated')::timestamptz
from webhooks.schema_version v`

// readSchema returns the version of the schema, 0 before the first migration.
func (c Config) readSchema(ctx context.Context, q querier) (SchemaInfo, error) {
	s := SchemaInfo{Binary: c.binary()}
	err := q.QueryRow(ctx, selectSchemaInfo).Scan(&s.Version, &s.Compatible, &s.Migrated)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && s.Version < 0 {
		return s, &Problem{Thing: versionTable, Reason: "it does not say which version the schema has",
			Remedy: "give it one row, with the schema number that webhook-agent version shows of the binary that migrated last", Fatal: true, Err: err}
	}
	if f := s.judge(); err == nil && f.Level != LevelOK {
		s.Note = f.Reason + "; " + f.Remedy
	}
	return s, err
}

const (
	schemaThing   = "schema webhooks"
	migrateRemedy = "run webhook-agent migrate"
)

// judge says whether a binary works with the schema. All that speaks of the two goes by it: check,
// status, the log of an agent, /readyz, and commands that fail.
func (s SchemaInfo) judge() Finding {
	switch {
	case s.Version < s.Binary:
		f := failure(schemaThing, migrateRemedy, "it has version %d, this binary needs %d", s.Version, s.Binary)
		f.passing = true // the migration may come after the agent
		return f
	case s.Compatible > s.Binary:
		return failure(schemaThing, "run a newer webhook-agent", "it has version %d, this binary knows versions up to %d", s.Version, s.Binary)
	case s.Version > s.Binary:
		f := warning(schemaThing, "upgrade this binary", "it has version %d and is newer than this binary, which knows %d and works with it", s.Version, s.Binary)
		f.ahead = true
		return f
	}
	return fine(schemaThing, "version %d", s.Version)
}

// SchemaIsAhead reports whether the finding is that the schema is newer than this binary, which
// works with it.
func (f Finding) SchemaIsAhead() bool { return f.ahead }

// selectSchema reads the catalogue. to_regclass would fail without USAGE on the schema, and that is
// a finding of its own.
const selectSchema = `
select exists (select from pg_tables where schemaname || '.' || tablename = '` + versionTable + `')`

func (db *DB) checkSchema(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	var exists bool
	if err := tx.QueryRow(ctx, selectSchema).Scan(&exists); err != nil {
		return nil, err
	}
	if !exists {
		f := failure(schemaThing, migrateRemedy, "it is missing in this database")
		f.passing = true
		return []Finding{f}, nil
	}
	if ok, err := readable(ctx, tx, versionTable); err != nil || !ok {
		return nil, err
	}
	schema, err := db.cfg.readSchema(ctx, tx)
	if err != nil {
		return nil, err
	}
	missing, err := missingTables(ctx, tx, schemaTables())
	if err != nil {
		return nil, err
	}
	verdict := schema.judge()
	if !verdict.fails() && len(missing) > 0 {
		verdict = failure(schemaThing, "make them again: webhook-agent migrate --print shows how",
			"it has version %d but lacks %s", schema.Version, strings.Join(missing, ", "))
	}
	return []Finding{verdict}, nil
}

// SchemaFits returns a Problem if this binary does not work with the schema. Preflight finds it
// too, but an agent that stands by may have made that long ago.
func (db *DB) SchemaFits(ctx context.Context) error { return db.firstFailure(ctx, (*DB).checkSchema) }

// explainBySchema is Config.explain for what a binary asks of a schema that may not be its own: the
// version says more than the name of a column that is not there.
func (db *DB) explainBySchema(ctx context.Context, operation string, err error) error {
	switch SQLState(err) {
	case codeNoTable, codeNoColumn, codeNoFunction, codeNoSchema:
	default:
		return db.cfg.explain(operation, err)
	}
	schema, schemaErr := db.cfg.readSchema(ctx, db.pool)
	if f := schema.judge(); schemaErr == nil && f.fails() {
		problem := f.problem()
		problem.Err = err
		return problem
	}
	return db.cfg.explain(operation, err)
}
