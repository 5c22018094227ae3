package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCheck_FindsNothingWrongWithASoundRun(t *testing.T) {
	v := check(soundHistory().history)
	for _, found := range v.violations {
		t.Errorf("%s: %s", found.rule, found.text)
	}
	want := figures{committed: 10, rolledBack: 3, unsure: 2, unsureHeld: 1, deliveries: 9, requests: 11, retries: 1, replayed: 1, disabled: 1}
	if got := v.figures; got.committed != want.committed || got.rolledBack != want.rolledBack || got.unsure != want.unsure ||
		got.unsureHeld != want.unsureHeld || got.deliveries != want.deliveries || got.requests != want.requests ||
		got.retries != want.retries || got.replayed != want.replayed || got.disabled != want.disabled {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if d := v.duplicates; d.measured != 1 || d.allowed != 1 || d.unexplained != 0 || d.worst.N != 1 {
		t.Errorf("duplicates: %+v, want one of at most one, by the kill", d)
	}
	if r := v.recovery[kill]; !slices.Equal(r, []time.Duration{s(1)}) {
		t.Errorf("recovered from the kill after %v, want 1s: the first event that was committed after it", r)
	}
}

// TestCheck_CatchesEachBreach breaks the sound run in one way at a time.
func TestCheck_CatchesEachBreach(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(madeUp)
		want rule
		says string
	}{
		{"a committed event has no delivery", func(m madeUp) {
			m.tx("t20", 24, committed, m.event("e20", "lead.created", "venue_1"))
		}, ruleLost, "it has no delivery"},
		{"a committed event is not in the outbox", func(m madeUp) {
			m.Outbox = slices.DeleteFunc(m.Outbox, func(id string) bool { return id == "e1" })
		}, ruleLost, "not in the outbox"},
		{"a delivery succeeded by the log only", func(m madeUp) {
			m.tx("t20", 24, committed, m.event("e20", "lead.created", "venue_1"))
			m.row("e20", "ep_1", "succeeded", 1)
		}, ruleLost, "it never arrived"},
		{"a delivery to an endpoint that answers has not succeeded in the end", func(m madeUp) {
			m.delivery("e1", "ep_1").Status = "missed"
		}, ruleLost, "in the end the log says missed"},
		{"an event for a dead endpoint is not in the log", func(m madeUp) {
			m.tx("t20", 24, committed, m.event("e20", "lead.created", "venue_3"))
		}, ruleLost, "it has no delivery"},
		{"an event of a COMMIT without an answer, which was carried out, is lost", func(m madeUp) {
			m.tx("t20", 24, unknown, m.event("e20", "lead.created", "venue_1"))
		}, ruleLost, "it has no delivery"},
		{"an event was sent that was rolled back", func(m madeUp) {
			m.request("e2", "ep_1", "a.1", 2.1, 200)
		}, rulePhantom, "was rolled back"},
		{"an event was sent that a savepoint had undone", func(m madeUp) {
			m.request("e3", "ep_2", "a.1", 3.1, 200)
		}, rulePhantom, "was rolled back"},
		{"an event was sent whose COMMIT had no answer and was not carried out", func(m madeUp) {
			m.request("e6", "ep_1", "a.1", 5.1, 200)
		}, rulePhantom, "was rolled back"},
		{"an event was sent that nobody wrote", func(m madeUp) {
			m.request("e99", "ep_1", "a.1", 5.1, 200)
		}, rulePhantom, "nobody wrote"},
		{"the log has a delivery of an event that was rolled back", func(m madeUp) {
			m.row("e2", "ep_1", "pending", 0)
		}, rulePhantom, "was not committed"},
		{"a number was spelled anew", func(m madeUp) { m.Requests[0].Hash = "00" }, ruleBytes, "promised is"},
		{"QuintaGo's signature is wrong", func(m madeUp) { m.Requests[0].Quintago = "does not match" }, ruleSignature, "does not match"},
		{"the signature of Standard Webhooks is wrong", func(m madeUp) { m.Requests[0].Standard = "does not match" }, ruleSignature, "does not match"},
		{"the time of a signature is off, and nobody moved a clock", func(m madeUp) { m.Requests[0].Ahead = time.Hour }, ruleSignature, "1h0m0s off"},
		{"an event went to another venue", func(m madeUp) { m.request("e1", "ep_2", "a.1", 1.2, 200) }, ruleTenant, "of venue_1 to ep_2"},
		{"an event went where its type is not wanted", func(m madeUp) { m.request("e7", "ep_2", "a.1", 6.2, 200) }, ruleTenant, "which wants"},
		{"the log has a delivery that nobody wants", func(m madeUp) { m.row("e7", "ep_2", "missed", 0) }, ruleTenant, "does not want it"},
		{"an event came again for no reason", func(m madeUp) { m.request("e1", "ep_1", "a.1", 5, 200) }, ruleDuplicate, "repeats it"},
		{"an event came again that had been recorded long before the kill", func(m madeUp) { m.request("e5", "ep_1", "a.2", 11, 200) }, ruleDuplicate, "repeats it"},
		{"an event came again by the kill of an agent that had not sent it", func(m madeUp) {
			m.Faults[0].Agents, m.Faults[1].Agents = []string{"b.1"}, []string{"b.1"}
		}, ruleDuplicate, "repeats it"},
		{"an event came again before the fault that would explain it", func(m madeUp) { m.request("e11", "ep_1", "b.1", 9.9, 200) }, ruleDuplicate, "repeats it"},
		{"one replay sent an event twice", func(m madeUp) { m.request("e12", "ep_1", "a.2", 21, 200) }, ruleDuplicate, "repeats it"},
		{"a request was sent while the one before it was under way", func(m madeUp) {
			m.Requests = append(m.Requests, m.arrival("e10", "ep_hung", "a.1", 7))
			m.Answers = append(m.Answers, answer{N: int64(len(m.Requests)), At: s(9)})
		}, ruleDuplicate, "repeats it"},
		{"a delivery was recorded again", func(m madeUp) {
			m.Rewritten = append(m.Rewritten, rewrittenRow{"e1", "ep_1", "succeeded 1", "succeeded 1", s(11)})
		}, ruleLog, "was recorded again"},
		{"an answer was not recorded", func(m madeUp) {
			m.Attempts = slices.DeleteFunc(m.Attempts, func(a attemptRow) bool { return a.Endpoint == "ep_flaky" })
			m.delivery("e8", "ep_flaky").Attempts = 1
		}, ruleLog, "faults can have taken 0 along"},
		{"a failure was recorded that no receiver has seen", func(m madeUp) {
			m.attempt("e8", "ep_flaky", 2, 7.5, 500, "http_status")
			m.delivery("e8", "ep_flaky").Attempts = 3
		}, ruleLog, "2 attempts are recorded as answered 500, and 1 requests were"},
		{"a silence was recorded that no receiver has seen", func(m madeUp) {
			m.attempt("e10", "ep_hung", 2, 9.5, 0, "timeout")
			m.delivery("e10", "ep_hung").Attempts = 2
		}, ruleLog, "2 attempts are recorded as without an answer"},
		{"an attempt is recorded twice", func(m madeUp) {
			m.attempt("e9", "ep_dead", 1, 8.2, 0, "connect_refused")
			m.delivery("e9", "ep_dead").Attempts = 4
		}, ruleLog, "attempt 1 is recorded 2 times"},
		{"a delivery was attempted too often", func(m madeUp) {
			m.attempt("e9", "ep_dead", 4, 8.5, 0, "connect_refused")
			m.delivery("e9", "ep_dead").Attempts = 4
		}, ruleLog, "at most 3"},
		{"a delivery tells of another number of attempts than the log has", func(m madeUp) { m.delivery("e8", "ep_flaky").Attempts = 1 }, ruleLog, "tells of 1 attempts, 2 are recorded"},
		{"a replay never ended", func(m madeUp) { m.Replays[0].State = "running" }, ruleLog, "has not ended"},
		{"an endpoint was disabled too early", func(m madeUp) { m.Operations[0].Failures = 2 }, ruleDisabled, "after 2 failures in a row"},
		{"an endpoint was disabled after too many attempts", func(m madeUp) {
			m.attempt("e9", "ep_dead", 3, 8.35, 0, "connect_refused")
		}, ruleDisabled, "has 4 failed attempts in the log"},
		{"something was sent to a disabled endpoint", func(m madeUp) {
			m.Rows = append(m.Rows, endpointRow{ID: "ep_1", Disabled: true, Reason: "failures", DisabledAt: s(15), Generation: 1, Failures: 3, HealthGeneration: 1})
		}, ruleDisabled, "was sent to ep_1"},
		{"nothing arrived for too long after a kill", func(m madeUp) {
			for i := range m.Requests {
				if m.Requests[i].At > s(10) && m.Requests[i].At < s(25) {
					m.Requests[i].At, m.Answers[i].At = s(24), s(24)
				}
			}
		}, ruleRecovery, "nothing arrived for 14.00s"},
		{"nothing arrived any more after a kill", func(m madeUp) {
			m.tx("t20", 40, committed, m.event("e20", "lead.created", "venue_2"))
			m.delivered("e20", "ep_2", "a.2", 41)
			for i := range m.Requests {
				if m.Requests[i].At > s(10) {
					m.Requests[i].At, m.Answers[i].At = s(41), s(41)
				}
			}
		}, ruleRecovery, "nothing arrived"},
		{"nothing arrived for a long time, with one fault after another", func(m madeUp) {
			for n := range 20 {
				m.fault(fault{Kind: terminate, Agents: []string{"a.2"}, Led: true, Start: s(26 + 2*float64(n)), End: s(26 + 2*float64(n))})
			}
			m.tx("t20", 66, committed, m.event("e20", "lead.created", "venue_1"))
			m.delivered("e20", "ep_1", "a.2", 66.1)
			m.tx("t21", 67, committed, m.event("e21", "proposal.sent", "venue_2"))
		}, ruleRecovery, "nothing arrived from 25.10s to 66.10s"},
		{"goroutines were left", func(m madeUp) { m.Resources[1].Goroutines = 31 }, ruleResources, "31 goroutines, 20 in the beginning"},
		{"files were left open", func(m madeUp) { m.Resources[1].Files = 26 }, ruleResources, "26 open files"},
		{"memory was left", func(m madeUp) { m.Resources[1].Bytes = 300 << 20 }, ruleResources, "300 MiB"},
		{"the position was ahead of what was recorded", func(m madeUp) { m.Unseen = []unseen{{"a.2", 7}} }, ruleUnseen, "agent a.2 found 7 deliveries"},
		{"an agent ended by itself", func(m madeUp) {
			m.Agents = append(m.Agents, agentRun{Agent: "a.2", At: s(12), Ended: true, Fault: "it ended by itself: exit status 2"})
		}, ruleProcess, "exit status 2"},
		{"the torture could not do what it was to do", func(m madeUp) { m.Faults[1].Failed = "no such process" }, ruleRun, "no such process"},
		{"a transaction is in the outbox in part", func(m madeUp) {
			m.tx("t20", 24, unknown, m.event("e20", "proposal.sent", "venue_2"), m.event("e21", "proposal.sent", "venue_2"))
			m.Outbox = m.Outbox[:len(m.Outbox)-1]
		}, ruleRun, "in part"},
		{"nobody knows how a transaction ended", func(m madeUp) { m.Endings = m.Endings[1:] }, ruleRun, "nobody knows"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := soundHistory()
			test.do(m)
			v := check(m.history)
			if !slices.ContainsFunc(v.violations, func(x violation) bool { return x.rule == test.want && strings.Contains(x.text, test.says) }) {
				t.Errorf("found %v, want %s: …%s…", v.violations, test.want, test.says)
			}
		})
	}
}

// TestCheck_AllowsWhatFaultsExplain adds things that look like a breach but are not one.
func TestCheck_AllowsWhatFaultsExplain(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(madeUp)
	}{
		{"an answer that the network has lost is repeated", func(m madeUp) {
			m.fault(fault{Kind: receivers, How: stalled, Start: s(15), End: s(18)})
			m.tx("t20", 15, committed, m.event("e20", "lead.created", "venue_1"))
			m.request("e20", "ep_1", "a.2", 18.1, 200)
			m.request("e20", "ep_1", "a.2", 18.2, 200)
			m.attempt("e20", "ep_1", 1, 17.1, 0, "timeout")
			m.row("e20", "ep_1", "succeeded", 2)
		}},
		{"an attempt that never came through a broken network is recorded", func(m madeUp) {
			m.fault(fault{Kind: receivers, How: refused, Start: s(15), End: s(18)})
			m.tx("t20", 15, committed, m.event("e20", "lead.created", "venue_1"))
			m.attempt("e20", "ep_1", 1, 15.1, 0, "connection_reset")
			m.request("e20", "ep_1", "a.2", 18.2, 200)
			m.row("e20", "ep_1", "succeeded", 2)
		}},
		{"a thawed agent sends what was under way", func(m madeUp) {
			m.fault(fault{Kind: freeze, Target: leader, Agents: []string{"b.1"}, Start: s(1), End: s(15)})
			m.request("e4", "ep_2", "b.1", 15.1, 200)
		}},
		{"the crash of PostgreSQL takes the last results along", func(m madeUp) {
			m.fault(fault{Kind: crash, Agents: []string{"a.2"}, Start: s(11.5), End: s(13)})
			m.request("e12", "ep_1", "a.2", 14, 200)
			m.tx("t20", 13.2, committed, m.event("e20", "lead.created", "venue_1"))
			m.delivered("e20", "ep_1", "a.2", 13.5)
		}},
		{"a moved clock signs another time", func(m madeUp) {
			m.fault(fault{Kind: clock, Agents: []string{"a.2"}, Shift: time.Hour, Start: s(24), End: s(26)})
			m.Requests[len(m.Requests)-1].Ahead = time.Hour
		}},
		{"a failure whose result the kill has taken along is not in the log", func(m madeUp) {
			m.tx("t20", 9, committed, m.event("e20", "payment.received", "venue_2"))
			m.request("e20", "ep_flaky", "a.1", 9.5, 500)
			m.delivered("e20", "ep_flaky", "a.2", 11.1)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := soundHistory()
			test.do(m)
			for _, found := range check(m.history).violations {
				t.Errorf("%s: %s", found.rule, found.text)
			}
		})
	}
}

func TestCheck_TakesWhatAnAttemptSendsOnceMoreForOne(t *testing.T) {
	at := func(agent string, start, end time.Duration, status int) *seen {
		return &seen{request: request{Agent: agent, At: start}, end: end, status: status}
	}
	const ms = time.Millisecond
	for _, test := range []struct {
		name     string
		requests []*seen
		kept     int
	}{
		{"three connections", []*seen{at("a.1", 0, 5*ms, 0), at("a.1", 6*ms, 9*ms, 0), at("a.1", 10*ms, 20*ms, 200)}, 1},
		{"more than three", []*seen{at("a.1", 0, 5*ms, 0), at("a.1", 6*ms, 9*ms, 0), at("a.1", 10*ms, 20*ms, 0), at("a.1", 21*ms, 30*ms, 0)}, 2},
		{"the receiver notices late", []*seen{at("a.1", 0, 9*ms, 0), at("a.1", 6*ms, 20*ms, 200)}, 1},
		{"another attempt", []*seen{at("a.1", 0, 5*ms, 0), at("a.1", time.Second, time.Second+5*ms, 0)}, 2},
		{"another agent", []*seen{at("a.1", 0, 5*ms, 0), at("b.1", 6*ms, 9*ms, 0)}, 2},
		{"an answer", []*seen{at("a.1", 0, 5*ms, 500), at("a.1", 6*ms, 9*ms, 0)}, 2},
		{"at the same time", []*seen{at("a.1", 0, 2*time.Second, 0), at("a.1", 6*ms, 9*ms, 0)}, 2},
	} {
		c := &checker{v: &verdict{}}
		if kept := c.onePerAttempt(test.requests); len(kept) != test.kept || c.v.resent != len(test.requests)-test.kept {
			t.Errorf("%s: %d kept, %d left out, want %d kept", test.name, len(kept), c.v.resent, test.kept)
		}
	}
}
