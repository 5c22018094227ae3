package outbox

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// addEndpoint registers an endpoint as the app does.
func addEndpoint(t *testing.T, env *testenv.DB, id, venue string, events ...string) {
	t.Helper()
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, $2, 'https://h.example/hook?key=1', $3, 'sentinel')`,
		id, venue, events)
}

// wantProblem fails the test unless err is a Problem whose sentence contains all texts.
func wantProblem(t *testing.T, err error, texts ...string) {
	t.Helper()
	p, isProblem := errors.AsType[*Problem](err)
	if !isProblem {
		t.Fatalf("got %v, want a *Problem", err)
	}
	for _, text := range texts {
		if !strings.Contains(p.Error(), text) {
			t.Errorf("the problem %q does not say %q", p, text)
		}
	}
}

func TestEndpoints_ShowStateAndFailures(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_a", "lead.*", "payment.received")
	addEndpoint(t, env, "ep_3", "venue_b", "*")
	addEndpoint(t, env, "ep_4", "venue_b", "*")
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, last_error, unusable) values
	    ('ep_1', 1, 37, 'status 500', null), ('ep_3', 1, 0, null, 'the URL must begin with https://'), ('ep_4', 1, 99, 'old', null)`)
	env.Exec(t, `update webhooks.endpoints set disabled_at = now(), disabled_reason = 'failures' where id in ('ep_2', 'ep_4')`)
	env.Exec(t, `update webhooks.endpoints set disabled_at = null where id = 'ep_4'`) // its counter begins anew

	type row struct {
		ID, State, Reason, Unusable, LastError string
		Events                                 []string
		Failures                               int
	}
	list := func(f EndpointFilter) (rows []row) {
		t.Helper()
		endpoints, err := db.AllVenues().Endpoints(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range endpoints {
			rows = append(rows, row{e.ID, e.State, e.DisabledReason, e.Unusable, e.LastError, e.Events, e.ConsecutiveFailures})
		}
		return rows
	}
	one := row{"ep_1", StateEnabled, "", "", "status 500", []string{"*"}, 37}
	two := row{"ep_2", StateDisabled, "failures", "", "", []string{"lead.*", "payment.received"}, 0}
	three := row{"ep_3", StateUnusable, "", "the URL must begin with https://", "", []string{"*"}, 0}
	four := row{"ep_4", StateEnabled, "", "", "old", []string{"*"}, 0}
	for _, test := range []struct {
		filter EndpointFilter
		want   []row
	}{
		{EndpointFilter{Limit: 10}, []row{one, two, three, four}},
		{EndpointFilter{Venue: "venue_a", Limit: 10}, []row{one, two}},
		{EndpointFilter{State: StateDisabled, Limit: 10}, []row{two}},
		{EndpointFilter{State: StateUnusable, Limit: 10}, []row{three}},
		{EndpointFilter{Limit: 2}, []row{one, two}},
		{EndpointFilter{Limit: 2, After: "ep_2"}, []row{three, four}},
	} {
		if diff := cmp.Diff(test.want, list(test.filter)); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", test.filter, diff)
		}
	}
}

func TestEndpoints_WithTimesThatCannotBeShownHideNoOthers(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_a", "*")
	addEndpoint(t, env, "ep_3", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set created = '-infinity', disabled_at = 'infinity', previous_secret = 's', previous_secret_until = 'infinity' where id = 'ep_1'`)
	env.Exec(t, `update webhooks.endpoints set created = '4713-01-01 BC', disabled_at = '20000-01-01' where id = 'ep_2'`)
	endpoints, err := db.AllVenues().Endpoints(t.Context(), EndpointFilter{Limit: 10})
	if err != nil || len(endpoints) != 3 {
		t.Fatalf("%d endpoints, %v", len(endpoints), err)
	}
	for _, e := range endpoints[:2] {
		if e.Created != nil || e.DisabledAt != nil || e.PreviousSecretUntil != nil || e.State != StateDisabled {
			t.Errorf("%+v", e)
		}
	}
	if e := endpoints[2]; e.Created == nil || time.Since(*e.Created).Abs() > time.Hour {
		t.Errorf("an ordinary endpoint: %+v", e)
	}
	if _, err := json.Marshal(endpoints); err != nil {
		t.Error(err)
	}
}

func TestEndpoints_AreShownWithoutSecrets(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set previous_secret = 'sentinel former', previous_secret_until = now() + interval '1 hour'`)
	e, err := db.AllVenues().Endpoint(t.Context(), "ep_1")
	if err != nil {
		t.Fatal(err)
	}
	if e.PreviousSecretUntil == nil {
		t.Error("the endpoint does not show that its former secret also signs")
	}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "sentinel") {
		t.Errorf("the endpoint shows a secret: %s", text)
	}
}

func TestEndpoints_AreChangedAsAsked(t *testing.T) {
	db, env := openDB(t)
	ctx := t.Context()
	id, _, err := db.AllVenues().AddEndpoint(ctx, Endpoint{Venue: "venue_a", URL: secret.New("https://h.example/"), Events: []string{"lead.*"}, Secret: secret.New("first")}, "books", Idempotency{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := db.AllVenues().EndpointWithSecret(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if e.Secret.Reveal() != "first" || e.Venue != "venue_a" || e.URL.Reveal() != "https://h.example/" || !cmp.Equal(e.Events, []string{"lead.*"}) || e.Disabled {
		t.Errorf("the endpoint was not added as asked: %+v", e)
	}

	for _, step := range []struct {
		name   string
		change func() (bool, error)
		want   bool
	}{
		{"disable", func() (bool, error) { return db.AllVenues().DisableEndpoint(ctx, id) }, true},
		{"disable again", func() (bool, error) { return db.AllVenues().DisableEndpoint(ctx, id) }, false},
		{"enable", func() (bool, error) { return db.AllVenues().EnableEndpoint(ctx, id) }, true},
		{"enable again", func() (bool, error) { return db.AllVenues().EnableEndpoint(ctx, id) }, false},
	} {
		if changed, err := step.change(); err != nil || changed != step.want {
			t.Errorf("%s: changed %t, %v; want %t", step.name, changed, err, step.want)
		}
	}
	if generation := testenv.QueryOne[int64](t, env, `select generation from webhooks.endpoints where id = $1`, id); generation != 2 {
		t.Errorf("generation is %d after enabling once, want 2", generation)
	}

	until, err := db.AllVenues().RotateSecret(ctx, id, secret.New("second"), time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, err = db.AllVenues().EndpointWithSecret(ctx, id); err != nil {
		t.Fatal(err)
	}
	if until == nil || time.Until(*until) > time.Hour || time.Until(*until) < 50*time.Minute {
		t.Errorf("the former secret signs until %v, want in an hour", until)
	}
	if e.Secret.Reveal() != "second" || e.Previous.Reveal() != "first" || !e.PreviousUntil.Equal(*until) {
		t.Error("the secrets were not rotated")
	}
	if until, err = db.AllVenues().RotateSecret(ctx, id, secret.New("third"), 0, nil); err != nil || until != nil {
		t.Errorf("without overlap: %v, %v", until, err)
	}
	if e, err = db.AllVenues().EndpointWithSecret(ctx, id); err != nil || e.Secret.Reveal() != "third" || !e.Previous.IsZero() {
		t.Errorf("without overlap the former secret still signs (%v)", err)
	}

	if err := db.AllVenues().RemoveEndpoint(ctx, id, nil); err != nil {
		t.Fatal(err)
	}
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.endpoints`); n != 0 {
		t.Errorf("%d endpoints after removing the only one", n)
	}
}

func TestEndpoints_UnknownIDIsAProblem(t *testing.T) {
	db, _ := openDB(t)
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"show":          func() error { _, err := db.AllVenues().Endpoint(ctx, "ep_x"); return err },
		"show nothing":  func() error { _, err := db.AllVenues().Endpoint(ctx, ""); return err },
		"secret":        func() error { _, err := db.AllVenues().EndpointWithSecret(ctx, "ep_x"); return err },
		"enable":        func() error { _, err := db.AllVenues().EnableEndpoint(ctx, "ep_x"); return err },
		"disable":       func() error { _, err := db.AllVenues().DisableEndpoint(ctx, "ep_x"); return err },
		"remove":        func() error { return db.AllVenues().RemoveEndpoint(ctx, "ep_x", nil) },
		"rotate-secret": func() error { _, err := db.AllVenues().RotateSecret(ctx, "ep_x", secret.New("s"), 0, nil); return err },
	} {
		t.Run(name, func(t *testing.T) {
			wantProblem(t, call(), "endpoint ", "there is none with this id", "endpoints list")
		})
	}
}

func TestSampleEvent_HasATypeThatTheEndpointAskedFor(t *testing.T) {
	db, env := openDB(t)
	env.Exec(t, `insert into webhooks.event_types (name, example) values ('a.first', '{"b": 1.0, "a": 2}')`)
	for _, test := range []struct {
		patterns       []string
		eventType, has string
	}{
		{[]string{"*"}, "a.first", `{"b": 1.0, "a": 2}`},
		{[]string{"proposal.*"}, "proposal.created", `"currency":"EUR"`},
		{[]string{"absent", "payment.received"}, "payment.received", `"payment"`},
		{[]string{"unknown.*"}, "unknown.test", `{}`},
		{[]string{"proposal"}, "proposal", `{}`},
	} {
		event, err := db.AllVenues().SampleEvent(t.Context(), Endpoint{Venue: "venue_a", Events: test.patterns})
		if err != nil {
			t.Fatal(err)
		}
		if event.Type != test.eventType || !strings.Contains(string(event.Data), test.has) || event.Venue != "venue_a" {
			t.Errorf("%q got %s of %s: %s", test.patterns, event.Type, event.Venue, event.Data)
		}
		if !strings.HasPrefix(event.ID, "evt_") || time.Since(event.Created).Abs() > time.Minute {
			t.Errorf("%q got id %s, created %v", test.patterns, event.ID, event.Created)
		}
	}
}
