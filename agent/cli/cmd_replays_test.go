package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestReplays_AreShownAndChangedByTheBeginningOfTheirIDs(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses, since) values ('rpl_11', $1, '{missed,failed}', '2026-01-02T00:00:00Z'), ('rpl_12', $1, '{succeeded}', null)`, id)
	out := succeed(t, env, "replays", "show", "rpl_11")
	for _, want := range []string{"replay    rpl_11\n", "state     pending\n", "waits     no agent has run with this slot yet", "2026-01-02 00:00:00 UTC", "on, missed, failed\n", "endpoint  " + id + "\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
	for _, step := range []struct{ command, want string }{
		{"pause rpl_12", "paused"},
		{"resume rpl_12", "pending"},
		{"pace rpl_12 --per-second 7", "7"},
		{"cancel rpl_12", "canceled"},
		{"show rpl_12", "outcome   0 succeeded, 0 failed, 0 missed"},
		{"list --endpoint " + id[:len(id)-2], "rpl_11"},
	} {
		if out := succeed(t, env, append([]string{"replays"}, strings.Fields(step.command)...)...); !strings.Contains(out, step.want) {
			t.Errorf("%s does not say %q: %s", step.command, step.want, out)
		}
	}
	env.Exec(t, `update webhooks.replays set total = 3 where id = 'rpl_11'`)
	env.Exec(t, `update webhooks.deliveries set replay_id = 'rpl_11', former = '{}', status = 'succeeded' where event_id = 'evt_3'`)
	env.Exec(t, `update webhooks.replays r set state = 'done', finished = now() from (select set_config('webhooks.ends_replays', 'on', true)) x where id = 'rpl_11'`)
	shown := agenttest.Decode[replayShown](t, succeed(t, env, "replays", "show", "rpl_11", "--json"))
	if shown.ID != "rpl_11" || shown.Outcome == nil || shown.Outcome.Succeeded != 1 || shown.Outcome.ReplayedSince != 2 {
		t.Errorf("as JSON: %+v", shown)
	}
	status, _, stderr := cli(t, env, "replays", "cancel", "rpl_1")
	if want := `replay "rpl_1": several ids begin so: rpl_11, rpl_12; write more of the id`; status != exitFailed || !strings.Contains(stderr, want) {
		t.Errorf("an ambiguous id: status %d, %s", status, stderr)
	}
}

func TestReplays_InAPipeHaveNumbersThatProgramsRead(t *testing.T) {
	pace := 2000
	r := []outbox.ReplayInfo{{ID: "rpl_1", Total: 12345, Done: 1234, Unsent: 10000, Expected: new(int64(20000)), PerSecond: &pace}}
	for terminal, want := range map[bool]string{false: "1234 10000 12345 20000 2000", true: "1,234 10,000 12,345 20,000 2,000"} {
		if got := strings.Join(replayRows(&printer{terminal: terminal}, r, time.Now())[0][4:9], " "); got != want {
			t.Errorf("terminal %v: %s, want %s", terminal, got, want)
		}
	}
}
