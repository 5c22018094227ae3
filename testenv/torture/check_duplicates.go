package main

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

const (
	// lastSecond is the greatest age of a result that a fault may lose. The agent promises about a
	// second: it records what ended within the last second, and starts nothing while recording
	// takes longer. The extra half second allows for a slow machine.
	lastSecond = 1500 * time.Millisecond
	// underWay is how long after a fault a request may still arrive that was on its way when the
	// fault came.
	underWay = 500 * time.Millisecond
	// noticed is how long an agent may go on after PostgreSQL has fallen silent or has ended its
	// sessions.
	noticed = 1500 * time.Millisecond
)

// duplicates counts repetitions of deliveries to receivers that had answered with success, if no
// replay asked for them.
type duplicates struct {
	measured    int
	allowed     int // how many requests the faults could have made the agent repeat
	unexplained int
	// worst is the fault that caused the most duplicates.
	worst         fault
	worstMeasured int
	worstAllowed  int
}

// hit reports whether a fault hit a process.
func (f *fault) hit(agent string) bool { return slices.Contains(f.Agents, agent) }

// mayForget reports whether a fault may have kept the agent from recording the result of a request.
func (f *fault) mayForget(s *seen) bool {
	if !f.hit(s.Agent) {
		return false
	}
	within := func(from, until moment) bool { return s.end >= from-lastSecond && s.At <= until }
	switch f.Kind {
	case kill:
		return within(f.Start, f.End+underWay)
	case crash, terminate, slot:
		return within(f.Start, f.Start+noticed)
	case publication:
		// A term that begins before they are made again may end by it as well.
		return within(f.Start, f.End+noticed)
	case database:
		if f.How == breaking || f.How == commits {
			return within(f.Start, f.End+noticed)
		}
		return within(f.Start, f.Start+noticed)
	case freeze:
		// What was under way is sent when the process goes on.
		return within(f.Start, f.Start+underWay) || s.At >= f.End && s.At <= f.End+underWay
	case receivers, upgrade, clock:
	}
	return false
}

// mayLoseAnswer reports whether a fault of the network before the receivers may have kept an answer
// from the agent.
func (f *fault) mayLoseAnswer(s *seen) bool {
	return f.Kind == receivers && s.end >= f.Start-underWay && s.At <= f.End+underWay
}

// explained reports whether a fault explains that the agent does not know the answer to a request.
func (c *checker) explained(s *seen) bool {
	return slices.ContainsFunc(c.faults, func(f fault) bool { return f.mayForget(s) || f.mayLoseAnswer(s) })
}

// checkDuplicates judges each request that repeats an earlier one.
func (c *checker) checkDuplicates() {
	measured := map[int]int{} // by fault
	for key, p := range c.pairs {
		if len(p.requests) < 2 {
			continue
		}
		replays := c.replaysOf(key)
		for i := 1; i < len(p.requests); i++ {
			before, again := p.requests[i-1], p.requests[i]
			if !before.accepted() && before.end <= again.At {
				c.v.retries++
				continue
			}
			if f := c.forgotten(before, again); f != nil {
				measured[f.N]++
				c.v.duplicates.measured++
				continue
			}
			if slices.ContainsFunc(c.faults, func(f fault) bool { return f.mayLoseAnswer(before) }) {
				c.v.unheard++
				continue
			}
			// Each replay sends a delivery once.
			r := slices.IndexFunc(replays, func(r operation) bool { return r.At <= again.At })
			if r >= 0 && before.accepted() {
				replays = slices.Delete(replays, r, r+1)
				c.v.replayed++
				continue
			}
			c.v.duplicates.unexplained++
			c.fail(ruleDuplicate, "event %s to %s: request %d at %s by agent %s was answered %d, and request %d at %s by agent %s repeats it",
				key.event, key.endpoint, before.N, seconds(before.At), before.Agent, before.status, again.N, seconds(again.At), again.Agent)
		}
	}
	c.boundDuplicates(measured)
}

// forgotten returns the latest fault that may have made the agent lose the result of a request that
// was repeated, or nil.
func (c *checker) forgotten(before, again *seen) *fault {
	for i := len(c.faults) - 1; i >= 0; i-- {
		f := &c.faults[i]
		// After a freeze the later request is the one that should not have been sent: the process
		// that went on has sent it.
		thawed := f.Kind == freeze && f.hit(again.Agent) && again.At >= f.End && again.At <= f.End+underWay
		if f.Start <= again.At && (f.mayForget(before) || thawed) {
			return f
		}
	}
	return nil
}

// boundDuplicates counts how many duplicates each fault allowed, and finds the worst fault.
func (c *checker) boundDuplicates(measured map[int]int) {
	allowed := map[int]int{}
	for _, p := range c.pairs {
		for _, s := range p.requests {
			if !s.accepted() {
				continue
			}
			counted := false
			for i := range c.faults {
				if c.faults[i].mayForget(s) {
					allowed[c.faults[i].N]++
					counted = true
				}
			}
			if counted {
				c.v.duplicates.allowed++
			}
		}
	}
	d := &c.v.duplicates
	for _, n := range slices.Sorted(maps.Keys(measured)) {
		if measured[n] > d.worstMeasured {
			d.worstMeasured, d.worstAllowed = measured[n], allowed[n]
			d.worst = c.faults[slices.IndexFunc(c.faults, func(f fault) bool { return f.N == n })]
		}
	}
}

// replaysOf returns, by time, the replays that may have sent a delivery again after it had
// succeeded.
func (c *checker) replaysOf(key pairKey) []operation {
	byID := map[string]operation{} // each was entered twice
	for _, o := range c.h.Operations {
		if o.Endpoint == key.endpoint && slices.Contains(o.Statuses, "succeeded") && slices.Contains(o.Events, key.event) {
			if first, known := byID[o.Replay]; known {
				o.At = first.At
			}
			byID[o.Replay] = o
		}
	}
	maps.DeleteFunc(byID, func(_ string, o operation) bool { return o.Fate == rolledBack })
	return slices.SortedFunc(maps.Values(byID), func(x, y operation) int { return cmp.Compare(x.At, y.At) })
}
