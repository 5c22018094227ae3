package outbox

import (
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
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

func TestCheck_WarnsOfTriggersOfPartsAndOfWhatRefusesDeletes(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	env.Exec(t, `create table ob (id text, type text, venue text, data json, created timestamptz default now())`)
	env.Exec(t, `create index on ob (created)`)
	env.Exec(t, `create table part () inherits (ob)`)
	env.Exec(t, `create function spy() returns trigger language plpgsql as 'begin return old; end'`)
	env.Exec(t, `create trigger spy after delete on part for each row execute function spy()`)
	cfg.Table, cfg.Retention = "public.ob", time.Hour
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	const refused = "it is not pruned: publication everything publishes deletes"
	if said := strings.Join(notOK(db.Check(t.Context())), "\n"); !strings.Contains(said, "pruning runs trigger spy") || strings.Contains(said, refused) {
		t.Errorf("check says\n%s", said)
	}
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `create publication everything for all tables`))
	if said := strings.Join(notOK(db.Check(t.Context())), "\n"); !strings.Contains(said, refused) {
		t.Errorf("check says\n%s", said)
	}
	if err := testenv.ExecSQL(t.Context(), env.URL, `delete from ob`); SQLState(err) != "55000" {
		t.Errorf("PostgreSQL lets rows be deleted: %v", err)
	}
	env.Exec(t, `alter table ob add primary key (id)`)
	if said := strings.Join(notOK(db.Check(t.Context())), "\n"); !strings.Contains(said, refused) || !strings.Contains(said, "| ALTER TABLE public.part REPLICA IDENTITY FULL") {
		t.Errorf("a part has none, and check says\n%s", said)
	}
	for _, mended := range []string{`alter table public.part replica identity full`, `alter table part replica identity default, add primary key (id)`} {
		env.Exec(t, mended)
		if said := strings.Join(notOK(db.Check(t.Context())), "\n"); strings.Contains(said, refused) {
			t.Errorf("after %q check says\n%s", mended, said)
		}
		env.Exec(t, `delete from ob`)
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
