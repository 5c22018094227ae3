package outbox

import (
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// TestPrintGrants_GivesWhatAMappedOutboxNeedsAndNoMore pastes what is printed for the agent.
func TestPrintGrants_GivesWhatAMappedOutboxNeedsAndNoMore(t *testing.T) {
	t.Parallel()
	for name, retention := range map[string]time.Duration{"kept for ever": 0, "pruned": 30 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			env.Exec(t, `create schema "Sales"`)
			env.Exec(t, `create table "Sales"."Order's Events" ("ID" bigserial primary key, type text not null, venue text not null, data json not null, created timestamptz not null default now())`)
			env.Exec(t, `create index on "Sales"."Order's Events" (created)`)
			cfg := testConfig(env.URL, env.Slot)
			cfg.Table, cfg.Columns.ID, cfg.Notices, cfg.Retention = "Sales.Order's Events", "ID", true, retention
			_, _, err := Migrate(t.Context(), cfg)
			must(t, err)
			cfg.URL = testConfig(plainRole(t, env), "").URL
			agents, _, _ := strings.Cut(PrintGrants(cfg), "-- The app")
			env.Exec(t, agents)
			db, err := Open(t.Context(), cfg)
			must(t, err)
			defer db.Close()
			for _, f := range db.Check(t.Context()) {
				if f.Level != LevelOK && strings.Contains(f.Remedy, "GRANT") {
					t.Errorf("after\n%s\ncheck says %+v", agents, f)
				}
			}
			if may := testenv.QueryOne[bool](t, env, `select has_table_privilege($1, '"Sales"."Order''s Events"', 'DELETE')`, env.Name+"_plain"); may != (retention > 0) {
				t.Errorf("the role may delete: %t", may)
			}
		})
	}
}

// TestSecurity_TheRolesThatItSeparatesCanWork tries what SECURITY.md gives to the app.
func TestSecurity_TheRolesThatItSeparatesCanWork(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	app := plainRole(t, env)
	role := quoteIdent(env.Name + "_plain")
	env.Exec(t, `grant usage on schema webhooks to `+role)
	env.Exec(t, `grant insert on webhooks.outbox, webhooks.endpoints, webhooks.replays, webhooks.event_types to `+role)
	env.Exec(t, `grant select (id, venue) on webhooks.endpoints to `+role)
	for _, sql := range []string{
		`insert into webhooks.outbox (type, venue, data) values ('lead.created', 'venue_a', '{}')`,
		`insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_a', 'https://h.example/', '{*}', 's')`,
		`insert into webhooks.replays (endpoint_id) values ('ep_1')`,
		`insert into webhooks.event_types (name, example) values ('visit.booked', '{}')`,
	} {
		if err := testenv.ExecSQL(t.Context(), app, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if err := testenv.ExecSQL(t.Context(), app, `select secret from webhooks.endpoints`); err == nil {
		t.Error("the app can read secrets")
	}
}
