package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file change what is published. PostgreSQL informs nobody of that, and rows that
// are written meanwhile do not reach the stream.

const twoEvents = `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, 2) returning id`

func TestRecovery_ADroppedPublicationIsMadeAgainByTheAgentThatOwnsIt(t *testing.T) {
	t.Parallel()
	s := newOwnersOutage(t, testenv.NewDB(t))
	s.env.Exec(t, `drop publication webhooks_outbox`)
	s.wrote(twoEvents)
	s.agent.WaitLog("a publication was mended")
	s.recovered(2)
	s.eachOnce()
}

func TestRecovery_PublicationsThatSomebodyElseMadeAgainHideNothing(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	other := testenv.StartReceiver(t, agenttest.Secret)
	admit := s.disconnect()
	s.env.Exec(t, `drop publication webhooks_outbox, webhooks_outbox_endpoints`)
	agenttest.AddEndpoint(t, s.env, "venue_1", other.URL, "*")
	s.wrote(twoEvents)
	s.env.Exec(t, `create publication webhooks_outbox for table webhooks.outbox, webhooks.replays with (publish = 'insert')`)
	s.env.Exec(t, `create publication webhooks_outbox_endpoints for table webhooks.endpoints`)
	s.event()
	admit()
	s.recovered(2 * 3) // both endpoints
	s.eachOnce()
	if n := other.Count(); n != 4 {
		t.Errorf("%d requests reached the endpoint that was registered meanwhile, want one for each of 4 events", n)
	}
}

func TestRecovery_ATableTakenOutOfThePublicationAndPutBackHidesNothing(t *testing.T) {
	t.Parallel()
	hide := func(s *outage) {
		s.t.Helper()
		s.env.Exec(s.t, `alter publication webhooks_outbox drop table webhooks.outbox`)
		s.wrote(twoEvents)
		s.env.Exec(s.t, `alter publication webhooks_outbox add table webhooks.outbox`)
	}
	t.Run("while the agent runs", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		hide(s)
		s.recovered(2)
		s.eachOnce()
	})
	t.Run("while the agent is down", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		s.agent.End()
		hide(s)
		s.start()
		s.agent.WaitLog("have changed")
		s.recovered(2)
		s.eachOnce()
	})
}

func TestRecovery_AnOutboxDroppedAndMadeAgainIsGoneOnWith(t *testing.T) {
	t.Parallel()
	s := newOwnersOutage(t, testenv.NewDB(t))
	s.env.Exec(t, `create table kept (like webhooks.outbox including all)`)
	s.env.Exec(t, `drop table webhooks.outbox`)
	s.env.Exec(t, `alter table kept rename to outbox`)
	s.env.Exec(t, `alter table outbox set schema webhooks`)
	s.wrote(twoEvents)
	s.agent.WaitLog("a publication was mended")
	s.recovered(2)
	s.eachOnce()
}

func TestRecovery_AnUnpublishedOutboxIsComparedUntilItsOwnerPublishesIt(t *testing.T) {
	t.Parallel()
	s := newOutage(t, ownDB(t))
	s.env.Exec(t, `alter publication webhooks_outbox drop table webhooks.outbox`)
	s.wrote(twoEvents)
	const reason, remedy = "publication webhooks_outbox: it does not hold webhooks.outbox", `ALTER PUBLICATION "webhooks_outbox" ADD TABLE "webhooks"."outbox"`
	s.unready("the stream does not bring all events", reason, remedy)
	s.agent.WaitLog("the outbox is compared with the delivery log instead")
	s.wait(s.events...)
	s.wait(s.event())
	if got := s.metric("webhook_agent_recovered_deliveries_total"); got != "3" {
		t.Errorf("the metric counts %s recovered deliveries, want 3", got)
	}
	if got := s.metric("webhook_agent_recovering"); got != "1" {
		t.Errorf("the metric recovering is %s while only the comparison delivers", got)
	}
	s.env.Exec(t, `alter publication webhooks_outbox add table webhooks.outbox`)
	s.ready()
	s.eventually(func() error {
		if got := s.metric("webhook_agent_recovering"); got != "0" {
			return fmt.Errorf("the metric recovering is %s", got)
		}
		return nil
	})
	s.eachOnce()
}

// newPartitionedOutage is newOutage with an outbox of the app's, which has partitions.
func newPartitionedOutage(t *testing.T, env *testenv.DB) *outage {
	t.Helper()
	env.Exec(t, `create table public.events (key text default webhooks.new_id('evt'), kind text not null, place text not null, body json not null,
		at timestamptz not null default now(), region int not null, primary key (key, region)) partition by list (region)`)
	env.Exec(t, `create table public.region_1 partition of public.events for values in (1)`)
	env.Exec(t, `create table public.region_2 partition of public.events for values in (2)`)
	s := newQuietOutage(t, env)
	s.cfg = agenttest.OwnersConfig(env)
	s.cfg.Outbox.Table, s.cfg.Outbox.Publication = "public.events", "mapped"
	s.cfg.Outbox.Columns = config.Columns{ID: "key", Type: "kind", Venue: "place", Data: "body", Created: "at"}
	if _, _, err := outbox.Migrate(context.Background(), s.cfg.OutboxConfig()); err != nil {
		t.Fatal(err)
	}
	s.insert = `insert into public.events (kind, place, body, region) values ('lead.created', 'venue_1', $1::text::json, 1) returning key`
	s.start()
	s.settle()
	return s
}

// regional writes an event of region 3 to a table, the outbox or one that becomes a partition of
// it.
func (s *outage) regional(table string) {
	s.t.Helper()
	s.wrote(fmt.Sprintf(`insert into public.%s (kind, place, body, region) values ('lead.created', 'venue_1', '{}', 3) returning key`, table))
}

func TestRecovery_APartitionAttachedWithRowsInItIsRead(t *testing.T) {
	t.Parallel()
	s := newPartitionedOutage(t, testenv.NewDB(t))
	s.env.Exec(t, `create table public.region_3 (like public.events including all)`)
	s.regional("region_3")
	s.regional("region_3")
	s.wait(s.event())
	s.env.Exec(t, `update webhooks.checkpoint set horizon = pg_current_snapshot()`) // as the comparison does: all that was in the outbox was handed over
	s.env.Exec(t, `alter table public.events attach partition public.region_3 for values in (3)`)
	s.regional("events") // PostgreSQL 14 does not stream these until the stream begins anew
	s.regional("region_3")
	s.eventually(func() error {
		if got := s.metric("webhook_agent_recovered_deliveries_total"); got != "2" && got != "4" {
			return fmt.Errorf("the metric counts %s recovered deliveries, want the 2 that were attached, or 4 before PostgreSQL 15", got)
		}
		return nil
	})
	s.eachOnce()
}

func TestRecovery_PartitionsComeAndGoInTheStream(t *testing.T) {
	t.Parallel()
	s := newPartitionedOutage(t, testenv.NewDB(t))
	s.env.Exec(t, `create table public.region_3 partition of public.events for values in (3)`)
	s.regional("events")
	s.regional("region_3")
	s.wait(s.events...)
	s.env.Exec(t, `alter table public.events detach partition public.region_3`)
	s.wait(s.event())
	s.env.Exec(t, `drop table public.region_2`)
	s.wait(s.event())
	s.eachOnce()
}

// PostgreSQL streams a row that moves as an insert into the partition that it moves to.
func TestRecovery_ARowThatMovesToAnotherPartitionIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s := newPartitionedOutage(t, testenv.NewDB(t))
	for range 3 {
		s.event()
	}
	s.wait(s.events...)
	s.env.Exec(t, `update public.events set region = 2`)
	s.wait(s.event())
	s.eachOnce()
}

func TestRecovery_ARowThatMovesWhileItIsBeingSentIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s := newPartitionedOutage(t, testenv.NewDB(t))
	s.receiver.SetAnswer("", testenv.Script(testenv.Answer{Hang: true}))
	arrived := s.receiver.Count()
	moved := s.event()
	s.receiver.Wait(t, arrived+1, agenttest.Patience)
	s.env.Exec(t, `update public.events set region = 2 where key = $1`, moved) // there is no row of the delivery yet
	s.receiver.SetAnswer("", testenv.Statuses(200))
	s.wait(s.event()) // the stream has passed the move
	s.receiver.Release()
	s.eachOnce()
}

// The role may not mend, so the agent lives on comparisons. The transaction is open when the table
// comes back.
func TestRecovery_ATransactionThatWasOpenWhileTheOutboxWasUnpublishedIsFound(t *testing.T) {
	t.Parallel()
	s := newOutage(t, ownDB(t))
	s.env.Exec(t, `alter publication webhooks_outbox drop table webhooks.outbox`)
	s.unready("does not bring all events")
	s.wait(s.event()) // by a comparison
	tx := s.hold()
	var id string
	if err := tx.QueryRow(context.Background(), s.insert, `"open"`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	s.env.Exec(t, `update webhooks.endpoints set description = 'changed since the last horizon'`)
	s.env.Exec(t, `alter publication webhooks_outbox add table webhooks.outbox`)
	s.agent.WaitLog("the stream begins anew")
	s.ready()
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.events = append(s.events, id)
	s.eachOnce()
}

func TestRecovery_EndpointsThatAreNotPublishedAreLoadedBeforeEachComparison(t *testing.T) {
	t.Parallel()
	s := newOutage(t, ownDB(t))
	off := testenv.StartReceiver(t, agenttest.Secret)
	disabled := agenttest.AddEndpoint(t, s.env, "venue_1", off.URL, "*")
	s.env.Exec(t, `alter publication webhooks_outbox_endpoints drop table webhooks.endpoints`)
	s.unready("does not bring all events")
	came := testenv.StartReceiver(t, agenttest.Secret)
	// In this order: who has loaded the endpoint that came knows that the other one is disabled.
	s.env.Exec(t, `update webhooks.endpoints set disabled_at = now() where id = $1`, disabled)
	registered := agenttest.AddEndpoint(t, s.env, "venue_1", came.URL, "*")
	status := func(event, endpoint string) string {
		return testenv.QueryOne[string](t, s.env, `select coalesce((select status from webhooks.deliveries where event_id = $1 and endpoint_id = $2), 'not there')`, event, endpoint)
	}
	// The subscriptions are at most one comparison old.
	var event string
	s.eventually(func() error {
		event = s.event()
		s.wait(event)
		if got := status(event, registered); got != "succeeded" && got != "pending" {
			return fmt.Errorf("the delivery to the new endpoint is %s", got)
		}
		return nil
	})
	s.eventually(func() error {
		if to, from := status(event, registered), status(event, disabled); to != "succeeded" || from != "missed" {
			return fmt.Errorf("the delivery is %s to the endpoint that came, %s to the one that was disabled", to, from)
		}
		return nil
	})
	seen := off.Count()
	s.wait(s.event())
	if n := off.Count(); n != seen {
		t.Errorf("the endpoint got %d events after it was disabled", n-seen)
	}
	s.env.Exec(t, `alter publication webhooks_outbox_endpoints add table webhooks.endpoints`)
	s.eachOnce()
}

func TestRecovery_AnOutboxRenamedAndNamedBackLosesNothing(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	s.env.Exec(t, `alter table webhooks.outbox rename to outbox_away`)
	s.agent.WaitLog("does not bring all events")
	s.wrote(`insert into webhooks.outbox_away (type, venue, data) values ('lead.created', 'venue_1', '{}') returning id`)
	s.env.Exec(t, `alter table webhooks.outbox_away rename to outbox`)
	s.eachOnce()
}

// CREATE INDEX CONCURRENTLY and VACUUM hold such a lock for as long as they take.
func TestRecovery_ALockThatMendingWaitsForHidesNothing(t *testing.T) {
	t.Parallel()
	s := newOwnersOutage(t, ownDB(t))
	tx := s.hold()
	s.env.Exec(t, `alter publication webhooks_outbox drop table webhooks.outbox`)
	if _, err := tx.Exec(context.Background(), `lock table webhooks.outbox in share update exclusive mode`); err != nil {
		t.Fatal(err)
	}
	s.wait(s.event())
	s.unready("does not bring all events")
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.eachOnce()
}

func TestRecovery_ATableThatIsNoneOfTheAgentsEndsNoTerm(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, testenv.NewDB(t))
	s.super(`drop publication webhooks_outbox`, `create publication webhooks_outbox for all tables with (publish = 'insert')`)
	s.start()
	s.settle()
	before := s.coverage()
	s.env.Exec(t, `create table public.staging (n int)`)
	if now := s.coverage(); !now.Continues(before) {
		t.Errorf("the coverage was\n%v and is\n%v", before, now)
	}
	s.eachOnce()
}

// A periodic comparison may come before the look that ends the term.
func TestRecovery_AComparisonStoresNoHorizonOverAChangeOfWhatIsPublished(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	before := s.coverage()
	s.agent.End()
	s.env.Exec(t, `drop publication webhooks_outbox`)
	s.env.Exec(t, `create publication webhooks_outbox for table webhooks.outbox, webhooks.replays with (publish = 'insert')`)
	db := s.open()
	late := newRecovery(db, db.Slot(s.cfg.Outbox.Slot), slog.New(slog.DiscardHandler), outbox.Term{Coverage: before}, nil, nil)
	if _, _, err := late.compare(t.Context(), wellKnown, false); !errors.Is(err, errCoverage) {
		t.Errorf("the comparison returns %v, want %v", err, errCoverage)
	}
	s.start()
	s.eachOnce()
}

// open returns the agent's access to the database.
func (s *outage) open() *outbox.DB {
	s.t.Helper()
	db, err := outbox.Open(s.t.Context(), s.cfg.OutboxConfig())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(db.Close)
	return db
}

func (s *outage) coverage() outbox.Coverage {
	s.t.Helper()
	c, err := s.open().Coverage(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}
