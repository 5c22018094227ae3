package outbox

import (
	"fmt"
	"slices"
	"testing"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// listEndpoints describes all endpoints. It marks those of the file.
func listEndpoints(t *testing.T, env *testenv.DB) []string {
	t.Helper()
	return testenv.QueryAll[string](t, env, `select concat_ws(' ', venue, url, events, secret, description, managed_by, case when disabled_at is not null then 'disabled' end)
	    from webhooks.endpoints order by 1`)
}

func TestSyncManaged_MakesTheFilesEndpointsThoseOfTheFile(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	const byApp = "venue_a https://h.example/hook?key=1 {*} sentinel "
	a := ManagedEndpoint{Venue: "venue_a", URL: secret.New("https://a.example/"), Events: []string{"*"}, Secret: secret.New("s1"), Description: "books"}
	b := ManagedEndpoint{Venue: "venue_b", URL: secret.New("https://a.example/"), Events: []string{"lead.*", "x"}, Secret: secret.New("s2")}
	for _, step := range []struct {
		name string
		file []ManagedEndpoint
		want []string
	}{
		{"add", []ManagedEndpoint{a, b}, []string{"venue_a https://a.example/ {*} s1 books file", byApp, "venue_b https://a.example/ {lead.*,x} s2  file"}},
		{"the same", []ManagedEndpoint{b, a}, []string{"venue_a https://a.example/ {*} s1 books file", byApp, "venue_b https://a.example/ {lead.*,x} s2  file"}},
		{"remove", []ManagedEndpoint{b}, []string{byApp, "venue_b https://a.example/ {lead.*,x} s2  file"}},
		{"remove all", nil, []string{byApp}},
	} {
		must(t, db.SyncManaged(t.Context(), step.file))
		if got := listEndpoints(t, env); !slices.Equal(got, step.want) {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
	}
}

func TestSyncManaged_ChangesARowOnlyWhenTheFileHas(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	e := ManagedEndpoint{Venue: "venue_a", URL: secret.New("https://a.example/"), Events: []string{"*"}, Secret: secret.New("s1")}
	must(t, db.SyncManaged(t.Context(), []ManagedEndpoint{e}))
	env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	version := func() string {
		return testenv.QueryOne[string](t, env, `select id || ' ' || ctid from webhooks.endpoints`)
	}
	before := version()
	must(t, db.SyncManaged(t.Context(), []ManagedEndpoint{e}))
	if after := version(); after != before {
		t.Error("an endpoint was written although the file has not changed")
	}
	e.Secret, e.Events = secret.New("s2"), []string{"lead.*"}
	must(t, db.SyncManaged(t.Context(), []ManagedEndpoint{e}))
	if got, want := listEndpoints(t, env), []string{"venue_a https://a.example/ {lead.*} s2  file disabled"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q: changed, and disabled as a person left it", got, want)
	}
}

func TestSyncManaged_ASecretThatChangesInTheFileIsARotation(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	e := ManagedEndpoint{Venue: "venue_a", URL: secret.New("https://a.example/"), Events: []string{"*"}, Secret: secret.New("s0")}
	must(t, db.SyncManaged(t.Context(), []ManagedEndpoint{e}))
	id := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints`)
	for i, want := range []string{"s1 s0:24", "s2 s1:24 s0:24", "s3 s2:24 s1:24 s0:24", "s4 s3:24 s2:24 s1:24 s0:24", "s5 s4:24 s3:24 s2:24 s1:24 s0:24",
		// The file takes effect all the same: the oldest secret is dropped.
		"s6 s5:24 s4:24 s3:24 s2:24 s1:24"} {
		e.Secret = secret.New(fmt.Sprintf("s%d", i+1))
		for range 2 { // the second time changes nothing
			must(t, db.SyncManaged(t.Context(), []ManagedEndpoint{e}))
		}
		found, err := db.AllVenues().EndpointWithSecret(t.Context(), id)
		must(t, err)
		if got := formerText(found); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
