package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// A copy of a database holds the endpoints, the pending deliveries and the open replays of the
// original. The checkpoint shows that it is a copy: it names the server (system identifier) and the
// database of the agent that wrote it. On a copy, no agent leads until a person has said what the
// copy is for. A physical standby that was promoted has the same identifier and database, so a
// failover needs no person.

const selectForeignCheckpoint = `
select system_identifier, database from webhooks.checkpoint
where case when exists (select from webhooks.checkpoint where slot = $1)
           then slot = $1 and (system_identifier, database) <> ($2, current_database()::text)
           else not exists (select from webhooks.checkpoint where (system_identifier, database) = ($2, current_database()::text)) end
order by updated desc limit 1`

const selectDatabase = `select current_database()::text`

// unadopted returns a Problem if the checkpoint was written elsewhere and nobody has adopted it,
// and nil otherwise. If the slot has no checkpoint, the checkpoints of other slots show whether the
// database is a copy.
func (slot *Slot) unadopted(ctx context.Context, q querier, systemID string) (*Problem, error) {
	var ofServer, ofDatabase, here string
	err := q.QueryRow(ctx, selectForeignCheckpoint, slot.cfg.Slot, systemID).Scan(&ofServer, &ofDatabase)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := q.QueryRow(ctx, selectDatabase).Scan(&here); err != nil {
		return nil, err
	}
	reason := fmt.Sprintf("it is of another database (%s, here %s), so this is a copy or was restored", ofDatabase, here)
	if ofServer != systemID {
		reason = fmt.Sprintf("it is of another server (system identifier %s, here %s), so this is a copy or was restored or upgraded", ofServer, systemID)
	}
	return &Problem{Thing: "checkpoint", Reason: reason,
		Remedy: "run webhook-agent adopt to go on here, or webhook-agent adopt --disable-endpoints for a copy that must send nothing"}, nil
}

// mustBeAdopted returns the same as unadopted, as an error.
func (slot *Slot) mustBeAdopted(ctx context.Context, q querier, systemID string) error {
	p, err := slot.unadopted(ctx, q, systemID)
	if err != nil {
		return slot.cfg.explain("read the checkpoint", err)
	}
	if p != nil {
		return p
	}
	return nil
}

const (
	selectMayAskSystem = `select has_function_privilege('pg_control_system()', 'EXECUTE')`
	selectSystem       = `select system_identifier from pg_control_system()`
)

// systemID returns the server's system identifier, as IDENTIFY_SYSTEM gives it. If the role may not
// call the function, systemID asks over a replication connection.
func (db *DB) systemID(ctx context.Context, q querier) (string, error) {
	var may bool
	if err := q.QueryRow(ctx, selectMayAskSystem).Scan(&may); err != nil {
		return "", err
	}
	if !may {
		t := NewTailer(db.cfg, slog.New(slog.DiscardHandler))
		defer t.Close()
		err := t.Connect(ctx)
		return t.System.SystemID, err
	}
	var id int64 // an unsigned number that SQL returns as a signed one
	err := q.QueryRow(ctx, selectSystem).Scan(&id)
	return strconv.FormatUint(uint64(id), 10), err
}

// checkAdoption reports that the checkpoint was written elsewhere.
func (db *DB) checkAdoption(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	if ok, err := readable(ctx, tx, "webhooks.checkpoint"); err != nil || !ok {
		return nil, err
	}
	id, err := db.systemID(ctx, tx)
	if err != nil {
		return nil, err
	}
	p, err := db.configured().unadopted(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	if p != nil {
		return []Finding{AsFinding(p)}, nil
	}
	return []Finding{fine("checkpoint", "it is of this server and database, or there is none yet")}, nil
}

// Adoption is what Adopt did.
type Adoption struct {
	// Adopted is false if there was nothing to adopt.
	Adopted bool `json:"adopted"`
	// SystemID and Database are those of the place where the agent continues.
	SystemID string `json:"system_identifier"`
	Database string `json:"database"`
	Epoch    int64  `json:"epoch"`
	// DisabledEndpoints and EndedReplays count the endpoints and replays that were switched off.
	DisabledEndpoints int64 `json:"disabled_endpoints"`
	EndedReplays      int64 `json:"ended_replays"`
}

const (
	lockCheckpoints = `lock table webhooks.checkpoint in share row exclusive mode`

	// selectTimeline may be run by every role. pg_control_checkpoint lags behind a promotion.
	selectTimeline = `
select current_database()::text, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int`

	// upsertAdopted drops the position and the transaction ids, because neither means anything
	// here.
	upsertAdopted = `
insert into webhooks.checkpoint as c (slot, lsn, epoch, holder, system_identifier, timeline, database, recovering)
values ($1, '0/0', 1, $2, $3, $4, current_database(), true)
on conflict (slot) do update
set lsn = '0/0', epoch = c.epoch + 1, holder = $2, system_identifier = $3, timeline = $4, database = current_database(), recovering = true,
    horizon = null, horizon_at = null, coverage = null, relations = null, sweep = null, updated = now()
returning epoch`

	disableAll = `
update webhooks.endpoints set disabled_at = now(), disabled_reason = 'manual' where disabled_at is null`

	endReplays = `
update webhooks.replays set state = 'failed', error = 'ended by webhook-agent adopt --disable-endpoints', finished = now()
from ` + agentEnds + `
where state in ('pending', 'running', 'paused')`

	selectAnythingOn = `
select exists (select from webhooks.endpoints where disabled_at is null) or exists (select from webhooks.replays where state in ('pending', 'running', 'paused'))`
)

// Adopt lets the agent continue in this database although its checkpoint was written elsewhere. The
// next leader recovers as after a restore. With disable, nothing is sent: Adopt disables all
// endpoints and ends open replays, and pending deliveries become missed when an agent next leads.
// Adopt does all or nothing. If the checkpoint belongs to this server and database, Adopt changes
// nothing. With disable it then returns an error, unless everything is switched off already.
func (db *DB) Adopt(ctx context.Context, holder string, disable bool) (a Adoption, err error) {
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if err := exec(ctx, tx, lockCheckpoints); err != nil {
			return err
		}
		if a.SystemID, err = db.systemID(ctx, tx); err != nil {
			return err
		}
		var timeline int32
		if err := tx.QueryRow(ctx, selectTimeline).Scan(&a.Database, &timeline); err != nil {
			return err
		}
		p, err := db.configured().unadopted(ctx, tx, a.SystemID)
		if err != nil {
			return err
		}
		if p == nil {
			return db.nothingToAdopt(ctx, tx, disable)
		}
		a.Adopted = true
		if err := tx.QueryRow(ctx, upsertAdopted, db.cfg.Slot, holder, a.SystemID, timeline).Scan(&a.Epoch); err != nil || !disable {
			return err
		}
		if a.DisabledEndpoints, err = affected(ctx, tx, disableAll); err != nil {
			return err
		}
		a.EndedReplays, err = affected(ctx, tx, endReplays)
		return err
	})
	return a, db.cfg.explain("adopt the checkpoint", err)
}

func affected(ctx context.Context, tx pgx.Tx, sql string) (int64, error) {
	tag, err := tx.Exec(ctx, sql)
	return tag.RowsAffected(), err
}

// nothingToAdopt returns an error if somebody might wrongly believe that everything is switched
// off.
func (db *DB) nothingToAdopt(ctx context.Context, tx pgx.Tx, disable bool) error {
	if !disable {
		return nil
	}
	var on bool
	if err := tx.QueryRow(ctx, selectAnythingOn).Scan(&on); err != nil || !on {
		return err
	}
	return &Problem{Thing: "checkpoint", Reason: "it is of this server and database already, so nothing was changed, and endpoints are enabled",
		Remedy: "disable them with webhook-agent endpoints disable if that is wanted", Fatal: true}
}
