package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// The app may write secrets as they are. Where there are keys (Config.Keys) the agent seals them, and those that are sealed with a key
// that is not the first one any more. What is sealed is the row's own business: it streams, is loaded and is copied by a rotation as
// any other text, and only who signs opens it.

// Sealed tells whether the secrets of e are as Config.Keys would seal them now, or cannot be: the agent has nothing to do about them.
func (db *DB) Sealed(e *Endpoint) bool {
	_, current, err := db.cfg.Keys.Reseal(e.ID, e.Secret)
	_, former, formerErr := db.cfg.Keys.Reseal(e.ID, e.Previous)
	return err != nil || formerErr != nil || !current && !former
}

const (
	selectSecrets = `
select secret, coalesce(previous_secret, '') from webhooks.endpoints where id = $1`

	// updateSecrets changes nothing if somebody else has.
	updateSecrets = `
update webhooks.endpoints set secret = $2, previous_secret = nullif($3, '')
where id = $1 and secret = $4 and coalesce(previous_secret, '') = $5`
)

// SealSecrets seals the secrets of one endpoint with the first of Config.Keys. It does nothing, and returns false, when they are, when
// the endpoint is gone, or when somebody changes it meanwhile. It changes one row in a transaction, so it waits for no other lock while
// it holds one.
func (db *DB) SealSecrets(ctx context.Context, endpointID string) (sealed bool, err error) {
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if err := exec(ctx, tx, setLockTimeout); err != nil {
			return err
		}
		type stored struct{ current, former string }
		rows, err := queryRows(ctx, tx, selectSecrets, func(row pgx.CollectableRow) (s stored, err error) {
			err = row.Scan(&s.current, &s.former)
			return s, err
		}, endpointID)
		if err != nil || len(rows) == 0 {
			return err
		}
		was := rows[0]
		current, changes, err := db.cfg.Keys.Reseal(endpointID, secret.New(was.current))
		if err != nil {
			return err
		}
		former, formerChanges, err := db.cfg.Keys.Reseal(endpointID, secret.New(was.former))
		if err != nil || !changes && !formerChanges {
			return err
		}
		tag, err := tx.Exec(ctx, updateSecrets, endpointID, current.Reveal(), former.Reveal(), was.current, was.former)
		sealed = tag.RowsAffected() > 0
		return err
	})
	return sealed && err == nil, db.cfg.explain("seal the secrets of endpoint "+endpointID, err)
}

// selectKeyIDs counts the secrets by how they are sealed; ” stands for those that are not.
const selectKeyIDs = `
select case when starts_with(s, '` + secret.SealedPrefix + `') then split_part(s, ':', 3) else '' end as key, count(*)
from webhooks.endpoints e, unnest(array[e.secret, e.previous_secret]) s
where s is not null
group by 1 order by 1`

// checkSecrets tells how many secrets are not sealed with the first key, and which of them cannot be opened.
func (db *DB) checkSecrets(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	if ok, err := readable(ctx, tx, "webhooks.endpoints"); err != nil || !ok {
		return nil, err
	}
	type count struct {
		key string
		n   int64
	}
	counts, err := queryRows(ctx, tx, selectKeyIDs, func(row pgx.CollectableRow) (c count, err error) {
		err = row.Scan(&c.key, &c.n)
		return c, err
	})
	if err != nil {
		return nil, err
	}
	keys := db.cfg.Keys
	var sealed, waiting int64
	for _, c := range counts {
		switch {
		case c.key == "" && !keys.Seals():
		case c.key == "" || keys.Has(c.key) && !keys.IsFirst(c.key):
			waiting += c.n
		case keys.Has(c.key):
			sealed += c.n
		default:
			found = append(found, warning("secrets", "add the key to security.keys again, or set new secrets by endpoints rotate-secret",
				"%d are sealed with key %q, which is not among security.keys: nothing is sent to their endpoints", c.n, c.key))
		}
	}
	if keys.Seals() {
		found = append(found, fine("secrets", "%d are sealed with the first of security.keys; %d are not yet, which the running agent seals", sealed, waiting))
	}
	return found, nil
}
