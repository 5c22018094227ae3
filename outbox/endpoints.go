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

// EndpointInfo is an endpoint as people see it: with its state, without its secrets. Times are nil
// where nothing happened, and where the row holds none that can be shown (moment).
type EndpointInfo struct {
	ID          string   `json:"id"`
	Venue       string   `json:"venue"`
	URL         string   `json:"url"`
	Events      []string `json:"events"`
	Description string   `json:"description"`
	// State is enabled, disabled, or unusable: enabled, but the agent cannot send to it as it is
	// registered.
	State          string     `json:"state"`
	DisabledAt     *time.Time `json:"disabled_at"`
	DisabledReason string     `json:"disabled_reason"`
	Unusable       string     `json:"unusable"` // why, as one sentence
	ManagedBy      string     `json:"managed_by"`
	// ConsecutiveFailures counts failed attempts since the last success, or since the endpoint was
	// enabled.
	ConsecutiveFailures int        `json:"consecutive_failures"`
	FirstFailureAt      *time.Time `json:"first_failure_at"`
	LastFailureAt       *time.Time `json:"last_failure_at"`
	LastSuccessAt       *time.Time `json:"last_success_at"` // that which ended the last series of failures
	LastError           string     `json:"last_error"`
	// HeldUntil is when the next attempt may start, nil where nothing holds the endpoint. HeldBy is
	// what holds it: failures, or retry_after where its server asked for it.
	HeldUntil *time.Time `json:"held_until"`
	HeldBy    string     `json:"held_by"`
	// PreviousSecretUntil is when the former secret stops signing; nil when there is none.
	PreviousSecretUntil *time.Time `json:"previous_secret_until"`
	// OlderSecretsUntil is when those before it stop, that are not over.
	OlderSecretsUntil []time.Time `json:"older_secrets_until"`
	Created           *time.Time  `json:"created"`
	Updated           *time.Time  `json:"updated"`
}

// States of an endpoint (EndpointInfo.State).
const (
	StateEnabled  = "enabled"
	StateDisabled = "disabled"
	StateUnusable = "unusable"
)

// EndpointFilter narrows a list of endpoints. Empty fields do not narrow it.
type EndpointFilter struct {
	ID, Venue, State string
	Query            string // a part of the URL's host or of the description
	After            string // ids after this one, for the next page
	Limit            int
}

// endpointInfos reads what people see of the endpoints. The view is in the schema for those who
// stay in SQL (migrations/016_settings.sql).
const endpointInfos = `
select id, venue, url, events::text, description, state, disabled_at, disabled_reason, unusable, managed_by, consecutive_failures,
       first_failure_at, last_failure_at, last_success_at, last_error, held_until, coalesce(held_by, ''),
       previous_secret_until, older_secrets_until::text, created, updated
from webhooks.endpoint_settings`

const selectEndpointInfos = endpointInfos + `
where ($1 = '' or id = $1) and ($2 = '' or venue = $2) and ($3 = '' or state = $3) and id > $4{ and venue = @venue}
  and ($6 = '' or strpos(lower(url), lower($6)) > 0 and strpos(lower(webhooks.url_host(url)), lower($6)) > 0 or strpos(lower(description), lower($6)) > 0)
order by id limit $5`

// Endpoints lists endpoints in the order of their ids, which is that of their creation.
func (v view) Endpoints(ctx context.Context, f EndpointFilter) (endpoints []EndpointInfo, err error) {
	err = v.look(ctx, "list endpoints", func(q narrowed) error {
		endpoints, err = queryRows(ctx, q, selectEndpointInfos, scanEndpointInfo, f.ID, f.Venue, f.State, f.After, f.Limit, f.Query)
		return err
	})
	return endpoints, err
}

// Endpoint returns one endpoint, or a Problem when there is none with this id.
func (v view) Endpoint(ctx context.Context, id string) (EndpointInfo, error) {
	if id == "" { // which would match them all
		return EndpointInfo{}, noEndpoint(id)
	}
	found, err := v.Endpoints(ctx, EndpointFilter{ID: id, Limit: 1})
	if err != nil {
		return EndpointInfo{}, err
	}
	if len(found) == 0 {
		return EndpointInfo{}, noEndpoint(id)
	}
	return found[0], nil
}

func scanEndpointInfo(row pgx.CollectableRow) (e EndpointInfo, err error) {
	var events, older string
	err = row.Scan(&e.ID, &e.Venue, &e.URL, &events, &e.Description, &e.State, moment{&e.DisabledAt}, &e.DisabledReason, &e.Unusable, &e.ManagedBy,
		&e.ConsecutiveFailures, moment{&e.FirstFailureAt}, moment{&e.LastFailureAt}, moment{&e.LastSuccessAt}, &e.LastError,
		moment{&e.HeldUntil}, &e.HeldBy,
		moment{&e.PreviousSecretUntil}, &older, moment{&e.Created}, moment{&e.Updated})
	e.Events = parseTextArray(events)
	_, until := parseOlder("{}", older)
	e.OlderSecretsUntil = slices.DeleteFunc(append([]time.Time{}, until...), time.Time.IsZero) // of a year that cannot be shown
	return e, err
}

func noEndpoint(id string) *Problem {
	return &Problem{Thing: fmt.Sprintf("endpoint %q", id), Reason: "there is none with this id", Remedy: "webhook-agent endpoints list shows them", Err: ErrNotFound}
}

const insertEndpoint = `
insert into webhooks.endpoints (id, venue, url, events, secret, description, managed_by, idempotency_key, idempotency_hash)
values ($1, $2, $3, $4, $5, $6, nullif($7, ''), nullif($8, ''), $9)
on conflict (venue, idempotency_key) where idempotency_key is not null do nothing`

// selectRepeated finds what a request has made before.
const selectRepeated = `
select id, idempotency_hash is not distinct from $3 from webhooks.endpoints where venue = $1 and idempotency_key = $2{ and venue = @venue}`

// selectNewEndpointID makes the id that the table would give: what is sealed is bound to it.
const selectNewEndpointID = `select webhooks.new_id('ep')`

// AddEndpoint registers an enabled endpoint for the Venue, URL, Events and Secret of e and returns
// its id. The caller has seen that they are usable. In the view of one venue e need not name it. A
// request that was made before makes nothing: repeated reports it, and id is that of the endpoint
// it has made.
func (v view) AddEndpoint(ctx context.Context, e Endpoint, description string, once Idempotency) (id string, repeated bool, err error) {
	if e.Venue, err = v.owner(e.Venue); err != nil {
		return "", false, err
	}
	id, added, err := v.db.insertEndpoint(ctx, v.db.pool, e, description, "", once)
	if err != nil || added {
		return id, false, v.db.cfg.explain("add an endpoint", err)
	}
	var same bool
	err = v.on(v.db.pool).QueryRow(ctx, selectRepeated, e.Venue, once.Key, once.Hash).Scan(&id, &same)
	if err == nil && !same {
		err = keyOfAnother
	}
	return id, true, v.db.cfg.explain("add an endpoint", err)
}

// insertEndpoint reports with added whether the endpoint was not there for the same request
// already.
func (db *DB) insertEndpoint(ctx context.Context, q querier, e Endpoint, description, managedBy string, once Idempotency) (id string, added bool, err error) {
	if err := q.QueryRow(ctx, selectNewEndpointID).Scan(&id); err != nil {
		return "", false, err
	}
	tag, err := q.Exec(ctx, insertEndpoint, id, e.Venue, e.URL.Reveal(), e.Events, db.cfg.Keys.Seal(id, e.Secret).Reveal(), description, managedBy,
		once.Key, once.Hash)
	return id, tag.RowsAffected() == 1, err
}

// EndpointPatch is a change of an endpoint. What is nil stays as it is.
type EndpointPatch struct {
	URL         *secret.Text
	Events      *[]string
	Description *string
	// IfUpdated has the endpoint changed only if it was last written then.
	IfUpdated *time.Time
}

// ErrChanged is in the error of a change that was bound to a state of the endpoint which it has no
// longer.
var ErrChanged = errors.New("the endpoint was changed meanwhile")

func changedMeanwhile(id string) *Problem {
	return &Problem{Thing: fmt.Sprintf("endpoint %q", id), Reason: "it was changed since it was read", Remedy: "read it again", Err: ErrChanged}
}

const updateEndpoint = `
update webhooks.endpoints
set url = coalesce($3, url), events = coalesce($4::text[], events), description = coalesce($5, description)
where id = $1 and ($2::timestamptz is null or updated = $2){ and venue = @venue}`

// UpdateEndpoint changes an endpoint and returns it as it is then. The caller has seen that the new
// values are usable.
func (v view) UpdateEndpoint(ctx context.Context, id string, p EndpointPatch) (EndpointInfo, error) {
	var url *string
	if p.URL != nil {
		text := p.URL.Reveal()
		url = &text
	}
	var events []string
	if p.Events != nil {
		events = *p.Events
	}
	if _, err := v.change(ctx, "change an endpoint", updateEndpoint, id, p.IfUpdated, url, events, p.Description); err != nil {
		return EndpointInfo{}, err
	}
	return v.Endpoint(ctx, id)
}

const enableEndpoint = `
update webhooks.endpoints set disabled_at = null where id = $1 and disabled_at is not null{ and venue = @venue}`

// EnableEndpoint enables an endpoint and so begins a new failure counter. It reports whether the
// endpoint was disabled before.
func (v view) EnableEndpoint(ctx context.Context, id string) (changed bool, err error) {
	return v.change(ctx, "enable an endpoint", enableEndpoint, id)
}

const disableEndpoint = `
update webhooks.endpoints set disabled_at = now(), disabled_reason = 'manual' where id = $1 and disabled_at is null{ and venue = @venue}`

// DisableEndpoint disables an endpoint: nothing more is sent, its events are kept as missed. It
// reports whether the endpoint was enabled before.
func (v view) DisableEndpoint(ctx context.Context, id string) (changed bool, err error) {
	return v.change(ctx, "disable an endpoint", disableEndpoint, id)
}

const deleteEndpoint = `
delete from webhooks.endpoints where id = $1 and ($2::timestamptz is null or updated = $2){ and venue = @venue}`

// RemoveEndpoint deletes an endpoint, only if it was last written at ifUpdated where that is given.
// Its delivery log stays.
func (v view) RemoveEndpoint(ctx context.Context, id string, ifUpdated *time.Time) error {
	_, err := v.change(ctx, "remove an endpoint", deleteEndpoint, id, ifUpdated)
	return err
}

const rotateSecret = `
update webhooks.endpoints
set previous_secret = case when $3::interval > '0' then secret end,
    previous_secret_until = case when $3::interval > '0' then now() + $3::interval end,
    secret = $2
where id = $1{ and venue = @venue}
returning previous_secret_until`

// codeProgramLimit is what the trigger of webhooks.endpoints refuses one former secret more with.
const codeProgramLimit = "54000"

// ErrSameSecret is in the error of RotateSecret when the endpoint has the secret already and
// nothing changed.
var ErrSameSecret = errors.New("the endpoint has this secret already")

// RotateSecret gives an endpoint a new secret. The former one signs as well for the overlap, and
// those before it until their own times, MostFormerSecrets together; with an overlap of zero all of
// them end. It returns when the former secret ends, nil when at once. To the secret that the
// endpoint has already it only ends the former ones, with an overlap of zero; otherwise it returns
// ErrSameSecret. Where ifUpdated is given, the endpoint must have been last written then.
func (v view) RotateSecret(ctx context.Context, id string, s secret.Text, overlap time.Duration, ifUpdated *time.Time) (until *time.Time, err error) {
	if v.db == nil {
		return nil, errNoVenue
	}
	err = pgx.BeginFunc(ctx, v.db.pool, func(tx pgx.Tx) error {
		q := v.on(withoutPreparing(tx))
		updated, err := lockUpdated(ctx, q, id)
		switch {
		case err != nil:
			return err
		case ifUpdated != nil && (updated == nil || !updated.Equal(*ifUpdated)):
			return changedMeanwhile(id)
		}
		e, same, err := v.db.forgetTwins(ctx, q, id, s)
		switch {
		case err != nil:
			return err
		case same && (overlap > 0 || len(e.Former()) == 0):
			return ErrSameSecret
		}
		return q.QueryRow(ctx, rotateSecret, id, v.db.cfg.Keys.Seal(id, s).Reveal(), overlap).Scan(&until)
	})
	if SQLState(err) == codeProgramLimit {
		return nil, &Problem{
			Thing:  fmt.Sprintf("endpoint %q", id),
			Reason: fmt.Sprintf("%d former secrets of it still sign, and no more are kept", MostFormerSecrets),
			Remedy: "wait until one of them ends, as webhook-agent endpoints show says, or end them all with --overlap 0s", Err: err,
		}
	}
	return until, v.db.cfg.explain("rotate a secret", err)
}

const lockEndpointUpdated = `
select updated from webhooks.endpoints where id = $1{ and venue = @venue} for update`

// lockUpdated locks the row of an endpoint and returns when it was last written.
func lockUpdated(ctx context.Context, q narrowed, id string) (updated *time.Time, err error) {
	err = q.QueryRow(ctx, lockEndpointUpdated, id).Scan(moment{&updated})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, noEndpoint(id)
	}
	return updated, err
}

const lockEndpoint = selectEndpoint + `
for update of e`

const setFormerSecrets = `
update webhooks.endpoints
set previous_secret = nullif($2, ''), previous_secret_until = $3, older_secrets = $4, older_secrets_until = $5
where id = $1{ and venue = @venue}`

// forgetTwins prepares the rotation of an endpoint to the secret next. It drops the former secrets
// that are next or the current one, and all but the newest of those that are alike: a secret signs
// once, so it takes one place. The statement of the rotation cannot see that, since what is sealed
// differs each time. It returns the endpoint as it was, whose row is locked now, and reports
// whether its secret is next.
func (db *DB) forgetTwins(ctx context.Context, q narrowed, id string, next secret.Text) (e *Endpoint, same bool, err error) {
	found, err := queryRows(ctx, q, lockEndpoint, scanEndpointState, id)
	if err != nil {
		return nil, false, err
	}
	if len(found) == 0 {
		return nil, false, noEndpoint(id)
	}
	e = found[0].Endpoint
	seen := []secret.Text{next}
	twin := func(s secret.Text) bool {
		opened, err := db.cfg.Keys.Open(id, s)
		if err != nil {
			return false
		}
		if slices.ContainsFunc(seen, opened.Equal) {
			return true
		}
		seen = append(seen, opened)
		return false
	}
	same = twin(e.Secret)
	former := e.Former()
	kept := slices.DeleteFunc(slices.Clone(former), func(f FormerSecret) bool { return twin(f.Secret) })
	if same || len(kept) == len(former) {
		return e, same, nil
	}
	var (
		previous      string
		previousUntil *time.Time
		older         = []string{}
		olderUntil    = []time.Time{}
	)
	for i, f := range kept {
		if i == 0 {
			previous, previousUntil = f.Secret.Reveal(), &f.Until
			continue
		}
		older, olderUntil = append(older, f.Secret.Reveal()), append(olderUntil, f.Until)
	}
	_, err = q.Exec(ctx, setFormerSecrets, id, previous, previousUntil, older, olderUntil)
	return e, false, err
}

const endpointExists = `select exists (select from webhooks.endpoints where id = $1{ and venue = @venue})`

// change runs a statement on the endpoint $1 and reports whether it changed a row. An endpoint that
// is not there is a Problem. So is one that a statement with a condition did not change: the
// condition is its first argument.
func (v view) change(ctx context.Context, operation, statement, id string, args ...any) (changed bool, err error) {
	q, err := v.do()
	if err != nil {
		return false, err
	}
	tag, err := q.Exec(ctx, statement, slices.Insert(args, 0, any(id))...)
	if err != nil {
		return false, v.db.cfg.explain(operation, err)
	}
	if tag.RowsAffected() > 0 {
		return true, nil
	}
	var exists bool
	if err := q.QueryRow(ctx, endpointExists, id).Scan(&exists); err != nil {
		return false, v.db.cfg.explain(operation, err)
	}
	switch {
	case !exists:
		return false, noEndpoint(id)
	case len(args) > 0:
		return false, changedMeanwhile(id)
	}
	return false, nil
}

const selectEndpoint = selectEndpoints + `
where e.id = $1{ and e.venue = @venue}`

// EndpointWithSecret returns an endpoint with what an attempt needs. Its secrets are as they are
// stored.
func (v view) EndpointWithSecret(ctx context.Context, id string) (e Endpoint, err error) {
	err = v.look(ctx, "read an endpoint", func(q narrowed) error {
		found, err := queryRows(ctx, q, selectEndpoint, scanEndpointState, id)
		if err == nil && len(found) == 0 {
			return noEndpoint(id)
		}
		if err == nil {
			e = *found[0].Endpoint
		}
		return err
	})
	return e, err
}

// selectSample prefers the first type of the catalogue that one of the patterns asks for, and
// invents an event for patterns that only match types which are not in it.
const selectSample = `
select webhooks.new_id('evt_test'), name, example, now() from (
    select t.name, t.example::text, 1 as choice from webhooks.event_types t
    where webhooks.event_matches($1::text[], t.name)
    union all
    select regexp_replace(p, '\*$', 'test'), '{}', 2 from unnest($1::text[]) p
) samples
order by choice, name limit 1`

// SampleEvent makes an event for a test of an endpoint: new id, the example of a type that the
// endpoint has asked for. It is not stored.
func (v view) SampleEvent(ctx context.Context, e Endpoint) (event Event, err error) {
	if event.Venue, err = v.owner(e.Venue); err != nil {
		return event, err
	}
	err = v.db.look(ctx, "make a sample event", func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, selectSample, e.Events).Scan(&event.ID, &event.Type, &event.Data, &event.Created)
	})
	return event, err
}
