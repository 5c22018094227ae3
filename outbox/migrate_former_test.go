package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/testenv"
)

// formers are databases with the schema of each version up to the newest one. Each is made from the
// one before. Early agents gave the table of the version no replica identity.
var formers = sync.OnceValues(func() ([]*testenv.Filled, error) {
	ms, err := migrations()
	if err != nil {
		return nil, err
	}
	former := &testenv.Filled{Name: "former_0", From: &neverMigrated, Fill: func(ctx context.Context, url string) error {
		return testenv.ExecSQL(ctx, url, `create schema webhooks; create table webhooks.schema_version(version int4 not null);
		    insert into webhooks.schema_version(version) select 0`)
	}}
	all := []*testenv.Filled{former}
	for i, m := range ms {
		former = &testenv.Filled{Name: fmt.Sprintf("former_%d", i+1), From: former, Fill: func(ctx context.Context, url string) error {
			return testenv.ExecSQL(ctx, url, m.sql+";\nupdate webhooks.schema_version set "+m.setVersion(i+1))
		}}
		all = append(all, former)
	}
	return all, nil
})

// formerDB returns a database as an agent of an earlier version left it.
func formerDB(t *testing.T, version int) (*testenv.DB, Config) {
	t.Helper()
	all, err := formers()
	must(t, err)
	env := all[version].NewDB(t)
	cfg := testConfig(env.URL, env.Slot)
	if version > 0 { // it made its publications last
		for _, p := range cfg.publications() {
			env.Exec(t, p.create())
		}
	}
	return env, cfg
}

// addFormerData adds rows that a database of any version can hold, and returns them as JSON by
// table.
func addFormerData(t *testing.T, env *testenv.DB) map[string][]string {
	t.Helper()
	must(t, testenv.ExecSQL(t.Context(), env.URL, `
	    insert into webhooks.outbox (id, type, venue, data, created) values ('evt_1', 'lead.created', 'v', '{"a": 1}', '2026-01-01 UTC'), ('evt_2', 'lead.updated', 'v', '[]', now());
	    insert into webhooks.endpoints (id, venue, url, events, secret, description) values ('ep_1', 'v', 'https://example.com', '{lead.*}', 'whsec_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw', 'The first.');
	    insert into webhooks.endpoints (id, venue, url, events, secret, disabled_at) values ('ep_2', 'w', 'https://example.org', '{*}', 'whsec_MTExMTExMTExMTExMTExMTExMTExMTEx', now());
	    update webhooks.endpoints set disabled_at = null where id = 'ep_2';
	    update webhooks.endpoints set previous_secret = secret, previous_secret_until = now() + interval '1 day', secret = 'whsec_MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy' where id = 'ep_1';
	    insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created) values ('evt_1', 'ep_1', 'v', 'lead.created', 'pending', 1, now()), ('evt_2', 'ep_1', 'v', 'lead.updated', 'succeeded', 1, now());
	    insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class) values ('evt_1', 'ep_1', 1, now(), 500, 'status');
	    insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures) values ('ep_1', 1, 1);
	    insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database) values ('a_slot', '0/1', 3, 'a', '1', 1, 'd');
	    insert into webhooks.replays (id, endpoint_id, event_ids) values ('rpl_1', 'ep_1', '{evt_1}')`))
	rows := map[string][]string{}
	for _, table := range schemaTables() {
		if table == versionTable || !testenv.QueryOne[bool](t, env, `select to_regclass($1) is not null`, table) {
			continue // a later version makes it
		}
		rows[table] = testenv.QueryAll[string](t, env, `select to_jsonb(r)::text from `+table+` r`)
	}
	return rows
}

// migratedCatalogue is the catalogue of a database that this binary made.
func migratedCatalogue(t *testing.T) []string {
	t.Helper()
	env, cfg := emptyDB(t)
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	return catalogue(t, env)
}

// wantMigrated fails the test unless Migrate brings a database from a version to the newest one and
// keeps its rows. The schema must be the same as that of a database that began empty.
func wantMigrated(t *testing.T, env *testenv.DB, cfg Config, version int, want []string) {
	t.Helper()
	rows := addFormerData(t, env)
	from, to, err := Migrate(t.Context(), cfg)
	if err != nil || from != version || to != SchemaVersion() {
		t.Fatalf("from %d to %d, %v", from, to, err)
	}
	if diff := cmp.Diff(want, catalogue(t, env)); diff != "" {
		t.Errorf("(-from nothing +from version %d):\n%s", version, diff)
	}
	if !testenv.QueryOne[bool](t, env, `select relreplident = 'f' from pg_class where oid = 'webhooks.schema_version'::regclass`) {
		t.Error("the version cannot be updated beside a publication of all tables")
	}
	for table, former := range rows {
		for _, row := range former {
			if !testenv.QueryOne[bool](t, env, `select exists (select from `+table+` r where to_jsonb(r) @> $1::text::jsonb)`, row) {
				t.Errorf("%s lost or changed %s", table, row)
			}
		}
	}
}

func TestMigrate_BringsADatabaseOfEveryFormerVersionForward(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	want := migratedCatalogue(t)
	for version := 1; version <= SchemaVersion(); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			env, cfg := formerDB(t, version)
			wantMigrated(t, env, cfg, version, want)
		})
	}
}

func TestPrintMigrations_OfEveryFormerVersionMakesADatabaseThatMigrateBringsForward(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	want := migratedCatalogue(t)
	ms, err := migrations()
	must(t, err)
	for version := 1; version <= SchemaVersion(); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			env, cfg := emptyDB(t)
			must(t, testenv.ExecSQL(t.Context(), env.URL, printMigrations(cfg, ms[:version], 0)))
			wantMigrated(t, env, cfg, version, want)
		})
	}
}

func TestPrintMigrations_HoldsEachMigrationInItsOrder(t *testing.T) {
	t.Parallel()
	rest, err := PrintMigrations(testConfig("", ""), 0)
	must(t, err)
	ms, err := migrations()
	must(t, err)
	for i, m := range ms {
		if want := fmt.Sprintf("%03d_", i+1); !strings.HasPrefix(m.name, want) {
			t.Errorf("migration %d is named %s, want %s first", i+1, m.name, want)
		}
		var found bool
		if _, rest, found = strings.Cut(rest, "\n-- "+m.name+"\n"+m.sql+"\n"); !found {
			t.Fatalf("%s is missing, or not behind the one before", m.name)
		}
	}
	if !strings.HasPrefix(rest, fmt.Sprintf("\ninsert into webhooks.schema_version (version) values (0);\nupdate webhooks.schema_version set version = %d,", len(ms))) {
		t.Errorf("behind the migrations stands %.100q, want their version", rest)
	}
}

func TestMigrate_RunsOnceWhenTwoStartOnAFormerVersion(t *testing.T) {
	t.Parallel()
	env, cfg := formerDB(t, 6)
	conn, err := pgx.Connect(t.Context(), env.SuperuserURL)
	must(t, err)
	defer closeConn(conn)
	must(t, exec(t.Context(), conn, `select pg_advisory_lock($1)`, migrationLock))
	var both errgroup.Group
	froms := make([]int, 2)
	for i := range froms {
		both.Go(func() (err error) {
			froms[i], _, err = Migrate(t.Context(), cfg)
			return err
		})
	}
	testenv.Eventually(t, patience, func() error {
		n := testenv.QueryOne[int64](t, env, `select count(*) from pg_stat_activity
		    where datname = current_database() and query like '%pg_try_advisory_lock%' and pid <> pg_backend_pid()`)
		if n != 2 {
			return fmt.Errorf("%d ask for the lock", n)
		}
		return nil
	})
	must(t, exec(t.Context(), conn, `select pg_advisory_unlock($1)`, migrationLock))
	must(t, both.Wait())
	slices.Sort(froms)
	if want := []int{6, SchemaVersion()}; !slices.Equal(froms, want) {
		t.Errorf("they began at the versions %v, want %v", froms, want)
	}
}

func TestMigrate_LeavesTheVersionBeforeAMigrationThatFails(t *testing.T) {
	t.Parallel()
	env, cfg := formerDB(t, 5)
	// Migration 7 makes a function of this name, after it has added a column.
	const signature = `webhooks.event_xid(xid xid8, row_xmin xid, next bigint)`
	env.Exec(t, `create function `+signature+` returns xid8 language sql as 'select xid'`)
	_, _, err := Migrate(t.Context(), cfg)
	if err == nil || !strings.HasPrefix(err.Error(), "migrate 007_recovery.sql: ") || !strings.Contains(err.Error(), `"event_xid" already exists`) {
		t.Errorf("got %v, want the name of the migration and the reason", err)
	}
	if version := testenv.QueryOne[int32](t, env, `select version from webhooks.schema_version`); version != 6 {
		t.Errorf("version %d, want 6", version)
	}
	if testenv.QueryOne[bool](t, env, `select exists (select from pg_attribute where attrelid = 'webhooks.outbox'::regclass and attname = 'xid')`) {
		t.Error("the migration left a column behind")
	}
	env.Exec(t, `drop function `+signature)
	from, to, err := Migrate(t.Context(), cfg)
	if err != nil || from != 6 || to != SchemaVersion() {
		t.Errorf("without the obstacle: from %d to %d, %v", from, to, err)
	}
	if diff := cmp.Diff(migratedCatalogue(t), catalogue(t, env)); diff != "" {
		t.Errorf("(-from nothing +after the failure):\n%s", diff)
	}
}

func TestMigrate_RefusesATableThatDoesNotSayTheVersion(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	for _, sql := range []string{`update webhooks.schema_version set version = -1`, `delete from webhooks.schema_version`} {
		env.Exec(t, sql)
		_, _, err := Migrate(t.Context(), testConfig(env.URL, env.Slot))
		wantProblem(t, err, "webhooks.schema_version: it does not say which version the schema has; give it one row")
		if p, _ := errors.AsType[*Problem](err); !p.Fatal {
			t.Errorf("%s: waiting would help?", sql)
		}
	}
}

func TestMigrate_NeedsOneConnectionAndTheRightToCreateInTheDatabase(t *testing.T) {
	t.Parallel()
	env, _ := emptyDB(t)
	url := plainRole(t, env)
	role, _, _ := strings.Cut(urlUser(url), ":")
	cfg := testConfig(url, env.Slot)
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `alter role `+role+` noreplication connection limit 1; grant create on database `+env.Name+` to `+role))
	for _, version := range []int{0, SchemaVersion()} {
		from, to, err := Migrate(t.Context(), cfg)
		if err != nil || from != version || to != SchemaVersion() {
			t.Errorf("from %d to %d, %v; want from %d to %d", from, to, err, version, SchemaVersion())
		}
		// PostgreSQL still counts a connection for a moment after its client has closed it.
		testenv.Eventually(t, 10*time.Second, func() error {
			if testenv.QueryOne[bool](t, env, `select exists (select from pg_stat_activity where usename = $1)`, role) {
				return errors.New("the connection has not ended")
			}
			return nil
		})
	}
}

func TestMigrate_FindsNothingToDoForARoleThatMayOnlyReadTheVersion(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	cfg := testConfig(plainRole(t, env), env.Slot)
	role, _, _ := strings.Cut(urlUser(cfg.URL.Reveal()), ":")
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `grant create on database `+env.Name+` to `+role+`;
	    grant usage on schema webhooks to `+role+`; grant select on webhooks.schema_version to `+role))
	from, to, err := Migrate(t.Context(), cfg)
	if err != nil || from != to || to != SchemaVersion() {
		t.Errorf("from %d to %d, %v", from, to, err)
	}
}
