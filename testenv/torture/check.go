package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// rule is a kind of promise of the agent, or of demand on the run itself.
type rule string

const (
	ruleLost      rule = "lost"      // a committed event did not arrive, or is not in the log
	rulePhantom   rule = "phantom"   // something arrived that no committed transaction has written
	ruleBytes     rule = "bytes"     // a body is not the one that was promised
	ruleSignature rule = "signature" // a signature, or the time that it holds, is wrong
	ruleTenant    rule = "tenant"    // an event went to an endpoint that has not subscribed to it
	ruleDuplicate rule = "duplicate" // no fault, failure or replay explains a repetition
	// ruleUnseen: the position was ahead of what was recorded, and only the comparison with the
	// outbox found the events.
	ruleUnseen rule = "unseen"
	ruleLog    rule = "log" // the log differs from what happened
	// ruleDisabled: an endpoint was disabled too early or too late, or got requests while disabled.
	ruleDisabled  rule = "disabled"
	ruleRecovery  rule = "recovery"  // nothing was delivered for too long
	ruleResources rule = "resources" // an agent keeps resources that it does not need any more
	ruleProcess   rule = "process"   // an agent ended when it should not have, or in the wrong way
	ruleRun       rule = "run"       // the run itself went wrong, so it proves nothing
)

// violation is one breach of a rule.
type violation struct {
	rule rule
	text string
}

// verdict is the result of the checker.
type verdict struct {
	run        runInfo
	violations []violation
	figures
}

// figures are the numbers of the report.
type figures struct {
	faults     map[kind]int
	committed  int // events
	rolledBack int // events
	unsure     int // transactions whose COMMIT had no answer
	unsureHeld int // those of unsure that were committed
	deliveries int // pairs of an event and an endpoint that wants it
	requests   int
	lost       int
	phantoms   int
	retries    int // repetitions after a failure
	// resent counts requests that an attempt sent again, because a kept connection ended without an
	// answer.
	resent     int
	unheard    int // repetitions because a broken network lost the answer
	replayed   int // repetitions that the operator asked for
	disabled   int // how often an endpoint was disabled
	duplicates duplicates
	led        map[kind]int // how many faults hit the leading agent
	recovery   map[kind][]time.Duration
	silence    time.Duration // the longest time without a new arrival
	base, end  []resources
}

// pairKey is the key of a delivery.
type pairKey struct{ event, endpoint string }

// pair is everything that is known about one delivery.
type pair struct {
	wanted   bool
	requests []*seen // by arrival
	row      *deliveryRow
	attempts []attemptRow
}

// seen is a request and how it ended.
type seen struct {
	request
	end    moment // when it was answered, or its connection had ended
	status int    // the status that was written; 0 for none
}

// accepted reports whether the receiver has answered with success. The answer may not have reached
// the agent.
func (s *seen) accepted() bool { return s.status >= 200 && s.status < 300 }

// knownEvent is an event, and how its transaction ended.
type knownEvent struct {
	writtenEvent
	fate  fate   // never unknown: resolve has decided
	ended moment // when its transaction had ended
	hash  string // of its body
}

// checker judges a run by its files.
type checker struct {
	h         *history
	v         *verdict
	endpoints map[string]*endpointInfo
	events    map[string]*knownEvent
	pairs     map[pairKey]*pair
	faults    []fault // by begin
	lastWrite moment
}

// check judges a run.
func check(h *history) *verdict {
	c := &checker{
		h: h, v: &verdict{run: h.Run, figures: figures{
			faults: map[kind]int{}, led: map[kind]int{}, recovery: map[kind][]time.Duration{},
		}},
		endpoints: map[string]*endpointInfo{}, events: map[string]*knownEvent{}, pairs: map[pairKey]*pair{},
	}
	c.gather()
	c.checkRun()
	c.checkRequests()
	c.checkArrival()
	c.checkDuplicates()
	c.checkLog()
	c.checkDisabled()
	c.checkRecovery()
	c.checkResources()
	return c.v
}

func (c *checker) fail(r rule, format string, args ...any) {
	c.v.violations = append(c.v.violations, violation{r, fmt.Sprintf(format, args...)})
}

// gather groups the records of the files by what they are about.
func (c *checker) gather() {
	for i, e := range c.h.Endpoints {
		c.endpoints[e.ID] = &c.h.Endpoints[i]
	}
	c.gatherEvents()
	c.gatherFaults()
	ends := make(map[int64]answer, len(c.h.Answers))
	for _, a := range c.h.Answers {
		ends[a.N] = a
	}
	for _, r := range c.h.Requests {
		// The end is a guess for a request that was under way at the end of the run.
		s := &seen{request: r, end: r.At + c.h.Run.Timeout}
		if a, ended := ends[r.N]; ended {
			s.end, s.status = a.At, a.Status
		}
		p := c.pair(r.Event, r.Endpoint)
		p.requests = append(p.requests, s)
	}
	c.v.requests = len(c.h.Requests)
	for i, d := range c.h.Deliveries {
		c.pair(d.Event, d.Endpoint).row = &c.h.Deliveries[i]
	}
	for _, a := range c.h.Attempts {
		p := c.pair(a.Event, a.Endpoint)
		p.attempts = append(p.attempts, a)
	}
	for _, p := range c.pairs {
		slices.SortStableFunc(p.requests, func(x, y *seen) int { return cmp.Compare(x.At, y.At) })
		p.requests = c.onePerAttempt(p.requests)
	}
}

const (
	// sendsPerAttempt is how many times one attempt may send its request: it sends at once again if
	// a kept connection ends without an answer.
	sendsPerAttempt = 3
	// resendWithin is the longest time between two such requests. The receiver may also notice the
	// end of a connection so much later. The next attempt comes a second later at the earliest, so
	// it is not confused with these.
	resendWithin = 250 * time.Millisecond
)

// onePerAttempt returns one request for each attempt. It leaves out those that the same attempt has
// sent again.
func (c *checker) onePerAttempt(requests []*seen) (kept []*seen) {
	sent := 1
	for i, s := range requests {
		if i+1 < len(requests) && sent < sendsPerAttempt {
			next := requests[i+1]
			if gap := next.At - s.end; s.status == 0 && next.Agent == s.Agent && -resendWithin <= gap && gap <= resendWithin {
				sent++
				c.v.resent++
				continue
			}
		}
		sent, kept = 1, append(kept, s)
	}
	return kept
}

// pair returns what is known about a delivery.
func (c *checker) pair(event, endpoint string) *pair {
	key := pairKey{event, endpoint}
	p := c.pairs[key]
	if p == nil {
		p = &pair{}
		c.pairs[key] = p
	}
	return p
}

// gatherEvents finds out what became of each event, and which endpoints want it. If the writer does
// not know, the outbox shows it.
func (c *checker) gatherEvents() {
	stored := make(map[string]bool, len(c.h.Outbox))
	for _, id := range c.h.Outbox {
		stored[id] = true
	}
	endings := make(map[string]ending, len(c.h.Endings))
	for _, e := range c.h.Endings {
		endings[e.Tx] = e
		c.lastWrite = max(c.lastWrite, e.At)
	}
	for _, w := range c.h.Writes {
		end, ended := endings[w.Tx]
		if !ended {
			c.fail(ruleRun, "nobody knows how transaction %s ended", w.Tx)
			continue
		}
		if end.Fate == unknown {
			end.Fate = c.resolve(w, stored)
		}
		for _, e := range w.Events {
			c.gatherEvent(&knownEvent{writtenEvent: e, fate: end.Fate, ended: end.At}, w.Tx, stored[e.ID])
		}
	}
	for id := range stored {
		if c.events[id] == nil {
			c.fail(ruleRun, "event %s is in the outbox, and no writer wrote it", id)
		}
	}
}

// gatherEvent records an event whose transaction ended as e.fate says. If it was committed, the
// endpoints that want it should get it.
func (c *checker) gatherEvent(e *knownEvent, tx string, stored bool) {
	if e.Undone {
		e.fate = rolledBack
	}
	c.events[e.ID] = e
	if e.fate != committed {
		c.v.rolledBack++
		if stored {
			c.fail(ruleRun, "event %s is in the outbox, although its transaction %s was rolled back", e.ID, tx)
		}
		return
	}
	c.v.committed++
	if !stored {
		c.fail(ruleLost, "event %s is not in the outbox, although its transaction %s was committed", e.ID, tx)
	}
	hash := sha256.Sum256(envelope(e.writtenEvent))
	e.hash = hex.EncodeToString(hash[:])
	for _, endpoint := range c.endpoints {
		if endpoint.Venue == e.Venue && endpoint.wants(e.Type) {
			c.pair(e.ID, endpoint.ID).wanted = true
			c.v.deliveries++
		}
	}
}

// resolve decides how a transaction ended whose COMMIT had no answer. The outbox shows that.
func (c *checker) resolve(w write, stored map[string]bool) fate {
	c.v.unsure++
	there, all := 0, 0
	for _, e := range w.Events {
		if !e.Undone {
			all++
			if stored[e.ID] {
				there++
			}
		}
	}
	switch there {
	case 0:
		return rolledBack
	case all:
		c.v.unsureHeld++
	default:
		c.fail(ruleRun, "transaction %s is in the outbox in part: %d of %d events", w.Tx, there, all)
	}
	return committed
}

// envelope returns the body that customers were promised, in its order and spelling.
func envelope(e writtenEvent) []byte {
	quoted := func(s string) []byte {
		text, err := json.Marshal(s)
		if err != nil {
			panic(err) // cannot happen: every string has a JSON text
		}
		return text
	}
	return fmt.Appendf(nil, `{"id":%s,"type":%s,"created":"%s","venue":%s,"data":%s}`,
		quoted(e.ID), quoted(e.Type), e.Created.UTC().Format("2006-01-02T15:04:05Z"), quoted(e.Venue), e.Data)
}

// gatherFaults collects the faults in the order of their begin. Each fault was entered twice.
func (c *checker) gatherFaults() {
	byNumber := map[int]fault{}
	for _, f := range c.h.Faults {
		byNumber[f.N] = f
	}
	for _, f := range byNumber {
		c.faults = append(c.faults, f)
		c.v.faults[f.Kind]++
	}
	slices.SortFunc(c.faults, func(x, y fault) int { return cmp.Compare(x.Start, y.Start) })
}

// checkRun finds what makes the run itself worthless, and agents that ended when they should not
// have.
func (c *checker) checkRun() {
	for _, f := range c.faults {
		switch {
		case f.Failed != "":
			c.fail(ruleRun, "the torture could not carry out fault %d, %s at %s: %s",
				f.N, f.Kind, seconds(f.Start), f.Failed)
		case !f.Over:
			c.fail(ruleRun, "fault %d, %s at %s, was never over", f.N, f.Kind, seconds(f.Start))
		}
	}
	for _, a := range c.h.Agents {
		if a.Fault != "" {
			c.fail(ruleProcess, "agent %s at %s: %s", a.Agent, seconds(a.At), a.Fault)
		}
	}
	for _, u := range c.h.Unseen {
		c.fail(ruleUnseen, "agent %s found %d deliveries in the outbox that had passed the stream unseen", u.Agent, u.Deliveries)
	}
	if c.v.committed == 0 || c.v.requests == 0 {
		c.fail(ruleRun, "%d events were committed and %d requests arrived: there is nothing to judge",
			c.v.committed, c.v.requests)
	}
}

// seconds returns a moment as text for people.
func seconds(m moment) string { return fmt.Sprintf("%.2fs", m.Seconds()) }
