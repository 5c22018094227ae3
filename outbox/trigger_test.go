package outbox

import (
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// A restore, another replication, or a bulk change may run with triggers switched off. An endpoint
// must not then look enabled and get nothing. The agent sees by the generation that a row was
// enabled after the agent had disabled it.
func TestSchema_EnablingCountsUpTheGenerationAlsoWithTriggersOff(t *testing.T) {
	env := testenv.NewDB(t)
	addEndpoint(t, env, "ep", "venue_1", "*")
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `do $$ begin
		perform set_config('session_replication_role', 'replica', true);
		update webhooks.endpoints set disabled_at = now();
		update webhooks.endpoints set disabled_at = null;
	end $$`))
	if got := testenv.QueryOne[int64](t, env, `select generation from webhooks.endpoints`); got != 2 {
		t.Errorf("the endpoint has generation %d, want 2", got)
	}
}

// An ETag stands for what people see of an endpoint. The form in which its secrets are stored is no
// part of that.
func TestSchema_SealingIsNoChangeThatPeopleSee(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_1", "*")
	updated := func() time.Time { return testenv.QueryOne[time.Time](t, env, `select updated from webhooks.endpoints`) }
	keys, err := secret.NewKeyring([]secret.Text{secret.New(strings.Repeat("a1", 32))})
	must(t, err)
	db.cfg.Keys = keys
	before := updated()
	if sealed, err := db.SealSecrets(t.Context(), "ep_1"); err != nil || !sealed {
		t.Fatalf("sealed %t (%v)", sealed, err)
	}
	if !updated().Equal(before) {
		t.Error("sealing has changed when the endpoint was written")
	}
	for what, sql := range map[string]string{
		"a rotation":                           `update webhooks.endpoints set secret = 'new'`,
		"a new secret beside a setting":        `update webhooks.endpoints set secret = 'newer' from (select set_config('webhooks.seals', 'another', true)) s`,
		"a change that comes with the sealing": `update webhooks.endpoints set secret = 'newest', url = 'https://example.com/new' from (select set_config('webhooks.seals', 'ep_1', true)) s`,
	} {
		before := updated()
		env.Exec(t, sql)
		if updated().Equal(before) {
			t.Errorf("%s has not changed when the endpoint was written", what)
		}
	}
}
