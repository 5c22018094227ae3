package api

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// TestDocs_EveryBlockRuns runs the shell blocks of docs/api.md one after the other, as a reader would.
func TestDocs_EveryBlockRuns(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"sh", "curl", "jq", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("docs/api.md needs %s; install it", tool)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -eu\n")
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	for _, block := range blocks {
		script.WriteString(block[1])
	}
	if len(blocks) < 10 {
		t.Fatalf("the page has %d blocks", len(blocks))
	}

	f := newFixture(t)
	f.env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_docs', 'lead.created', 'venue_01H', '{}')`)
	// What the endpoint of the page missed while it was off.
	f.env.Exec(t, `create function play_agent() returns trigger language plpgsql as $$ begin
		insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_docs', new.id, new.venue, 'lead.created', 'missed', now()); return new; end $$`)
	f.env.Exec(t, `create trigger play_agent after insert on webhooks.endpoints for each row execute function play_agent()`)
	cmd := exec.CommandContext(t.Context(), "sh")
	cmd.Stdin = strings.NewReader(script.String())
	cmd.Env = append(os.Environ(), "API="+f.url, "CONSOLE_KEY="+signingKey, "EVENT=evt_docs")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"role":"venue"`, "lead.created", "whsec_", "disabled", "paused", "canceled", "missed", "\n0\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	if n := testenv.QueryOne[int64](t, f.env, `select count(*) from webhooks.replays where state = 'canceled'`); n != 1 {
		t.Errorf("%d replays were canceled", n)
	}
}
