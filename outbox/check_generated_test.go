package outbox

import (
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

func TestCheck_SaysWhetherAGeneratedColumnCanBeStreamed(t *testing.T) {
	t.Parallel()
	env, cfg := emptyDB(t)
	version := testenv.QueryOne[int](t, env, `select current_setting('server_version_num')::int`)
	env.Exec(t, `create table ob (id text primary key, kind text, type text generated always as ('a.' || kind) stored, venue text, data json, created timestamptz default now())`)
	cfg.Table = "public.ob"
	_, _, err := Migrate(t.Context(), cfg)
	must(t, err)
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	said := func() string { return strings.Join(notOK(db.Check(t.Context())), "\n") }
	if version < generatedVersion {
		if got := said(); !strings.Contains(got, `fail publication webhooks_outbox: column "type" of public.ob is generated, and this server cannot stream it | use a plain column`) {
			t.Errorf("check says\n%s", got)
		}
		return
	}
	if got := said(); strings.Contains(got, "generated") {
		t.Errorf("migrate has published the column, and check says\n%s", got)
	}
	env.Exec(t, `alter publication webhooks_outbox set (publish_generated_columns = none)`)
	if got := said(); !strings.Contains(got, `SET (publish_generated_columns = stored)`) {
		t.Errorf("check says\n%s", got)
	}
	env.Exec(t, `alter table ob drop column type, add column type text generated always as ('a.' || kind) virtual`)
	if got := said(); !strings.Contains(got, `column "type" of public.ob is generated, and this server cannot stream it`) {
		t.Errorf("check says\n%s", got)
	}
}
