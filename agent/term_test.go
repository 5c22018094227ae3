package agent

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// resumable makes the stream of a term, behind a proxy.
func resumable(t *testing.T, env *testenv.DB) (*stream, *testenv.Proxy) {
	t.Helper()
	p := testenv.StartProxy(t, env.Addr())
	cfg := agenttest.Config(env)
	cfg.Database.URL = secret.New(p.Via(env.LeastURL))
	a, _ := bareAgent(t, cfg)
	c, tailer := newCandidate(a, a.db.Slot(cfg.Outbox.Slot)), outbox.NewTailer(a.outboxConfig(), a.log)
	t.Cleanup(tailer.Close)
	if err := c.acquire(t.Context(), tailer); err != nil {
		t.Fatal(err)
	}
	held, err := c.slot.TakeOver(t.Context(), tailer, c.holder)
	if err != nil {
		t.Fatal(err)
	}
	return &stream{term: held, db: c.db, slot: c.slot, tailer: tailer}, p
}

// The test goes through what may have happened while the stream was broken. "between" is what
// happens between the first checks and the start of the stream; the last check must find it.
func TestStream_ResumesOnlyTheTermThatItHolds(t *testing.T) {
	t.Parallel()
	const (
		begin   = `update webhooks.checkpoint set epoch = epoch + 1`
		advance = `select pg_replication_slot_advance('%[1]s', pg_current_wal_insert_lsn())`
		drop    = `select pg_drop_replication_slot('%[1]s')`
	)
	for name, test := range map[string]struct {
		meanwhile string // while the stream is broken
		between   string // before the stream starts
		want      error
	}{
		"nothing":                                    {"", "", nil},
		"another term":                               {begin, "", outbox.ErrFenced},
		"another term between check and start":       {"", begin, outbox.ErrFenced},
		"a slot that was advanced":                   {advance, "", outbox.ErrSlotMoved},
		"a slot that was dropped":                    {drop, "", outbox.ErrSlotGone},
		"a slot dropped between the check and start": {"", drop, outbox.ErrSlotGone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			s, p := resumable(t, env)
			s.tailer.Close()
			testenv.Eventually(t, agenttest.Patience, func() error { // the server has noticed
				if testenv.QueryOne[bool](t, env, `select active from pg_replication_slots where slot_name = $1`, env.Slot) {
					return errors.New("the slot is active")
				}
				return nil
			})
			if test.meanwhile == advance { // over something that was not confirmed
				agenttest.AddEvent(t, env, "venue_1", "lead.created", "{}")
			}
			act := func(sql string) {
				if sql == "" {
					return
				}
				if sql != begin {
					sql = fmt.Sprintf(sql, env.Slot)
				}
				if err := testenv.ExecSQL(t.Context(), env.SuperuserURL, sql); err != nil {
					t.Error(err)
				}
			}
			act(test.meanwhile)
			p.Before("START_REPLICATION", func() { act(test.between) })
			if err := s.resume(t.Context()); !errors.Is(err, test.want) {
				t.Errorf("resume returned %v, want %v", err, test.want)
			} else if test.want != nil && !endsTerm(err) {
				t.Errorf("%v does not end the term", err)
			}
		})
	}
}

func TestLease_HoldsWhileItIsFreshAndTheStreamIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		renewed := time.Now()
		l := newLease()
		for _, test := range []struct {
			passes time.Duration
			broken bool
			want   bool
		}{
			{0, false, true},
			{leaseTime - time.Millisecond, false, true},
			{0, true, false},
			{time.Millisecond, false, false},
			{0, true, false},
			{time.Hour, false, false},
		} {
			agenttest.Pass(test.passes)
			l.broken.Store(test.broken)
			if got := l.holds(); got != test.want {
				t.Errorf("%s after the lease was renewed, broken %t: it holds: %t", time.Since(renewed), test.broken, got)
			}
		}
		l.renew(time.Now())
		l.broken.Store(false)
		if !l.holds() {
			t.Error("it does not lead after the lease was renewed")
		}
	})
}
