package outbox

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// formerText lists the secrets of an endpoint, the current one first. Each former one comes with
// the number of hours after which it ends.
func formerText(e Endpoint) string {
	text := e.Secret.Reveal()
	for _, f := range e.Former() {
		text += fmt.Sprintf(" %s:%.0f", f.Secret.Reveal(), time.Until(f.Until).Hours())
	}
	return text
}

// wantSecrets compares the secrets of the only endpoint as a query, the state and the stream have
// them. The endpoint's latest change is the next one of the stream.
func wantSecrets(t *testing.T, db *DB, stream *follower, step, want string) {
	t.Helper()
	e, err := db.AllVenues().EndpointWithSecret(t.Context(), "ep_1")
	must(t, err)
	if got := formerText(e); got != want {
		t.Errorf("%s: %s, want %s", step, got, want)
	}
	b := stream.next(t)
	if len(b.Changes) != 1 {
		t.Fatalf("%s: %d changes", step, len(b.Changes))
	}
	if got := formerText(*b.Changes[0].Endpoint.Endpoint); got != want {
		t.Errorf("%s: the stream brings %s, want %s", step, got, want)
	}
}

func TestRotateSecret_KeepsEveryFormerSecretUntilItsOwnTime(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	stream := follow(t, db)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	wantSecrets(t, db, stream, "added", "sentinel")
	for _, step := range []struct {
		secret  string
		overlap time.Duration
		want    string
	}{
		{"b", 9 * time.Hour, "b sentinel:9"},
		{"c", 2 * time.Hour, "c b:2 sentinel:9"},
		{"d", 5 * time.Hour, "d c:5 b:2 sentinel:9"},
		{"e", 5 * time.Hour, "e d:5 c:5 b:2 sentinel:9"},
		{"f", 5 * time.Hour, "f e:5 d:5 c:5 b:2 sentinel:9"},
	} {
		_, err := db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New(step.secret), step.overlap, nil)
		must(t, err)
		wantSecrets(t, db, stream, step.secret, step.want)
	}
	info, err := db.AllVenues().Endpoint(t.Context(), "ep_1")
	must(t, err)
	if n := len(info.OlderSecretsUntil); n != MostFormerSecrets-1 || time.Until(info.OlderSecretsUntil[3]) < 8*time.Hour {
		t.Errorf("shown: %v", info.OlderSecretsUntil)
	}

	// With one more, the oldest would be forgotten before its time.
	_, err = db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New("g"), time.Hour, nil)
	wantProblem(t, err, `endpoint "ep_1"`, "5 former secrets", "--overlap 0s")
	err = testenv.ExecSQL(t.Context(), env.URL, `update webhooks.endpoints set previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = 'g'`)
	if err == nil || !strings.Contains(err.Error(), "5 former secrets that still sign") {
		t.Errorf("by SQL: %v", err)
	}
	// A former secret whose time is over makes room, wherever it is in the list.
	env.Exec(t, `update webhooks.endpoints set older_secrets_until[3] = now()`)
	stream.next(t)
	_, err = db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New("g"), time.Hour, nil)
	must(t, err)
	wantSecrets(t, db, stream, "after the end of one", "g f:1 e:5 d:5 c:5 sentinel:9")
	_, err = db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New("h"), 0, nil)
	must(t, err)
	wantSecrets(t, db, stream, "without an overlap", "h")
}

// The current secret must not become a former one of itself, which would end the secret before it.
func TestRotateSecret_ToTheSameSecretEndsNoFormerOneBeforeItsTime(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	_, err := db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New("b"), 9*time.Hour, nil)
	must(t, err)
	_, err = db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New("b"), time.Hour, nil)
	wantError(t, err, ErrSameSecret)
	e, err := db.AllVenues().EndpointWithSecret(t.Context(), "ep_1")
	must(t, err)
	if got := formerText(e); got != "b sentinel:9" {
		t.Errorf("it has %s", got)
	}
	for _, want := range []error{nil, ErrSameSecret} { // it ends the former ones, of which there are none then
		_, err = db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New("b"), 0, nil)
		wantError(t, err, want)
		e, err := db.AllVenues().EndpointWithSecret(t.Context(), "ep_1")
		must(t, err)
		if got := formerText(e); got != "b" {
			t.Errorf("it has %s", got)
		}
	}
}

// Older programs know two columns, and may write plain text into them.
func TestRotateSecret_BySQLKeepsFormerSecretsAsWell(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	stream := follow(t, db)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	stream.next(t)
	for _, step := range []struct{ set, want string }{
		{"previous_secret = secret, previous_secret_until = now() + interval '9 hours', secret = 'b'", "b sentinel:9"},
		{"url = 'https://other.example/', secret = 'b'", "b sentinel:9"},
		{"previous_secret = 'as it was', previous_secret_until = now() + interval '3 hours', secret = 'c'", "c as it was:3 sentinel:9"},
		{"previous_secret_until = now() + interval '4 hours'", "c as it was:4 sentinel:9"},
		// This is what sealing does.
		{"previous_secret = 'spelled otherwise', secret = 'c, spelled otherwise'", "c, spelled otherwise spelled otherwise:4 sentinel:9"},
		{"previous_secret_until = 'infinity'", "c, spelled otherwise sentinel:9"},
		{"previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = 'd'", "d c, spelled otherwise:1 sentinel:9"},
		{"older_secrets = '{NULL,x,y,z}', older_secrets_until = array[now() + interval '1 hour', null, 'infinity', now() + interval '7 hours']", "d c, spelled otherwise:1 z:7"},
		{"older_secrets = '{{x,y}}', older_secrets_until = '{}'", "d c, spelled otherwise:1"},
		{"previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = 'e', older_secrets = '{r}', older_secrets_until = array[now() + interval '2 hours']",
			"e d:1 r:2"},
		{"previous_secret = null", "e"},
	} {
		env.Exec(t, `update webhooks.endpoints set `+step.set)
		wantSecrets(t, db, stream, step.set, step.want)
	}
}

// A secret that is rotated back and forth counts once among the former ones, sealed or not. The
// current secret does not count.
func TestRotateSecret_CountsEachFormerSecretOnce(t *testing.T) {
	t.Parallel()
	for name, keys := range map[string][]secret.Text{"plain": nil, "sealed": {secret.New(strings.Repeat("0123456789abcdef", 4))}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			var err error
			db.cfg.Keys, err = secret.NewKeyring(keys)
			must(t, err)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			opened := func(id string) string {
				e, err := db.AllVenues().EndpointWithSecret(t.Context(), id)
				must(t, err)
				for _, s := range slices.Concat([]*secret.Text{&e.Secret, &e.Previous}, pointersTo(e.Older)) {
					*s, err = db.cfg.Keys.Open(id, *s)
					must(t, err)
				}
				return formerText(e)
			}
			for _, step := range []struct{ secret, want string }{
				{"b", "b sentinel:1"}, {"sentinel", "sentinel b:1"}, {"b", "b sentinel:1"}, {"sentinel", "sentinel b:1"},
				{"b", "b sentinel:1"}, {"sentinel", "sentinel b:1"}, {"c", "c sentinel:1 b:1"}, {"d", "d c:1 sentinel:1 b:1"},
				{"sentinel", "sentinel d:1 c:1 b:1"},
			} {
				_, err := db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New(step.secret), time.Hour, nil)
				must(t, err)
				if got := opened("ep_1"); got != step.want {
					t.Errorf("%s: %s, want %s", step.secret, got, step.want)
				}
			}

			file := ManagedEndpoint{Venue: "venue_f", URL: secret.New("https://f.example/"), Events: []string{"*"}, Secret: secret.New("a")}
			must(t, db.SyncManaged(t.Context(), []ManagedEndpoint{file}))
			for _, next := range []string{"b", "a", "b", "a", "c", "b", "a", "b"} {
				file.Secret = secret.New(next)
				must(t, db.SyncManaged(t.Context(), []ManagedEndpoint{file}))
			}
			id := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints where managed_by = 'file'`)
			if got, want := opened(id), "b a:24 c:24"; got != want {
				t.Errorf("of the file: %s, want %s", got, want)
			}
		})
	}
}

func pointersTo(texts []secret.Text) (pointers []*secret.Text) {
	for i := range texts {
		pointers = append(pointers, &texts[i])
	}
	return pointers
}

func TestSealSecrets_SealsFormerSecretsAndKeepsTheirTimes(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	for _, s := range []string{"b", "c"} {
		_, err := db.AllVenues().RotateSecret(t.Context(), "ep_1", secret.New(s), time.Hour, nil)
		must(t, err)
	}
	var err error
	if db.cfg.Keys, err = secret.NewKeyring([]secret.Text{secret.New(strings.Repeat("0123456789abcdef", 4))}); err != nil {
		t.Fatal(err)
	}
	sealed, err := db.SealSecrets(t.Context(), "ep_1")
	must(t, err)
	e, err := db.AllVenues().EndpointWithSecret(t.Context(), "ep_1")
	must(t, err)
	var opened []string
	for _, f := range append(e.Former(), FormerSecret{Secret: e.Secret}) {
		s, err := db.cfg.Keys.Open("ep_1", f.Secret)
		must(t, err)
		if !strings.HasPrefix(f.Secret.Reveal(), secret.SealedPrefix) {
			t.Errorf("%s is not sealed", s.Reveal())
		}
		opened = append(opened, s.Reveal())
	}
	if !sealed || db.Unsealed(&e) || !slices.Equal(opened, []string{"b", "sentinel", "c"}) {
		t.Errorf("sealed %t, again %t: %q", sealed, db.Unsealed(&e), opened)
	}
	if sealed, err := db.SealSecrets(t.Context(), "ep_1"); sealed || err != nil {
		t.Errorf("a second time: %t, %v", sealed, err)
	}
	e.Older = []secret.Text{secret.New("plain")}
	if !db.Unsealed(&e) {
		t.Error("an older secret in plain text is not to be sealed")
	}
}

func TestRotation_BySQLCountsEachFormerSecretOnce(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_1", "*")
	for i := range 20 {
		env.Exec(t, `update webhooks.endpoints set previous_secret = secret, previous_secret_until = now() + interval '1 hour', secret = $1`, fmt.Sprintf("secret-%d", i%3))
	}
	if got := testenv.QueryOne[string](t, env, `select concat_ws(' ', secret, previous_secret, older_secrets::text) from webhooks.endpoints`); !strings.HasPrefix(got, "secret-1 secret-0 {secret-2") {
		t.Errorf("the secrets are %s", got)
	}
}
