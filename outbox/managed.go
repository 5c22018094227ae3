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
	// setBrief has the server end a transaction that waits for a row of the app's, or whose agent was cut off.
	setBrief = `select set_config('lock_timeout', '1s', true), set_config('idle_in_transaction_session_timeout', '5s', true)`

	updateManaged = `
update webhooks.endpoints set events = $2, secret = $3, description = $4
where id = $1 and (events, secret, description) is distinct from ($2::text[], $3::text, $4::text)`

	// dropOldestSecret makes place for a rotation: what the file says must not keep the agent from
	// leading.
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

// ManagedOverlap is how long the former secret of an endpoint of the file also signs when the file
// has another one.
const ManagedOverlap = 24 * time.Hour

// managedKey is what tells an endpoint of the file from the others.
type managedKey struct{ venue, url string }

func (e ManagedEndpoint) key() managedKey { return managedKey{e.Venue, e.URL.Reveal()} }

// managedRow is the row of an endpoint of the file.
type managedRow struct {
	managedKey
	id     string
	secret secret.Text // as it is stored
}

// SyncManaged makes the endpoints that are marked as managed by the file those of the file: it
// adds, changes and removes. Other endpoints it leaves alone, and what a person disabled stays
// disabled. A secret that has changed is a rotation with ManagedOverlap; the oldest of
// MostFormerSecrets gives way.
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
				_, err = db.insertEndpoint(ctx, tx, Endpoint{Venue: e.Venue, URL: e.URL, Events: e.Events, Secret: e.Secret}, e.Description, "file")
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

// compareManaged returns the rows that the file still has, and the ids of those that it has not.
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

// changeManaged makes a row what the file says. A secret that is the same stays as it is stored: to
// seal it is not worth waiting for whoever holds the row.
func (db *DB) changeManaged(ctx context.Context, tx pgx.Tx, row managedRow, e ManagedEndpoint) error {
	stored := row.secret
	is, notOpened := db.cfg.Keys.Open(row.id, stored)
	switch {
	case notOpened != nil: // it has signed nothing
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
