package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// addDeliveries writes one delivery in each status to an endpoint, evt_1 to evt_4, an hour apart.
func addDeliveries(t *testing.T, env *testenv.DB, endpoint string) {
	t.Helper()
	env.Exec(t, `insert into webhooks.deliveries
	        (event_id, endpoint_id, venue, type, status, attempts, next_attempt_at, last_code, last_error, last_latency_ms, created, finished)
	    values ('evt_1', $1, 'venue_a', 'lead.created', 'pending', 2, now() + interval '2 minutes', 500, 'the server answered 500', 12, now() - interval '1 hour', null),
	           ('evt_2', $1, 'venue_a', 'lead.updated', 'succeeded', 1, null, 204, null, 34, now() - interval '2 hours', now()),
	           ('evt_3', $1, 'venue_a', 'payment.received', 'failed', 6, null, null, 'no answer', 15000, now() - interval '3 hours', now()),
	           ('evt_4', $1, 'venue_a', 'lead.created', 'missed', 0, null, null, 'the endpoint was disabled', null, now() - interval '4 hours', now())`, endpoint)
	env.Exec(t, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at, code, class, error, latency_ms, response)
	    values ('evt_1', $1, 1, now(), 500, 'http_status', 'the server answered 500', 12, E'out of \x1b[31morder')`, endpoint)
}

func TestDeliveriesList_ShowsResultsAndPages(t *testing.T) {
	env := testenv.NewDB(t)
	if out := succeed(t, env, "deliveries", "list", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("no delivery as JSON: %s", out)
	}
	addDeliveries(t, env, "ep_1")
	out := succeed(t, env, "deliveries", "list")
	for _, want := range []string{"pending\t2\tnext in 2m, the server answered 500, 12 ms", "succeeded\t1\tstatus 204, 34 ms",
		"failed\t6\tno answer, 15000 ms", "missed\t0\tthe endpoint was disabled"} {
		if !strings.Contains(out, want) && !strings.Contains(strings.ReplaceAll(out, "in 1m59s", "in 2m"), want) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
	out = succeed(t, env, "deliveries", "list", "--status", "failed,missed", "--since", "210m", "--type", "payment.*", "--venue", "venue_a", "--endpoint", "ep_1")
	if !strings.Contains(out, "evt_3") || strings.Count(out, "\n") != 1 {
		t.Errorf("filters: %s", out)
	}
	first := agenttest.Decode[[]outbox.DeliveryInfo](t, succeed(t, env, "deliveries", "list", "--limit", "2", "--json"))
	rest := agenttest.Decode[[]outbox.DeliveryInfo](t, succeed(t, env, "deliveries", "list", "--before", first[1].Cursor, "--json"))
	if first[0].EventID != "evt_1" || len(rest) != 2 || rest[0].EventID != "evt_3" {
		t.Errorf("pages: %v, then %v", first, rest)
	}
	if status, out, stderr := cli(t, env, "deliveries", "list", "--limit", "2"); status != exitFine || strings.Count(out, "\n") != 2 || !strings.Contains(stderr, "--before evt_2\n") {
		t.Errorf("the end of a page does not name the next: %s%s", out, stderr)
	}
}

func TestLists_GoOnBehindTheBeginningOfAnID(t *testing.T) {
	env := testenv.NewDB(t)
	addDeliveries(t, env, "ep_1")
	env.Exec(t, `update webhooks.deliveries set event_id = 'evt_2nd' where event_id = 'evt_2'`)
	if out := succeed(t, env, "deliveries", "list", "--before", "evt_2"); !strings.Contains(out, "evt_3") || strings.Contains(out, "evt_2nd") || strings.Count(out, "\n") != 2 {
		t.Errorf("behind evt_2nd: %s", out)
	}
	if status, _, stderr := cli(t, env, "deliveries", "list", "--before", "evt"); status != exitFailed || !strings.Contains(stderr, "several ids begin so: evt_1, evt_2nd, evt_3, evt_4") {
		t.Errorf("behind several: status %d, %s", status, stderr)
	}
	for _, id := range []string{"ep_1A", "ep_2A", "ep_3A"} {
		env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, 'venue_a', 'https://h.example/', '{*}', 's')`, id)
	}
	if out := succeed(t, env, "endpoints", "list", "--after", "ep_2"); !strings.Contains(out, "ep_3A") || strings.Count(out, "\n") != 1 {
		t.Errorf("endpoints after ep_2A: %s", out)
	}
	env.Exec(t, `drop table webhooks.outbox`)
	succeed(t, env, "deliveries", "list")
}

func TestDeliveriesShow_ExplainsWhatHappenedAndWhatIsNext(t *testing.T) {
	env := testenv.NewDB(t)
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_a', 'https://h.example/', '{*}', 's')`)
	addDeliveries(t, env, "ep_1")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) select event_id, type, venue, '{}' from webhooks.deliveries where event_id <> 'evt_4'`)
	for event, want := range map[string][]string{
		"evt_1": {"pending: 2 of 6 attempts failed; the next is due in", `out of \x1b[31morder`, "the server answered 500"},
		"evt_2": {"succeeded: status 204 after 34 ms, at attempt 1"},
		"evt_3": {"failed: all 6 attempts failed; webhook-agent deliveries replay evt_3 sends it again"},
		"evt_4": {"missed: not sent: the endpoint was disabled; it cannot be sent again, since its row is no longer in the outbox"},
	} {
		out := succeed(t, env, "deliveries", "show", event)
		for _, text := range want {
			if !strings.Contains(out, text) {
				t.Errorf("%s does not say %q:\n%s", event, text, out)
			}
		}
	}
	event := agenttest.Decode[eventDeliveries](t, succeed(t, env, "deliveries", "show", "evt_1", "ep_1", "--json"))
	if event.EventID != "evt_1" || len(event.Deliveries) != 1 || len(event.Deliveries[0].FailedAttempts) != 1 {
		t.Errorf("as JSON: %+v", event)
	}
	if status, _, stderr := cli(t, env, "deliveries", "show", "evt_x"); status != exitFailed || !strings.Contains(stderr, `event "evt_x": neither the delivery log nor the outbox has it`) {
		t.Errorf("an unknown event: status %d, %s", status, stderr)
	}
}

func TestReplay_AnnouncesThenStartsOnlyWhenAsked(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	replays := func() int64 { return testenv.QueryOne[int64](t, env, `select count(*) from webhooks.replays`) }

	out := succeed(t, env, "deliveries", "replay", "--endpoint", id, "--dry-run")
	if !strings.Contains(out, "2 missed or failed deliveries to "+id+"\n") || replays() != 0 {
		t.Errorf("--dry-run: %d replays, %s", replays(), out)
	}
	if out := succeed(t, env, "deliveries", "replay", "--endpoint", id, "--since", "30m"); !strings.Contains(out, "nothing to replay") || replays() != 0 {
		t.Errorf("nothing to replay: %d replays, %s", replays(), out)
	}
	out = succeed(t, env, "deliveries", "replay", "evt_2", "evt_3", "--no-wait", "--json")
	answers := agenttest.Decode[[]replayAnswer](t, out)
	if len(answers) != 1 || answers[0].Deliveries != 2 || answers[0].Replay == nil || answers[0].Replay.State != "pending" || answers[0].Replay.Created.IsZero() || replays() != 1 {
		t.Errorf("single events: %d replays, %s", replays(), out)
	}

	out = succeed(t, env, "deliveries", "replay", "evt_2", "--no-wait")
	started := testenv.QueryOne[string](t, env, `select id from webhooks.replays order by created desc limit 1`)
	if !strings.Contains(out, "1 missed, failed or succeeded delivery to "+id+"\nstarted "+started+"\n") {
		t.Errorf("does not name the replay: %s", out)
	}

	env.Exec(t, `delete from webhooks.replays where id = $1`, started)
	env.Exec(t, `update webhooks.endpoints set disabled_at = now()`)
	status, _, stderr := cli(t, env, "deliveries", "replay", "--endpoint", id)
	if status != exitFailed || !strings.Contains(stderr, "run webhook-agent endpoints enable "+id+", then replay") || replays() != 1 {
		t.Errorf("a disabled endpoint: status %d, %d replays, %s", status, replays(), stderr)
	}
}

func TestReplay_NamesWhatItLeavesOutAndReplaysTheRest(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	addDeliveries(t, env, "ep_removed")
	out := succeed(t, env, "deliveries", "replay", "evt_3", "--no-wait")
	if !strings.Contains(out, `left out: endpoint "ep_removed": there is none with this id`) || !strings.Contains(out, "delivery to "+id) {
		t.Errorf("a removed endpoint: %s", out)
	}
	if to := testenv.QueryAll[string](t, env, `select endpoint_id from webhooks.replays`); len(to) != 1 || to[0] != id {
		t.Errorf("replays to %v, want %s alone", to, id)
	}
	answers := agenttest.Decode[[]replayAnswer](t, succeed(t, env, "deliveries", "replay", "evt_3", "--dry-run", "--json"))
	if len(answers) != 2 || answers[0].Refused != "" || answers[1].Refused == "" {
		t.Errorf("as JSON: %+v", answers)
	}
}

func TestDeliveriesList_NamesAnEndpointThatIsNotKnown(t *testing.T) {
	env := testenv.NewDB(t)
	status, _, stderr := cli(t, env, "deliveries", "list", "--endpoint", "nope")
	if want := "webhook-agent: endpoint \"nope\": there is none with this id; webhook-agent endpoints list shows them\n"; status != exitFailed || stderr != want {
		t.Errorf("status %d: %s", status, stderr)
	}
}

// playAgent executes replays in the database at once, as the agent would.
func playAgent(t *testing.T, env *testenv.DB, assignments string) {
	t.Helper()
	env.Exec(t, `create function play_agent() returns trigger language plpgsql as $$ begin `+assignments+` return new; end $$`)
	env.Exec(t, `create trigger play_agent before insert on webhooks.replays for each row execute function play_agent()`)
}

func TestReplay_SaysAtItsEndWhatCameOfIt(t *testing.T) {
	// after is what the agent makes of the deliveries that failed and were missed.
	const after = `update webhooks.deliveries set replay_id = new.id, former = '{"status": "failed"}', attempts = 1, status = case when event_id = 'evt_3' then 'succeeded' else '%s' end
	    where event_id in ('evt_3', 'evt_4');`
	for _, test := range []struct {
		name, agent, want, wrong string
		status                   int
	}{
		{"done", fmt.Sprintf(after, "succeeded") + `new.state := 'done'; new.total := 2; new.done := 2;`, "ended: 2 succeeded, 0 failed, 0 missed\n", "", exitFine},
		{"one fails", fmt.Sprintf(after, "failed") + `new.state := 'done'; new.total := 2; new.done := 2;`, "ended: 1 succeeded, 1 failed, 0 missed\n", "", exitFailed},
		{"refused", `new.state := 'failed'; new.error := 'the endpoint is disabled';`, "ended: 0 succeeded, 0 failed, 0 missed\n",
			"webhook-agent: replay to ID: the endpoint is disabled\n", exitFailed},
		{"ended half-way", fmt.Sprintf(after, "missed") + `new.state := 'failed'; new.total := 2; new.done := 1; new.unsent := 1; new.error := '1 of 2 deliveries was not sent: it is off';`,
			"ended: 1 succeeded, 0 failed, 1 missed\n", "webhook-agent: replay to ID: 1 of 2 deliveries was not sent: it is off\n", exitFailed},
		{"canceled", `new.state := 'canceled'; new.total := 2; new.unsent := 2;`, "ended: 0 succeeded, 0 failed, 2 missed\n",
			"webhook-agent: replay to ID: it was canceled; what it had not sent is what it was before\n", exitFailed},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := testenv.NewDB(t)
			id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
			addDeliveries(t, env, id)
			playAgent(t, env, test.agent)
			status, out, stderr := cli(t, env, "deliveries", "replay", "--endpoint", id[:len(id)-3])
			if status != test.status || !strings.Contains(out, test.want) || stderr != strings.ReplaceAll(test.wrong, "ID", id) {
				t.Errorf("status %d: %s%s", status, out, stderr)
			}
		})
	}
}

// Its row is deleted before the agent has come to it.
func TestReplay_WhoseRowIsDeletedIsNotWaitedFor(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	env.Exec(t, `create function play_person() returns trigger language plpgsql as $$ begin delete from webhooks.replays; return null; end $$`)
	env.Exec(t, `create trigger play_person after insert on webhooks.replays for each row execute function play_person()`)
	status, out, stderr := cli(t, env, "deliveries", "replay", "--endpoint", id)
	if status != exitFailed || !strings.Contains(out, "ended: 0 succeeded, 0 failed, 0 missed") || !strings.Contains(stderr, "it was canceled") {
		t.Errorf("status %d: %s%s", status, out, stderr)
	}
}

// A command that waits for an agent must not wait in silence.
func TestReplay_SaysAtOnceThatNoAgentLeads(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	if out := succeed(t, env, "deliveries", "replay", "evt_3", "--no-wait"); !strings.Contains(out, "no agent has run with this slot yet; the replay begins when one does: webhook-agent run\n") {
		t.Errorf("without waiting: %s", out)
	}
	env.Exec(t, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database) values ($1, '0/16B3748', 3, 'host-1', '1', 1, current_database())`, env.Slot)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	path := configFile(t, env)
	var stdout, stderr agenttest.Buffer
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, []string{"--config", path, "deliveries", "replay", "evt_4"}, &stdout, &stderr)
	}()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if !strings.Contains(stdout.String(), "no agent leads, the last one was host-1; the replay goes on when one runs: webhook-agent run\n") {
			return fmt.Errorf("it says %s", stdout.String())
		}
		return nil
	})
	cancel()
	if status := <-done; status != exitFailed { // nobody knows what came of it
		t.Errorf("status %d: %s", status, stderr.String())
	}
}

// typed runs a command line as on a terminal where a person types an answer.
func typed(t *testing.T, env *testenv.DB, answer string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }, environ: func() []string { return nil }, keyboard: strings.NewReader(answer)}
	status = a.run(t.Context(), append([]string{"--config", configFile(t, env)}, args...))
	return status, out.String(), errs.String()
}

func TestReplay_AsksBeforeADeliveredEventIsSentAgain(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	const question = "1 of them was delivered already, and the receiver gets the event once more. Go on? [y/N] "
	for _, test := range []struct {
		answer string
		args   []string
		asks   bool
		starts int64
	}{
		{"n\n", []string{"evt_2", "evt_3"}, true, 0},
		{"", []string{"evt_2"}, true, 0},
		{"y\n", []string{"evt_2"}, true, 1},
		{"", []string{"evt_2", "--yes"}, false, 1},
		{"", []string{"evt_2", "--status", "succeeded"}, false, 1},
		{"", []string{"evt_3"}, false, 1},
		{"", []string{"--endpoint", id}, false, 1},
		{"", []string{"evt_2", "--json"}, false, 1},
	} {
		env.Exec(t, `delete from webhooks.replays`)
		status, out, stderr := typed(t, env, test.answer, append([]string{"deliveries", "replay", "--no-wait"}, test.args...)...)
		if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.replays`); status != 1-int(test.starts) || strings.Contains(out, question) != test.asks || n != test.starts {
			t.Errorf("%q: status %d, %d replays, %s%s", test.args, status, n, out, stderr)
		}
	}
}

func TestProgress_WritesOneLineOverOnATerminal(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &printer{w: &out, width: 70}}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p.say(p.bar(0, 400, start))
	p.say(p.bar(100, 400, start.Add(10*time.Second)))
	p.clear()
	want := "\r\x1b[K[                        ]   0%  0 of 400" + "\r\x1b[K[======                  ]  25%  100 of 400  10.0/s  30s left" + "\r\x1b[K"
	if out.String() != want {
		t.Errorf("got %q\nwant %q", out.String(), want)
	}
	out.Reset()
	p = &progress{out: &printer{w: &out, width: 20}}
	if p.say(p.bar(1, 400, start)); len([]rune(strings.TrimPrefix(out.String(), eraseLine))) > 19 {
		t.Errorf("wider than the terminal: %q", out.String())
	}
}

func TestProgress_SaysWholeWhatIsToBeDone(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &printer{w: &out, width: 50}}
	p.say("[====]  50%")
	sentence := "no agent leads, the last one was host/1; the replay goes on when one runs: webhook-agent run"
	for range 2 {
		p.tell(sentence)
	}
	p.say("[====]  50%")
	told := strings.TrimSuffix(strings.TrimPrefix(out.String(), "\r\x1b[K[====]  50%\r\x1b[K"), "\r\x1b[K[====]  50%")
	if strings.Join(strings.Fields(told), " ") != sentence || strings.Count(told, "\n") != 2 {
		t.Errorf("got %q", out.String())
	}
}

// TestReplayProgress_SaysWhyNothingGoesOn shows a replay that waits for an agent, and one that is
// paused.
func TestReplayProgress_SaysWhyNothingGoesOn(t *testing.T) {
	leads := outbox.Leading{Leader: &outbox.LeaderInfo{Holder: "host/1"}, Slot: &outbox.SlotInfo{Active: true}}
	for _, test := range []struct {
		state   string
		leading outbox.Leading
		want    string
	}{
		{outbox.ReplayPending, outbox.Leading{}, "no agent has run with this slot yet; the replay begins when one does: webhook-agent run\n"},
		{outbox.ReplayPaused, leads, "1 of 9 deliveries have ended; paused: webhook-agent replays resume rpl_1 goes on\n"},
		{outbox.ReplayRunning, leads, "1 of 9 deliveries have ended\n"},
	} {
		var out bytes.Buffer
		answers := []replayAnswer{{Replay: &outbox.ReplayInfo{ID: "rpl_1", State: test.state, Total: 9, Done: 1}}}
		if replayProgress(&progress{out: &printer{w: &out}}, answers, test.leading, time.Now()); out.String() != test.want {
			t.Errorf("%s: %q, want %q", test.state, out.String(), test.want)
		}
	}
}

func TestReplay_GoesOnWhenTheShowingIsInterrupted(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	addDeliveries(t, env, id)
	playAgent(t, env, `new.state := 'running'; new.total := 2; new.done := 1;`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	path := configFile(t, env)
	var stdout agenttest.Buffer
	var stderr bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, []string{"--config", path, "deliveries", "replay", "--endpoint", id}, &stdout, &stderr)
	}()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if !strings.Contains(stdout.String(), "1 of 2 deliveries have ended") {
			return fmt.Errorf("no progress: %s", stdout.String())
		}
		return nil
	})
	cancel()
	select {
	case status := <-done:
		if status != exitFailed || !strings.Contains(stdout.String(), "the replay goes on in the background; webhook-agent replays show rpl_") || stderr.Len() > 0 {
			t.Errorf("status %d: %s%s", status, stdout.String(), stderr.String())
		}
	case <-time.After(agenttest.Patience):
		t.Fatal("the command did not end")
	}
	if state := testenv.QueryOne[string](t, env, `select state from webhooks.replays`); state != "running" {
		t.Errorf("the interruption changed the replay to %s", state)
	}
}

func TestDeliveries_AdviseOnlyWhatWorks(t *testing.T) {
	for _, status := range []outbox.Status{outbox.Failed, outbox.Missed} {
		d := shownDelivery{Host: "h.example", DeliveryDetail: outbox.DeliveryDetail{InOutbox: true}}
		d.EventID, d.Status, d.Attempts, d.LastClass, d.LastError = "a.b", status, 1, "invalid_event_id", "the event id has a dot"
		if got := deliveryReason(d, 6, time.Now()); strings.Contains(got, "replay") || !strings.Contains(got, "an id of visible ASCII without dots") {
			t.Errorf("%s: %s", status, got)
		}
	}
	var out bytes.Buffer
	if Main(t.Context(), []string{"deliveries", "replay", "--help"}, &out, &out); strings.Contains(out.String(), "pending") {
		t.Errorf("replay offers the status pending, which it refuses:\n%s", out.String())
	}
}
