package outbox

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

func TestUninstall_DropsWhatIsOursAndNothingElse(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	takeTerm(t, db)
	env.Exec(t, `create table other (id int primary key)`)
	env.Exec(t, `create publication others for table other`)
	before, err := db.Uninstall(t.Context(), true, false)
	must(t, err)
	if want := []string{"slot " + env.Slot, "publication webhooks_outbox", "publication webhooks_outbox_endpoints", "schema webhooks"}; !slices.Equal(before.Things(), want) {
		t.Errorf("it would drop %q, want %q", before.Things(), want)
	}
	env.Exec(t, `drop publication webhooks_outbox`) // half of it is missing
	_, err = db.Uninstall(t.Context(), false, true)
	must(t, err)
	left := testenv.QueryAll[string](t, env, `select pubname from pg_publication union all select slot_name from pg_replication_slots where slot_name = $1
	    union all select nspname from pg_namespace where nspname = 'webhooks'`, env.Slot)
	if !slices.Equal(left, []string{"others", "webhooks"}) {
		t.Errorf("left are %q", left)
	}
	for range 2 {
		_, err = db.Uninstall(t.Context(), true, true)
		must(t, err)
	}
	if testenv.QueryOne[bool](t, env, selectSchemaExists) {
		t.Error("the schema is still there")
	}
}

func TestUninstall_RefusesASlotThatIsInUseOrAnothersAndPassesOverAnothersPublication(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	_, err := db.Uninstall(t.Context(), false, true)
	wantProblem(t, err, "replication slot", "an agent is connected; stop it first")
	f.leave()
	must(t, f.wait(t))
	env.Exec(t, `select pg_drop_replication_slot($1)`, env.Slot)
	env.Exec(t, `select pg_create_logical_replication_slot($1, 'test_decoding')`, env.Slot)
	_, err = db.Uninstall(t.Context(), false, true)
	wantProblem(t, err, "it belongs to something else", "plugin test_decoding")
	env.Exec(t, `select pg_drop_replication_slot($1)`, env.Slot)
	env.Exec(t, `create table other (id int primary key)`)
	env.Exec(t, `alter publication webhooks_outbox set table other`)
	u, err := db.Uninstall(t.Context(), false, true)
	must(t, err)
	if !slices.Equal(u.Publications, []string{"webhooks_outbox_endpoints"}) {
		t.Errorf("dropped %q", u.Publications)
	}
}

func TestUninstall_PassesOverAPublicationOfASchemaThatHasTheNameOfOurs(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	if testenv.QueryOne[int](t, env, `select current_setting('server_version_num')::int`) < 150000 {
		return // there are no such publications
	}
	env.Exec(t, `create table other (id int primary key)`)
	env.Exec(t, `drop publication webhooks_outbox`)
	super, err := pgx.Connect(t.Context(), env.SuperuserURL)
	must(t, err)
	defer closeConn(super)
	_, err = super.Exec(t.Context(), `create publication webhooks_outbox for tables in schema public`)
	must(t, err)
	u, err := db.Uninstall(t.Context(), false, false)
	must(t, err)
	if !slices.Equal(u.Publications, []string{"webhooks_outbox_endpoints"}) {
		t.Errorf("it would drop %q", u.Publications)
	}
}

// TestUninstall_SaysWhatIsDoneWhereTheRoleMayDropTheSlotAlone uninstalls as the agent, which owns
// nothing.
func TestUninstall_SaysWhatIsDoneWhereTheRoleMayDropTheSlotAlone(t *testing.T) {
	t.Parallel()
	owner, env := openDB(t)
	takeTerm(t, owner)
	db, err := Open(t.Context(), testConfig(env.LeastURL, env.Slot))
	must(t, err)
	defer db.Close()
	_, err = db.Uninstall(t.Context(), false, true)
	wantProblem(t, err, "the slot "+env.Slot+" is dropped, so no WAL is kept any more, but the role may not drop the publications", "run it again as their owner")
	_, err = db.Uninstall(t.Context(), false, true)
	wantProblem(t, err, "uninstall: the role may not drop the publications", "run it again as their owner")
	_, err = owner.Uninstall(t.Context(), false, true)
	must(t, err)
}
