package outbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// The app may write secrets as plain text. If there are keys (Config.Keys), the agent seals these
// secrets. It also seals again those that were sealed with a key that is no longer the first. A
// sealed secret is handled like any other text: it is streamed, loaded, and copied by a rotation.
// Only the code that signs opens it.

// Unsealed reports whether SealSecrets has something to do for e.
func (db *DB) Unsealed(e *Endpoint) bool {
	outdated := func(s secret.Text) bool { return db.cfg.Keys.Outdated(e.ID, s) }
	return outdated(e.Secret) || outdated(e.Previous) || slices.ContainsFunc(e.Older, outdated)
}

const (
	selectSecrets = `
select array[secret, coalesce(previous_secret, '')]
       || array(select coalesce(s, '') from unnest(older_secrets) with ordinality o (s, n) order by n)
from webhooks.endpoints where id = $1`

	// updateSecrets changes nothing if somebody else has changed the secrets. The setting, which
	// ends with the transaction, has a trigger keep endpoints.updated, by which people change an
	// endpoint as they have seen it.
	updateSecrets = `
update webhooks.endpoints set secret = $2, previous_secret = nullif($3, ''), older_secrets = $4
from (select set_config('webhooks.seals', $1, true)) seals
where id = $1 and secret = $5 and coalesce(previous_secret, '') = $6
  and array(select coalesce(s, '') from unnest(older_secrets) with ordinality o (s, n) order by n) = $7`
)

// SealSecrets seals the secrets of one endpoint with the first of Config.Keys. A secret that cannot
// be opened stays as it is. SealSecrets returns false and does nothing if there is nothing to seal,
// if the endpoint is gone, or if somebody else changes it meanwhile. It changes one row in a short
// transaction, so it waits for no other lock while it holds one.
func (db *DB) SealSecrets(ctx context.Context, endpointID string) (sealed bool, err error) {
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if err := exec(ctx, tx, setBrief); err != nil {
			return err
		}
		stored, err := queryRows(ctx, tx, selectSecrets, pgx.RowTo[[]string], endpointID)
		if err != nil || len(stored) == 0 {
			return err
		}
		was := stored[0]
		is := slices.Clone(was)
		for i, text := range was {
			if s := secret.New(text); db.cfg.Keys.Outdated(endpointID, s) {
				opened, err := db.cfg.Keys.Open(endpointID, s)
				if err != nil {
					return err // cannot happen, because Outdated has opened it
				}
				is[i] = db.cfg.Keys.Seal(endpointID, opened).Reveal()
			}
		}
		if slices.Equal(is, was) {
			return nil
		}
		tag, err := tx.Exec(ctx, updateSecrets, endpointID, is[0], is[1], is[2:], was[0], was[1], was[2:])
		sealed = tag.RowsAffected() > 0
		return err
	})
	return sealed && err == nil, db.cfg.explain("seal the secrets of endpoint "+endpointID, err)
}

// selectKeyNames counts the secrets that sign, by the key that seals them. The name is empty for
// those that are not sealed.
const selectKeyNames = `
select former, case when starts_with(text, '` + secret.SealedPrefix + `') then split_part(text, ':', 3) else '' end as key, count(*)
from webhooks.endpoints e, lateral (
    values (false, e.secret, null::timestamptz), (true, e.previous_secret, e.previous_secret_until)
    union all
    select true, o.* from unnest(e.older_secrets, e.older_secrets_until) o
) s (former, text, until)
where text is not null and (not former or until > now())
group by 1, 2 order by 1, 2`

// checkSecrets reports how many secrets are sealed with the first key, and which secrets cannot be
// opened.
func (db *DB) checkSecrets(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	if ok, err := readable(ctx, tx, "webhooks.endpoints"); err != nil || !ok {
		return nil, err
	}
	type count struct {
		former bool
		key    string
		n      int64
	}
	counts, err := queryRows(ctx, tx, selectKeyNames, func(row pgx.CollectableRow) (c count, err error) {
		err = row.Scan(&c.former, &c.key, &c.n)
		return c, err
	})
	if err != nil {
		return nil, err
	}
	keys := db.cfg.Keys
	var sealed, waiting int64
	for _, c := range counts {
		const remedy = "add the key to security.keys again, or set new secrets by endpoints rotate-secret"
		switch {
		case keys.IsFirst(c.key):
			sealed += c.n
		case c.key == "" || keys.Has(c.key):
			waiting += c.n
		case c.former:
			found = append(found, warning("secrets", remedy, "%d former ones are sealed with key %s, which is not among security.keys: they no longer sign",
				c.n, secret.KeyName(c.key)))
		default:
			found = append(found, warning("secrets", remedy, "%d are sealed with key %s, which is not among security.keys: nothing is sent to their endpoints",
				c.n, secret.KeyName(c.key)))
		}
	}
	if keys.Seals() {
		text := fmt.Sprintf("%d are sealed with the first of security.keys", sealed)
		if waiting > 0 {
			text += fmt.Sprintf("; %d are not yet, which the running agent seals", waiting)
		}
		found = append(found, fine("secrets", "%s", text))
	}
	return found, nil
}
