package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file take the slot away, or what stands in it.

func TestRecovery_ASlotDroppedWhileTheAgentRunsIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	admit := s.disconnect()
	s.env.Exec(t, `select pg_drop_replication_slot($1)`, s.env.Slot)
	for range 3 {
		s.event()
	}
	admit()
	s.recovered(3)
	s.eachOnce()
}

func TestRecovery_ASlotDroppedWhileTheAgentIsDownIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	s.agent.End()
	s.event()
	s.env.Exec(t, `select pg_drop_replication_slot($1)`, s.env.Slot)
	s.event()
	s.start()
	s.recovered(2)
	s.eachOnce()
}

func TestRecovery_ASlotAdvancedByHandIsFoundOut(t *testing.T) {
	t.Parallel()
	const advance = `select end_lsn::text from pg_replication_slot_advance($1, pg_current_wal_lsn())`
	t.Run("while the agent is down", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		s.agent.End()
		for range 3 {
			s.event()
		}
		testenv.QueryOne[string](t, s.env, advance, s.env.Slot)
		s.event() // this one is streamed
		s.start()
		s.agent.WaitLog("beyond the checkpoint")
		s.recovered(3)
		s.eachOnce()
	})
	t.Run("while the agent is cut off", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		admit := s.disconnect()
		for range 3 {
			s.event()
		}
		testenv.QueryOne[string](t, s.env, advance, s.env.Slot)
		admit()
		s.agent.WaitLog("beyond the checkpoint")
		s.recovered(3)
		s.eachOnce()
	})
}

func TestRecovery_ASlotMadeAgainByHandUnderItsNameIsFoundOut(t *testing.T) {
	t.Parallel()
	again := func(s *outage) {
		s.t.Helper()
		s.event()
		s.env.Exec(s.t, `select pg_drop_replication_slot($1)`, s.env.Slot)
		s.event()
		s.env.Exec(s.t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, s.env.Slot)
		s.event()
	}
	t.Run("while the agent is down", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		s.agent.End()
		again(s)
		s.start()
		s.recovered(2) // the third is streamed
		s.eachOnce()
	})
	t.Run("while the agent is cut off", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		admit := s.disconnect()
		again(s)
		admit()
		s.recovered(2) // the third is streamed
		s.eachOnce()
	})
}

// A slot loses WAL when too much of it is written while nobody reads, from PostgreSQL 18 on also by
// lying idle.
func TestRecovery_ALostSlotIsReplaced(t *testing.T) {
	t.Parallel()
	s, cluster := ownOutage(t, map[string]string{"max_slot_wal_keep_size": "16MB", "max_wal_size": "32MB"})
	s.agent.End()
	s.event()
	if cluster.Binaries().Major >= 18 {
		s.super(`alter system set idle_replication_slot_timeout = '1s'`, `select pg_reload_conf()`)
	}
	lose(s)
	s.start()
	s.recovered(1)
	s.eachOnce()
}

func TestRecovery_ASlotLostWhileItIsStreamedIsReplaced(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{"max_slot_wal_keep_size": "16MB", "max_wal_size": "32MB"}})
	s := newQuietOutage(t, cluster.NewDB(t))
	proxy := testenv.StartProxy(t, s.env.Addr())
	s.cfg.Database.URL = secret.New(proxy.Via(s.env.LeastURL))
	s.start()
	s.settle()
	proxy.SetFault(testenv.HalfOpen) // the agent is connected and gets nothing
	s.event()
	lose(s)
	s.event() // nobody streams any more
	proxy.SetFault(testenv.Pass)
	s.agent.WaitLog("57P01")
	// The first event may have been on the way when the server gave up, or not.
	s.eventually(func() error {
		if logged(s.agent, "recovery is complete", "recovered_deliveries=1\n") == nil {
			return nil
		}
		return logged(s.agent, "recovery is complete", "recovered_deliveries=2\n")
	})
	s.eachOnce()
}

// lose writes until the slot has lost WAL that it needs, or was idle for too long.
func lose(s *outage) {
	s.t.Helper()
	s.super(`create table noise (t text)`)
	s.eventually(func() error {
		s.super(`insert into noise select repeat('x', 1000) from generate_series(1, 20000)`, `checkpoint`)
		if status := testenv.QueryOne[string](s.t, s.env, `select wal_status from pg_replication_slots where slot_name = $1`, s.env.Slot); status != "lost" {
			return fmt.Errorf("the slot is %s", status)
		}
		return nil
	})
}

func TestRecovery_ATransactionThatIsOpenWhileTheSlotIsMadeLosesNothing(t *testing.T) {
	t.Parallel()
	s, _ := ownOutage(t, nil)
	s.agent.End()
	s.env.Exec(t, `select pg_drop_replication_slot($1)`, s.env.Slot)
	tx := s.hold()
	insert := func(id string) {
		t.Helper()
		if _, err := tx.Exec(context.Background(), `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_1', '{}')`, id); err != nil {
			t.Fatal(err)
		}
		s.events = append(s.events, id)
	}
	insert("evt_before_the_slot")
	s.agent = start(t, s.cfg)
	pid := fmt.Sprintf("pid %d", tx.Conn().PgConn().PID())
	s.unready("waits for transactions", pid)
	s.agent.WaitLog(pid)
	s.event()
	insert("evt_during_the_slot")
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.ready()
	s.recovered(3)
	s.eachOnce()
}

// A commit that waits for a synchronous standby can be in the WAL before the position from which
// the new slot streams. No query sees it before the standby has answered, so only the comparison
// after the barrier finds it. The transaction must begin while the creation of the slot waits for
// others already, because it waits for all that it knows to be open.
func TestRecovery_ACommitThatWaitsForAStandbyWhileTheSlotIsMadeIsFoundAfterwards(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{})
	s := newQuietOutage(t, cluster.NewDB(t))
	s.cfg.Database.URL = secret.New(s.env.URL + "&options=-c%20synchronous_commit%3Dlocal") // the agent's own commits do not wait
	s.start()
	s.settle()
	s.agent.End()
	s.env.Exec(t, `select pg_drop_replication_slot($1)`, s.env.Slot)
	s.super(`alter system set synchronous_standby_names = 'nobody'`, `select pg_reload_conf()`)
	s.env.Exec(t, `set synchronous_commit = local`)
	s.eventually(func() error {
		if got := testenv.QueryOne[string](t, s.env, `show synchronous_standby_names`); got != "nobody" {
			return fmt.Errorf("synchronous_standby_names is %q", got)
		}
		return nil
	})

	first := s.hold()
	writes(t, first)
	s.agent = start(t, s.cfg)
	s.slotWaitsFor(first)
	second := s.hold()
	writes(t, second)
	if err := first.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.slotWaitsFor(second)
	hanging := connect(t, s.env)
	done := make(chan error, 1)
	go func() { // ends with the commit, which is released below
		_, err := hanging.Exec(context.Background(), `insert into webhooks.outbox (id, type, venue, data) values ('evt_hidden', 'lead.created', 'venue_1', '{}')`)
		done <- err
	}()
	s.eventually(func() error {
		if n := testenv.QueryOne[int](t, s.env, `select count(*) from pg_stat_activity where wait_event = 'SyncRep'`); n != 1 {
			return fmt.Errorf("%d commits wait for the standby", n)
		}
		return nil
	})
	s.events = append(s.events, "evt_hidden")
	if err := second.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}

	s.ready()
	s.wait(s.event()) // the new slot streams
	s.agent.WaitLog(fmt.Sprintf("pid %d", hanging.PgConn().PID()))
	if got := s.metric("webhook_agent_recovering"); got != "1" || strings.Contains(s.agent.Log.String(), "recovery is complete") {
		t.Errorf("the recovery was completed while a commit hung; the metric is %s", got)
	}
	s.super(`alter system reset synchronous_standby_names`, `select pg_reload_conf()`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.recovered(1)
	s.eachOnce()
}

// writes makes a transaction one that writes.
func writes(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if _, err := tx.Exec(context.Background(), `select pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
}

// slotWaitsFor waits until the creation of the slot waits for a transaction.
func (s *outage) slotWaitsFor(tx pgx.Tx) {
	s.t.Helper()
	s.eventually(func() error {
		if n := testenv.QueryOne[int](s.t, s.env, `select count(*) from pg_stat_activity where query like '%pg_create_logical_replication_slot(%' and $1 = any(pg_blocking_pids(pid))`,
			int32(tx.Conn().PgConn().PID())); n != 1 {
			return fmt.Errorf("%d creations of slots wait for the transaction", n)
		}
		return nil
	})
}

func TestRecovery_TheSlotOutlivesAFailoverWhereTheServerCanKeepIt(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	version := testenv.QueryOne[int](t, s.env, `select current_setting('server_version_num')::int`)
	kept := func() string {
		t.Helper()
		return testenv.QueryOne[string](t, s.env, `select coalesce(to_jsonb(s) ->> 'failover', 'not known') from pg_replication_slots s where slot_name = $1`, s.env.Slot)
	}
	want := "not known" // before version 17
	if version >= 170000 {
		want = "true"
	}
	if got := kept(); got != want {
		t.Errorf("failover of the slot that the agent made is %s, want %s", got, want)
	}
	// One that an earlier version has made.
	s.agent.End()
	s.env.Exec(t, `select pg_drop_replication_slot($1)`, s.env.Slot)
	s.env.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, s.env.Slot)
	s.start()
	if got := kept(); got != want {
		t.Errorf("failover of the slot that was there is %s, want %s", got, want)
	}
	s.eachOnce()
}

func TestRecovery_AStandbyThatMustMakeTheSlotIsNotReadyWhileThatWaits(t *testing.T) {
	t.Parallel()
	s, _ := ownOutage(t, nil)
	standby := start(t, s.cfg)
	standby.WaitLog("standing by")
	tx := s.hold()
	writes(t, tx)
	s.agent.End()
	s.eventually(func() error { // before the standby streams from it, or in the middle
		s.endConnections()
		return testenv.ExecSQL(context.Background(), s.env.SuperuserURL, `select pg_drop_replication_slot('`+s.env.Slot+`')`)
	})
	s.agent = standby
	event := s.event()
	s.unready("creating it waits for transactions that are still writing")
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.wait(event)
	s.eachOnce()
}

// An agent replaces the slot because of changes that it cannot decode. When the slot is free,
// another agent may have passed them, or may have stopped there as well.
func TestRecovery_ASlotIsGivenUpOnlyWhileItStandsBeforeWhatCannotBeDecoded(t *testing.T) {
	t.Parallel()
	for name, ahead := range map[string]bool{"the leader has passed it": false, "the leader stands before it": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newOutage(t, testenv.NewDB(t))
			a, _ := bareAgent(t, s.cfg)
			a.webhook = newWebhook(t)
			late, tailer := newCandidate(a, a.db.Slot(s.cfg.Outbox.Slot)), outbox.NewTailer(a.outboxConfig(), a.log)
			late.undecodable = 1
			if ahead {
				late.undecodable = 1 << 62
			}
			defer tailer.Close()
			done := make(chan error, 1)
			go func() { done <- late.acquire(t.Context(), tailer) }()
			testenv.Eventually(t, agenttest.Patience, func() error {
				if !late.standby.Load() {
					return errors.New("it does not stand by")
				}
				return nil
			})
			s.agent.End()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if made := !late.replaced.last.IsZero(); made != ahead || late.undecodable != 0 {
				t.Errorf("a new slot was made: %t, want %t; it still wants one: %t", made, ahead, late.undecodable != 0)
			}
		})
	}
}

// Two agents meet changes that cannot be decoded, one after the other. The second one to take the
// slot replaces it at the latest. While attempts take long, each leads while the other one drains.
func TestRecovery_TwoAgentsDoNotPassAnUndecodableSlotToAndFro(t *testing.T) {
	t.Parallel()
	s := newOwnersOutage(t, testenv.NewDB(t))
	slow := testenv.StartReceiver(t, agenttest.Secret)
	slow.SetAnswer("/", testenv.Script(testenv.Answer{Delay: 700 * time.Millisecond}))
	agenttest.AddEndpoint(t, s.env, "venue_1", slow.URL+"/", "*")
	other := start(t, s.cfg)
	other.WaitLog("standing by")
	s.env.Exec(t, `drop publication webhooks_outbox, webhooks_outbox_endpoints`)
	s.event()
	for range 20 {
		s.event() // which are under way when the term ends
	}
	s.eventually(func() error { // it may be either that leads in the end
		for _, a := range []*agenttest.Agent{s.agent, other} {
			if _, body := get(t, a.AdminURL()+"/readyz"); body == "leading\n" {
				return nil
			}
		}
		return errors.New("neither leads")
	})
	s.wait(s.event())
	leading := func(a *agenttest.Agent) int { return strings.Count(a.Log.String(), "msg=leading") }
	if n := leading(s.agent) + leading(other); n > 6 {
		t.Errorf("the agents have led %d times; their logs:\n%s\n%s", n, s.agent.Log, other.Log)
	}
}

func TestRecovery_AStreamThatBreaksDuringTheTakeOverIsNoOtherAgent(t *testing.T) {
	t.Parallel()
	s := newOwnersOutage(t, ownDB(t))
	s.agent.End()
	s.env.Exec(t, `update webhooks.checkpoint set recovering = true`)
	event := s.event()
	tx := s.hold()
	if _, err := tx.Exec(context.Background(), `select from webhooks.checkpoint for update`); err != nil {
		t.Fatal(err)
	}
	s.agent = start(t, s.cfg)
	s.eventually(func() error {
		waiting := testenv.QueryOne[bool](t, s.env, `select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')`)
		if !waiting {
			return errors.New("the agent does not wait yet")
		}
		return nil
	})
	s.super(`select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '` + s.env.Slot + `'`)
	s.agent.WaitLog("cannot stream the outbox")
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.wait(event)
	if logged(s.agent, "another agent") == nil {
		t.Errorf("there is no other agent:\n%s", s.agent.Log)
	}
	s.eachOnce()
}
