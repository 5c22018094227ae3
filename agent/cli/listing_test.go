package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// manyRows writes more rows than a page of --all has into each list.
func manyRows(t *testing.T, env *testenv.DB, n int) {
	t.Helper()
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret)
	    select 'ep_' || lpad(i::text, 5, '0'), 'venue_a', 'https://h.example/', '{*}', 's' from generate_series(1, $1::int) i`, n)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created)
	    select 'evt_' || lpad((i / 2)::text, 5, '0'), 'ep_' || lpad(i::text, 5, '0'), 'venue_a', 'lead.created', 'succeeded', 1, now() - make_interval(secs => i / 2)
	    from generate_series(1, $1::int) i`, n)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, venue, statuses, state, created, finished)
	    select 'rpl_' || lpad(i::text, 5, '0'), 'ep_00001', 'venue_a', '{missed}', 'done', now() - make_interval(secs => i), now() from generate_series(1, $1::int) i`, n)
}

func TestLists_WithAllWalkEveryPageInEachForm(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	const n = 2*pageRows + 500
	manyRows(t, env, n)
	for _, noun := range []string{"endpoints", "deliveries", "replays"} {
		for form, arg := range map[string]string{"table": "--no-trunc", "array": "--json", "lines": "--ndjson"} {
			out := succeed(t, env, noun, "list", "--all", arg)
			seen := map[string]bool{}
			switch form {
			case "table":
				for line := range strings.Lines(out) {
					seen[line] = true
				}
			case "array":
				for _, row := range agenttest.Decode[[]map[string]any](t, out) {
					seen[fmt.Sprint(row["id"], row["event_id"], row["endpoint_id"])] = true
				}
			case "lines":
				for line := range strings.Lines(out) {
					var row map[string]any
					if err := json.Unmarshal([]byte(line), &row); err != nil {
						t.Fatalf("%s: %s: %v", noun, line, err)
					}
					seen[fmt.Sprint(row["id"], row["event_id"], row["endpoint_id"])] = true
				}
			}
			if len(seen) != n {
				t.Errorf("%s list --all as %s has %d rows, want %d", noun, form, len(seen), n)
			}
		}
		if out := succeed(t, env, noun, "list", "--limit", "3", "--json"); len(agenttest.Decode[[]any](t, out)) != 3 || !strings.HasPrefix(out, "[\n  {\n    \"") {
			t.Errorf("%s list --limit 3: %s", noun, out)
		}
	}
}

func TestDeliveriesList_GoesOnBehindTheIDOfAnEvent(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	manyRows(t, env, 9)
	if _, out, stderr := cli(t, env, "deliveries", "list", "--limit", "3"); stderr != "webhook-agent: there may be more: --before evt_00001\n" {
		t.Errorf("a page that ends with an event: %s%s", out, stderr)
	}
	if out := succeed(t, env, "deliveries", "list", "--before", "evt_00001"); strings.Count(out, "\n") != 6 || !strings.HasPrefix(strings.SplitN(out, "\t", 2)[1], "evt_00002") {
		t.Errorf("the page behind it: %s", out)
	}
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('first_of_all', 'ep_00001', 'venue_a', 'lead.created', 'pending', now() + interval '1 hour')`)
	if _, out, stderr := cli(t, env, "deliveries", "list", "--before", "first", "--limit", "1"); !strings.HasPrefix(strings.SplitN(out+"\t", "\t", 2)[1], "evt_00000") {
		t.Errorf("the page behind the beginning of an id: %s%s", out, stderr)
	}
	if _, out, stderr := cli(t, env, "endpoints", "list", "--after", "ep_00009", "--limit", "1"); out != "" {
		t.Errorf("the page behind the last endpoint: %s%s", out, stderr)
	}
	status, _, stderr := cli(t, env, "deliveries", "list", "--before", "evt_9")
	if status != exitFailed || stderr != "webhook-agent: event \"evt_9\": the delivery log does not have it, so no page begins there; list again from the newest on\n" {
		t.Errorf("an event that is not there: status %d, %s", status, stderr)
	}
}

// TestLists_InAPipeHaveRowsAlone reads lists as a program does: what is said beside the rows goes
// to standard error.
func TestLists_InAPipeHaveRowsAlone(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	for line, want := range map[string]string{
		"endpoints list":                  "no endpoint; webhook-agent endpoints add registers one",
		"endpoints list --state unusable": "no endpoint that fits",
		"deliveries list":                 "no delivery",
		"replays list":                    "no replay",
	} {
		if status, out, stderr := cli(t, env, strings.Fields(line)...); status != exitFine || out != "" || stderr != "webhook-agent: "+want+"\n" {
			t.Errorf("%s: status %d, %q, %q", line, status, out, stderr)
		}
	}
	agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	agenttest.AddEndpoint(t, env, "venue_a", "https://i.example/", "*")
	if _, out, stderr := cli(t, env, "endpoints", "list", "--limit", "1"); strings.Count(out, "\n") != 1 || !strings.Contains(stderr, "there may be more: --after ep_") {
		t.Errorf("a page of endpoints: %q, %q", out, stderr)
	}
}

// start runs a command line until stop is called, which returns its status.
func start(t *testing.T, env *testenv.DB, args ...string) (out *agenttest.Buffer, stop func() (int, string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	path := configFile(t, env)
	out = &agenttest.Buffer{}
	var stderr bytes.Buffer
	done := make(chan int, 1)
	go func() { done <- Main(ctx, append([]string{"--config", path}, args...), out, &stderr) }()
	return out, func() (int, string) {
		cancel()
		select {
		case status := <-done:
			return status, stderr.String()
		case <-time.After(agenttest.Patience):
			t.Fatal("the command did not end")
			return 0, ""
		}
	}
}

func awaitText(t *testing.T, out *agenttest.Buffer, want string, times int) {
	t.Helper()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if got := strings.Count(out.String(), want); got < times {
			return fmt.Errorf("%q stands there %d times, want %d:\n%s", want, got, times, out.String())
		}
		return nil
	})
}

func TestFollow_PrintsWhatIsRecordedAndWhatChanges(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created)
	    select 'evt_old_' || i, 'ep_1', 'venue_a', 'lead.created', 'succeeded', 1, now() - make_interval(secs => i) from generate_series(1, 5) i`)
	out, stop := start(t, env, "deliveries", "list", "--follow", "--interval", "1s", "--limit", "2")
	awaitText(t, out, "evt_old_", 2)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, attempts, created, next_attempt_at)
	    values ('evt_new', 'ep_1', 'venue_a', 'lead.created', 'pending', 1, now(), now()),
	           ('evt_late', 'ep_1', 'venue_a', 'lead.created', 'succeeded', 1, now() - interval '5 minutes', null),
	           ('evt_future', 'ep_1', 'venue_a', 'lead.created', 'succeeded', 1, now() + interval '1 year', null)`)
	awaitText(t, out, "evt_new", 1)
	awaitText(t, out, "evt_late", 1)
	awaitText(t, out, "evt_future", 1)
	env.Exec(t, `update webhooks.deliveries set status = 'succeeded', attempts = 2 where event_id = 'evt_new'`)
	awaitText(t, out, "evt_new", 2)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_last', 'ep_1', 'venue_a', 'lead.created', 'missed', now())`)
	awaitText(t, out, "evt_last", 1)
	status, stderr := stop()
	text := out.String()
	if status != exitFine || stderr != "" || strings.Count(text, "\n") != 7 || strings.Index(text, "evt_old_2") > strings.Index(text, "evt_old_1") {
		t.Errorf("status %d, %s%s", status, text, stderr)
	}
}

func TestFollow_AsJSONIsOneObjectALine(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	out, stop := start(t, env, "deliveries", "list", "-f", "--json", "--venue", "venue_a")
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_1', 'venue_a', 'https://h.example/', '{*}', 's'), ('ep_2', 'venue_b', 'https://h.example/', '{*}', 's')`)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    values ('evt_1', 'ep_1', 'venue_a', 'lead.created', 'missed', now()), ('evt_2', 'ep_2', 'venue_b', 'lead.created', 'missed', now())`)
	awaitText(t, out, "evt_1", 1)
	if status, stderr := stop(); status != exitFine || stderr != "" {
		t.Errorf("status %d: %s", status, stderr)
	}
	var d outbox.DeliveryInfo
	if err := json.Unmarshal([]byte(out.String()), &d); err != nil || strings.Count(out.String(), "\n") != 1 || d.EventID != "evt_1" {
		t.Errorf("%s: %v", out.String(), err)
	}
}

// What a look cannot reach is left behind and said, and no look takes more than its bound.
func TestFollower_IsBoundedUnderABurst(t *testing.T) {
	now := time.Date(2026, 11, 29, 9, 0, 0, 0, time.UTC)
	var log []outbox.DeliveryInfo // newest first
	write := func(n int) {
		for range n {
			created := now.Add(time.Duration(len(log)) * time.Millisecond)
			log = append([]outbox.DeliveryInfo{{EventID: fmt.Sprintf("evt_%06d", len(log)), EndpointID: "ep_1", Created: &created}}, log...)
		}
	}
	taken := 0
	f := follower{search: func(_ context.Context, filter outbox.DeliveryFilter) (page outbox.DeliveryPage, err error) {
		for i, d := range log {
			if filter.Before != "" && d.EventID >= filter.Before || filter.Since != nil && d.Created.Before(*filter.Since) {
				continue
			}
			if len(page.Deliveries) == filter.Limit {
				page.Next = log[i-1].EventID
				break
			}
			page.Deliveries = append(page.Deliveries, d)
		}
		taken += len(page.Deliveries)
		return page, nil
	}}
	write(10)
	if first, err := f.start(t.Context(), f.search, 4, now); err != nil || len(first) != 4 || first[3].EventID != "evt_000009" {
		t.Fatalf("the first look: %v, %v", first, err)
	}
	const most = followRows * followParts
	for _, test := range []struct {
		written, found int
		more           bool
	}{{3, 3, false}, {most + 500, most, true}, {0, 0, false}, {7, 7, false}, {most - 7, most - 7, false}, {1, 1, false}} {
		write(test.written)
		taken = 0
		found, more, err := f.look(t.Context(), now.Add(time.Minute)) // all of it was written by then
		if err != nil || len(found) != test.found || more != test.more || taken > most || len(f.seen) > most {
			t.Errorf("%d written: %d found, more %v, %d rows taken, %d remembered, %v", test.written, len(found), more, taken, len(f.seen), err)
		}
		if reached := log[min(most, len(log))-1].Created; more && !f.floor.Equal(*reached) {
			t.Errorf("the next look goes back to %v, not only to %v, where this one ended", f.floor, reached)
		}
	}
}

func TestWatch_PrintsAgainBelowInAPipe(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	addDeliveries(t, env, agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*"))
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"status", "-w"}, "leader     none"},
		{[]string{"status", "-w", "--json"}, `"leader":null`},
		{[]string{"endpoints", "list", "--watch"}, "\tvenue_a\th.example\t"},
		{[]string{"deliveries", "list", "--watch"}, "\tevt_1\t"},
		{[]string{"deliveries", "list", "--watch", "--type", "nothing.like", "--json"}, "[]\n"},
	} {
		out, stop := start(t, env, append(test.args, "--interval", "1s")...)
		awaitText(t, out, test.want, 2)
		if status, stderr := stop(); status != exitFine || stderr != "" || strings.Contains(out.String(), "\x1b") {
			t.Errorf("%q: status %d, %q%s", test.args, status, out.String(), stderr)
		}
	}
}

func TestWriteFrame_FitsTheScreenAndErasesWhatWasThere(t *testing.T) {
	var out bytes.Buffer
	writeFrame(&out, "status", 2*time.Second, 6, strings.Repeat("line\n", 9))
	text := out.String()
	if !strings.HasPrefix(text, beginFrame) || !strings.HasSuffix(text, endFrame) || strings.Count(text, "\r\n") != 4 ||
		strings.Count(text, eraseRest) != 5 || !strings.Contains(text, "... 6 more lines") || strings.Contains(text, "\x1b[2J") {
		t.Errorf("%q", text)
	}
	out.Reset()
	writeFrame(&out, "status", 2*time.Second, 6, "one\ntwo\nthree\n")
	if text := out.String(); strings.Contains(text, "more lines") || strings.Count(text, "\r\n") != 3 {
		t.Errorf("%q", text)
	}
}
