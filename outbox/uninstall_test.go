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

// TestUninstall_RefusesToDropWhatOthersMadeWithTheData has objects in the schema, and such as
// depend on it, of kinds that a cascade takes along.
func TestUninstall_RefusesToDropWhatOthersMadeWithTheData(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	for _, tt := range []struct{ make, remove, named string }{
		{`create table webhooks.notes (id serial primary key)`, `drop table webhooks.notes`, "table webhooks.notes"},
		{`create function webhooks.mine() returns int language sql as 'select 1'`, `drop function webhooks.mine()`, "function webhooks.mine()"},
		{`create type webhooks.mood as enum ('well')`, `drop type webhooks.mood`, "type webhooks.mood"},
		{`create view report as select event_id, status from webhooks.deliveries`, `drop view report`, "view public.report"},
		{`create table orders (id int primary key, endpoint text references webhooks.endpoints)`, `drop table orders`,
			"table constraint orders_endpoint_fkey on public.orders"},
		{`create table events (id text default webhooks.new_id('evt'))`, `drop table events`, "default value for public.events.id"},
	} {
		env.Exec(t, tt.make)
		for _, do := range []bool{false, true} {
			_, err := db.Uninstall(t.Context(), true, do)
			wantProblem(t, err, "schema webhooks: with it would be dropped what is not the agent's: "+tt.named+"; move or drop it first, or leave out --drop-data")
		}
		_, err := db.Uninstall(t.Context(), false, false)
		must(t, err)
		env.Exec(t, tt.remove)
	}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		env.Exec(t, `create view `+name+` as select * from webhooks.endpoint_settings`)
	}
	_, err := db.Uninstall(t.Context(), true, true)
	wantProblem(t, err, "view public.a, view public.b, view public.c and 2 more; move or drop them first")
	env.Exec(t, `drop view b, c, d, e; update webhooks.schema_version set version = 99`)
	_, err = db.Uninstall(t.Context(), true, true)
	wantProblem(t, err, "schema webhooks: it has version 99, this binary knows versions up to", "view public.a; uninstall it by the webhook-agent that has migrated it")
	env.Exec(t, `drop view a`)
	env.Exec(t, `create index mine on webhooks.deliveries (type); create publication others for table webhooks.deliveries; create statistics webhooks.s on type, venue from webhooks.deliveries`)
	_, err = db.Uninstall(t.Context(), true, true)
	must(t, err)
	if testenv.QueryOne[bool](t, env, selectSchemaExists) {
		t.Error("the schema is still there")
	}
}
