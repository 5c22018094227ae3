package agent

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const (
	producersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	producersSpan  = "00f067aa0ba902b7"
)

// traced returns a configuration that sends traces of all events to a URL, for an outbox with a
// column for the traceparent.
func traced(t *testing.T, env *testenv.DB, url string) *config.Config {
	t.Helper()
	env.Exec(t, `alter table webhooks.outbox add column trace text`)
	cfg := agenttest.Config(env)
	cfg.Outbox.Columns.Traceparent = "trace"
	cfg.Tracing = config.Tracing{Endpoint: url, Sample: 1, Headers: []secret.Text{secret.New("Authorization: Bearer sentinel-token")}}
	return cfg
}

// addTraced inserts an event that belongs to a trace, unless traceparent is "".
func addTraced(t *testing.T, env *testenv.DB, traceparent, data string) string {
	t.Helper()
	return testenv.QueryOne[string](t, env, `insert into webhooks.outbox (type, venue, data, trace) values ('lead.created', 'venue_1', $1::text::json, nullif($2, '')) returning id`, data, traceparent)
}

// One trace has the producer's span, the way of the event, and the customer's server.
func TestTraces_GoFromTheProducerToTheCustomer(t *testing.T) {
	t.Parallel()
	env, collector := testenv.NewDB(t), agenttest.StartCollector(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/sentinel-path?sentinel-query", "lead.*")
	a := start(t, traced(t, env, collector.URL))
	a.WaitLog("leading")
	began := time.Now()
	event := addTraced(t, env, "00-"+producersTrace+"-"+producersSpan+"-01", `{"a": "sentinel-data"}`)
	agenttest.WaitStatus(t, env, event, endpoint, "succeeded, attempts 1")

	root := collector.Wait(t, "event", 1)[0]
	attempt := collector.Wait(t, "attempt", 1)[0]
	match, queue, record := collector.Wait(t, "match", 1)[0], collector.Wait(t, "queue", 1)[0], collector.Wait(t, "record", 1)[0]
	if root.Trace != producersTrace || root.Parent != producersSpan {
		t.Errorf("the span of the event is in trace %s below %s", root.Trace, root.Parent)
	}
	for _, s := range []agenttest.Span{match, queue, attempt, record} {
		if s.Trace != producersTrace || s.Parent != root.ID || s.Failed || s.End.Before(s.Start) {
			t.Errorf("got %+v, want a span below %s", s, root.ID)
		}
	}
	for i, pair := range [][2]time.Time{
		{began.Add(-time.Second), root.Start}, {root.Start, match.Start}, {match.End, queue.Start}, {queue.End, attempt.Start},
		{attempt.End, record.Start}, {record.Start, root.End},
	} {
		if pair[1].Before(pair[0]) {
			t.Errorf("times %d: %s is before %s", i, pair[1], pair[0])
		}
	}
	for key, want := range map[string]string{
		"http.response.status_code": "200", "server.address": "127.0.0.1", "webhook.endpoint.id": endpoint, "webhook.event.id": event,
		"webhook.venue": "venue_1", "webhook.event.type": "lead.created", "webhook.attempt": "1",
	} {
		if got := attempt.Attributes[key]; got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	want := "00-" + producersTrace + "-" + attempt.ID + "-01"
	if got := r.Received()[0].Header.Get("traceparent"); got != want {
		t.Errorf("the customer got the traceparent %q, want %q", got, want)
	}
	headers, raw := collector.Raw()
	if headers.Get("Authorization") != "Bearer sentinel-token" {
		t.Errorf("the collector got the headers %v", headers)
	}
	for _, secret := range []string{"sentinel", agenttest.Secret, strings.TrimPrefix(agenttest.Secret, "whsec_")} {
		if strings.Contains(raw, secret) {
			t.Errorf("the traces hold %q", secret)
		}
	}
	if strings.Contains(a.Log.String(), "sentinel") {
		t.Error("the log holds a secret")
	}
}

// A retry comes back from the database, where nothing of the trace is kept.
func TestTraces_ARetryFromTheDatabaseGoesOnWithTheTrace(t *testing.T) {
	t.Parallel()
	env, collector := testenv.NewDB(t), agenttest.StartCollector(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/hook", func(got testenv.Received) testenv.Answer {
		if got.Attempt == 1 {
			return testenv.Answer{Status: 500}
		}
		return testenv.Answer{}
	})
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/hook", "lead.*")
	start(t, traced(t, env, collector.URL)).WaitLog("leading")
	parents := map[string]string{
		addTraced(t, env, "", `{}`):                                           "",
		addTraced(t, env, "wrong", `{}`):                                      "",
		addTraced(t, env, "00-"+producersTrace+"-"+producersSpan+"-01", `{}`): producersSpan,
	}
	for event := range parents {
		agenttest.WaitStatus(t, env, event, endpoint, "succeeded, attempts 2")
	}
	attempts := collector.Wait(t, "attempt", 2*len(parents))
	for _, root := range collector.Wait(t, "event", len(parents)) {
		event := root.Attributes["webhook.event.id"]
		if root.Parent != parents[event] || (root.Trace == producersTrace) != (root.Parent != "") {
			t.Errorf("event %s is in trace %s below %q", event, root.Trace, root.Parent)
		}
		seen := map[string]bool{}
		for _, a := range attempts {
			if a.Attributes["webhook.event.id"] != event {
				continue
			}
			seen[a.Attributes["webhook.attempt"]] = a.Failed
			if a.Trace != root.Trace || a.Parent != root.ID {
				t.Errorf("attempt %s of %s is in trace %s below %s, want %s below %s", a.Attributes["webhook.attempt"], event, a.Trace, a.Parent, root.Trace, root.ID)
			}
		}
		if failed, made := seen["2"]; !seen["1"] || !made || failed {
			t.Errorf("the attempts of %s are %v, want the first failed and the second not", event, seen)
		}
	}
	for _, got := range r.Received() {
		if _, has := got.Header["Traceparent"]; has != (parents[got.ID] != "") {
			t.Errorf("attempt %d of %s has the header traceparent: %t", got.Attempt, got.ID, has)
		}
	}
}

// A collector hangs, and another one is not there. Deliveries are as quick as ever, and so is the end.
func TestTraces_ACollectorThatIsAwayDelaysNothing(t *testing.T) {
	t.Parallel()
	hangs, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes connections, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	refuses, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refuses.Close()
	for name, address := range map[string]string{"hangs": hangs.Addr().String(), "refuses": refuses.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			r := testenv.StartReceiver(t, agenttest.Secret)
			agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/hook", "lead.*")
			cfg := traced(t, env, "http://"+address)
			a := start(t, cfg)
			a.WaitLog("leading")
			const events = 3000 // of which each has five spans, so the queue is full
			env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, $1)`, events)
			r.Wait(t, events, agenttest.Patience)
			testenv.Eventually(t, agenttest.Patience, func() error {
				_, page := get(t, a.AdminURL()+"/metrics")
				if strings.Contains(page, "webhook_agent_trace_spans_dropped_total 0\n") {
					return errors.New("no span was dropped")
				}
				return nil
			})
			began := time.Now()
			a.End()
			if took := time.Since(began); took > cfg.Delivery.ShutdownTimeout+10*time.Second {
				t.Errorf("the agent ended after %s", took)
			}
		})
	}
}
