package outbox

import (
	"testing"

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
