package outbox

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

func TestEnvelope_IsByteForByteAsPromised(t *testing.T) {
	lisbon := time.FixedZone("WEST", 3600)
	for _, test := range []struct {
		name  string
		event Event
		want  string
	}{
		{"documented", Event{ID: "evt_1", Type: "lead.created", Venue: "venue_1", Created: time.Date(2025, 5, 10, 14, 32, 0, 0, time.UTC), Data: []byte(`{"a":1}`)},
			`{"id":"evt_1","type":"lead.created","created":"2025-05-10T14:32:00Z","venue":"venue_1","data":{"a":1}}`},
		{"whole seconds of UTC", Event{Created: time.Date(2025, 5, 10, 15, 32, 59, 999_999_999, lisbon), Data: []byte(`1`)},
			`{"id":"","type":"","created":"2025-05-10T14:32:59Z","venue":"","data":1}`},
		{"the producer's spelling", Event{Data: []byte("{ \"b\" :1e400,\n\"a\":1.0, \"a\":\"\\u00e9é<&>\\/\" }")},
			"{\"id\":\"\",\"type\":\"\",\"created\":\"0001-01-01T00:00:00Z\",\"venue\":\"\",\"data\":{ \"b\" :1e400,\n\"a\":1.0, \"a\":\"\\u00e9é<&>\\/\" }}"},
		{"texts that need escapes", Event{ID: "a\"b\\", Type: "a\nb<", Venue: "caf\u00e9\u2028\xff", Data: []byte(`null`)},
			"{\"id\":\"a\\\"b\\\\\",\"type\":\"a\\nb<\",\"created\":\"0001-01-01T00:00:00Z\",\"venue\":\"café\\u2028\\ufffd\",\"data\":null}"},
		{"no data", Event{ID: "evt_1"}, `{"id":"evt_1","type":"","created":"0001-01-01T00:00:00Z","venue":"","data":null}`},
	} {
		got := test.event.Envelope()
		if string(got) != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, test.want)
		}
		if !json.Valid(got) {
			t.Errorf("%s: not JSON: %s", test.name, got)
		}
	}
}

func TestEnvelope_IsTheSameFromTheStreamAndFromARefill(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	data := []string{"{}", "null", "{ \"b\" :1e400,\n\t\"a\":1.0, \"a\":\"\\u00e9é<&>\\/\\ud83d\\ude00\" }  ", `"` + strings.Repeat("long ", 20_000) + `"`}
	for i, text := range data {
		env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ($1::int::text, 'lead "quoted"', 'venue_ä', $2::text::json,
		    '2025-05-10 16:32:00.999999+02'::timestamptz + make_interval(years => $1))`, i, text)
	}
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ('endless', 't', 'v', '{}', 'infinity'),
	    ('early', 't', 'v', '{}', '0044-03-15 12:00:00+00 BC'), ('late', 't', 'v', '{}', '20000-01-01 00:00:00+00')`)
	compareWithRefill(t, db, env, f, len(data)+3)
	for i, text := range data {
		if stored := testenv.QueryOne[string](t, env, `select data::text from webhooks.outbox where id = $1`, string(rune('0'+i))); stored != text {
			t.Errorf("PostgreSQL itself has changed %q to %q", text, stored)
		}
	}
}

// compareWithRefill takes n events from the stream and records each as a pending delivery. Then it
// compares the bodies with those from Due.
func compareWithRefill(t *testing.T, db *DB, env *testenv.DB, f *follower, n int) {
	t.Helper()
	streamed := map[string]string{}
	for len(streamed) < n {
		for _, c := range f.next(t).Changes {
			e := c.Event
			streamed[e.ID] = string(e.Envelope())
			env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
			    values ($1, 'ep_1', $2, $3, 'pending', now(), $4)`, e.ID, e.Venue, e.Type, e.Created)
		}
	}
	refills, err := db.configured().Due(t.Context(), []Want{wantAll("ep_1", 100)}, time.Now().Add(time.Second), 1<<30)
	must(t, err)
	refilled := map[string]string{}
	for _, d := range refills["ep_1"].Deliveries {
		refilled[d.EventID] = string(d.Body)
	}
	if diff := cmp.Diff(streamed, refilled); diff != "" {
		t.Errorf("bodies differ (-stream +refill):\n%s", diff)
	}
	for id, body := range streamed {
		if !json.Valid([]byte(body)) {
			t.Errorf("event %s: not JSON: %.200s", id, body)
		}
	}
}

func TestEndpointChange_MergeFillsInWhatTheStreamLeftOut(t *testing.T) {
	until := time.Unix(1000, 0)
	before := &Endpoint{ID: "ep_1", URL: secret.New("https://old.example/"), Events: []string{"old"}, Secret: secret.New("old"), Previous: secret.New("older"), PreviousUntil: until}
	later := until.Add(time.Hour) // this is in a column of its own, which the stream brings
	c := EndpointChange{ID: "ep_1", Endpoint: &Endpoint{ID: "ep_1", Venue: "new", PreviousUntil: later}, unchanged: []string{"url", "events", "secret", "previous_secret"}}
	c.Merge(before)
	e := c.Endpoint
	if !e.URL.Equal(before.URL) || !cmp.Equal(e.Events, before.Events) || !e.Secret.Equal(before.Secret) || !e.Previous.Equal(before.Previous) ||
		!e.PreviousUntil.Equal(later) || e.Venue != "new" {
		t.Errorf("after the merge: %+v", e)
	}
	c = EndpointChange{ID: "ep_1", Endpoint: &Endpoint{ID: "ep_1"}, unchanged: []string{"previous_secret"}}
	if c.Merge(before); !c.Endpoint.Previous.IsZero() || !c.Endpoint.PreviousUntil.IsZero() {
		t.Errorf("a rotation that was ended goes on: %+v", c.Endpoint)
	}
	before.Older, before.OlderUntil = []secret.Text{secret.New("oldest")}, []time.Time{until}
	c = EndpointChange{ID: "ep_1", Endpoint: &Endpoint{ID: "ep_1", PreviousUntil: later, OlderUntil: []time.Time{later}},
		unchanged: []string{"previous_secret", "older_secrets"}}
	c.Merge(before)
	if f := c.Endpoint.Former(); len(f) != 2 || f[1].Secret.Reveal() != "oldest" || !f[1].Until.Equal(later) {
		t.Errorf("%d former secrets after the merge", len(f))
	}
	c = EndpointChange{ID: "ep_1", Endpoint: &Endpoint{ID: "ep_1", PreviousUntil: later}, unchanged: []string{"older_secrets", "older_secrets_until"}}
	c.Merge(before)
	if f := c.Endpoint.Former(); len(f) != 1 || f[0].Secret.Reveal() != "oldest" || !f[0].Until.Equal(until) {
		t.Errorf("%d former secrets after the merge of both columns", len(f))
	}
	c = EndpointChange{ID: "ep_1", Endpoint: &Endpoint{ID: "ep_1", URL: secret.New("https://new.example/")}}
	c.Merge(before)
	if e := c.Endpoint; e.URL.Reveal() != "https://new.example/" || e.Events != nil || !e.Secret.IsZero() {
		t.Errorf("a change that left out nothing was overwritten: %+v", e)
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add("evt_1", "lead.created", "venue_1", int64(1), []byte(`{"a": 1}`))
	f.Add("\x00\"\\\u2028", "\xff", "<>&", int64(-1), []byte(`1e400`))
	f.Fuzz(func(t *testing.T, id, eventType, venue string, created int64, data []byte) {
		if !json.Valid(data) {
			return // a json column of PostgreSQL holds only JSON
		}
		body := (&Event{ID: id, Type: eventType, Venue: venue, Created: time.Unix(created, 0), Data: data}).Envelope()
		if !json.Valid(body) || !bytes.HasSuffix(body, append([]byte(`,"data":`), append(data, '}')...)) {
			t.Errorf("bad envelope %q", body)
		}
	})
}
