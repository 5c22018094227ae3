package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// CheckURL returns an error that says why url cannot be used to connect. The error contains no part
// of url.
func CheckURL(url secret.Text) error {
	_, err := Config{URL: url}.connConfig()
	return err
}

// Ping checks that the database answers. If it does not, the error is a Problem that says why.
func (db *DB) Ping(ctx context.Context) error {
	return db.cfg.explain("connect", db.pool.Ping(ctx))
}

// Level is how much a Finding matters.
type Level string

// An agent that finds a LevelFail does not run, or loses events. With a LevelWarn it runs, but not
// as it should.
const (
	LevelOK   Level = "ok"
	LevelWarn Level = "warn"
	LevelFail Level = "fail"
)

// Finding is the result of Check about one thing. A finding that is not LevelOK has a remedy.
type Finding struct {
	Level  Level  `json:"level"`
	Thing  string `json:"thing"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`

	// tolerated reports that an agent runs in spite of the failure. The command check fails, so
	// that somebody puts it right. A program that starts only warns.
	tolerated bool
	// passing reports that the failure may end without a change of configuration. A program that
	// starts should then wait.
	passing bool
	// ahead is SchemaIsAhead.
	ahead bool
}

func fine(thing, format string, args ...any) Finding {
	return Finding{Level: LevelOK, Thing: thing, Reason: fmt.Sprintf(format, args...)}
}

func warning(thing, remedy, format string, args ...any) Finding {
	return Finding{Level: LevelWarn, Thing: thing, Reason: fmt.Sprintf(format, args...), Remedy: remedy}
}

func failure(thing, remedy, format string, args ...any) Finding {
	return Finding{Level: LevelFail, Thing: thing, Reason: fmt.Sprintf(format, args...), Remedy: remedy}
}

func (f Finding) fails() bool { return f.Level == LevelFail }

// lacksPrivilege reports whether the finding names a privilege that a check may have failed for.
func (f Finding) lacksPrivilege() bool { return f.fails() && f.Thing == privilegesThing }

// stops reports whether no agent may run as long as the finding is true.
func (f Finding) stops() bool { return f.fails() && !f.tolerated }

// problem turns a failure into an error.
func (f Finding) problem() *Problem {
	return &Problem{Thing: f.Thing, Reason: f.Reason, Remedy: f.Remedy, Fatal: !f.passing}
}

// check examines one aspect of the database.
type check func(db *DB, ctx context.Context, tx pgx.Tx) ([]Finding, error)

// Check examines everything that the agent needs from the database, and changes nothing. The
// findings have the order in which a person would put things right. A check that itself fails gives
// a finding too.
func (db *DB) Check(ctx context.Context) []Finding {
	// An agent that starts waits for each check. It needs no finding about what it has recorded
	// itself, so only the command makes these checks. It also judges the endpoints anew, and what was
	// recorded of them may have been put right.
	return append(db.checkAll(ctx, (*DB).checkEndpoints, (*DB).checkReused), db.checkReplication(ctx))
}

// checkAll runs all checks, and more, in one transaction, because each begin, setting and commit
// costs a round trip. A check that fails ends the transaction. The rest runs in another one.
func (db *DB) checkAll(ctx context.Context, more ...check) (findings []Finding) {
	looks := slices.Concat([]check{
		(*DB).checkServer, (*DB).checkEncoding, (*DB).checkRole, (*DB).checkConnections, (*DB).checkCapacity, (*DB).checkSchema,
		(*DB).checkPrivileges, (*DB).checkAdoption, (*DB).checkOutbox, (*DB).checkNotices, (*DB).checkRetention, (*DB).checkPublications, (*DB).checkSlot,
		(*DB).checkRetainedWAL, (*DB).checkHooks, (*DB).checkUnusedOutbox, (*DB).checkClock, (*DB).checkSecrets,
	}, more)
	for len(looks) > 0 {
		begun := false
		err := db.look(ctx, "check", func(tx pgx.Tx) error {
			begun = true
			for len(looks) > 0 {
				found, err := looks[0](db, ctx, tx)
				looks = looks[1:]
				findings = append(findings, found...)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil && !(SQLState(err) == codeNoPrivilege && slices.ContainsFunc(findings, Finding.lacksPrivilege)) {
			findings = append(findings, AsFinding(err))
		}
		if !begun {
			return findings // every check would fail in the same way
		}
	}
	return findings
}

// AsFinding turns an error into a finding. A Problem keeps its parts.
func AsFinding(err error) Finding {
	if p, isProblem := errors.AsType[*Problem](err); isProblem {
		f := failure(p.Thing, p.Remedy, "%s", p.Reason)
		f.passing = !p.Fatal
		return f
	}
	f := failure("database", "see PostgreSQL's log", "%v", err)
	f.passing = true
	return f
}

// Preflight runs Check before an agent streams. It returns the first failure as a Problem, and the
// warnings.
func (db *DB) Preflight(ctx context.Context) (warnings []Finding, err error) {
	for _, f := range db.checkAll(ctx) {
		switch {
		case f.stops():
			return nil, f.problem()
		case f.Level != LevelOK:
			warnings = append(warnings, f)
		}
	}
	return warnings, nil
}

// selectServer reads the default of synchronous_commit. The agent's own connections do not use that
// default (settings).
const selectServer = `
select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
       current_setting('wal_level'), (select reset_val from pg_settings where name = 'synchronous_commit'),
       current_setting('default_transaction_read_only')::bool`

func (db *DB) checkServer(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	var (
		number                               int
		version, walLevel, synchronousCommit string
		standby, readOnly                    bool
	)
	if err := tx.QueryRow(ctx, selectServer).Scan(&number, &version, &standby, &walLevel, &synchronousCommit, &readOnly); err != nil {
		return nil, err
	}
	if number < minServerVersion {
		found = append(found, failure("PostgreSQL", "use PostgreSQL 14 or newer", "version %s is too old", version))
	} else {
		found = append(found, fine("PostgreSQL", "version %s", version))
	}
	if standby {
		f := failure("server", "point database.url at the primary", "it is a standby, which cannot record deliveries")
		f.passing = true // the server may be promoted
		found = append(found, f)
	} else if readOnly {
		f := failure("server", "see why: a managed server sets it when its disk is nearly full; else ALTER ROLE or ALTER DATABASE ... RESET default_transaction_read_only",
			"it is read-only: default_transaction_read_only is on for the role, the database or the server")
		f.passing = true
		found = append(found, f)
	} else {
		found = append(found, fine("server", "it is a primary"))
	}
	if walLevel != "logical" {
		found = append(found, failure("wal_level",
			"ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL (managed servers: switch logical replication on in the console)",
			"it is %s, the stream needs logical", walLevel))
	} else {
		found = append(found, fine("wal_level", "logical"))
	}
	if synchronousCommit == "off" {
		// What was lost was never sent, because the stream contains only what is on disk.
		found = append(found, warning("synchronous_commit", "set synchronous_commit = on, at least for the role that writes the outbox",
			"it is off: when PostgreSQL crashes, the last transactions may be lost although their COMMIT returned, and their events with them"))
	} else {
		found = append(found, fine("synchronous_commit", "%s", synchronousCommit))
	}
	return found, nil
}

const selectRole = `
select current_user::text, coalesce((select rolreplication or rolsuper from pg_roles where rolname = current_user), false)`

func (db *DB) checkRole(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	var (
		role      string
		replicate bool
	)
	if err := tx.QueryRow(ctx, selectRole).Scan(&role, &replicate); err != nil {
		return nil, err
	}
	if !replicate {
		member, err := db.replicationByMembership(ctx)
		if err != nil {
			return nil, err
		}
		replicate = member
	}
	if !replicate {
		return []Finding{failure("role "+role, "ALTER ROLE "+quoteIdent(role)+" REPLICATION (Amazon RDS: GRANT rds_replication TO "+quoteIdent(role)+")",
			"it may not open a replication connection")}, nil
	}
	return []Finding{fine("role "+role, "may open a replication connection")}, nil
}

const selectCapacity = `
select current_setting('max_replication_slots')::int, (select count(*) from pg_replication_slots)::int,
       exists (select from pg_replication_slots where slot_name = $1),
       current_setting('max_wal_senders')::int, (select count(*) from pg_stat_activity where backend_type = 'walsender')::int,
       exists (select from pg_replication_slots where slot_name = $1 and active)`

func (db *DB) checkCapacity(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	var (
		slots, slotsUsed, senders, sendersUsed int
		haveSlot, active                       bool
	)
	if err := tx.QueryRow(ctx, selectCapacity, db.cfg.Slot).Scan(&slots, &slotsUsed, &haveSlot, &senders, &sendersUsed, &active); err != nil {
		return nil, err
	}
	if !haveSlot && slotsUsed >= slots {
		found = append(found, failure("max_replication_slots", "raise it and restart PostgreSQL, or drop a slot that nothing uses",
			"all %d are taken and the agent has none yet", slots))
	} else {
		found = append(found, fine("max_replication_slots", "%d of %d used", slotsUsed, slots))
	}
	if !active && sendersUsed >= senders {
		found = append(found, failure("max_wal_senders", "raise it and restart PostgreSQL", "all %d are in use and no agent is connected", senders))
	} else {
		found = append(found, fine("max_wal_senders", "%d of %d used", sendersUsed, senders))
	}
	return found, nil
}

// selectReadable reports whether all of some tables exist and may be read.
const selectReadable = `
select count(*) = cardinality($1::text[])
from unnest($1::text[]) tab
join pg_namespace n on n.nspname = split_part(tab, '.', 1)
join pg_class c on c.relnamespace = n.oid and c.relname = split_part(tab, '.', 2)
where has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT')`

// readable is called before a query of the agent's tables, because an error would end the
// transaction. checkSchema or checkPrivileges reports what cannot be read.
func readable(ctx context.Context, tx pgx.Tx, tables ...string) (ok bool, err error) {
	err = tx.QueryRow(ctx, selectReadable, tables).Scan(&ok)
	return ok, err
}

const selectClock = `select clock_timestamp()`

// clockTolerance is the difference between the clocks that signatures and retries can bear
// unnoticed. Receivers refuse a difference of five minutes.
const clockTolerance = 2 * time.Second

func (db *DB) checkClock(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	ahead, err := db.readClock(ctx, tx)
	if err != nil {
		return nil, err
	}
	difference := -ahead.Round(time.Millisecond)
	if difference.Abs() > clockTolerance {
		return []Finding{warning("clock", "synchronize both machines with NTP",
			"this machine's clock differs by %v from the database's; customers refuse signatures that are five minutes off", difference)}, nil
	}
	return []Finding{fine("clock", "differs by %v from the database's", difference)}, nil
}

const selectUnusable = `
select e.id, e.venue, h.unusable
from webhooks.endpoint_health h
join webhooks.endpoints e on e.id = h.endpoint_id
where h.unusable is not null and e.disabled_at is null
order by e.id limit $1`

// checkEndpoints names the endpoints that the agent could not use when it last read them.
func (db *DB) checkEndpoints(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	if ok, err := readable(ctx, tx, "webhooks.endpoints", "webhooks.endpoint_health"); err != nil || !ok {
		return nil, err
	}
	found, err := queryRows(ctx, tx, selectUnusable, func(row pgx.CollectableRow) (Finding, error) {
		var id, venue, why string
		err := row.Scan(&id, &venue, &why)
		return warning("endpoint "+id, "correct its row in webhooks.endpoints, or disable it", "venue %s: %s", venue, why), err
	}, overviewEndpoints)
	if err == nil && len(found) == 0 {
		return []Finding{fine("endpoints", "none is unusable")}, nil
	}
	return found, err
}

// firstFailure runs some checks and returns the first failure as a Problem.
func (db *DB) firstFailure(ctx context.Context, checks ...check) error {
	return db.look(ctx, "check", func(tx pgx.Tx) error {
		for _, look := range checks {
			found, err := look(db, ctx, tx)
			if err != nil {
				return err
			}
			for _, f := range found {
				if f.stops() {
					return f.problem()
				}
			}
		}
		return nil
	})
}
