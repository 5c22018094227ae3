package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/testenv"
)

// neverMigrated is a database that was never migrated.
var neverMigrated = testenv.Filled{Name: "never_migrated", Fill: func(ctx context.Context, url string) error {
	sql := "drop schema webhooks cascade"
	for _, p := range testConfig("", "").publications() {
		sql += "; drop publication " + quoteIdent(p.name)
	}
	return testenv.ExecSQL(ctx, url, sql)
}}

// emptyDB returns a database that was never migrated.
func emptyDB(t *testing.T) (*testenv.DB, Config) {
	t.Helper()
	env := neverMigrated.NewDB(t)
	return env, testConfig(env.URL, env.Slot)
}

// catalogue describes everything that a migration makes.
func catalogue(t *testing.T, env *testenv.DB) []string {
	t.Helper()
	return testenv.QueryAll[string](t, env, `
	    select format('column %s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default) from information_schema.columns where table_schema = 'webhooks'
	    union all select 'index ' || indexdef from pg_indexes where schemaname = 'webhooks'
	    union all select format('constraint %s %s', conrelid::regclass, pg_get_constraintdef(oid)) from pg_constraint where connamespace = 'webhooks'::regnamespace
	    union all select 'function ' || pg_get_functiondef(oid) from pg_proc where pronamespace = 'webhooks'::regnamespace
	    union all select 'trigger ' || pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
	    union all select 'comment ' || description from pg_description d join pg_class c on c.oid = d.objoid where c.relnamespace = 'webhooks'::regnamespace
	    union all select format('publication %s %s %s %s %s %s', pubname, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot) from pg_publication
	    union all select format('published %s %s.%s', pubname, schemaname, tablename) from pg_publication_tables
	    union all select 'event type ' || name || example::text from webhooks.event_types
	    union all select 'version ' || version from webhooks.schema_version
	    order by 1`)
}

func TestMigrate_DoesNothingTheSecondTime(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	from, to, err := Migrate(t.Context(), cfg)
	if err != nil || from != 0 || to != SchemaVersion() {
		t.Fatalf("first: from %d to %d, %v", from, to, err)
	}
	before := catalogue(t, env)
	from, to, err = Migrate(t.Context(), cfg)
	if err != nil || from != to || to != SchemaVersion() {
		t.Errorf("second: from %d to %d, %v", from, to, err)
	}
	if diff := cmp.Diff(before, catalogue(t, env)); diff != "" {
		t.Errorf("the second migration changed (-before +after):\n%s", diff)
	}
}

func TestMigrate_RunsOnceWhenStartedSeveralTimes(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	var all errgroup.Group
	for range 5 {
		all.Go(func() error { _, _, err := Migrate(t.Context(), cfg); return err })
	}
	if err := all.Wait(); err != nil {
		t.Errorf("one of the migrations: %v", err)
	}
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.event_types`); n != 13 {
		t.Errorf("%d event types, want the ten documented ones", n)
	}
}

func TestMigrate_RefusesANewerSchema(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	for _, version := range []int{SchemaVersion() + 1, 999} {
		env.Exec(t, `update webhooks.schema_version set version = $1, compatible = $1`, version)
		before := catalogue(t, env)
		_, _, err := Migrate(t.Context(), testConfig(env.URL, env.Slot))
		wantProblem(t, err, "schema webhooks", fmt.Sprintf("version %d,", version), "run a newer webhook-agent")
		if p, _ := errors.AsType[*Problem](err); !p.Fatal {
			t.Error("waiting would help?")
		}
		if diff := cmp.Diff(before, catalogue(t, env)); diff != "" {
			t.Errorf("version %d: the refusal changed (-before +after):\n%s", version, diff)
		}
	}
}

func TestMigrate_NamesAMissingOutbox(t *testing.T) {
	t.Parallel()
	_, cfg := emptyDB(t)
	cfg.Table = "public.nowhere"
	_, _, err := Migrate(t.Context(), cfg)
	wantProblem(t, err, "outbox.table public.nowhere", "there is no such table")
}

func TestPrintMigrations_GivesTheSameCatalogue(t *testing.T) {
	t.Parallel()
	migrated, cfg := emptyDB(t)
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	printed, cfg := emptyDB(t)
	sql, err := PrintMigrations(cfg, 0)
	must(t, err)
	must(t, testenv.ExecSQL(t.Context(), printed.URL, sql))
	if diff := cmp.Diff(catalogue(t, migrated), catalogue(t, printed)); diff != "" {
		t.Errorf("(-migrated +printed):\n%s", diff)
	}
}

func TestPrintMigrations_AreOneTransactionForAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	sql, err := PrintMigrations(testConfig("", ""), 0)
	must(t, err)
	if !strings.HasPrefix(sql, "-- The schema of the webhook agent, for an empty database") {
		t.Errorf("the SQL does not say what it is for: %.100s", sql)
	}
	// psql commits each statement outside a transaction by itself.
	if _, body, _ := strings.Cut(sql, "\n\n"); !strings.HasPrefix(body, "begin;\n") || !strings.HasSuffix(body, "\ncommit;\n") {
		t.Error("the SQL is not one transaction")
	}
}

func TestExplainMigration_SaysWhoMayMigrateUnlessTheSchemaIsNewer(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	cfg := testConfig(plainRole(t, env), env.Slot)
	refusal := func() error {
		_, _, err := Migrate(t.Context(), cfg)
		return ExplainMigration(t.Context(), cfg, err)
	}
	wantProblem(t, refusal(), "permission denied for schema webhooks", "; run migrate as the owner of the database")
	env.Exec(t, `grant usage on schema webhooks to public`)
	env.Exec(t, `grant select on webhooks.schema_version to public`)
	env.Exec(t, `update webhooks.schema_version set version = 999, compatible = null`)
	wantProblem(t, refusal(), "schema webhooks: it has version 999")
	other := errors.New("other")
	wantError(t, ExplainMigration(t.Context(), cfg, other), other)
}

func TestMigrate_MakesTablesThatCanBeChangedUnderAnyPublication(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `create publication everything for all tables`))
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	for _, table := range testenv.QueryAll[string](t, env, `select format('webhooks.%I', tablename) from pg_tables where schemaname = 'webhooks'`) {
		column := testenv.QueryOne[string](t, env, `select attname::text from pg_attribute where attrelid = $1::text::regclass and attnum > 0 and attname <> 'id' and not attisdropped order by attnum limit 1`, table)
		env.Exec(t, `update `+table+` set `+column+` = `+column)
		env.Exec(t, `delete from `+table)
	}
}

func TestMigrations_HoldNothingThatADatabaseOfAnotherEncodingLacks(t *testing.T) {
	ms, err := migrations()
	must(t, err)
	for _, m := range ms {
		for _, r := range m.sql {
			if r > unicode.MaxASCII {
				t.Errorf("%s holds %q", m.name, r)
			}
		}
	}
}

func TestMigrate_SaysWhyATableCannotBeStreamed(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `create foreign data wrapper w; create server s foreign data wrapper w;
	    create foreign table public.a_foreign_one (id text) server s; alter table public.a_foreign_one owner to agent`))
	env.Exec(t, `create table t (id text primary key)`)
	env.Exec(t, `create view a_view as select * from t`)
	env.Exec(t, `create materialized view a_matview as select * from t`)
	env.Exec(t, `create unlogged table "An unlogged one" (id text primary key)`)
	env.Exec(t, `create sequence a_sequence`)
	for table, texts := range map[string][]string{
		"a_view":          {"it is a view", "name the table that the app inserts into"},
		"a_matview":       {"it is a materialized view", "name the table that the app inserts into"},
		"a_foreign_one":   {"it is a foreign table", "name the table that the app inserts into"},
		"a_sequence":      {"it is a sequence", "name the table that the app inserts into"},
		"An unlogged one": {"it is not logged", `ALTER TABLE "public"."An unlogged one" SET LOGGED`},
	} {
		cfg.Table = "public." + table
		_, _, err := Migrate(t.Context(), cfg)
		wantProblem(t, err, append(texts, "outbox.table "+cfg.Table+": ", "no stream")...)
		if p, _ := errors.AsType[*Problem](err); !p.Fatal {
			t.Errorf("%s: waiting would help?", table)
		}
	}
}
