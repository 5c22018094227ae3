package main

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// checkLog compares the log with what the receivers have seen. Each answer is in the log once,
// except those that a fault may have lost.
func (c *checker) checkLog() {
	for _, r := range c.h.Rewritten {
		c.fail(ruleLog, "event %s to %s: a delivery that had ended as %s was recorded again as %s, at %s",
			r.Event, r.Endpoint, r.Before, r.After, seconds(r.At))
	}
	for _, r := range c.h.Replays {
		switch {
		case r.State == "running" && c.endpoints[r.Endpoint] != nil && !c.endpoints[r.Endpoint].Behavior.answers():
			// Attempts to an endpoint that keeps failing are paced, so its replay may still go on.
		case r.State == "pending" || r.State == "running" || r.State == "paused":
			c.fail(ruleLog, "replay %s of %s has not ended: %s", r.ID, r.Endpoint, r.State)
		case r.State == "failed" && !strings.Contains(r.Error, "disabled") && !strings.Contains(r.Error, "its delivery is "):
			// Another replay may have taken over the events of this one.
			c.fail(ruleLog, "replay %s of %s has failed: %s", r.ID, r.Endpoint, r.Error)
		}
	}
	// rounds counts, by endpoint, how often it was replayed. Each replay starts the numbers of
	// attempts again.
	rounds := map[string]int{}
	for _, r := range c.h.Replays {
		rounds[r.Endpoint]++
	}
	for key, p := range c.pairs {
		if p.row == nil {
			if len(p.attempts) > 0 {
				c.fail(ruleLog, "event %s to %s: the log has attempts and no delivery", key.event, key.endpoint)
			}
			continue
		}
		c.checkNumbers(key, p, rounds[key.endpoint])
		c.checkAnswers(key, p)
		if c.endpoints[key.endpoint] != nil {
			c.checkSilence(key, p)
		}
	}
}

// checkNumbers judges the numbers of a delivery's attempts. In a round each number must be recorded
// once, and none may be missing.
func (c *checker) checkNumbers(key pairKey, p *pair, replays int) {
	times := map[int]int{}
	highest := 0
	for _, a := range p.attempts {
		times[a.Attempt]++
		highest = max(highest, a.Attempt)
	}
	if highest > c.h.Run.Attempts || p.row.Attempts > c.h.Run.Attempts {
		c.fail(ruleLog, "event %s to %s: %d attempts were made, at most %d are to be",
			key.event, key.endpoint, max(highest, p.row.Attempts), c.h.Run.Attempts)
	}
	if p.row.Replay == "" {
		replays = 0 // no replay has changed this delivery
	}
	for n := 1; n <= highest; n++ {
		switch {
		case times[n] == 0:
			c.fail(ruleLog, "event %s to %s: attempt %d is recorded, and attempt %d is not",
				key.event, key.endpoint, highest, n)
		case times[n] > 1+replays:
			c.fail(ruleLog, "event %s to %s: attempt %d is recorded %d times, with %d replays",
				key.event, key.endpoint, n, times[n], replays)
		}
	}
	if replays > 0 {
		return // the row has the last round only
	}
	made := len(p.attempts)
	if p.row.Status == "succeeded" {
		made++
	}
	if p.row.Attempts != made {
		c.fail(ruleLog, "event %s to %s: the delivery (%s) tells of %d attempts, %d are recorded",
			key.event, key.endpoint, p.row.Status, p.row.Attempts, made)
	}
}

// checkAnswers compares the answers that receivers gave with those that are recorded.
func (c *checker) checkAnswers(key pairKey, p *pair) {
	// Both are by status. lost counts answers that the agent may not know.
	given, lost := map[int]int{}, map[int]int{}
	for _, s := range p.requests {
		given[s.status]++
		if c.explained(s) {
			lost[s.status]++
		}
	}
	if p.row.Status == "succeeded" && given[200] == 0 {
		c.fail(ruleLog, "event %s to %s: the log says it succeeded, and no request was answered so",
			key.event, key.endpoint)
	}
	recorded := map[int]int{}
	for _, a := range p.attempts {
		recorded[a.Code]++
	}
	for _, code := range []int{404, 500} {
		if recorded[code] > given[code] {
			c.fail(ruleLog, "event %s to %s: %d attempts are recorded as answered %d, and %d requests were",
				key.event, key.endpoint, recorded[code], code, given[code])
		}
		if missing := given[code] - recorded[code]; missing > lost[code] {
			c.fail(ruleLog, "event %s to %s: %d requests were answered %d, %d attempts are recorded so, and faults can have taken %d along",
				key.event, key.endpoint, given[code], code, recorded[code], lost[code])
		}
	}
}

// checkSilence compares the requests without an answer with the attempts that are recorded as such.
func (c *checker) checkSilence(key pairKey, p *pair) {
	silent, unseen, lost := 0, 0, 0
	for _, s := range p.requests {
		if s.status == 0 {
			silent++
			if c.explained(s) {
				lost++
			}
		}
	}
	recorded := 0
	for _, a := range p.attempts {
		if a.Code == 0 {
			recorded++
			if c.outOfReach(a.At) {
				unseen++
			}
		}
	}
	if missing := silent - recorded; missing > lost {
		c.fail(ruleLog, "event %s to %s: %d requests had no answer, %d attempts are recorded so, and faults can have taken %d along",
			key.event, key.endpoint, silent, recorded, lost)
	}
	if c.endpoints[key.endpoint].Behavior != dead && recorded-silent > unseen {
		c.fail(ruleLog, "event %s to %s: %d attempts are recorded as without an answer, %d requests were so, and %d fell into a fault of the network",
			key.event, key.endpoint, recorded, silent, unseen)
	}
}

// outOfReach reports whether an attempt that ended at that moment, by the clock of some agent, may
// have failed on the way: before it reached its receiver, or with its answer on the way back.
func (c *checker) outOfReach(ended moment) bool {
	return slices.ContainsFunc(c.faults, func(f fault) bool {
		if f.Kind == freeze { // the attempt's time ran out while the agent was frozen
			return ended >= f.End && ended <= f.End+underWay
		}
		if f.Kind != receivers {
			return false
		}
		for _, shift := range []time.Duration{0, time.Hour, -time.Hour} {
			if at := ended - shift; at >= f.Start-underWay && at <= f.End+c.h.Run.Timeout+lastSecond {
				return true
			}
		}
		return false
	})
}

// disabling is a time in which an endpoint was disabled.
type disabling struct {
	endpoint    string
	generation  int64
	failures    int
	reason      string
	from, until moment
}

// disablings returns the times in which endpoints were disabled: those that the operator found, and
// those that last until the end.
func (c *checker) disablings() []disabling {
	type key struct {
		endpoint   string
		generation int64
	}
	found := map[key]disabling{}
	for _, o := range c.h.Operations {
		if !o.Enabled {
			continue
		}
		k := key{o.Endpoint, o.Generation}
		if _, known := found[k]; !known { // the endpoint may be enabled from the first try on
			found[k] = disabling{o.Endpoint, o.Generation, o.Failures, o.Reason, o.DisabledAt, o.At}
		}
	}
	for _, r := range c.h.Rows {
		if r.Disabled {
			failures := r.Failures
			if r.HealthGeneration != r.Generation {
				failures = 0
			}
			found[key{r.ID, r.Generation}] = disabling{r.ID, r.Generation, failures, r.Reason, r.DisabledAt, 1<<63 - 1}
		}
	}
	var all []disabling
	for _, d := range found {
		all = append(all, d)
	}
	slices.SortFunc(all, func(x, y disabling) int {
		return cmp.Or(cmp.Compare(x.endpoint, y.endpoint), cmp.Compare(x.generation, y.generation))
	})
	return all
}

// checkDisabled judges whether endpoints were disabled at the right time, and whether they got no
// requests while disabled.
func (c *checker) checkDisabled() {
	sent := map[string][]*seen{} // by endpoint
	for key, p := range c.pairs {
		sent[key.endpoint] = append(sent[key.endpoint], p.requests...)
	}
	times := c.disablings()
	c.v.disabled = len(times)
	limit := c.h.Run.DisableAfter
	for _, d := range times {
		if d.reason != "failures" || d.failures != limit {
			c.fail(ruleDisabled, "%s was disabled at %s (%s) after %d failures in a row, want %d",
				d.endpoint, seconds(d.from), d.reason, d.failures, limit)
		}
		for _, s := range sent[d.endpoint] {
			if s.At > d.from+underWay && s.At < d.until && !c.explained(s) {
				c.fail(ruleDisabled, "request %d at %s by agent %s was sent to %s, which was disabled from %s to %s",
					s.N, seconds(s.At), s.Agent, d.endpoint, seconds(d.from), seconds(d.until))
			}
		}
	}
	attempts := map[string]int{}
	for _, a := range c.h.Attempts {
		attempts[a.Endpoint]++
	}
	for _, r := range c.h.Rows {
		e := c.endpoints[r.ID]
		if e == nil || e.Behavior.answers() {
			continue
		}
		// Nothing has ever succeeded at this endpoint, and each attempt is recorded together with
		// the counter.
		now := 0
		if r.HealthGeneration == r.Generation {
			now = r.Failures
		}
		if want := limit*int(r.Generation-1) + now; attempts[r.ID] != want {
			c.fail(ruleDisabled, "%s has %d failed attempts in the log; disabled %d times at %d, and with %d failures now, it should have %d",
				r.ID, attempts[r.ID], r.Generation-1, limit, now, want)
		}
	}
}
