package outbox

import (
	"regexp"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// statement matches the beginning of a remedy that is SQL.
var statement = regexp.MustCompile(`^(ALTER (TABLE|ROLE|DATABASE|PUBLICATION)|GRANT|CREATE (UNIQUE )?INDEX) `)

// TestCheck_HasRemediesThatCanBePasted runs the remedies until no finding has one left. The names
// are in mixed case, are words of SQL, or contain a dot, as the names that ORMs make.
func TestCheck_HasRemediesThatCanBePasted(t *testing.T) {
	env := testenv.NewDB(t)
	role := env.Name + "-App"
	super := func(sql string) {
		t.Helper()
		must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, sql))
	}
	super(`create role "` + role + `" login password 'plain' connection limit 2`)
	super(`create schema "Sales"`)
	super(`create unlogged table "Sales"."Order.Events" ("ID" text, "select" text not null, "User" text not null, "Data" json not null, "When" timestamptz not null)`)
	super(`alter table "Sales"."Order.Events" enable row level security`)
	super(`alter publication webhooks_outbox rename to "Web Hooks"`)
	super(`alter publication webhooks_outbox_endpoints rename to "Web Hooks_endpoints"`)
	super(`alter publication "Web Hooks" set table webhooks.event_types`)
	super(`alter publication "Web Hooks_endpoints" set (publish = 'insert')`)
	cfg := testConfig(strings.Replace(env.URL, urlUser(env.URL), role+":plain", 1), env.Slot)
	cfg.Table, cfg.Publication, cfg.Retention = "Sales.Order.Events", "Web Hooks", 1<<50
	cfg.Columns = Columns{ID: "ID", Type: "select", Venue: "User", Data: "Data", Created: "When"}
	db, err := Open(t.Context(), cfg)
	must(t, err)
	defer db.Close()
	pasted := map[string]bool{}
	for range 12 {
		fresh := false
		db.Reset()
		for _, f := range db.Check(t.Context()) {
			sql := f.Remedy
			for _, prose := range []string{", or ", "; ", " (Amazon"} {
				sql, _, _ = strings.Cut(sql, prose)
			}
			if f.Level == LevelOK || !statement.MatchString(sql) || pasted[sql] {
				continue
			}
			super(sql)
			pasted[sql], fresh = true, true
		}
		if !fresh {
			break
		}
	}
	if lines := notOK(db.Check(t.Context())); len(lines) > 0 || len(pasted) < 8 {
		t.Errorf("after %d remedies were pasted:\n%s", len(pasted), strings.Join(lines, "\n"))
	}
	env.Exec(t, `select 1`)
	db.Close()
	super(`drop owned by "` + role + `"; drop role "` + role + `"`)
}
