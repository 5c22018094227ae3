package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// All tests of this package run the agent and its commands in the role that the GRANTs of
// migrate --print-grants make. The only exceptions are tests of what an owner may do besides.

func TestLeastRole_MayDoNothingElse(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `create schema app`)
	env.Exec(t, `create table app.leads (name text)`)
	conn := agenttest.ConnectURL(t, env.LeastURL)
	for _, sql := range []string{
		`select * from app.leads`,
		`create table app.more (x int)`,
		`create table webhooks.more (x int)`,
		`update webhooks.outbox set venue = 'x'`,
		`update webhooks.attempts set error = 'x'`,
		`delete from webhooks.checkpoint`,
		`insert into webhooks.event_types (name, example) values ('x', '{}')`,
		`truncate webhooks.deliveries`,
		`alter table webhooks.outbox add column x int`,
		`drop publication webhooks_outbox`,
		`create role x`,
		`select pg_read_file('postgresql.conf')`,
		`copy webhooks.event_types to program 'true'`,
	} {
		_, err := conn.Exec(t.Context(), sql)
		if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || pe.Code != "42501" {
			t.Errorf("%s: %v, want insufficient_privilege", sql, err)
		}
	}
}

func TestLeastRole_HasNothingThatItDoesNotNeed(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	db, err := outbox.Open(t.Context(), agenttest.Config(env).OutboxConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	findings := func() (bad []string) {
		for _, f := range db.Check(t.Context()) {
			if f.Level != outbox.LevelOK {
				bad = append(bad, f.Thing+": "+f.Reason+"; "+f.Remedy)
			}
		}
		return bad
	}
	if bad := findings(); len(bad) > 0 {
		t.Fatalf("with what --print-grants grants check says %q", bad)
	}
	granted := testenv.QueryAll[string](t, env, `select privilege_type || ' on ' || table_schema || '.' || table_name from information_schema.role_table_grants where grantee = $1
		union all select 'usage on schema webhooks'`, testenv.LeastRole)
	if len(granted) < 20 {
		t.Fatalf("--print-grants grants %q", granted)
	}
	for _, g := range granted {
		env.Exec(t, `revoke `+g+` from `+testenv.LeastRole)
		privilege, object, _ := strings.Cut(g, " on ")
		said := findings()
		names := func(finding string) bool {
			finding = strings.ToLower(finding)
			return strings.Contains(finding, strings.ToLower(privilege)) && strings.Contains(finding, object[strings.LastIndexAny(object, ". ")+1:])
		}
		if !slices.ContainsFunc(said, names) {
			t.Errorf("without %s check says %q", g, said)
		}
		env.Exec(t, `grant `+g+` to `+testenv.LeastRole)
	}
}
