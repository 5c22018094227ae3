package agent

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file give the agent a checkpoint that is not of the server it is on, or of
// another time.

func TestRecovery_ACheckpointOfAnotherServerOrTimeIsNotTrusted(t *testing.T) {
	t.Parallel()
	// What another server's transaction ids say about rows here: that all of them were handed over.
	const foreignHorizon = `, horizon = '2000000000:2000000000:'`
	for _, test := range []struct {
		name, change string
		slotToo      bool // the slot is gone as well
		told         string
		adopt        bool // a person has to say that the agent goes on
	}{
		{"ahead of the WAL", `lsn = pg_current_wal_insert_lsn() + 1000000000`, false, "ahead of the server's WAL", false},
		{"ahead of the WAL in a recovery", `recovering = true, lsn = pg_current_wal_insert_lsn() + 1000000000`, false, "ahead of the server's WAL", false},
		{"another timeline", `timeline = timeline + 1`, false, "there was a failover or a restore", false},
		{"another server", `system_identifier = '1'` + foreignHorizon, false, "of another server", true},
		{"another server in a recovery", `recovering = true, lsn = pg_current_wal_insert_lsn() + 1000000000, system_identifier = '1'` + foreignHorizon, false, "of another server", true},
		{"another server, no slot", `system_identifier = '1'` + foreignHorizon, true, "of another server", true},
		{"another database", `database = 'other'` + foreignHorizon, false, "of another database", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newOutage(t, testenv.NewDB(t))
			s.agent.End()
			s.env.Exec(t, `update webhooks.checkpoint set `+test.change)
			if test.slotToo {
				s.env.Exec(t, `select pg_drop_replication_slot($1)`, s.env.Slot)
			}
			s.event()
			s.event()
			s.agent = start(t, s.cfg)
			s.agent.WaitLog(test.told)
			if test.adopt {
				if status, _ := get(t, s.agent.AdminURL()+"/readyz"); status != http.StatusServiceUnavailable {
					t.Errorf("/readyz answers %d before anybody has adopted", status)
				}
				commandSucceeds(t, s.env, "adopt")
			}
			s.ready()
			lost := 0 // the slot that is still there brings them
			if test.slotToo {
				lost = 2
			}
			s.recovered(lost)
			s.eachOnce()
		})
	}
}

func TestRecovery_AFileLevelBackupThatIsPutBackIsGoneOnWith(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("agent runs %t", running), func(t *testing.T) {
			t.Parallel()
			s, cluster := ownOutage(t, nil)
			if err := cluster.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.ready()
			const since = 50 // so that the WAL does not come as far again soon
			for range since {
				s.event()
			}
			s.wait(s.events...)
			if !running {
				s.agent.End()
			}
			if err := cluster.Restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.forget(since)
			s.event()
			if !running {
				s.start()
			}
			s.eachOnce()
		})
	}
}

func TestRecovery_AFailoverLosesNothing(t *testing.T) {
	t.Parallel()
	s, cluster := ownOutage(t, nil)
	standby := cluster.NewStandby(t)
	s.ready()
	s.wait(s.event())
	slotKept := cluster.Binaries().Major >= 17 // the server copies the slot to the standby
	if slotKept {
		s.slotOnStandby(standby)
	}
	admit := s.disconnect()
	s.event()
	s.event()
	s.eventually(func() error { return standby.CaughtUp(t.Context(), cluster) })
	if err := cluster.FailOver(t.Context(), standby); err != nil {
		t.Fatal(err)
	}
	admit()
	s.agent.WaitLog("there was a failover or a restore")
	lost := 2
	if slotKept {
		lost = 0
	}
	s.recovered(lost)
	s.eachOnce()
}

// An asynchronous standby lacks the last transactions, and its WAL ends before the position that
// the agent has confirmed.
func TestRecovery_AFailoverThatLosesTransactionsIsGoneOnWith(t *testing.T) {
	t.Parallel()
	s, cluster := ownOutage(t, nil)
	standby := cluster.NewStandby(t)
	s.ready()
	s.eventually(func() error { return standby.CaughtUp(t.Context(), cluster) })
	if err := standby.Stop(t.Context(), testenv.Fast); err != nil {
		t.Fatal(err)
	}
	const lost = 50
	for range lost {
		s.event()
	}
	s.wait(s.events...)
	if err := cluster.FailOver(t.Context(), standby); err != nil {
		t.Fatal(err)
	}
	s.forget(lost)
	s.event()
	s.agent.WaitLog("there was a failover or a restore")
	s.eachOnce()
}

// slotOnStandby waits until the standby has a copy of the slot that outlives its promotion.
func (s *outage) slotOnStandby(standby *testenv.Cluster) {
	s.t.Helper()
	conn := agenttest.ConnectURL(s.t, standby.URL(s.env.Name))
	var last time.Time
	s.eventually(func() error {
		// The copy lasts once the slot has moved on beyond where the standby began, so something
		// must happen.
		if time.Since(last) > 300*time.Millisecond {
			last = time.Now()
			s.event()
		}
		var ready bool
		err := conn.QueryRow(s.t.Context(), `select exists (select from pg_replication_slots where slot_name = $1 and synced and not temporary)`, s.env.Slot).Scan(&ready)
		if err == nil && !ready {
			err = errors.New("the standby has no copy of the slot that outlives its promotion")
		}
		return err
	})
}
