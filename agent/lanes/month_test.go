package lanes

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The test plays thirty days, with an event every three quarters of an hour for five endpoints: one
// works, one is down each night, one flaps, one is overloaded, and one hangs for a day. Each
// morning the app enables again what the agent has disabled, and replays. The agent crashes about
// every two days, at any moment of its work.
func TestLanes_AMonthOfOutagesEndsWithEveryDeliveryAccountedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		m := &month{laneTest: lt}
		now := func() time.Duration { return time.Since(lt.began) }
		for _, e := range []struct {
			id     string
			answer func(string, int) answer
		}{
			{"sound", always(ok(30 * time.Millisecond))},
			{"nightly", func(string, int) answer {
				if now()%config.Day < 6*time.Hour {
					return failing(10 * time.Millisecond)
				}
				return ok(50 * time.Millisecond)
			}},
			{"flapping", func(string, int) answer {
				if at := now() % (10 * time.Minute); at > 4*time.Minute && at < 7*time.Minute { // and every other event comes then
					return failing(100 * time.Millisecond)
				}
				return ok(100 * time.Millisecond)
			}},
			{"overloaded", func(string, int) answer {
				if now()%(4*time.Hour) < time.Hour {
					return answer{0, sink.Result{Outcome: sink.Failed, Code: 503, Class: sink.ClassHTTPStatus, RetryAfter: 20 * time.Minute}}
				}
				return ok(time.Second)
			}},
			{"hung", func(string, int) answer {
				if at := now(); at > 9*config.Day && at < 10*config.Day {
					return failing(15 * time.Second)
				}
				return ok(20 * time.Millisecond)
			}},
		} {
			m.to = append(m.to, lt.endpoint(e.id, m.watched(e.id, e.answer)))
			m.rows = append(m.rows, outbox.Endpoint{ID: e.id, Generation: 1})
		}
		const step = 45 * time.Minute
		for n := 1; now() < 30*config.Day; n++ {
			for _, l := range m.to {
				lt.send(l, 1, 10)
			}
			if n%61 == 0 { // in the middle of attempts: those of the hung one take long, others have just begun
				agenttest.Pass(time.Duration(n%7) * 5 * time.Millisecond)
				m.crash()
			}
			agenttest.Pass(step - now()%step)
			m.tellDisabled()
			if now()%config.Day == 9*time.Hour {
				m.enableAll()
			}
		}
		m.enableAll()
		agenttest.Pass(6 * time.Hour)
		m.tellDisabled()
		lt.quiet()
		m.judge()
	})
}

// month is the app and the database around the lanes.
type month struct {
	*laneTest
	to       []*Lane
	rows     []outbox.Endpoint
	disabled int // how often the agent disabled an endpoint
	replayed int
}

// watched fails the test when attempts to a disabled endpoint go on for longer than one attempt
// takes.
func (m *month) watched(id string, next func(string, int) answer) func(string, int) answer {
	return func(eventID string, n int) answer {
		for _, row := range m.rows {
			if row.ID == id && row.Disabled {
				m.t.Errorf("%s is sent to %s while it is disabled", eventID, id)
			}
		}
		return next(eventID, n)
	}
}

func (m *month) crash() {
	m.laneTest.crash(m.rows)
	for i, row := range m.rows {
		m.to[i] = m.byID[row.ID]
	}
}

// tellDisabled brings to the lanes, as the stream does, what the agent has written to the
// endpoints. An endpoint that the agent disables must have failed exactly a hundred times in a row.
func (m *month) tellDisabled() {
	for i := range m.rows {
		row := &m.rows[i]
		s := m.book.state(*row)
		if !s.Disabled || row.Disabled {
			continue
		}
		if s.Failures != m.cfg.DisableAfter {
			m.t.Errorf("%s is disabled after %d failures in a row", row.ID, s.Failures)
		}
		m.disabled++
		row.Disabled = true
		m.changeTo(*row, "")
	}
}

// enableAll enables what is disabled and replays what was missed or has failed.
func (m *month) enableAll() {
	for i := range m.rows {
		row := &m.rows[i]
		if row.Disabled {
			row.Disabled = false
			row.Generation++
			m.book.enable(row.ID)
			m.changeTo(*row, "")
		}
		if n := m.replay(row.ID); n > 0 {
			m.replayed += n
			m.Requeued(row.ID)
		}
	}
}

// replay makes what an endpoint missed pending again, a new round of six attempts.
func (m *month) replay(id string) (n int) {
	m.book.mu.Lock()
	defer m.book.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, row := range m.book.rows {
		if key.endpointID != id || row.status != outbox.Missed && row.status != outbox.Failed {
			continue
		}
		m.book.becomeLocked(key, row, outbox.Pending)
		row.attempts, row.next = 0, time.Now()
		delete(m.endpoints[id].times, key.eventID)
		n++
	}
	return n
}

// judge checks the result at the end of the month.
func (m *month) judge() {
	for key, row := range m.book.rows {
		if row.status != outbox.Succeeded && row.status != outbox.Failed {
			m.t.Errorf("%s to %s is %q at the end", key.eventID, key.endpointID, row.status)
		}
		times := m.seen(key.endpointID).times[key.eventID]
		for i := 1; i < len(times); i++ {
			wait, least := times[i]-times[i-1], m.cfg.Retries[i-1]
			if wait < least {
				m.t.Errorf("attempt %d of %s to %s came after %s, want %s at least", i+1, key.eventID, key.endpointID, wait, least)
			}
			if key.endpointID == "flapping" && wait > least+time.Minute {
				m.t.Errorf("attempt %d of %s to %s came after %s, want %s", i+1, key.eventID, key.endpointID, wait, least)
			}
		}
	}
	if m.disabled == 0 || m.replayed == 0 {
		m.t.Errorf("%d endpoints were disabled, %d deliveries replayed: the month was too quiet", m.disabled, m.replayed)
	}
	m.t.Logf("%d deliveries, %d times disabled, %d replayed", len(m.book.rows), m.disabled, m.replayed)
}

func TestLanes_TheCounterOutlivesACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("dead", always(failing(time.Second)))
		row := outbox.Endpoint{ID: "dead", Generation: 1}
		lt.send(l, 200, 10)
		for lt.book.state(row).Failures < 60 {
			agenttest.Pass(500 * time.Millisecond)
		}
		recorded := lt.book.state(row).Failures
		lt.crash([]outbox.Endpoint{row})
		made := lt.made("dead")
		agenttest.Pass(time.Hour)
		if after, s := lt.made("dead")-made, lt.book.state(row); after != lt.cfg.DisableAfter-recorded || !s.Disabled {
			t.Errorf("%d attempts after a crash at %d failures, disabled %t", after, recorded, s.Disabled)
		}
	})
}
