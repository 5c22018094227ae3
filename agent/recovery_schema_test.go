package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file change tables under a running agent.

func TestRecovery_ColumnsComeAndGoInTheMiddleOfTraffic(t *testing.T) {
	t.Parallel()
	s := newOutage(t, ownDB(t))
	stop, stopped := make(chan struct{}), make(chan error, 1)
	var written []string
	conn := connect(t, s.env)
	go func() { // ends with stop; written is its own until then
		pace := time.NewTicker(2 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			case <-pace.C:
			}
			var id string
			if err := conn.QueryRow(context.Background(), s.insert, "0").Scan(&id); err != nil {
				stopped <- err
				return
			}
			written = append(written, id)
		}
	}()
	tx := s.hold()
	insert := func(id string) {
		t.Helper()
		if _, err := tx.Exec(context.Background(), `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_1', '{}')`, id); err != nil {
			t.Fatal(err)
		}
		s.events = append(s.events, id)
	}
	insert("evt_before_the_column")
	for _, sql := range []string{
		`alter table webhooks.outbox add column note text`,
		`alter table webhooks.outbox add column at timestamptz default clock_timestamp()`, // writes the table anew
	} {
		if _, err := tx.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
	insert("evt_after_the_column")
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.env.Exec(t, `alter table webhooks.endpoints add column owner text default 'nobody'`)
	s.env.Exec(t, `update webhooks.endpoints set owner = 'somebody'`)
	s.event()
	s.env.Exec(t, `alter table webhooks.outbox drop column note`)
	s.env.Exec(t, `alter table webhooks.endpoints drop column owner`)
	s.env.Exec(t, `update webhooks.endpoints set description = 'changed'`)
	s.event()
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	s.events = append(s.events, written...)
	if n := strings.Count(s.agent.Log.String(), "msg=leading"); n != 1 {
		t.Errorf("the agent began %d terms, want one", n)
	}
	s.eachOnce()
}

func TestRecovery_ARenamedColumnStopsTheAgentWithOneSentenceAndLosesNothing(t *testing.T) {
	t.Parallel()
	const (
		rename     = `alter table webhooks.outbox rename column type to kind`
		renameBack = `alter table webhooks.outbox rename column kind to type`
		otherName  = `insert into webhooks.outbox (kind, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, 2) returning id`
	)
	t.Run("while the agent runs", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		s.env.Exec(t, rename)
		s.wrote(otherName)
		s.unready("webhooks.outbox", `it has no column "type"`, "outbox.columns.type")
		s.agent.WaitLog("stream has no column")
		s.env.Exec(t, renameBack)
		s.ready()
		s.recovered(2)
		s.eachOnce()
	})
	t.Run("across a restart of the agent", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		s.env.Exec(t, rename)
		s.wrote(otherName)
		s.unready(`it has no column "type"`)
		s.agent.End()
		expect(t, runOnce(t, s.cfg), "webhooks.outbox", `it has no column "type"`, "outbox.columns.type")
		s.env.Exec(t, renameBack)
		s.event()
		s.agent = start(t, s.cfg)
		s.recovered(3)
		s.eachOnce()
	})
	t.Run("while the agent is down", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		s.agent.End()
		s.event()
		s.env.Exec(t, rename)
		s.wrote(otherName)
		s.env.Exec(t, renameBack)
		s.agent = start(t, s.cfg)
		s.agent.WaitLog("stream has no column")
		s.eachOnce()
	})
}

// PostgreSQL streams no generated columns, or from 18 on those of a publication that says so. Each
// insert would break the stream, and each new slot would come to the same.
func TestRecovery_AGeneratedColumnStopsTheAgentWithOneSentenceAndNoLoopOfNewSlots(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	s.env.Exec(t, `alter table webhooks.outbox drop column type, add column type text generated always as ('lead.created') stored`)
	said := `column "type" of webhooks.outbox is generated, and this server cannot stream it`
	mend := `alter table webhooks.outbox alter column type drop expression, alter column type set default 'lead.created'`
	if testenv.QueryOne[int](t, s.env, `select current_setting('server_version_num')::int`) >= 180000 {
		said = `it does not publish column "type" of webhooks.outbox, which is generated`
		mend = `alter publication webhooks_outbox set (publish_generated_columns = stored)`
	}
	for range 3 {
		s.wrote(`insert into webhooks.outbox (venue, data) values ('venue_1', '{}') returning id`)
		s.unready(said)
	}
	s.env.Exec(t, mend)
	s.ready()
	s.recovered(3)
	if n := strings.Count(s.agent.Log.String(), "msg=leading"); n != 2 {
		t.Errorf("the agent began %d terms, want one before and one after the column was generated", n)
	}
	s.insert = `insert into webhooks.outbox (venue, data) values ('venue_1', $1::text::json) returning id`
	s.eachOnce()
}

func TestRecovery_ATruncatedOutboxIsGoneOnWith(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	s.receiver.SetAnswer("/retried", testenv.Statuses(500))
	s.cfg.Delivery.Retries[0] = 2 * time.Second
	s.agent.End()
	s.start()
	retried := agenttest.AddEndpoint(t, s.env, "venue_2", s.receiver.URL+"/retried", "*")
	unsent := agenttest.AddEvent(t, s.env, "venue_2", "lead.created", `{}`)
	agenttest.WaitStatus(t, s.env, unsent, retried, "pending, attempts 1")
	s.env.Exec(t, `truncate webhooks.outbox`)
	agenttest.WaitStatus(t, s.env, unsent, retried, "failed, attempts 1, the event is no longer in the outbox")
	s.gone = append(s.gone, unsent) // it arrived at the endpoint that has failed it
	s.eachOnce()
}

func TestRecovery_TruncatedEndpointsGetNothingMoreAndNewOnesDo(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	s.receiver.SetAnswer("/retried", testenv.Statuses(500))
	s.cfg.Delivery.Retries[0] = time.Hour
	s.agent.End()
	s.start()
	retried := agenttest.AddEndpoint(t, s.env, "venue_2", s.receiver.URL+"/retried", "*")
	unsent := agenttest.AddEvent(t, s.env, "venue_2", "lead.created", `{}`)
	agenttest.WaitStatus(t, s.env, unsent, retried, "pending, attempts 1")
	s.gone = append(s.gone, unsent)

	s.env.Exec(t, `truncate webhooks.endpoints`)
	agenttest.WaitStatus(t, s.env, unsent, retried, "missed, attempts 1, the endpoint was removed")
	agenttest.AddEvent(t, s.env, "venue_1", "lead.created", `"nobody wants it"`)
	s.gone = append(s.gone, s.events...)
	s.events = nil
	s.endpoint = agenttest.AddEndpoint(t, s.env, "venue_1", s.receiver.URL, "*")
	s.event()
	s.eachOnce()
}

// PostgreSQL leaves large values out of the stream that an UPDATE has not touched.
func TestRecovery_AnEndpointKeepsItsLargeValuesWhenAnotherColumnChanges(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, testenv.NewDB(t))
	path := "/"
	for len(path) < 1900 {
		path += rand.Text()
	}
	types := []string{"lead.created"}
	for range 3000 {
		types = append(types, "of."+strings.ToLower(rand.Text()))
	}
	s.env.Exec(t, `update webhooks.endpoints set url = $1, events = $2`, s.receiver.URL+path, types)
	s.start()
	s.settle()
	for i, change := range []string{`description = 'another'`, `disabled_at = now()`, `disabled_at = null`, `venue = venue`} {
		s.env.Exec(t, `update webhooks.endpoints set `+change)
		unwanted := agenttest.AddEvent(t, s.env, "venue_1", "lead.updated", `{}`)
		if i != 1 {
			s.wait(s.event())
		}
		if n := testenv.QueryOne[int](t, s.env, `select count(*) from webhooks.deliveries where event_id = $1`, unwanted); n != 0 {
			t.Errorf("after %s the endpoint gets events that it does not want", change)
		}
	}
	for _, got := range s.receiver.Received() {
		if got.Path != path {
			t.Errorf("%s arrived at %q", got.ID, got.Path)
		}
	}
	if err := s.large(); err != nil {
		t.Error(err)
	}
	s.eachOnce()
}

// large returns an error when the endpoint's row is small enough for the stream to hold all of it.
func (s *outage) large() error {
	whole := testenv.QueryOne[bool](s.t, s.env, `select pg_column_size(events) < 10000 or pg_relation_size(reltoastrelid) = 0
		from webhooks.endpoints, pg_class where pg_class.oid = 'webhooks.endpoints'::regclass`)
	if whole {
		return fmt.Errorf("no value of the endpoint is stored apart: the test shows nothing")
	}
	return nil
}
