package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// limits are the longest times until events arrive again. They are counted from the moment that
// begins returns.
var limits = map[kind]time.Duration{
	kill:        10 * time.Second,
	crash:       10 * time.Second,
	terminate:   10 * time.Second,
	freeze:      20 * time.Second,
	database:    10 * time.Second,
	receivers:   10 * time.Second,
	upgrade:     2 * time.Second,
	slot:        20 * time.Second,
	publication: 20 * time.Second,
	clock:       5 * time.Second,
}

// begins returns the moment from which the recovery is counted. If an agent is frozen, the other
// one should take over during the freeze, so it is the begin of the fault. If both agents are
// killed, nothing can go on before one is started again.
func (f *fault) begins() moment {
	switch {
	case f.Kind == freeze || f.Kind == clock:
		return f.Start
	case f.Kind == kill && f.Target == both:
		return f.Restart
	}
	return f.End
}

// checkRecovery measures, after each fault, how long it took until an event arrived that was
// committed after it. Only receivers that answer at once count. Events that the agent had in memory
// do not count. It measures only faults that hit the leading agent, and only if no other fault
// disturbed the recovery.
func (c *checker) checkRecovery() {
	firsts := c.firstArrivals()
	c.checkSilences(firsts)
	for i := range c.faults {
		f := &c.faults[i]
		if !f.Led || !f.Over {
			continue
		}
		c.v.led[f.Kind]++
		from, limit := f.begins(), limits[f.Kind]
		gone := f.Kind == kill || f.Kind == freeze || f.Kind == upgrade
		at := slices.IndexFunc(firsts, func(s *seen) bool {
			return s.At > from && c.events[s.Event].ended > from && !(gone && f.hit(s.Agent))
		})
		until := c.lastWrite // if nothing arrived
		if at >= 0 {
			until = firsts[at].At
		}
		switch took := until - from; {
		case c.disturbed(f, from, min(until, from+limit)):
		case took > limit:
			c.fail(ruleRecovery, "after %s of %v at %s nothing arrived for %s", f.Kind, f.Agents, seconds(from), seconds(took))
		case at >= 0:
			c.v.recovery[f.Kind] = append(c.v.recovery[f.Kind], took)
		}
	}
}

// maxSilence is how long nothing new may arrive, whatever happens. A takeover from a frozen agent
// takes ten seconds, and one fault may follow another.
const maxSilence = 30 * time.Second

// checkSilences finds the longest time without a new arrival. checkRecovery does not find it if
// several faults follow each other, because then it measures none of them.
func (c *checker) checkSilences(firsts []*seen) {
	for i := 1; i < len(firsts); i++ {
		before, next := firsts[i-1].At, firsts[i].At
		if next > c.lastWrite {
			break // after that only replays arrive
		}
		c.v.silence = max(c.v.silence, next-before)
		if next-before > maxSilence {
			c.fail(ruleRecovery, "nothing arrived from %s to %s", seconds(before), seconds(next))
		}
	}
}

// firstArrivals returns, by time, the first request of each delivery to a healthy endpoint.
func (c *checker) firstArrivals() []*seen {
	var firsts []*seen
	for key, p := range c.pairs {
		if e := c.endpoints[key.endpoint]; p.wanted && e.Behavior == healthy && len(p.requests) > 0 {
			firsts = append(firsts, p.requests[0])
		}
	}
	slices.SortFunc(firsts, func(x, y *seen) int { return cmp.Compare(x.At, y.At) })
	return firsts
}

// disturbed reports whether another fault may have held up deliveries in this time. A moved clock
// holds nothing up.
func (c *checker) disturbed(f *fault, from, until moment) bool {
	const aftermath = time.Second // how long the recovery from most faults takes
	return slices.ContainsFunc(c.faults, func(g fault) bool {
		return g.N != f.N && g.Kind != clock && g.Start < until && max(g.End, g.Restart)+aftermath > from
	})
}

// These bound what an agent may use more at the end than at the begin, and in all.
const (
	maxMoreGoroutines = 10
	maxMoreFiles      = 10
	maxBytes          = 256 << 20
)

// wasteAbove says what a process uses more than a process of the same role did at the begin. It
// returns "" if that is within the bounds.
func (r resources) wasteAbove(all []resources) string {
	i := slices.IndexFunc(all, func(b resources) bool { return b.Phase == "base" && b.Leading == r.Leading })
	if i < 0 {
		return "nothing is known of the beginning"
	}
	base := all[i]
	var waste []string
	if r.Goroutines > base.Goroutines+maxMoreGoroutines {
		waste = append(waste, fmt.Sprintf("%d goroutines, %d in the beginning", r.Goroutines, base.Goroutines))
	}
	if r.Files > base.Files+maxMoreFiles {
		waste = append(waste, fmt.Sprintf("%d open files, %d in the beginning", r.Files, base.Files))
	}
	if r.Bytes > maxBytes {
		waste = append(waste, fmt.Sprintf("%d MiB of memory", r.Bytes>>20))
	}
	return strings.Join(waste, ", ")
}

func (c *checker) checkResources() {
	for _, r := range c.h.Resources {
		if r.Phase == "base" {
			c.v.base = append(c.v.base, r)
			continue
		}
		c.v.end = append(c.v.end, r)
		if waste := r.wasteAbove(c.h.Resources); waste != "" {
			c.fail(ruleResources, "agent %s has %s", r.Agent, waste)
		}
	}
	if len(c.v.end) == 0 {
		c.fail(ruleRun, "the agents were not measured at the end")
	}
}
