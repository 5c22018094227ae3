package outbox

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

// coverage reads the Coverage, or fails the test.
func coverage(t *testing.T, db *DB) Coverage {
	t.Helper()
	c, err := db.Coverage(t.Context())
	must(t, err)
	return c
}

func TestCoverage_ChangesWithWhateverHidesRows(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		changes []string
	}{
		{"a publication made again", []string{`drop publication webhooks_outbox`, `create publication webhooks_outbox for table webhooks.outbox, webhooks.replays with (publish = 'insert')`}},
		{"the other publication made again", []string{`drop publication webhooks_outbox_endpoints`, `create publication webhooks_outbox_endpoints for table webhooks.endpoints`}},
		{"a publication that publishes something else", []string{`alter publication webhooks_outbox set (publish = 'insert, delete')`}},
		{"a table taken out and put back", []string{`alter publication webhooks_outbox drop table webhooks.outbox`, `alter publication webhooks_outbox add table webhooks.outbox`}},
		{"a table taken out", []string{`alter publication webhooks_outbox drop table webhooks.replays`}},
		{"a table made again", []string{`create table webhooks.twin (like webhooks.outbox including all)`, `drop table webhooks.outbox`,
			`alter table webhooks.twin rename to outbox`, `alter publication webhooks_outbox add table webhooks.outbox`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			before := coverage(t, db)
			if again := coverage(t, db); !again.Continues(before) || !cmp.Equal(before, again) {
				t.Fatalf("nothing has changed: %+v and then %+v", before, again)
			}
			for _, sql := range test.changes {
				env.Exec(t, sql)
			}
			if after := coverage(t, db); after.Continues(before) {
				t.Errorf("%+v is taken to be continued by %+v", before, after)
			}
		})
	}
}

func TestCoverage_StaysWhileNothingIsHidden(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	before := coverage(t, db)
	addEvents(t, env, "evt", 10)
	env.Exec(t, `alter table webhooks.outbox add column note text`)
	env.Exec(t, `alter table webhooks.endpoints alter column description set default 'none'`)
	env.Exec(t, `create publication other for table webhooks.outbox`)
	env.Exec(t, `truncate webhooks.outbox`)
	env.Exec(t, `create table public.outbox (id text)`)
	env.Exec(t, `analyze`)
	if after := coverage(t, db); !after.Continues(before) {
		t.Errorf("%+v and then %+v: the stream begins anew without need", before, after)
	}
}

func TestCoverage_ToldByPartitionsThatComeNotByThoseThatGo(t *testing.T) {
	t.Parallel()
	db, env := openPartitioned(t)
	before := coverage(t, db)
	if len(before.Relations) != 2 {
		t.Fatalf("the relations are %v, want two partitions", before.Relations)
	}
	env.Exec(t, `create table part_3 (like events including all)`)
	env.Exec(t, `alter table events attach partition part_3 for values in (3)`)
	with := coverage(t, db)
	if with.Continues(before) {
		t.Error("a partition that was attached is taken for no change: its rows would be passed over")
	}
	if known := with.known(before.Relations); len(known) != 2 {
		t.Errorf("of the relations %v those known before are %v, want the first two", with.Relations, known)
	}
	env.Exec(t, `alter table events detach partition part_3`)
	without := coverage(t, db)
	if !without.Continues(with) || !without.Continues(before) {
		t.Error("a partition that is gone begins the stream anew without need")
	}
	env.Exec(t, `alter table events attach partition part_3 for values in (3)`)
	if again := coverage(t, db); again.Continues(with) {
		t.Error("a partition that was written to while it was detached is taken for no change")
	}
	if known := without.known(nil); known != nil {
		t.Errorf("without a checkpoint that tells, %v are taken to be known instead of all", known)
	}
}

// openPartitioned opens a database whose outbox, events, has the partitions part_1 and part_2, by
// the column part.
func openPartitioned(t *testing.T) (*DB, *testenv.DB) {
	t.Helper()
	env := testenv.NewDB(t)
	env.Exec(t, `create table events (id text, type text, venue text, data json, created timestamptz default now(), part int, primary key (id, part)) partition by list (part)`)
	env.Exec(t, `create table part_1 partition of events for values in (1)`)
	env.Exec(t, `create table part_2 partition of events for values in (2)`)
	cfg := testConfig(env.URL, env.Slot)
	cfg.Table, cfg.Publication = "public.events", "partitioned"
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	return db, env
}

func TestMendPublications_MakesWhatTheRoleMay(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	mended, err := db.MendPublications(t.Context())
	if must(t, err); len(mended) != 0 {
		t.Errorf("mended what was whole: %v", mended)
	}
	env.Exec(t, `drop publication webhooks_outbox_endpoints`)
	env.Exec(t, `alter publication webhooks_outbox drop table webhooks.outbox, webhooks.replays`)
	mended, err = db.MendPublications(t.Context())
	must(t, err)
	want := []string{
		`ALTER PUBLICATION "webhooks_outbox" ADD TABLE "webhooks"."outbox", webhooks.replays`,
		`create publication "webhooks_outbox_endpoints" for table webhooks.endpoints with (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`,
	}
	if !slices.Equal(mended, want) {
		t.Errorf("mended by\n%q, want\n%q", mended, want)
	}
	must(t, db.Published(t.Context()))
}

func TestMendPublications_TriesNothingThatTheRoleMayNot(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `alter publication webhooks_outbox drop table webhooks.outbox`)
	super(t, env, `alter publication webhooks_outbox owner to postgres`)
	mended, err := db.MendPublications(t.Context())
	if must(t, err); len(mended) != 0 {
		t.Errorf("mended by %v", mended)
	}
	wantProblem(t, db.Published(t.Context()), "publication webhooks_outbox", "does not hold webhooks.outbox", `ADD TABLE "webhooks"."outbox"`)
	super(t, env, `drop publication webhooks_outbox`, `revoke create on database `+env.Name+` from agent`, `alter database `+env.Name+` owner to postgres`)
	mended, err = db.MendPublications(t.Context())
	if must(t, err); len(mended) != 0 {
		t.Errorf("mended by %v", mended)
	}
	wantProblem(t, db.Published(t.Context()), "publication webhooks_outbox", "missing", "migrate")
}

// super runs statements as a superuser.
func super(t *testing.T, env *testenv.DB, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if err := testenv.ExecSQL(t.Context(), env.SuperuserURL, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}
