package outbox

import (
	"slices"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// The stream brings restored rows in the same way as new ones.
func TestTailer_KnowsEventsThatAreWrittenOnceMore(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		open  func(t *testing.T) (*DB, *testenv.DB)
		table string
		want  []string // the late ones
	}{
		{"the agent's own table", openDB, "webhooks.outbox", []string{"restored", "restored soon"}},
		{"a table of the app's", func(t *testing.T) (*DB, *testenv.DB) {
			return openTable(t, `id text primary key, type text, venue text, data json, created timestamptz default now())`)
		}, "public.ob", []string{"backdated", "restored"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := test.open(t)
			insert := `insert into ` + test.table + ` (id, type, venue, data, created) values ($1, 't', 'v', '{}', now() - make_interval(secs => $2))`
			env.Exec(t, insert, "restored", 7200)
			env.Exec(t, insert, "restored soon", 60)
			env.Exec(t, `create table public.saved as select * from `+test.table)
			env.Exec(t, `delete from `+test.table)
			f := follow(t, db)
			env.Exec(t, insert, "backdated", 7200)
			env.Exec(t, insert, "new", 1)
			env.Exec(t, `insert into `+test.table+` select * from public.saved`)
			var late []string
			for n := 0; n < 4; {
				for _, c := range f.next(t).Changes {
					n++
					if c.Event.Late {
						late = append(late, c.Event.ID)
					}
				}
			}
			slices.Sort(late)
			if !slices.Equal(late, test.want) {
				t.Errorf("late are %q, want %q", late, test.want)
			}
		})
	}
}

func TestMarkLate_KnowsAnEventByMoreThanItsID(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "t", Succeeded, 1)
	created := testenv.QueryOne[time.Time](t, env, `select created from webhooks.deliveries`)
	events := []*Event{
		{ID: "evt_1", Venue: "venue_a", Type: "t", Created: created.Add(time.Second)}, {ID: "evt_1", Venue: "venue_b", Type: "t", Created: created},
		{ID: "evt_2", Venue: "venue_a", Type: "t", Created: created}, {ID: "evt_1", Venue: "venue_a", Type: "t", Created: created},
	}
	must(t, db.configured().MarkLate(t.Context(), events))
	for i, e := range events {
		if e.Late != (i == 3) {
			t.Errorf("%+v: late %t", *e, e.Late)
		}
	}
}

func TestEndpoint_SinceIsTheLastChangeOfItsSubscription(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "lead.*")
	f := follow(t, db)
	env.Exec(t, `update webhooks.endpoints set description = 'x'`)
	first := f.next(t).Changes[0].Endpoint.Endpoint
	env.Exec(t, `update webhooks.endpoints set events = '{*}'`)
	second := f.next(t).Changes[0].Endpoint.Endpoint
	state, err := db.configured().LoadState(t.Context())
	must(t, err)
	loaded := state.Endpoints[0]
	if !first.Since().Equal(first.Created) || !second.Since().After(first.Created) || !loaded.Since().Equal(second.Since()) {
		t.Errorf("since %v, then %v, loaded %v", first.Since().Format(time.RFC3339Nano), second.Since(), loaded.Since())
	}
}
