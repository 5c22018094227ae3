package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
)

// madeUp is a history that a test makes up. Its methods add what the torture would have written
// down.
type madeUp struct{ *history }

var begun = time.Date(2026, 5, 10, 14, 32, 0, 0, time.UTC)

// s returns the moment after so many seconds.
func s(seconds float64) moment { return time.Duration(seconds * float64(time.Second)) }

// soundHistory is a run in which every promise was kept. It has something of everything that a run
// has. Agent a.1 leads until it is killed at 10 s, and a.2 leads from then on.
func soundHistory() madeUp {
	m := madeUp{&history{
		Run: runInfo{Begun: begun, Seed: 1, Length: time.Minute, DisableAfter: 3, Attempts: 3, Timeout: 2 * time.Second},
		Endpoints: []endpointInfo{
			{ID: "ep_1", Venue: "venue_1", Events: []string{"*"}, Behavior: healthy},
			{ID: "ep_2", Venue: "venue_2", Events: []string{"lead.*"}, Behavior: healthy},
			{ID: "ep_flaky", Venue: "venue_2", Events: []string{"payment.received"}, Behavior: flaky},
			{ID: "ep_dead", Venue: "venue_3", Events: []string{"*"}, Behavior: dead},
			{ID: "ep_hung", Venue: "venue_4", Events: []string{"*"}, Behavior: hung},
		},
		Agents: []agentRun{{Agent: "a.1", At: s(0)}, {Agent: "a.1", At: s(10), Ended: true, How: endedByKill}, {Agent: "a.2", At: s(10.5)}},
		Faults: []fault{
			{N: 1, Kind: kill, Target: leader, Agents: []string{"a.1"}, Led: true, Start: s(10)},
			{N: 1, Kind: kill, Target: leader, Agents: []string{"a.1"}, Led: true, Start: s(10), End: s(10), Restart: s(10.5), Over: true},
		},
		Resources: []resources{
			{Phase: "base", Agent: "a.1", Leading: true, Goroutines: 20, Files: 15, Bytes: 20 << 20},
			{Phase: "end", Agent: "a.2", Leading: true, Goroutines: 25, Files: 16, Bytes: 30 << 20},
		},
	}}
	// This one is delivered at once.
	m.tx("t1", 1, committed, m.event("e1", "lead.created", "venue_1"))
	m.delivered("e1", "ep_1", "a.1", 1.1)
	// These are rolled back, one as a whole and one in part.
	m.tx("t2", 2, rolledBack, m.event("e2", "lead.created", "venue_1"))
	undone := m.event("e3", "lead.created", "venue_2")
	undone.Undone = true
	m.tx("t3", 3, committed, m.event("e4", "lead.created", "venue_2"), undone)
	m.delivered("e4", "ep_2", "a.1", 3.1)
	// COMMIT had no answer. One was carried out, and one was not.
	m.tx("t4", 4, unknown, m.event("e5", "lead.created", "venue_1"))
	m.delivered("e5", "ep_1", "a.1", 4.1)
	m.tx("t5", 5, unknown, m.event("e6", "lead.created", "venue_1"))
	m.Outbox = m.Outbox[:len(m.Outbox)-1]
	// No endpoint wants this one.
	m.tx("t6", 6, committed, m.event("e7", "proposal.sent", "venue_2"))
	// This one arrived at the second attempt.
	m.tx("t7", 7, committed, m.event("e8", "payment.received", "venue_2"))
	m.request("e8", "ep_flaky", "a.1", 7.1, 500)
	m.request("e8", "ep_flaky", "a.1", 8.1, 200)
	m.row("e8", "ep_flaky", "succeeded", 2)
	m.attempt("e8", "ep_flaky", 1, 7.1, 500, "http_status")
	// Nobody answers here. The third failure in a row disables the endpoint, and the operator
	// enables it again.
	m.tx("t8", 8, committed, m.event("e9", "lead.created", "venue_3"))
	for n := 1; n <= 3; n++ {
		m.attempt("e9", "ep_dead", n, 8+float64(n)/10, 0, "connect_refused")
	}
	m.row("e9", "ep_dead", "failed", 3)
	m.Operations = append(m.Operations, operation{At: s(9), Endpoint: "ep_dead", Fate: committed, Enabled: true, Generation: 1, Failures: 3, Reason: "failures", DisabledAt: s(8.4)})
	m.Rows = append(m.Rows, endpointRow{ID: "ep_dead", Generation: 2, Failures: 0, HealthGeneration: 1})
	// One attempt has reached its time limit.
	m.tx("t9", 6, committed, m.event("e10", "lead.created", "venue_4"))
	m.Requests = append(m.Requests, m.arrival("e10", "ep_hung", "a.1", 6.1))
	m.Answers = append(m.Answers, answer{N: int64(len(m.Requests)), At: s(8.1)})
	m.attempt("e10", "ep_hung", 1, 8.1, 0, "timeout")
	m.row("e10", "ep_hung", "pending", 1)
	m.Rows = append(m.Rows, endpointRow{ID: "ep_hung", Generation: 1, Failures: 1, HealthGeneration: 1})
	// The kill has lost the first result.
	m.tx("t10", 9.5, committed, m.event("e11", "lead.created", "venue_1"))
	m.request("e11", "ep_1", "a.1", 9.6, 200)
	m.delivered("e11", "ep_1", "a.2", 10.8)
	// The run goes on, and the operator asks for one event to be sent again.
	m.tx("t11", 10.6, committed, m.event("e12", "lead.created", "venue_1"))
	m.delivered("e12", "ep_1", "a.2", 11)
	m.Operations = append(m.Operations, operation{At: s(19), Endpoint: "ep_1", Fate: committed, Replay: "rpl_1", Events: []string{"e12"}, Statuses: []string{"succeeded"}})
	m.Replays = append(m.Replays, replayRow{ID: "rpl_1", Endpoint: "ep_1", State: "done"})
	m.request("e12", "ep_1", "a.2", 20, 200)
	m.tx("t12", 25, committed, m.event("e13", "lead.created", "venue_1"))
	m.delivered("e13", "ep_1", "a.2", 25.1)
	return m
}

func (m madeUp) event(id, eventType, venue string) writtenEvent {
	return writtenEvent{ID: id, Type: eventType, Venue: venue, Created: begun, Data: `{"n":1.0e2}`}
}

// tx adds a transaction that ends at a moment. Its events are in the outbox unless they were rolled
// back.
func (m madeUp) tx(name string, at float64, f fate, events ...writtenEvent) {
	m.Writes = append(m.Writes, write{Tx: name, At: s(at - 0.1), Events: events})
	m.Endings = append(m.Endings, ending{name, s(at), f})
	for _, e := range events {
		if f != rolledBack && !e.Undone {
			m.Outbox = append(m.Outbox, e.ID)
		}
	}
}

// arrival returns a request that is as promised.
func (m madeUp) arrival(event, endpoint, agent string, at float64) request {
	r := request{N: int64(len(m.Requests) + 1), At: s(at), Endpoint: endpoint, Event: event, Agent: agent}
	for _, w := range m.Writes {
		for _, e := range w.Events {
			if e.ID == event {
				hash := sha256.Sum256(fmt.Appendf(nil, `{"id":"%s","type":"%s","created":"2026-05-10T14:32:00Z","venue":"%s","data":{"n":1.0e2}}`, e.ID, e.Type, e.Venue))
				r.Hash = hex.EncodeToString(hash[:])
			}
		}
	}
	return r
}

// request adds a request that is answered at once.
func (m madeUp) request(event, endpoint, agent string, at float64, status int) {
	r := m.arrival(event, endpoint, agent, at)
	r.Plan = status
	m.Requests = append(m.Requests, r)
	m.Answers = append(m.Answers, answer{r.N, r.At + time.Millisecond, status})
}

// delivered adds a delivery that succeeds with this request.
func (m madeUp) delivered(event, endpoint, agent string, at float64) {
	m.request(event, endpoint, agent, at, 200)
	m.row(event, endpoint, "succeeded", 1)
}

func (m madeUp) row(event, endpoint, status string, attempts int) {
	m.Deliveries = append(m.Deliveries, deliveryRow{Event: event, Endpoint: endpoint, Status: status, Attempts: attempts})
}

func (m madeUp) attempt(event, endpoint string, number int, at float64, code int, class string) {
	m.Attempts = append(m.Attempts, attemptRow{event, endpoint, number, s(at), code, class})
}

// delivery returns a row of the log, so that a test can change it.
func (m madeUp) delivery(event, endpoint string) *deliveryRow {
	for i := range m.Deliveries {
		if d := &m.Deliveries[i]; d.Event == event && d.Endpoint == endpoint {
			return d
		}
	}
	panic("the history has no delivery of " + event + " to " + endpoint)
}

// fault adds a fault that is over.
func (m madeUp) fault(f fault) {
	f.N, f.Over = len(m.Faults)+1, true
	m.Faults = append(m.Faults, f)
}
