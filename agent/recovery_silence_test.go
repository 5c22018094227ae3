package agent

import (
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file make the connections of an agent silent: the other side is gone without a
// message, while new connections work.

// untilNoticed is how long an agent may take to close silent connections and to work again: the
// stream's own timeout and, for a commit that waits, that of a statement.
const untilNoticed = 30 * time.Second

// behind makes an outage whose agent reaches the database by a proxy.
func behind(t *testing.T, s *outage) *testenv.Proxy {
	t.Helper()
	network := testenv.StartProxy(t, agenttest.HostOf(t, s.env.URL))
	s.cfg.Database.URL = secret.New(network.Via(s.env.LeastURL))
	return network
}

// recordedSoon writes an event and wants it to be recorded in untilNoticed.
func (s *outage) recordedSoon() {
	s.t.Helper()
	began := time.Now()
	s.wait(s.event())
	if took := time.Since(began); took > untilNoticed {
		s.t.Errorf("the event was recorded after %s", took.Round(time.Second))
	}
}

func TestRecovery_ALeaderGivesSilentConnectionsUp(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, testenv.NewDB(t))
	network := behind(t, s)
	s.start()
	s.settle()
	network.Freeze()
	s.recordedSoon()
	s.eachOnce()
}

func TestRecovery_AStandbyGivesSilentConnectionsUp(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	leader := s.agent
	network := behind(t, s)
	s.agent = start(t, s.cfg)
	s.agent.WaitLog("standing by")
	network.Freeze()
	leader.End()
	s.recordedSoon()
	s.eachOnce()
}

func TestRecovery_SilentConnectionsDoNotHoldUpTheEndOfAnAgent(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	network := behind(t, s)
	standby := start(t, s.cfg)
	standby.WaitLog("standing by")
	network.Freeze()
	began := time.Now()
	standby.End()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the agent ended after %s", took.Round(time.Second))
	}
	s.eachOnce()
}
