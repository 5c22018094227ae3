package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// ManagedEndpoint is an endpoint of the configuration file. Venue and URL identify it.
type ManagedEndpoint struct {
	Venue       string
	URL         secret.Text
	Events      []string
	Secret      secret.Text
	Description string
}

const (
	// setBrief makes the server end a transaction that waits too long for a row of the app's, or
	// whose agent was cut off.
	setBrief = `select set_config('lock_timeout', '1s', true), set_config('idle_in_transaction_session_timeout', '5s', true)`

	updateManaged = `
update webhooks.endpoints set events = $2, secret = $3, description = $4
where id = $1 and (events, secret, description) is distinct from ($2::text[], $3::text, $4::text)`

	// dropOldestSecret makes room for a rotation. The content of the file must not keep the agent
	// from leading.
	dropOldestSecret = `
update webhooks.endpoints
set older_secrets = older_secrets[:cardinality(older_secrets) - 1], older_secrets_until = older_secrets_until[:cardinality(older_secrets) - 1]
where id = $1 and 1 + cardinality(older_secrets) >= $2
  and not exists (select from unnest(previous_secret_until || older_secrets_until) u where u <= clock_timestamp())`

	selectManaged = `
select id, venue, url, secret from webhooks.endpoints where managed_by = 'file' order by created, id`

	deleteManaged = `
delete from webhooks.endpoints where id = any($1) and managed_by = 'file'`
)

// ManagedOverlap is how long the former secret of an endpoint in the file still signs after the
// file has a new one.
const ManagedOverlap = 24 * time.Hour

// managedKey identifies an endpoint of the file.
type managedKey struct{ venue, url string }

func (e ManagedEndpoint) key() managedKey { return managedKey{e.Venue, e.URL.Reveal()} }

// managedRow is the row of an endpoint of the file.
type managedRow struct {
	managedKey
	id     string
	secret secret.Text // as it is stored
}

// SyncManaged makes the endpoints that are marked as managed by the file equal to those in the
// file. It adds, changes and removes endpoints. It leaves other endpoints alone, and an endpoint
// that a person disabled stays disabled. A changed secret is a rotation with ManagedOverlap. If
// there are MostFormerSecrets already, the oldest one is dropped.
func (db *DB) SyncManaged(ctx context.Context, endpoints []ManagedEndpoint) error {
	err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		tx = withoutPreparing(tx)
		if err := exec(ctx, tx, setBrief); err != nil {
			return err
		}
		keep, remove, err := compareManaged(ctx, tx, endpoints)
		if err != nil {
			return err
		}
		for _, e := range endpoints {
			if row, exists := keep[e.key()]; exists {
				err = db.changeManaged(ctx, tx, row, e)
			} else {
				_, _, err = db.insertEndpoint(ctx, tx, Endpoint{Venue: e.Venue, URL: e.URL, Events: e.Events, Secret: e.Secret}, e.Description, "file", Idempotency{})
			}
			if err != nil {
				return fmt.Errorf("endpoint of venue %q: %w", e.Venue, err)
			}
		}
		if len(remove) == 0 {
			return nil
		}
		return exec(ctx, tx, deleteManaged, remove)
	})
	return db.cfg.explain("take over the endpoints of the configuration file", err)
}

// IsLocked reports whether err is that somebody holds a row, for longer than the agent waits.
func IsLocked(err error) bool { return SQLState(err) == codeLockNotAvailable }

// compareManaged returns the rows that are still in the file, and the ids of those that are not.
func compareManaged(ctx context.Context, tx pgx.Tx, endpoints []ManagedEndpoint) (keep map[managedKey]managedRow, remove []string, err error) {
	rows, err := queryRows(ctx, tx, selectManaged, func(row pgx.CollectableRow) (m managedRow, err error) {
		var stored string
		err = row.Scan(&m.id, &m.venue, &m.url, &stored)
		m.secret = secret.New(stored)
		return m, err
	})
	if err != nil {
		return nil, nil, err
	}
	wanted := map[managedKey]bool{}
	for _, e := range endpoints {
		wanted[e.key()] = true
	}
	keep = map[managedKey]managedRow{}
	for _, row := range rows {
		if _, twice := keep[row.managedKey]; twice || !wanted[row.managedKey] {
			remove = append(remove, row.id)
			continue
		}
		keep[row.managedKey] = row
	}
	return keep, remove, nil
}

// changeManaged makes a row equal to the file. A secret that is the same is left as it is stored:
// sealing it is not worth the wait for whoever has locked the row.
func (db *DB) changeManaged(ctx context.Context, tx pgx.Tx, row managedRow, e ManagedEndpoint) error {
	stored := row.secret
	is, notOpened := db.cfg.Keys.Open(row.id, stored)
	switch {
	case notOpened != nil: // the stored secret cannot be opened, so it has signed nothing
		stored = db.cfg.Keys.Seal(row.id, e.Secret)
	case !is.Equal(e.Secret):
		q := db.AllVenues().on(tx)
		if _, _, err := db.forgetTwins(ctx, q, row.id, e.Secret); err != nil {
			return err
		}
		if err := exec(ctx, tx, dropOldestSecret, row.id, MostFormerSecrets); err != nil {
			return err
		}
		stored = db.cfg.Keys.Seal(row.id, e.Secret)
		if _, err := q.Exec(ctx, rotateSecret, row.id, stored.Reveal(), ManagedOverlap); err != nil {
			return err
		}
	}
	return exec(ctx, tx, updateManaged, row.id, e.Events, stored.Reveal(), e.Description)
}
