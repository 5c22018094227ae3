package cli

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// TestMigrate_PrintsWhatRolesNeed gives new roles what is printed and tries what each may do, and what it
// may not.
func TestMigrate_PrintsWhatRolesNeed(t *testing.T) {
	env := testenv.NewDB(t)
	grants := succeed(t, env, "migrate", "--print-grants")
	app, people := env.Name+"_app", env.Name+"_people"
	as := func(role string) string {
		u, err := url.Parse(env.URL)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(role, "pw")
		return u.String()
	}
	for _, role := range []string{app, people} {
		if err := testenv.ExecSQL(t.Context(), env.SuperuserURL, `create role `+role+` login password 'pw'`); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = testenv.ExecSQL(t.Context(), env.SuperuserURL, `drop owned by `+role)
		})
	}
	grants = regexp.MustCompile(`TO app;`).ReplaceAllString(grants, "TO "+app+";")
	grants = regexp.MustCompile(`TO support;`).ReplaceAllString(grants, "TO "+people+";")
	for line := range strings.Lines(grants) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "--") {
			continue
		}
		if err := testenv.ExecSQL(t.Context(), env.URL, line); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	for _, test := range []struct {
		role, sql string
		may       bool
	}{
		{app, `insert into webhooks.outbox (type, venue, data) values ('lead.created', 'venue_a', '{}') returning id`, true},
		{app, `insert into webhooks.endpoints (venue, url, events, secret) values ('venue_a', 'https://h.example/2', '{*}', 's')`, true},
		{app, `update webhooks.endpoints set disabled_at = now() where url like '%/2'`, true},
		{app, `delete from webhooks.endpoints where url like '%/2'`, true},
		{app, `insert into webhooks.replays (endpoint_id) select id from webhooks.endpoints`, true},
		{app, `update webhooks.replays set state = 'paused'`, true},
		{app, `select * from webhooks.venue_log('venue_a')`, true},
		{app, `update webhooks.deliveries set status = 'failed'`, false},
		{people, `select * from webhooks.endpoint_settings`, true},
		{people, `select * from webhooks.venue_log('venue_a')`, true},
		{people, `select * from webhooks.check_endpoint('https://h.example/', '{*}')`, true},
		{people, `select * from webhooks.attempts, webhooks.replays, webhooks.removed_endpoints`, true},
		{people, `select secret from webhooks.endpoints`, false},
		{people, `update webhooks.replays set state = 'paused'`, false},
		{people, `select * from webhooks.outbox`, false},
	} {
		if err := testenv.ExecSQL(t.Context(), as(test.role), test.sql); (err == nil) != test.may {
			t.Errorf("%s: %s: %v, want allowed: %t", test.role, test.sql, err, test.may)
		}
	}
}
