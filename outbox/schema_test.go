package outbox

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

func TestSchema_ABinaryWorksWithASchemaThatSaysSo(t *testing.T) {
	for _, test := range []struct {
		version, compatible, binary int
		level                       Level
		said                        string
		waits                       bool
	}{
		{19, 18, 19, LevelOK, "version 19", false},
		{20, 18, 19, LevelWarn, "it has version 20 and is newer than this binary, which knows 19 and works with it", false},
		{25, 19, 19, LevelWarn, "it has version 25 and is newer", false},
		{25, 20, 19, LevelFail, "it has version 25, this binary knows versions up to 19", false},
		{20, 20, 19, LevelFail, "it has version 20, this binary knows versions up to 19", false},
		{18, 18, 19, LevelFail, "it has version 18, this binary needs 19", true},
		{0, 0, 19, LevelFail, "it has version 0, this binary needs 19", true},
	} {
		f := SchemaInfo{Version: test.version, Compatible: test.compatible, Binary: test.binary}.judge()
		if f.Level != test.level || !strings.Contains(f.Reason, test.said) || f.fails() && f.problem().Fatal == test.waits {
			t.Errorf("%+v: %+v", test, f)
		}
	}
}

// Whatever speaks of the schema says the same of it.
func TestSchema_CheckStatusAndCommandsAgree(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		sql   string
		level Level
		text  string
	}{
		{`update webhooks.schema_version set version = 99`, LevelWarn, "schema webhooks: it has version 99 and is newer than this binary, which knows 19 and works with it; upgrade this binary"},
		{`update webhooks.schema_version set version = 99, compatible = 98`, LevelFail, "schema webhooks: it has version 99, this binary knows versions up to 19; run a newer webhook-agent"},
		{`update webhooks.schema_version set version = 18`, LevelFail, "schema webhooks: it has version 18, this binary needs 19; run webhook-agent migrate"},
	} {
		env := testenv.NewDB(t)
		env.Exec(t, test.sql)
		cfg := testConfig(env.URL, env.Slot)
		cfg.Schema = 19 // the texts name it
		db, err := Open(t.Context(), cfg)
		must(t, err)
		t.Cleanup(db.Close)
		var found Finding
		for _, f := range db.Check(t.Context()) {
			if f.Thing == schemaThing {
				found = f
			}
		}
		if said := found.problem().Error(); found.Level != test.level || said != test.text {
			t.Errorf("check: %s %s\nwant   %s %s", found.Level, said, test.level, test.text)
		}
		overview, err := db.Overview(t.Context())
		if test.level == LevelFail {
			wantProblem(t, err, test.text)
		} else if must(t, err); "schema webhooks: "+overview.Schema.Note != test.text {
			t.Errorf("status: %+v", overview.Schema)
		}
		warnings, err := db.Preflight(t.Context())
		if test.level == LevelFail {
			wantProblem(t, err, test.text)
		} else if must(t, err); len(warnings) != 1 || !warnings[0].SchemaIsAhead() {
			t.Errorf("an agent that starts is warned of %+v", warnings)
		}
	}
}

// A command for a schema that is too old must not speak of columns.
func TestSchema_OfEveryFormerVersionIsOneSentence(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	for version := range SchemaVersion() {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			_, cfg := formerDB(t, version)
			db, err := Open(t.Context(), cfg)
			must(t, err)
			defer db.Close()
			want := fmt.Sprintf("schema webhooks: it has version %d, this binary needs %d; run webhook-agent migrate", version, SchemaVersion())
			for _, f := range db.Check(t.Context()) {
				if said := f.problem().Error(); f.fails() && said != want && !strings.Contains(f.Remedy, "webhook-agent migrate") {
					t.Errorf("check: %s", said)
				}
			}
			_, err = db.Preflight(t.Context())
			wantProblem(t, err, want)
			_, err = db.Overview(t.Context())
			wantProblem(t, err, want)
			_, err = db.AllVenues().Endpoints(t.Context(), EndpointFilter{})
			if err != nil {
				wantProblem(t, err, want)
			}
		})
	}
}

func TestMigrate_LeavesANewerSchemaThatTheBinaryWorksWith(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `update webhooks.schema_version set version = 99`)
	before := catalogue(t, env)
	from, to, err := Migrate(t.Context(), testConfig(env.URL, env.Slot))
	if err != nil || from != 99 || to != 99 {
		t.Errorf("from %d to %d, %v", from, to, err)
	}
	if diff := cmp.Diff(before, catalogue(t, env)); diff != "" {
		t.Errorf("it changed (-before +after):\n%s", diff)
	}
}

func TestPrintMigrations_FromAVersionBringsThatDatabaseForwardAndNoOther(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	want := migratedCatalogue(t)
	for _, version := range []int{1, 5, 17, 18, SchemaVersion()} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			env, cfg := formerDB(t, version)
			sql, err := PrintMigrations(cfg, version)
			must(t, err)
			other, err := PrintMigrations(cfg, version-1)
			must(t, err)
			if version > 1 {
				err := testenv.ExecSQL(t.Context(), env.URL, other)
				if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("this is for a database whose schema webhooks has version %d, and here it has %d", version-1, version)) {
					t.Errorf("the SQL for another version: %v", err)
				}
				env.Exec(t, `drop publication `+quoteIdent(cfg.publications()[0].name))
			}
			must(t, testenv.ExecSQL(t.Context(), env.URL, sql))
			if diff := cmp.Diff(want, catalogue(t, env)); diff != "" {
				t.Errorf("(-migrated +printed):\n%s", diff)
			}
			if strings.Contains(sql, "001_schema.sql") {
				t.Error("it prints what the database has")
			}
		})
	}
}

func TestPlanMigration_SaysWhatMigrateDoesAndChangesNothing(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	for version := range SchemaVersion() + 1 {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			env, cfg := formerDB(t, version)
			if version > 0 {
				addFormerData(t, env)
				env.Exec(t, `analyze webhooks.outbox`)
				env.Exec(t, `drop publication `+quoteIdent(cfg.publications()[1].name))
			} else {
				env.Exec(t, `drop schema webhooks cascade`)
			}
			// The place and the writer of each row of the catalogue. Autovacuum changes what stands
			// in rows of pg_class.
			rows := func() []string {
				var all []string
				for _, table := range []string{"pg_class", "pg_attribute", "pg_proc", "pg_index", "pg_trigger", "pg_constraint", "pg_description", "pg_publication", "pg_namespace"} {
					all = append(all, testenv.QueryOne[string](t, env, `select '`+table+` ' || coalesce(md5(string_agg(c.ctid::text || c.xmin::text, ' ' order by c.ctid)), '') from `+table+` c`))
				}
				return all
			}
			before := rows()
			db, err := Open(t.Context(), cfg)
			must(t, err)
			defer db.Close()
			plan, err := db.PlanMigration(t.Context())
			must(t, err)
			if diff := cmp.Diff(before, rows()); diff != "" {
				t.Errorf("it changed the catalogue (-before +after):\n%s", diff)
			}
			if plan.From != version || plan.To != SchemaVersion() || len(plan.Migrations) != SchemaVersion()-version {
				t.Errorf("from %d to %d, %d migrations", plan.From, plan.To, len(plan.Migrations))
			}
			if version == 6 {
				locks := plan.Migrations[0].Locks
				if last := locks[len(locks)-1]; last.Table != "webhooks.outbox" || last.Mode != "access exclusive" || last.Rows != 2 {
					t.Errorf("007 locks %+v", locks)
				}
			}
			if version > 0 {
				if diff := cmp.Diff([]string{cfg.publications()[1].name}, plan.Publications); diff != "" {
					t.Errorf("publications (-want +got):\n%s", diff)
				}
			}
		})
	}
}
