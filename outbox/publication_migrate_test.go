package outbox

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMigrate_AddsTheTablesThatAPublicationLacks has publications that outlived what they held.
// Each way to migrate ends with the same.
func TestMigrate_AddsTheTablesThatAPublicationLacks(t *testing.T) {
	t.Parallel()
	const mapped = `create table events (id text primary key, type text, venue text, data json, created timestamptz)`
	for name, tt := range map[string]struct {
		damage, table string
		from          int
		added         []PlannedAddition
	}{
		"a schema that was dropped": {`drop schema webhooks cascade`, ownTable, 0, []PlannedAddition{
			{"webhooks_outbox", []string{`"webhooks"."outbox"`, "webhooks.replays"}}, {"webhooks_outbox_endpoints", []string{"webhooks.endpoints"}}}},
		"another outbox": {mapped, "public.events", SchemaVersion(), []PlannedAddition{{"webhooks_outbox", []string{`"public"."events"`}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, printed := range []bool{false, true} {
				former, env := openDB(t)
				env.Exec(t, tt.damage)
				cfg := former.cfg
				cfg.Table = tt.table
				db, err := Open(t.Context(), cfg)
				must(t, err)
				t.Cleanup(db.Close)
				plan, err := db.PlanMigration(t.Context())
				must(t, err)
				if diff := cmp.Diff(tt.added, plan.Additions); diff != "" || len(plan.Publications) > 0 {
					t.Errorf("the dry run creates %q, and adds (-want +got):\n%s", plan.Publications, diff)
				}
				if printed {
					sql, err := PrintMigrations(cfg, tt.from)
					must(t, err)
					env.Exec(t, sql)
				} else {
					_, _, err = Migrate(t.Context(), cfg)
					must(t, err)
				}
				must(t, db.Published(t.Context()))
			}
		})
	}
}

func TestMigrate_FailsAsCheckDoesWhereItMayNotAddWhatAPublicationLacks(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `alter publication webhooks_outbox drop table webhooks.outbox`)
	super(t, env, `alter publication webhooks_outbox owner to postgres`)
	_, _, err := Migrate(t.Context(), db.cfg)
	wantProblem(t, err, `publication webhooks_outbox: it does not hold "webhooks"."outbox"; ALTER PUBLICATION "webhooks_outbox" ADD TABLE "webhooks"."outbox"`)
	_, err = db.PlanMigration(t.Context())
	wantProblem(t, err, `publication webhooks_outbox: it does not hold "webhooks"."outbox"`)
	super(t, env, `alter publication webhooks_outbox owner to agent`)
	cfg := db.cfg
	cfg.Table = "public.nowhere"
	_, _, err = Migrate(t.Context(), cfg)
	wantProblem(t, err, "outbox.table public.nowhere", "there is no such table")
}

// A table is not to be set in a publication FOR ALL TABLES.
func TestCheck_HasARemedyForAPublicationOfAllTables(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	env.Exec(t, `drop publication webhooks_outbox`)
	super(t, env, `create publication webhooks_outbox for all tables with (publish = 'insert', publish_via_partition_root)`)
	_, _, err := Migrate(t.Context(), db.cfg)
	must(t, err)
	pasted := ""
	for _, f := range db.Check(t.Context()) {
		if f.Thing == "publication webhooks_outbox" && f.Level == LevelWarn {
			pasted = f.Remedy
		}
	}
	super(t, env, pasted)
	if lines := notOK(db.Check(t.Context())); len(lines) > 0 || !strings.HasPrefix(pasted, "BEGIN; DROP PUBLICATION") {
		t.Errorf("after %q check says %q", pasted, lines)
	}
}
