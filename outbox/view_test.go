package outbox

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// venueCall is a call of a method of Venue with what belongs to venue_bee. Every text of that venue
// has "bee" in it.
type venueCall struct {
	method string
	call   func(t *testing.T, v Venue) (result any, err error)
	given  string // what of venue_bee the call names, and an error may repeat
	want   outcome
}

// outcome is what a call with something of another venue comes to.
type outcome int

const (
	refused outcome = iota // there is none, as of what does not exist
	empty                  // a list that has nothing in it
	own                    // the call names nothing that only venue_bee has, so other venues see their own
	ended                  // the page after the last row of venue_bee, which may be empty
)

// cursorOfBee is the cursor of the last row of venue_bee.
var cursorOfBee = cursor{Created: "2026-01-31 09:00:00+00", EventID: "evt_bee", EndpointID: "ep_bee"}.String()

// venueCalls has a call for each way in which a method can name something of another venue. What
// changes most comes last.
func venueCalls() []venueCall {
	deliveries := func(f DeliveryFilter) func(*testing.T, Venue) (any, error) {
		return func(t *testing.T, v Venue) (any, error) {
			f.Limit = 100
			page, err := v.Deliveries(t.Context(), f)
			if len(page.Deliveries) == 0 && page.Next == "" {
				return nil, err
			}
			return page, err
		}
	}
	endpoints := func(f EndpointFilter) func(*testing.T, Venue) (any, error) {
		return func(t *testing.T, v Venue) (any, error) { f.Limit = 100; return v.Endpoints(t.Context(), f) }
	}
	event := func(eventID, endpointID string) func(*testing.T, Venue) (any, error) {
		return func(t *testing.T, v Venue) (any, error) { return v.EventDeliveries(t.Context(), eventID, endpointID) }
	}
	plan := func(r ReplayRequest) func(*testing.T, Venue) (any, error) {
		return func(t *testing.T, v Venue) (any, error) {
			r.Statuses = []Status{Failed}
			return v.PlanReplay(t.Context(), r)
		}
	}
	return []venueCall{
		{"Endpoints", endpoints(EndpointFilter{}), "", own},
		{"Endpoints", endpoints(EndpointFilter{ID: "ep_bee"}), "ep_bee", empty},
		{"Endpoints", endpoints(EndpointFilter{Venue: "venue_bee"}), "venue_bee", empty},
		{"Endpoints", endpoints(EndpointFilter{After: "ep_"}), "", own},
		{"Endpoint", func(t *testing.T, v Venue) (any, error) { return v.Endpoint(t.Context(), "ep_bee") }, "ep_bee", refused},
		{"EndpointWithSecret", func(t *testing.T, v Venue) (any, error) { return v.EndpointWithSecret(t.Context(), "ep_bee") }, "ep_bee", refused},
		{"SampleEvent", func(t *testing.T, v Venue) (any, error) {
			return v.SampleEvent(t.Context(), Endpoint{ID: "ep_bee", Venue: "venue_bee", Events: []string{"lead.*"}})
		}, "ep_bee", refused},
		{"Deliveries", deliveries(DeliveryFilter{}), "", own},
		{"Deliveries", deliveries(DeliveryFilter{EndpointID: "ep_bee"}), "ep_bee", refused},
		{"Deliveries", deliveries(DeliveryFilter{EndpointID: "ep_bee_removed"}), "ep_bee_removed", refused},
		{"Deliveries", deliveries(DeliveryFilter{Venue: "venue_bee"}), "venue_bee", empty},
		{"Deliveries", deliveries(DeliveryFilter{Type: "bee.*"}), "bee.*", empty},
		{"Deliveries", deliveries(DeliveryFilter{Before: cursorOfBee}), cursorOfBee, ended},
		{"Deliveries", func(t *testing.T, v Venue) (any, error) {
			_, err := v.Deliveries(t.Context(), DeliveryFilter{BeforeEvent: "evt_bee", Limit: 100})
			return err == nil, err // its page may be empty
		}, "evt_bee", refused},
		{"EventDeliveries", event("evt_bee", ""), "evt_bee", refused},
		{"EventDeliveries", event("evt_bee", "ep_bee"), "evt_bee ep_bee", refused},
		{"EventDeliveries", event("evt_shared", ""), "", own},
		{"EventDeliveries", event("evt_shared", "ep_bee"), "ep_bee", refused},
		{"PlanReplay", plan(ReplayRequest{EndpointID: "ep_bee"}), "ep_bee", refused},
		{"PlanReplay", plan(ReplayRequest{EventIDs: []string{"evt_bee"}}), "evt_bee", refused},
		{"PlanReplay", plan(ReplayRequest{EventIDs: []string{"evt_shared"}}), "", own},
		{"PlanReplay", plan(ReplayRequest{EndpointID: "ep_bee", EventIDs: []string{"evt_shared"}}), "ep_bee", empty},
		{"Replays", func(t *testing.T, v Venue) (any, error) { return v.Replays(t.Context(), []string{"rpl_bee"}) }, "rpl_bee", empty},
		{"StartReplay", func(t *testing.T, v Venue) (any, error) {
			r, _, err := v.StartReplay(t.Context(), ReplayPlan{EndpointID: "ep_bee", Statuses: []Status{Failed}}, ReplayOptions{})
			return r, err
		}, "ep_bee", refused},
		{"StartReplays", func(t *testing.T, v Venue) (any, error) {
			r, _, err := v.StartReplays(t.Context(), []ReplayPlan{{EndpointID: "ep_bee", Statuses: []Status{Failed}}}, ReplayOptions{})
			return r, err
		}, "ep_bee", refused},
		{"StartedReplays", func(t *testing.T, v Venue) (any, error) {
			return v.StartedReplays(t.Context(), ReplayRequest{EndpointID: "ep_bee"}, Idempotency{Key: "key_bee", Hash: []byte("h")})
		}, "ep_bee", empty},
		{"AddEndpoint", func(t *testing.T, v Venue) (any, error) {
			id, _, err := v.AddEndpoint(t.Context(), Endpoint{Venue: "venue_bee", URL: secret.New("https://bee.example/"), Events: []string{"*"}, Secret: secret.New("s")}, "", Idempotency{})
			return id, err
		}, "", refused},
		{"Deliveries", deliveries(DeliveryFilter{EventID: "evt_bee"}), "evt_bee", empty},
		{"Outcomes", func(t *testing.T, v Venue) (any, error) {
			return v.Outcomes(t.Context(), []string{"ep_bee", "ep_bee_removed"}, 9)
		}, "ep_bee", empty},
		{"Outcomes", func(t *testing.T, v Venue) (any, error) {
			return v.Outcomes(t.Context(), []string{"ep_ant", "ep_bee"}, 9)
		}, "ep_bee", own},
		{"Hosts", func(t *testing.T, v Venue) (any, error) {
			return v.Hosts(t.Context(), []string{"ep_bee", "ep_bee_removed"})
		}, "ep_bee", empty},
		{"Hosts", func(t *testing.T, v Venue) (any, error) {
			return v.Hosts(t.Context(), []string{"ep_ant", "ep_bee", "ep_ant_removed"})
		}, "ep_bee", own},
		{"LastSuccesses", func(t *testing.T, v Venue) (any, error) {
			return v.LastSuccesses(t.Context(), []string{"ep_bee"})
		}, "ep_bee", empty},
		{"FindLastSuccesses", func(t *testing.T, v Venue) (any, error) {
			endpoints := []EndpointInfo{{ID: "ep_bee"}}
			err := v.FindLastSuccesses(t.Context(), endpoints)
			if endpoints[0].LastSuccessAt == nil {
				endpoints = nil // nothing was told
			}
			return endpoints, err
		}, "ep_bee", empty},
		{"CountMissed", func(t *testing.T, v Venue) (any, error) { return v.CountMissed(t.Context(), "ep_bee_off") }, "ep_bee_off", empty},
		{"EndpointStats", func(t *testing.T, v Venue) (any, error) { return v.EndpointStats(t.Context(), "ep_bee", time.Hour) }, "ep_bee", refused},
		{"EndpointStats", func(t *testing.T, v Venue) (any, error) {
			return v.EndpointStats(t.Context(), "ep_bee_removed", time.Hour)
		}, "ep_bee_removed", refused},
		{"Event", func(t *testing.T, v Venue) (any, error) { return v.Event(t.Context(), "evt_bee") }, "evt_bee", refused},
		{"ExplainEvent", func(t *testing.T, v Venue) (any, error) {
			x, err := v.ExplainEvent(t.Context(), "evt_bee")
			if err != nil {
				return nil, err
			}
			return x, nil
		}, "evt_bee", refused},
		{"EventTypes", func(t *testing.T, v Venue) (any, error) {
			types, err := v.EventTypes(t.Context())
			for i := range types {
				types[i].Name += " of ant and all" // all venues have the same
			}
			return types, err
		}, "", own},
		{"ListReplays", func(t *testing.T, v Venue) (any, error) {
			r, _, err := v.ListReplays(t.Context(), ReplayFilter{Limit: 100})
			return r, err
		}, "", own},
		{"ListReplays", func(t *testing.T, v Venue) (any, error) {
			r, _, err := v.ListReplays(t.Context(), ReplayFilter{EndpointID: "ep_bee", Limit: 100})
			return r, err
		}, "ep_bee", empty},
		{"ListReplays", func(t *testing.T, v Venue) (any, error) {
			r, _, err := v.ListReplays(t.Context(), ReplayFilter{Venue: "venue_bee", Limit: 100})
			return r, err
		}, "venue_bee", empty},
		{"Replay", func(t *testing.T, v Venue) (any, error) { return v.Replay(t.Context(), "rpl_bee") }, "rpl_bee", refused},
		{"PauseReplay", func(t *testing.T, v Venue) (any, error) { return v.PauseReplay(t.Context(), "rpl_bee") }, "rpl_bee", refused},
		{"ResumeReplay", func(t *testing.T, v Venue) (any, error) { return v.ResumeReplay(t.Context(), "rpl_bee") }, "rpl_bee", refused},
		{"SetReplayPace", func(t *testing.T, v Venue) (any, error) { return v.SetReplayPace(t.Context(), "rpl_bee", 5) }, "rpl_bee", refused},
		{"CancelReplay", func(t *testing.T, v Venue) (any, error) { return v.CancelReplay(t.Context(), "rpl_bee") }, "rpl_bee", refused},
		{"UpdateEndpoint", func(t *testing.T, v Venue) (any, error) {
			text := "changed"
			return v.UpdateEndpoint(t.Context(), "ep_bee", EndpointPatch{Description: &text})
		}, "ep_bee", refused},
		{"DisableEndpoint", func(t *testing.T, v Venue) (any, error) { return v.DisableEndpoint(t.Context(), "ep_bee") }, "ep_bee", refused},
		{"EnableEndpoint", func(t *testing.T, v Venue) (any, error) { return v.EnableEndpoint(t.Context(), "ep_bee_off") }, "ep_bee_off", refused},
		{"RotateSecret", func(t *testing.T, v Venue) (any, error) {
			return v.RotateSecret(t.Context(), "ep_bee", secret.New("other"), time.Hour, nil)
		}, "ep_bee", refused},
		{"RemoveEndpoint", func(t *testing.T, v Venue) (any, error) { return nil, v.RemoveEndpoint(t.Context(), "ep_bee", nil) }, "ep_bee", refused},
	}
}

// twoVenues fills venue_ant and venue_bee with rows of every kind.
func twoVenues(t *testing.T, env *testenv.DB) {
	t.Helper()
	env.Exec(t, `insert into webhooks.event_types (name, example) values ('lead.test', '{}') on conflict do nothing`)
	for _, name := range []string{"ant", "bee"} {
		for _, sql := range []string{
			`insert into webhooks.endpoints (id, venue, url, events, secret, description) select 'ep_NAME' || x, 'venue_NAME', 'https://NAME.example/', '{NAME.*,lead.*}', 'secret of NAME', 'about NAME' from unnest(array['', '_off']) x`,
			`update webhooks.endpoints set disabled_at = now() where id = 'ep_NAME_off'`,
			`insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, last_error, last_success_at) values ('ep_NAME', 1, 3, 'error of NAME', now())`,
			`insert into webhooks.outbox (id, type, venue, data) values ('evt_NAME', 'NAME.created', 'venue_NAME', '"NAME"'), ('evt_NAME_unwanted', 'NAME.created', 'venue_NAME', '"NAME"')`,
			`insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, last_error)
			 select event, endpoint, 'venue_NAME', 'NAME.created', 'failed', '2026-01-31 09:00:00+00', 'NAME'
			 from unnest(array['evt_NAME', 'evt_shared', 'evt_NAME_old'], array['ep_NAME', 'ep_NAME', 'ep_NAME_removed']) x (event, endpoint)`,
			`insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_NAME_missed', 'ep_NAME_off', 'venue_NAME', 'NAME.created', 'missed', '2026-01-31 09:00:00+00')`,
			`insert into webhooks.attempts (event_id, endpoint_id, attempt, at, error, response) select event, 'ep_NAME', 1, now(), 'NAME', 'NAME' from unnest(array['evt_NAME', 'evt_shared']) event`,
			`insert into webhooks.removed_endpoints (venue, id, host, created) values ('venue_NAME', 'ep_NAME_removed', 'NAME.example', now())`,
			`insert into webhooks.replays (id, endpoint_id, event_ids, error, idempotency_key, idempotency_hash) values ('rpl_NAME', 'ep_NAME', '{evt_NAME}', 'event of NAME', 'key_NAME', 'h')`,
		} {
			env.Exec(t, strings.ReplaceAll(sql, "NAME", name))
		}
	}
}

// digest is a sum over all rows that a view could change.
func digest(t *testing.T, env *testenv.DB) string {
	t.Helper()
	var parts []string
	for _, table := range []string{"endpoints", "endpoint_health", "outbox", "deliveries", "attempts", "replays", "removed_endpoints"} {
		parts = append(parts, testenv.QueryOne[string](t, env, `select count(*) || md5(coalesce(string_agg(r::text, ',' order by r::text), '')) from webhooks.`+table+` r`))
	}
	return strings.Join(parts, " ")
}

// seen writes out what a call has returned, secrets as well.
func seen(t *testing.T, result any) string {
	t.Helper()
	text, err := json.Marshal(result)
	must(t, err)
	if e, isEndpoint := result.(Endpoint); isEndpoint {
		text = append(text, e.Secret.Reveal()+e.URL.Reveal()...)
	}
	if e, isEvent := result.(Event); isEvent {
		text = append(text, e.Data...)
	}
	return string(text)
}

// isNothing reports whether a result says nothing: an empty list or a zero value.
func isNothing(result any) bool {
	v := reflect.ValueOf(result)
	return !v.IsValid() || v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}

// tryAs makes the call by the view of venue_ant, and fails the test unless it comes to what it should.
func (c venueCall) tryAs(t *testing.T, ant Venue) {
	t.Helper()
	result, err := c.call(t, ant)
	met := map[outcome]bool{refused: err != nil && isNothing(result), empty: err == nil && isNothing(result),
		own: err == nil && strings.Contains(seen(t, result), "ant"), ended: err == nil}[c.want]
	if !met {
		t.Errorf("%s of %q found %s, %v", c.method, c.given, seen(t, result), err)
	}
	if text := seen(t, result); strings.Contains(text, "bee") {
		t.Errorf("%s of %q shows another venue: %s", c.method, c.given, text)
	}
	if err != nil {
		text := err.Error()
		for _, given := range strings.Fields(c.given) {
			text = strings.ReplaceAll(text, given, "")
		}
		if strings.Contains(text, "bee") {
			t.Errorf("%s of %q says more of another venue than it was given: %v", c.method, c.given, err)
		}
	}
}

// TestVenue_SeesNothingOfAnother walks all methods, so one that comes later needs a line in venueCalls.
func TestVenue_SeesNothingOfAnother(t *testing.T) {
	db, env := openDB(t)
	twoVenues(t, env)
	calls := venueCalls()
	for method := range reflect.TypeFor[Venue]().Methods() {
		if method.Name != "View" && !slices.ContainsFunc(calls, func(c venueCall) bool { return c.method == method.Name }) {
			t.Errorf("Venue.%s is not tried with what belongs to another venue", method.Name)
		}
	}
	before := digest(t, env)
	for _, c := range calls {
		c.tryAs(t, db.Venue("venue_ant"))
	}
	if after := digest(t, env); after != before {
		t.Errorf("the calls have changed rows: %s, then %s", before, after)
	}
	// The same calls find all that by the view of the venue itself, so they are fit to find it.
	for _, c := range calls {
		result, err := c.call(t, db.Venue("venue_bee"))
		if err != nil || isNothing(result) && c.method != "RemoveEndpoint" && c.want != ended {
			t.Errorf("%s of %q by its own venue: %s, %v", c.method, c.given, seen(t, result), err)
		}
	}
}

// Some statements follow one that has looked for the venue already. They name it all the same.
func TestVenue_IsNamedByEachStatement(t *testing.T) {
	db, env := openDB(t)
	twoVenues(t, env)
	ant := db.Venue("venue_ant")
	must(t, ant.look(t.Context(), "test", func(q narrowed) error {
		attempts, err := queryRows(t.Context(), q, selectAttempts, scanAttemptInfo, "evt_bee", "ep_bee", maxDetails)
		if err != nil || len(attempts) > 0 {
			t.Errorf("attempts: %v, %v", attempts, err)
		}
		var n int
		err = q.QueryRow(t.Context(), countReplay, "ep_bee", []string{"failed"}, nil, nil, MaxReplayCount).Scan(&n)
		if err != nil || n > 0 {
			t.Errorf("a count of another's deliveries: %d, %v", n, err)
		}
		return nil
	}))
}

// An event of another venue that has no delivery is as unknown as one that does not exist.
func TestVenue_IsNotToldThatAnEventOfAnotherExists(t *testing.T) {
	db, env := openDB(t)
	twoVenues(t, env)
	_, foreign := db.Venue("venue_ant").EventDeliveries(t.Context(), "evt_bee_unwanted", "")
	_, unknown := db.Venue("venue_ant").EventDeliveries(t.Context(), "evt_nowhere_at_all", "")
	wantProblem(t, foreign, "neither the delivery log nor the outbox has it")
	if got, want := strings.ReplaceAll(foreign.Error(), "evt_bee_unwanted", "X"), strings.ReplaceAll(unknown.Error(), "evt_nowhere_at_all", "X"); got != want {
		t.Errorf("an event of another venue: %q, an unknown one: %q", got, want)
	}
}

func TestVenue_WithoutANameSeesAndChangesNothing(t *testing.T) {
	db, env := openDB(t)
	twoVenues(t, env)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) values ('evt_bee', 'ep_0', '', 'lead.created', 'failed', now())`)
	before := digest(t, env)
	for name, v := range map[string]Venue{"the zero value": {}, "no name": db.Venue(""), "all with the zero value": {AllVenues{}.view}} {
		for _, c := range venueCalls() {
			result, err := c.call(t, v)
			if wantError(t, err, errNoVenue); !isNothing(result) {
				t.Errorf("%s: %s found %s", name, c.method, seen(t, result))
			}
		}
	}
	if after := digest(t, env); after != before {
		t.Errorf("the calls have changed rows: %s, then %s", before, after)
	}
}

func TestVenue_MakesEndpointsOfItsOwn(t *testing.T) {
	db, _ := openDB(t)
	for _, named := range []string{"", "venue_a"} {
		id, _, err := db.Venue("venue_a").AddEndpoint(t.Context(), Endpoint{Venue: named, URL: secret.New("https://h.example/"), Events: []string{"*"}, Secret: secret.New("s")}, "", Idempotency{})
		must(t, err)
		if e, err := db.Venue("venue_a").Endpoint(t.Context(), id); err != nil || e.Venue != "venue_a" {
			t.Errorf("named %q: %+v, %v", named, e, err)
		}
	}
}

func TestView_RunsNoStatementThatDoesNotNameTheVenue(t *testing.T) {
	db, _ := openDB(t)
	for name, v := range map[string]view{"one": db.Venue("venue_a").view, "all": db.AllVenues().view} {
		q, err := v.do()
		must(t, err)
		var n int
		if err := q.QueryRow(t.Context(), `select count(*) from webhooks.endpoints`).Scan(&n); !errors.Is(err, errUnlimited) {
			t.Errorf("%s: %v", name, err)
		}
		_, err = q.Exec(t.Context(), `delete from webhooks.endpoints`)
		wantError(t, err, errUnlimited)
		rows, err := q.Query(t.Context(), `select id from webhooks.endpoints`)
		wantError(t, err, errUnlimited)
		if err == nil {
			rows.Close()
		}
	}
}

func TestView_OfAllLeavesOutWhatAStatementSaysOfTheVenue(t *testing.T) {
	db := &DB{}
	const sql = `select '{}' from a where x = $1{ and venue = @venue} and exists (select from b where y = $2{ and b.venue = @venue})`
	for _, test := range []struct {
		view view
		want string
		args int
	}{
		{db.AllVenues().view, `select '{}' from a where x = $1 and exists (select from b where y = $2)`, 2},
		{db.Venue("v").view, `select '{}' from a where x = $1 and venue = $3 and exists (select from b where y = $2 and b.venue = $3)`, 3},
	} {
		got, args, err := test.view.narrow(sql, []any{1, 2})
		if must(t, err); got != test.want || len(args) != test.args {
			t.Errorf("got %s with %v, want %s", got, args, test.want)
		}
	}
}
