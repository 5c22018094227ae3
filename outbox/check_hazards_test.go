package outbox

import (
	"strings"
	"testing"
	"time"
)

func TestCheck_WarnsOfWhatIsDangerousBesideTheOutbox(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	env.Exec(t, `create table ob (id text primary key, type text, venue text, data json, created timestamptz default now())`)
	env.Exec(t, `create function spy() returns trigger language plpgsql as 'begin return old; end'`)
	env.Exec(t, `create trigger spy after delete on ob for each row execute function spy()`)
	cfg.Table, cfg.Retention = "public.ob", time.Hour
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	addEvents(t, env, "evt", 1)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	said := strings.Join(notOK(db.Check(t.Context())), "\n")
	for _, want := range []string{"pruning runs trigger spy with the agent's rights", "warn webhooks.outbox: it has rows, which nobody delivers"} {
		if !strings.Contains(said, want) {
			t.Errorf("check does not say %q:\n%s", want, said)
		}
	}
}

func TestCheck_WarnsOfADiskThatFillsWhileNoAgentRuns(t *testing.T) {
	if found := retainedFindings("s", false, manyRetained); len(found) != 0 {
		t.Errorf("it warns: %v", found)
	}
	if found := retainedFindings("s", true, 305<<20); len(found) != 2 || !strings.Contains(found[1].Reason, "keeps 305 MiB of WAL") {
		t.Errorf("found %v", found)
	}
}
