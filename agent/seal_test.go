package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

var testKeys = []secret.Text{secret.New(strings.Repeat("a1", 32)), secret.New(strings.Repeat("b2", 32)), secret.New(strings.Repeat("c3", 32))}

// storedSecrets returns the secrets of an endpoint as they are stored.
func storedSecrets(t *testing.T, env *testenv.DB, id string) []string {
	t.Helper()
	return testenv.QueryAll[string](t, env, `select s from webhooks.endpoints e, unnest(array[secret, previous_secret]) s where e.id = $1 and s is not null`, id)
}

// waitSealed waits until the secrets of an endpoint are sealed with the first of keys, and fails the test if one of plain is still there.
func waitSealed(t *testing.T, env *testenv.DB, keys []secret.Text, id string, plain ...string) {
	t.Helper()
	ring, err := secret.NewKeyring(keys)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, func() error {
		stored := storedSecrets(t, env, id)
		if len(stored) != len(plain) {
			return fmt.Errorf("%d secrets, want %d", len(stored), len(plain))
		}
		for i, s := range stored {
			opened, err := ring.Open(id, secret.New(s))
			if err != nil || ring.Outdated(id, secret.New(s)) || opened.Reveal() != plain[i] {
				return fmt.Errorf("stored as %s: %v", s, err)
			}
		}
		return nil
	})
}

func TestSeal_WhatTheAppWritesIsSealedAndSignsAsBefore(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	early := addEndpoint(t, env, "venue_1", r.URL+"/early", "*")
	cfg := testConfig(env)
	cfg.Security.Keys = testKeys[:1]
	agent := start(t, cfg)
	agent.waitLog("msg=leading")
	waitSealed(t, env, cfg.Security.Keys, early, testSecret)
	late := addEndpoint(t, env, "venue_1", r.URL+"/late", "*")
	waitSealed(t, env, cfg.Security.Keys, late, testSecret)

	addEvent(t, env, "venue_1", "lead.created", `{}`)
	for _, got := range r.Wait(t, 2, patience) {
		if got.SignatureErr != nil {
			t.Errorf("%s: %v", got.Path, got.SignatureErr)
		}
	}

	// A rotation by SQL copies the sealed text and writes a new secret as it is.
	const rotated = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	r.SetSecret("", rotated)
	env.Exec(t, `update webhooks.endpoints set previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = $1`, rotated)
	waitSealed(t, env, cfg.Security.Keys, early, rotated, testSecret)
	waitSealed(t, env, cfg.Security.Keys, late, rotated, testSecret)
	r.SetAnswer("/early", refuseForgeries)
	r.SetAnswer("/late", refuseForgeries)
	addEvent(t, env, "venue_1", "lead.created", `{}`)
	taken := map[string]int{}
	for _, got := range r.Wait(t, 6, patience)[2:] { // first with the former secret, then with the new one
		if got.Header.Get("X-Quintago-Signature-Previous") == "" {
			t.Errorf("%s: the former secret does not sign", got.Path)
		}
		if got.SignatureErr == nil {
			taken[got.Path]++
		}
	}
	if taken["/early"] != 1 || taken["/late"] != 1 {
		t.Errorf("with the new secret: %v", taken)
	}
	if strings.Contains(agent.log.String(), "WARN") {
		t.Errorf("a warning:\n%s", agent.log)
	}
}

func TestSeal_KeysAreRotatedAndAMissingOneStopsOnlyItsEndpoints(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	id := addEndpoint(t, env, "venue_1", r.URL, "*")
	arrived := 0
	run := func(keys []secret.Text, during func(*running)) {
		t.Helper()
		cfg := testConfig(env)
		cfg.Security.Keys = keys
		agent := start(t, cfg)
		agent.waitLog("msg=leading")
		during(agent)
		agent.end()
	}
	sends := func(*running) {
		t.Helper()
		addEvent(t, env, "venue_1", "lead.created", `{}`)
		arrived++
		if got := r.Wait(t, arrived, patience)[arrived-1]; got.SignatureErr != nil {
			t.Error(got.SignatureErr)
		}
	}
	seals := func(keys ...secret.Text) {
		t.Helper()
		run(keys, func(a *running) {
			waitSealed(t, env, keys, id, testSecret)
			sends(a)
		})
	}
	seals(testKeys[0])
	seals(testKeys[1], testKeys[0])
	run(testKeys[1:2], sends)

	other := addEndpoint(t, env, "venue_2", r.URL+"/other", "*")
	for _, keys := range [][]secret.Text{testKeys[2:], nil} {
		run(keys, func(*running) {
			event := addEvent(t, env, "venue_1", "lead.created", `{}`)
			waitStatus(t, env, event, id, "missed")
			unusable := testenv.QueryOne[string](t, env, `select unusable from webhooks.endpoint_health where endpoint_id = $1`, id)
			if !strings.Contains(unusable, "is sealed with key") || !strings.Contains(unusable, "is not among security.keys") {
				t.Errorf("the endpoint is unusable since: %s", unusable)
			}
			addEvent(t, env, "venue_2", "lead.created", `{}`) // that of the other endpoint
			arrived++
			r.Wait(t, arrived, patience)
			if len(keys) > 0 {
				waitSealed(t, env, keys, other, testSecret)
			}
		})
		if len(keys) > 0 {
			env.Exec(t, `update webhooks.endpoints set secret = $2 where id = $1`, other, testSecret)
		}
	}
	seals(testKeys[1])
}

func TestSeal_ASecretFromAnotherEndpointStopsItsNewOwnerOnly(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	owner := addEndpoint(t, env, "venue_1", r.URL+"/owner", "*")
	thief := addEndpoint(t, env, "venue_1", r.URL+"/thief", "*")
	cfg := testConfig(env)
	cfg.Security.Keys = testKeys[:1]
	start(t, cfg).waitLog("msg=leading")
	waitSealed(t, env, cfg.Security.Keys, owner, testSecret)
	env.Exec(t, `update webhooks.endpoints set secret = (select secret from webhooks.endpoints where id = $2) where id = $1`, thief, owner)
	event := addEvent(t, env, "venue_1", "lead.created", `{}`)
	waitStatus(t, env, event, owner, "succeeded")
	waitStatus(t, env, event, thief, "missed")
	for _, got := range r.Wait(t, 1, patience) {
		if got.Path != "/owner" {
			t.Errorf("something arrived at %s", got.Path)
		}
	}
}

func TestSeal_TheCommandsAndTheFileSealWhatTheyWrite(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	keys := "[security]\nkeys = [\"" + testKeys[0].Reveal() + "\"]\n"
	command := func(args ...string) string {
		t.Helper()
		return succeedWith(t, configText(env, env.LeastURL)+keys, args...)
	}
	added := decode[map[string]string](t, command("endpoints", "add", "--json", "--venue", "venue_1", "--url", r.URL, "--events", "*", "--secret", testSecret))
	id := added["id"]
	waitSealed(t, env, testKeys[:1], id, testSecret)
	if out := command("endpoints", "test", id); !strings.Contains(out, "took") {
		t.Errorf("test says: %s", out)
	}
	if got := r.Wait(t, 1, patience)[0]; got.SignatureErr != nil {
		t.Error(got.SignatureErr)
	}
	command("endpoints", "rotate-secret", id, "--secret", "another")
	waitSealed(t, env, testKeys[:1], id, "another", testSecret)
	if out := command("check"); !strings.Contains(out, "2 are sealed") {
		t.Errorf("check says: %s", out)
	}
	status, _, stderr := cli(t, env, "endpoints", "test", id) // without keys
	if status != exitFailed || !strings.Contains(stderr, "not among security.keys") {
		t.Errorf("without keys: status %d: %s", status, stderr)
	}
	if out := succeed(t, env, "check"); !strings.Contains(out, "nothing is sent to their endpoints") {
		t.Errorf("without keys check says: %s", out)
	}

	cfg := testConfig(env)
	cfg.Security.Keys = testKeys[:1]
	cfg.Endpoints = []EndpointConfig{{Venue: "file", URL: secret.New(r.URL + "/file"), Events: []string{"*"}, Secret: secret.New(testSecret)}}
	var before string
	for range 2 { // the second time nothing changes
		agent := start(t, cfg)
		agent.waitLog("msg=leading")
		managed := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints where managed_by = 'file'`)
		waitSealed(t, env, testKeys[:1], managed, testSecret)
		addEvent(t, env, "file", "lead.created", `{}`)
		agent.end()
		now := testenv.QueryOne[string](t, env, `select id || secret || updated from webhooks.endpoints where managed_by = 'file'`)
		if before != "" && now != before {
			t.Errorf("a file that has not changed changes its endpoint: %s was %s", now, before)
		}
		before = now
	}
}

func TestSeal_ATableThatTheAppHoldsIsWaitedForWithoutHoldingAnybodyUp(t *testing.T) {
	t.Parallel()
	env := ownDB(t)
	r := testenv.StartReceiver(t, testSecret)
	cfg := testConfig(env)
	cfg.Security.Keys = testKeys[:1]
	agent := start(t, cfg)
	agent.waitLog("recovery is complete")

	// The lock is asked for while the endpoint is being inserted, so it comes before the agent.
	app, holder := connectURL(t, env.URL), connectURL(t, env.URL)
	tx, err := app.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var id string
	err = tx.QueryRow(t.Context(), `insert into webhooks.endpoints (venue, url, events, secret) values ('venue_1', $1, '{*}', $2) returning id`, r.URL, testSecret).Scan(&id)
	if err != nil {
		t.Fatal(err)
	}
	lock := make(chan error, 1) // sent to once, by the goroutine that ends with it
	go func() {
		_, err := holder.Exec(t.Context(), `begin; lock table webhooks.endpoints in share row exclusive mode`)
		lock <- err
	}()
	testenv.Eventually(t, patience, func() error {
		if testenv.QueryOne[int](t, env, `select count(*) from pg_locks where not granted and relation = 'webhooks.endpoints'::regclass`) == 0 {
			return errors.New("nobody waits for the lock")
		}
		return nil
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-lock; err != nil {
		t.Fatal(err)
	}
	agent.waitLog("cannot seal the secrets of an endpoint")
	event := addEvent(t, env, "venue_1", "lead.created", `{}`)
	waitStatus(t, env, event, id, "succeeded")
	if _, err := holder.Exec(t.Context(), `update webhooks.endpoints set secret = 'changed by the app'; commit`); err != nil {
		t.Fatal(err)
	}
	waitSealed(t, env, cfg.Security.Keys, id, "changed by the app")
	testenv.Eventually(t, patience, func() error {
		if _, body := get(t, agent.adminURL()+"/metrics"); !strings.Contains(body, "webhook_agent_sealed_endpoints_total 1") {
			return errors.New("the metrics do not count one endpoint")
		}
		return nil
	})
}

func TestSeal_RowsThatTheAppHoldsKeepNobodyBack(t *testing.T) {
	t.Parallel()
	env := ownDB(t)
	r := testenv.StartReceiver(t, testSecret)
	cfg := testConfig(env)
	cfg.Endpoints = []EndpointConfig{{Venue: "file", URL: secret.New(r.URL + "/file"), Events: []string{"*"}, Secret: secret.New(testSecret)}}
	before := start(t, cfg)
	before.waitLog("recovery is complete")
	before.end()
	for i := range 5 {
		addEndpoint(t, env, "venue_1", fmt.Sprintf("%s/held/%d", r.URL, i), "*")
	}
	tx, err := connectURL(t, env.URL).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select from webhooks.endpoints for update`); err != nil {
		t.Fatal(err)
	}

	cfg.Security.Keys = testKeys[:1]
	agent := start(t, cfg)
	agent.waitLog("msg=leading")
	free := addEndpoint(t, env, "venue_2", r.URL+"/free", "*")
	waitSealed(t, env, cfg.Security.Keys, free, testSecret)
	waitStatus(t, env, addEvent(t, env, "venue_2", "lead.created", `{}`), free, "succeeded")
	agent.waitLog("cannot seal the secrets of an endpoint")
	if n := strings.Count(agent.log.String(), "cannot seal the secrets of an endpoint"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, agent.log)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range testenv.QueryAll[string](t, env, `select id from webhooks.endpoints`) {
		waitSealed(t, env, cfg.Security.Keys, id, testSecret)
	}
}

func TestSeal_ASecretThatCannotBeOpenedKeepsTheOtherOneFromNothing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, testSecret)
	lost, err := secret.NewKeyring(testKeys[1:2])
	if err != nil {
		t.Fatal(err)
	}
	id := addEndpoint(t, env, "venue_1", r.URL, "*")
	env.Exec(t, `update webhooks.endpoints set previous_secret = $1, previous_secret_until = now() + interval '1 hour',
	    older_secrets = array[$1, $1], older_secrets_until = array[now() + interval '1 hour', now()]`, lost.Seal(id, secret.New("former")).Reveal())
	cfg := testConfig(env)
	cfg.Security.Keys = testKeys[:1]
	start(t, cfg).waitLog("msg=leading")
	testenv.Eventually(t, patience, func() error {
		if stored := storedSecrets(t, env, id); !strings.HasPrefix(stored[0], secret.SealedPrefix) {
			return errors.New("the current secret is not sealed")
		}
		return nil
	})
	waitStatus(t, env, addEvent(t, env, "venue_1", "lead.created", `{}`), id, "succeeded")
	check := func() string {
		t.Helper()
		return succeedWith(t, configText(env, env.LeastURL)+"[security]\nkeys = [\""+testKeys[0].Reveal()+"\"]\n", "check")
	}
	if out := check(); !strings.Contains(out, "2 former ones are sealed with key") || !strings.Contains(out, "they sign no more") || !strings.Contains(out, "1 are sealed with the first of security.keys\n") {
		t.Errorf("check says:\n%s", out)
	}
	env.Exec(t, `update webhooks.endpoints set previous_secret_until = now() - interval '1 hour', older_secrets_until = '{}'`)
	if out := check(); strings.Contains(out, "former") {
		t.Errorf("after the overlap check says:\n%s", out)
	}
	env.Exec(t, `update webhooks.endpoints set secret = 'sealed:v1:sentinel-of-a-customer'`)
	if out := check(); !strings.Contains(out, "sealed with key of no name") || strings.Contains(out, "sentinel") {
		t.Errorf("of a text that is not sealed but begins like one check says:\n%s", out)
	}
}
