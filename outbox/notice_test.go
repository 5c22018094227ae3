package outbox

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

// strangeIDs are ids that JSON escapes, or that look like a part of a notice.
var strangeIDs = []string{"ep_1", `a"b\c`, "tab\tand\nline", "\x01\x1f\x7f", "<&>\u2028", "ü", `"endpoint_id":"ep_1`, "ep_12", " "}

func TestNotice_HasTheDocumentedKeysInTheirOrder(t *testing.T) {
	first := time.Date(2026, 2, 3, 19, 5, 0, 700, time.FixedZone("", 3600))
	endpoint := noticed{id: "ep_1", host: "h.example:8443", description: `the "accounting" <system>`}
	for _, test := range []struct {
		name   string
		notice Notice
		reason string
		want   string
	}{
		{"failing", Notice{Level: 50, Failures: 50, FirstFailure: first, LastError: "the server answered 500"}, "",
			`{"endpoint_id":"ep_1","host":"h.example:8443","description":"the \"accounting\" <system>","consecutive_failures":50,"disable_after":100,"first_failure_at":"2026-02-03T18:05:00Z","last_error":"the server answered 500","disabled_reason":null,"what_to_do":"See why its server does not answer 2xx. After 100 failed attempts in a row the endpoint is disabled."}`},
		{"disabled", Notice{Level: NoticeDisabled, Failures: 100, FirstFailure: first, LastError: "the server answered 500"}, ReasonFailures,
			`{"endpoint_id":"ep_1","host":"h.example:8443","description":"the \"accounting\" <system>","consecutive_failures":100,"disable_after":100,"first_failure_at":"2026-02-03T18:05:00Z","last_error":"the server answered 500","disabled_reason":"failures","what_to_do":"Repair its server and enable the endpoint again. Its events are kept as missed meanwhile, and can be replayed."}`},
		{"gone", Notice{Level: NoticeDisabled, Failures: 1, FirstFailure: first}, ReasonGone,
			`{"endpoint_id":"ep_1","host":"h.example:8443","description":"the \"accounting\" <system>","consecutive_failures":1,"disable_after":100,"first_failure_at":"2026-02-03T18:05:00Z","last_error":null,"disabled_reason":"gone","what_to_do":"Its server answered 410 Gone. Remove the endpoint, or enable it again if its server wants events after all."}`},
		{"recovered", Notice{Level: NoticeWell}, "",
			`{"endpoint_id":"ep_1","host":"h.example:8443","description":"the \"accounting\" <system>","consecutive_failures":0,"disable_after":100,"first_failure_at":null,"last_error":null,"disabled_reason":null,"what_to_do":"Nothing. To send what it has missed, replay its missed and failed events."}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			endpoint.disabledReason = test.reason
			if diff := cmp.Diff(test.want, test.notice.data(endpoint, 100)); diff != "" {
				t.Errorf("the data (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNotice_IsSmallerThanTheLeastMaxBody(t *testing.T) {
	long := strings.Repeat("é", 10_000)
	data := Notice{Level: 90, Failures: 9000, FirstFailure: time.Now(), LastError: long}.data(noticed{id: "ep_1", host: long, description: long}, 10_000)
	if !json.Valid([]byte(data)) || len(data) >= 1024 {
		t.Errorf("%d bytes: %s", len(data), data)
	}
}

// The rule must be the same in the stream and in a comparison, in columns of both types, whatever an
// id looks like.
func TestNotice_ConcernsTheEndpointThatItNamesAndNoOther(t *testing.T) {
	_, env := openDB(t)
	for _, about := range strangeIDs {
		data := Notice{Level: 50}.data(noticed{id: about, host: `"endpoint_id":"ep_1"`, description: `"endpoint_id":"ep_1" \"endpoint_id\": "ep_1"`}, 100)
		for _, column := range []string{"json", "jsonb"} {
			stored := testenv.QueryOne[string](t, env, `select $1::text::`+column+`::text`, data)
			for _, id := range strangeIDs {
				e := Event{Type: TypeEndpointFailing, Data: []byte(stored)}
				if got := e.Concerns(id); got != (id == about) {
					t.Errorf("a notice about %q as %s: it concerns %q: %t", about, column, id, got)
				}
				inSQL := testenv.QueryOne[bool](t, env, `select `+aboutSQL("n.data", "n.id")+` from (select $1::text as data, $2::text as id) n`, stored, id)
				if inSQL != (id == about) {
					t.Errorf("a notice about %q as %s in SQL: it concerns %q: %t", about, column, id, inSQL)
				}
			}
			if e := (Event{Type: "lead.created", Data: []byte(stored)}); e.Concerns(about) || e.IsNotice() {
				t.Error("an event of another type is taken for a notice")
			}
		}
	}
}

func TestReconcile_GivesNoEndpointANoticeAboutItself(t *testing.T) {
	t.Parallel()
	eachComparison(t, func(t *testing.T, gap bool) {
		db, env := openDB(t)
		addEndpoint(t, env, "ep_1", "venue_a", "*")
		addEndpoint(t, env, `ep "2"`, "venue_a", "webhook.*")
		addEndpoint(t, env, "ep_3", "venue_b", "*")
		env.Exec(t, `update webhooks.endpoints set created = now() - interval '1 day'`)
		c := compare(t, db, env)
		for i, about := range []string{"ep_1", `ep "2"`} {
			env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ($1, 'webhook.endpoint_failing', 'venue_a', $2::text::json)`,
				fmt.Sprintf("evt_%d", i), Notice{Level: 50}.data(noticed{id: about}, 100))
		}
		c.runSettled(t, gap)
		got := testenv.QueryAll[string](t, env, `select event_id || ' to ' || endpoint_id from webhooks.deliveries order by 1`)
		if want := []string{`evt_0 to ep "2"`, "evt_1 to ep_1"}; !slices.Equal(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}
		if n := c.runSettled(t, gap); n != 0 {
			t.Errorf("the next comparison finds %d more", n)
		}
	})
}

func TestExplainEvent_SaysThatAnEndpointGetsNoNoticeAboutItself(t *testing.T) {
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_a", "lead.*")
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data) values ('evt_1', 'webhook.endpoint_failing', 'venue_a', $1::text::json)`,
		Notice{Level: 50}.data(noticed{id: "ep_1"}, 100))
	x, err := db.Venue("venue_a").ExplainEvent(t.Context(), "evt_1")
	must(t, err)
	var got []string
	for _, v := range x.Endpoints {
		got = append(got, v.EndpointID+" "+v.Verdict)
	}
	if want := []string{"ep_1 " + VerdictAboutItself, "ep_2 " + VerdictNotSubscribed}; !slices.Equal(got, want) {
		t.Errorf("the verdicts are %q, want %q", got, want)
	}
}
