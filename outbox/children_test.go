package outbox

import (
	"slices"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// openInherited opens a database whose outbox, events, has the children child_1 and child_2 by
// inheritance. child_2 has a child too.
func openInherited(t *testing.T) (*DB, *testenv.DB) {
	t.Helper()
	env := testenv.NewDB(t)
	env.Exec(t, `create table events (id text primary key, type text, venue text, data json, created timestamptz default now())`)
	env.Exec(t, `create table child_1 () inherits (events)`)
	env.Exec(t, `create table child_2 (note text) inherits (events)`)
	env.Exec(t, `create table grandchild (more int) inherits (child_2)`)
	cfg := testConfig(env.URL, env.Slot)
	cfg.Table, cfg.Publication = "public.events", "inherited"
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	return db, env
}

// inherited writes an event to one of the tables.
func inherited(t *testing.T, env *testenv.DB, table, id string) {
	t.Helper()
	env.Exec(t, `insert into `+table+` (id, type, venue, data) values ($1, 'lead.created', 'venue_a', '{}')`, id)
}

func TestChildren_ReachTheStreamLikeTheirParent(t *testing.T) {
	t.Parallel()
	db, env := openInherited(t)
	f := follow(t, db)
	for _, table := range []string{"events", "child_1", "child_2", "grandchild"} {
		inherited(t, env, table, "evt_"+table)
		if got := eventIDs(f.next(t).Changes); !slices.Equal(got, []string{"evt_" + table}) {
			t.Errorf("an insert into %s brings %q", table, got)
		}
	}
}

func TestChildren_ThatComeLaterAreAddedToThePublicationAndFound(t *testing.T) {
	t.Parallel()
	db, env := openInherited(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	c := compare(t, db, env)
	before := coverage(t, db)
	must(t, db.Published(t.Context()))
	if len(before.Relations) != 4 || !before.partitioned() {
		t.Errorf("the relations are %q", before.Relations)
	}
	env.Exec(t, `create table "Late" () inherits (child_1)`)
	inherited(t, env, `"Late"`, "evt_late")
	late := coverage(t, db)
	if late.Continues(before) {
		t.Error("a child that is not published is taken for no change: its rows would be passed over")
	}
	wantProblem(t, db.Published(t.Context()), "publication inherited", `it does not hold public."Late", which inherits from the outbox`, `ADD TABLE public."Late"`)
	mended, err := db.MendPublications(t.Context())
	if must(t, err); !slices.Equal(mended, []string{`ALTER PUBLICATION "inherited" ADD TABLE public."Late"`}) {
		t.Errorf("mended by %q", mended)
	}
	must(t, db.Published(t.Context()))
	mendedCoverage := coverage(t, db)
	if mendedCoverage.Continues(late) {
		t.Error("a child that was published meanwhile is taken for no change")
	}
	c.runSettled(t, true)
	if got := recordedKeys(t, env); !slices.Equal(got, []string{"evt_late/ep_1 pending"}) {
		t.Errorf("recorded %q", got)
	}
	f := follow(t, db)
	inherited(t, env, `"Late"`, "evt_streamed")
	for {
		if got := eventIDs(f.next(t).Changes); slices.Equal(got, []string{"evt_streamed"}) {
			break
		}
	}
	env.Exec(t, `drop table "Late"`)
	if !coverage(t, db).Continues(mendedCoverage) {
		t.Error("a child that is gone begins the stream anew without need")
	}
}

func TestChildren_ArePrunedLikeTheirParent(t *testing.T) {
	t.Parallel()
	db, env := openInherited(t)
	for _, table := range []string{"events", "child_1", "child_2", "grandchild"} {
		env.Exec(t, `create index on `+table+` (created)`)
	}
	p := newPruning(t, db, env)
	for _, table := range []string{"events", "child_1", "grandchild"} {
		inherited(t, env, table, "evt_"+table)
	}
	env.Exec(t, `update events set created = now() - interval '100 days'`)
	inherited(t, env, "child_2", "evt_young")
	settleHorizon(t, db, env)
	p.run(t)
	if got := testenv.QueryAll[string](t, env, `select id from events`); !slices.Equal(got, []string{"evt_young"}) {
		t.Errorf("left are %s", strings.Join(got, ", "))
	}
}
