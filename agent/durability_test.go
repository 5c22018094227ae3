package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file show what happens to promise P2 (nothing is sent for a transaction that
// does not exist) when PostgreSQL itself loses transactions whose COMMIT has returned.

// With synchronous_commit = off a crash loses the last transactions. The walsender sends only what
// is on disk, so none of them was sent; an agent that polls the table would have seen and sent
// them.
func TestP2_WhatACrashTakesBackWithSynchronousCommitOffWasNotSent(t *testing.T) {
	t.Parallel()
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{
		"synchronous_commit": "off", "wal_writer_delay": "1s", "restart_after_crash": "off",
	}})
	env := cluster.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	start(t, agenttest.Config(env)).WaitLog("leading")

	committed, rounds := 0, 5
	for round := range rounds {
		// They write until the crash, so that there is something that is not on disk at that
		// moment.
		var writers errgroup.Group
		var written atomic.Int64
		for w := range 3 {
			conn := connect(t, env)
			writers.Go(func() error {
				for i := 0; ; i++ {
					_, err := conn.Exec(context.Background(), `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_1', '{}')`,
						fmt.Sprintf("evt_%d_%d_%04d", round, w, i))
					if err != nil {
						return nil //nolint:nilerr // the crash; whether this one is there is not known
					}
					written.Add(1)
				}
			})
		}
		testenv.Eventually(t, agenttest.Patience, func() error {
			if n := written.Load(); n < 200 {
				return fmt.Errorf("%d events are written", n)
			}
			return nil
		})
		if err := cluster.Crash(); err != nil {
			t.Fatal(err)
		}
		_ = writers.Wait() // they end without an error
		committed += int(written.Load())
		if err := cluster.Resume(context.Background()); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 2*agenttest.Patience, func() error {
			open := testenv.QueryOne[int](t, env, `select count(*) from webhooks.outbox o where not exists (
				select from webhooks.deliveries d where d.event_id = o.id and d.status = 'succeeded')`)
			if open > 0 {
				return fmt.Errorf("%d events that are left have not arrived", open)
			}
			return nil
		})
	}
	exists := map[string]bool{}
	for _, id := range testenv.QueryAll[string](t, env, `select id from webhooks.outbox`) {
		exists[id] = true
	}
	for _, got := range r.Received() {
		if !exists[got.ID] {
			t.Errorf("%s was sent, and its transaction is lost", got.ID)
		}
	}
	lost := committed - len(exists)
	if lost <= 0 {
		t.Error("no crash lost a transaction, so the test shows nothing")
	}
	t.Logf("%d of %d transactions were lost in %d crashes, none of them was sent", lost, committed, rounds)
}

// A standby that follows asynchronously lacks the last transactions when it is promoted, and with
// them events that were sent. From PostgreSQL 17 on, synchronized_standby_slots keeps the stream
// back until the standby has them.
func TestP2_AnAsynchronousFailoverTakesBackWhatWasSentUnlessTheStreamWaits(t *testing.T) {
	t.Parallel()
	for _, waits := range []bool{false, true} {
		t.Run(fmt.Sprintf("the stream waits %t", waits), func(t *testing.T) {
			t.Parallel()
			cluster := testenv.NewCluster(t, testenv.Options{})
			if waits && cluster.Binaries().Major < 17 {
				waits = false // there is no such setting: what is sent is what the other case says
			}
			env := cluster.NewDB(t)
			r := testenv.StartReceiver(t, agenttest.Secret)
			endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
			standby := cluster.NewStandby(t)
			if waits {
				super := agenttest.ConnectURL(t, env.SuperuserURL)
				if _, err := super.Exec(context.Background(), "alter system set synchronized_standby_slots = 'standby'"); err != nil {
					t.Fatal(err)
				}
				if _, err := super.Exec(context.Background(), "select pg_reload_conf()"); err != nil {
					t.Fatal(err)
				}
			}
			start(t, agenttest.Config(env)).WaitLog("leading")
			agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_1", "lead.created", `"first"`), endpoint, "succeeded")
			testenv.Eventually(t, agenttest.Patience, func() error { return standby.CaughtUp(t.Context(), cluster) })
			if err := standby.Stop(t.Context(), testenv.Fast); err != nil {
				t.Fatal(err)
			}

			lost := agenttest.AddEvent(t, env, "venue_1", "lead.created", `"not on the standby"`)
			if waits {
				never(t, 3*time.Second, func() bool { return r.Count() > 1 }, "an event was sent that the standby does not have")
			} else {
				agenttest.WaitStatus(t, env, lost, endpoint, "succeeded")
			}
			if err := cluster.FailOver(t.Context(), standby); err != nil {
				t.Fatal(err)
			}
			next := agenttest.AddEvent(t, env, "venue_1", "lead.created", `"after the failover"`)
			agenttest.WaitStatus(t, env, next, endpoint, "succeeded")
			if testenv.QueryOne[bool](t, env, `select exists (select from webhooks.outbox where id = $1)`, lost) {
				t.Fatal("the failover lost nothing, so the test shows nothing")
			}
			sent := false
			for _, got := range r.Received() {
				sent = sent || got.ID == lost
			}
			if sent == waits {
				t.Errorf("the event that the failover took back was sent: %t", sent)
			}
		})
	}
}

// never watches for a while and fails the test when cond becomes true.
func never(t *testing.T, during time.Duration, cond func() bool, what string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(during); time.Now().Before(end); <-tick.C {
		if cond() {
			t.Error(what)
			return
		}
	}
}
