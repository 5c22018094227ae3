package cli

import (
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestDeliveriesShow_ExplainsAnEventThatNobodyGot(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/hook?key=sentinel", "lead.updated", "payment.*")
	env.Exec(t, `update webhooks.endpoints set created = now() - interval '1 day'`)
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_nobody', 'lead.created', 'venue_a', '{"n": 1.0}'), ('evt_empty', 'lead.created', 'venue_b', '{}'),
	    ('evt_unread', 'lead.updated', 'venue_a', '{}')`)
	out := succeed(t, env, "deliveries", "show", "evt_n", "--payload")
	for _, want := range []string{"event    evt_nobody\n", "venue    venue_a\n", "read     not yet: no agent has run with this slot", `payload  {"n": 1.0}`,
		id + " (h.example), which asks for lead.updated, payment.*: the endpoint does not ask for lead.created, the nearest that it asks for is lead.updated"} {
		if !strings.Contains(out, want) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "sentinel") {
		t.Errorf("shows the URL's query:\n%s", out)
	}
	if out := succeed(t, env, "deliveries", "show", "evt_nobody"); strings.Contains(out, "payload") {
		t.Errorf("shows the payload without being asked:\n%s", out)
	}
	if out := succeed(t, env, "deliveries", "show", "evt_empty"); !strings.Contains(out, "the venue venue_b has no endpoint, so nothing was sent") {
		t.Errorf("a venue without endpoints:\n%s", out)
	}
	event := agenttest.Decode[eventDeliveries](t, succeed(t, env, "deliveries", "show", "evt_unread", id[:len(id)-2], "--json"))
	if len(event.Deliveries) != 0 || len(event.NotSent) != 1 || event.NotSent[0].Verdict != "not_read_yet" || event.Read || event.Found != "outbox" {
		t.Errorf("an event that was not read: %+v", event)
	}
	status, _, stderr := cli(t, env, "deliveries", "show", "evt_empty", id)
	if want := "it has no delivery to endpoint"; status != exitFailed || !strings.Contains(stderr, want) {
		t.Errorf("an endpoint of another venue: status %d, %s", status, stderr)
	}
	status, _, stderr = cli(t, env, "deliveries", "show", "evt_")
	if want := `event "evt_": several ids begin so: evt_empty, evt_nobody, evt_unread; write more of the id`; status != exitFailed || !strings.Contains(stderr, want) {
		t.Errorf("an ambiguous id: status %d, %s", status, stderr)
	}
}

func TestDeliveriesShow_ShowsWhatAReplayOverwroteAndTheLastSuccess(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	env.Exec(t, `update webhooks.deliveries set replay_id = 'rpl_1', former = '{"status": "failed", "attempts": 6, "last_code": 503, "last_error": "the server answered 503", "finished": "2026-01-02T00:00:00+00:00"}'
	    where event_id = 'evt_1'`)
	env.Exec(t, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response)
	    values ('evt_1', $1, 2, now(), 500, 'http_status', 'the server answered 500', 12, $2)`, id, strings.Repeat("long ", 100)+"end")
	out := succeed(t, env, "deliveries", "show", "evt_1")
	for _, want := range []string{"endpoint      " + id + " h.example\n", "replay        rpl_1", "before it     failed, attempts: 6, the server answered 503, finished 2026-01-02",
		"last success  2", "  1. ", ", 12 ms: the server answered 500\n     it said: out of", "long end\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
	status, _, stderr := cli(t, env, "deliveries", "show", "evt_1", "--payload")
	if want := `the data of event "evt_1": its row is no longer in the outbox; leave --payload out`; status != exitFailed || !strings.Contains(stderr, want) {
		t.Errorf("a payload that is gone: status %d, %s", status, stderr)
	}
}

// TestDeliveriesShow_AdvisesWhatWorksNow shows what was missed, while its endpoint is disabled, and
// when it is gone.
func TestDeliveriesShow_AdvisesWhatWorksNow(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_1', 'lead.created', 'venue_a', '{}')`)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, last_error, created, finished)
	    values ('evt_1', $1, 'venue_a', 'lead.created', 'missed', 'the endpoint is disabled', now(), now())`, id)
	const replay = "webhook-agent deliveries replay evt_1 sends it"
	if out := succeed(t, env, "deliveries", "show", "evt_1"); !strings.Contains(out, "once the endpoint is enabled and can be sent to, "+replay) {
		t.Errorf("an endpoint that is there:\n%s", out)
	}
	env.Exec(t, `delete from webhooks.endpoints`)
	env.Exec(t, `update webhooks.deliveries set last_error = 'the endpoint was removed'`)
	if out := succeed(t, env, "deliveries", "show", "evt_1"); strings.Contains(out, replay) || !strings.Contains(out, "the endpoint is gone, so nothing can be sent to it") {
		t.Errorf("an endpoint that was removed:\n%s", out)
	}
}
