package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

var testKeys = []secret.Text{secret.New(strings.Repeat("a1", 32)), secret.New(strings.Repeat("b2", 32)), secret.New(strings.Repeat("c3", 32))}

// storedSecrets returns the secrets of an endpoint as they are stored.
func storedSecrets(t *testing.T, env *testenv.DB, id string) []string {
	t.Helper()
	return testenv.QueryAll[string](t, env, `select s from webhooks.endpoints e, unnest(array[secret, previous_secret]) s where e.id = $1 and s is not null`, id)
}

// waitSealed waits until the secrets of an endpoint are sealed with the first of keys, and fails
// the test if one of plain is still there.
func waitSealed(t *testing.T, env *testenv.DB, keys []secret.Text, id string, plain ...string) {
	t.Helper()
	ring, err := secret.NewKeyring(keys)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		stored := storedSecrets(t, env, id)
		if len(stored) != len(plain) {
			return fmt.Errorf("%d secrets, want %d", len(stored), len(plain))
		}
		for i, s := range stored {
			opened, err := ring.Open(id, secret.New(s))
			if err != nil || ring.Outdated(id, secret.New(s)) || opened.Reveal() != plain[i] {
				return fmt.Errorf("stored as %s: %w", s, err)
			}
		}
		return nil
	})
}

func TestSeal_WhatTheAppWritesIsSealedAndSignsAsBefore(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	early := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/early", "*")
	cfg := agenttest.Config(env)
	cfg.Security.Keys = testKeys[:1]
	agent := start(t, cfg)
	agent.WaitLog("msg=leading")
	waitSealed(t, env, cfg.Security.Keys, early, agenttest.Secret)
	late := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/late", "*")
	waitSealed(t, env, cfg.Security.Keys, late, agenttest.Secret)

	agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	for _, got := range r.Wait(t, 2, agenttest.Patience) {
		if got.SignatureErr != nil {
			t.Errorf("%s: %v", got.Path, got.SignatureErr)
		}
	}

	// A rotation by SQL copies the sealed text and writes a new secret as it is.
	const rotated = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	r.SetSecret("", rotated)
	env.Exec(t, `update webhooks.endpoints set previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = $1`, rotated)
	waitSealed(t, env, cfg.Security.Keys, early, rotated, agenttest.Secret)
	waitSealed(t, env, cfg.Security.Keys, late, rotated, agenttest.Secret)
	r.SetAnswer("/early", agenttest.RefuseForgeries)
	r.SetAnswer("/late", agenttest.RefuseForgeries)
	agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	taken := map[string]int{}
	for _, got := range r.Wait(t, 6, agenttest.Patience)[2:] { // first with the former secret, then with the new one
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
	if strings.Contains(agent.Log.String(), "WARN") {
		t.Errorf("a warning:\n%s", agent.Log)
	}
}

func TestSeal_KeysAreRotatedAndAMissingOneStopsOnlyItsEndpoints(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	id := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	arrived := 0
	run := func(keys []secret.Text, during func(*agenttest.Agent)) {
		t.Helper()
		cfg := agenttest.Config(env)
		cfg.Security.Keys = keys
		agent := start(t, cfg)
		agent.WaitLog("msg=leading")
		during(agent)
		agent.End()
	}
	sends := func(*agenttest.Agent) {
		t.Helper()
		agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
		arrived++
		if got := r.Wait(t, arrived, agenttest.Patience)[arrived-1]; got.SignatureErr != nil {
			t.Error(got.SignatureErr)
		}
	}
	seals := func(keys ...secret.Text) {
		t.Helper()
		run(keys, func(a *agenttest.Agent) {
			waitSealed(t, env, keys, id, agenttest.Secret)
			sends(a)
		})
	}
	seals(testKeys[0])
	seals(testKeys[1], testKeys[0])
	run(testKeys[1:2], sends)

	const unsent = "an endpoint cannot be sent to"
	other := agenttest.AddEndpoint(t, env, "venue_2", r.URL+"/other", "*")
	for _, keys := range [][]secret.Text{testKeys[2:], nil} {
		run(keys, func(a *agenttest.Agent) {
			a.WaitLog(unsent)
			event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
			agenttest.WaitStatus(t, env, event, id, "missed")
			unusable := testenv.QueryOne[string](t, env, `select unusable from webhooks.endpoint_health where endpoint_id = $1`, id)
			if !strings.Contains(unusable, "is sealed with key") || !strings.Contains(unusable, "is not among security.keys") {
				t.Errorf("the endpoint is unusable since: %s", unusable)
			}
			agenttest.AddEvent(t, env, "venue_2", "lead.created", `{}`) // that of the other endpoint
			arrived++
			r.Wait(t, arrived, agenttest.Patience)
			if len(keys) > 0 {
				waitSealed(t, env, keys, other, agenttest.Secret)
			}
		})
		if len(keys) > 0 {
			env.Exec(t, `update webhooks.endpoints set secret = $2 where id = $1`, other, agenttest.Secret)
		}
	}
	// The recorded reason is of before the key came back. The log says what is true now.
	run(testKeys[1:2], func(a *agenttest.Agent) {
		waitSealed(t, env, testKeys[1:2], id, agenttest.Secret)
		sends(a)
		if log := a.Log.String(); strings.Contains(log, unsent) || strings.Contains(log, "not among security.keys") {
			t.Errorf("the log still says that the endpoint cannot be sent to: %s", log)
		}
	})
}

func TestSeal_ASecretFromAnotherEndpointStopsItsNewOwnerOnly(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	owner := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/owner", "*")
	thief := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/thief", "*")
	cfg := agenttest.Config(env)
	cfg.Security.Keys = testKeys[:1]
	start(t, cfg).WaitLog("msg=leading")
	waitSealed(t, env, cfg.Security.Keys, owner, agenttest.Secret)
	env.Exec(t, `update webhooks.endpoints set secret = (select secret from webhooks.endpoints where id = $2) where id = $1`, thief, owner)
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, owner, "succeeded")
	agenttest.WaitStatus(t, env, event, thief, "missed")
	for _, got := range r.Wait(t, 1, agenttest.Patience) {
		if got.Path != "/owner" {
			t.Errorf("something arrived at %s", got.Path)
		}
	}
}

func TestSeal_TheCommandsAndTheFileSealWhatTheyWrite(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	keys := "[security]\nkeys = [\"" + testKeys[0].Reveal() + "\"]\n"
	sealing := func(args ...string) string {
		t.Helper()
		return commandSucceedsWith(t, agenttest.ConfigText(env, env.LeastURL)+keys, args...)
	}
	added := agenttest.Decode[map[string]string](t, sealing("endpoints", "add", "--json", "--venue", "venue_1", "--url", r.URL, "--events", "*", "--secret", agenttest.Secret))
	id := added["id"]
	waitSealed(t, env, testKeys[:1], id, agenttest.Secret)
	if out := sealing("endpoints", "test", id); !strings.Contains(out, "took") {
		t.Errorf("test says: %s", out)
	}
	if got := r.Wait(t, 1, agenttest.Patience)[0]; got.SignatureErr != nil {
		t.Error(got.SignatureErr)
	}
	sealing("endpoints", "rotate-secret", id, "--secret", "another")
	waitSealed(t, env, testKeys[:1], id, "another", agenttest.Secret)
	if out := sealing("check"); !strings.Contains(out, "2 are sealed") {
		t.Errorf("check says: %s", out)
	}
	status, _, stderr := command(t, env, "endpoints", "test", id) // without keys
	if status != statusFailed || !strings.Contains(stderr, "not among security.keys") {
		t.Errorf("without keys: status %d: %s", status, stderr)
	}
	if out := commandSucceeds(t, env, "check"); !strings.Contains(out, "nothing is sent to their endpoints") {
		t.Errorf("without keys check says: %s", out)
	}

	cfg := agenttest.Config(env)
	cfg.Security.Keys = testKeys[:1]
	cfg.Endpoints = []config.Endpoint{{Venue: "file", URL: secret.New(r.URL + "/file"), Events: []string{"*"}, Secret: secret.New(agenttest.Secret)}}
	var before string
	for range 2 { // the second time nothing changes
		agent := start(t, cfg)
		agent.WaitLog("msg=leading")
		managed := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints where managed_by = 'file'`)
		waitSealed(t, env, testKeys[:1], managed, agenttest.Secret)
		agenttest.AddEvent(t, env, "file", "lead.created", `{}`)
		agent.End()
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
	r := testenv.StartReceiver(t, agenttest.Secret)
	cfg := agenttest.Config(env)
	cfg.Security.Keys = testKeys[:1]
	agent := start(t, cfg)
	agent.WaitLog("recovery is complete")

	// The lock is asked for while the endpoint is being inserted, so it comes before the agent.
	app, holder := agenttest.ConnectURL(t, env.URL), agenttest.ConnectURL(t, env.URL)
	tx, err := app.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var id string
	err = tx.QueryRow(t.Context(), `insert into webhooks.endpoints (venue, url, events, secret) values ('venue_1', $1, '{*}', $2) returning id`, r.URL, agenttest.Secret).Scan(&id)
	if err != nil {
		t.Fatal(err)
	}
	lock := make(chan error, 1) // sent to once, by the goroutine that ends with it
	go func() {
		_, err := holder.Exec(t.Context(), `begin; lock table webhooks.endpoints in share row exclusive mode`)
		lock <- err
	}()
	testenv.Eventually(t, agenttest.Patience, func() error {
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
	agent.WaitLog("cannot seal the secrets of an endpoint")
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, id, "succeeded")
	if _, err := holder.Exec(t.Context(), `update webhooks.endpoints set secret = 'changed by the app'; commit`); err != nil {
		t.Fatal(err)
	}
	waitSealed(t, env, cfg.Security.Keys, id, "changed by the app")
	testenv.Eventually(t, agenttest.Patience, func() error {
		if _, body := get(t, agent.AdminURL()+"/metrics"); !strings.Contains(body, "webhook_agent_sealed_endpoints_total 1") {
			return errors.New("the metrics do not count one endpoint")
		}
		return nil
	})
}

func TestSeal_RowsThatTheAppHoldsKeepNobodyBack(t *testing.T) {
	t.Parallel()
	env := ownDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	cfg := agenttest.Config(env)
	cfg.Endpoints = []config.Endpoint{{Venue: "file", URL: secret.New(r.URL + "/file"), Events: []string{"*"}, Secret: secret.New(agenttest.Secret)}}
	before := start(t, cfg)
	before.WaitLog("recovery is complete")
	before.End()
	for i := range 5 {
		agenttest.AddEndpoint(t, env, "venue_1", fmt.Sprintf("%s/held/%d", r.URL, i), "*")
	}
	tx, err := agenttest.ConnectURL(t, env.URL).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select from webhooks.endpoints for update`); err != nil {
		t.Fatal(err)
	}

	cfg.Security.Keys = testKeys[:1]
	agent := start(t, cfg)
	agent.WaitLog("msg=leading")
	free := agenttest.AddEndpoint(t, env, "venue_2", r.URL+"/free", "*")
	waitSealed(t, env, cfg.Security.Keys, free, agenttest.Secret)
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_2", "lead.created", `{}`), free, "succeeded")
	agent.WaitLog("cannot seal the secrets of an endpoint")
	if n := strings.Count(agent.Log.String(), "cannot seal the secrets of an endpoint"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, agent.Log)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range testenv.QueryAll[string](t, env, `select id from webhooks.endpoints`) {
		waitSealed(t, env, cfg.Security.Keys, id, agenttest.Secret)
	}
}

func TestSeal_ASecretThatCannotBeOpenedKeepsTheOtherOneFromNothing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	lost, err := secret.NewKeyring(testKeys[1:2])
	if err != nil {
		t.Fatal(err)
	}
	id := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	env.Exec(t, `update webhooks.endpoints set previous_secret = $1, previous_secret_until = now() + interval '1 hour',
	    older_secrets = array[$1, $1], older_secrets_until = array[now() + interval '1 hour', now()]`, lost.Seal(id, secret.New("former")).Reveal())
	cfg := agenttest.Config(env)
	cfg.Security.Keys = testKeys[:1]
	start(t, cfg).WaitLog("msg=leading")
	testenv.Eventually(t, agenttest.Patience, func() error {
		if stored := storedSecrets(t, env, id); !strings.HasPrefix(stored[0], secret.SealedPrefix) {
			return errors.New("the current secret is not sealed")
		}
		return nil
	})
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`), id, "succeeded")
	check := func() string {
		t.Helper()
		return commandSucceedsWith(t, agenttest.ConfigText(env, env.LeastURL)+"[security]\nkeys = [\""+testKeys[0].Reveal()+"\"]\n", "check")
	}
	if out := check(); !strings.Contains(out, "2 former ones are sealed with key") || !strings.Contains(out, "they no longer sign") || !strings.Contains(out, "1 are sealed with the first of security.keys\n") {
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
