package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// kind is a kind of fault.
type kind string

const (
	kill      kind = "kill"      // kill -9 of an agent
	crash     kind = "crash"     // kill -9 of PostgreSQL, all processes
	terminate kind = "terminate" // pg_terminate_backend of all sessions of the agents
	// freeze is SIGSTOP of an agent for longer than a takeover takes, then SIGCONT.
	freeze      kind = "freeze"
	database    kind = "database"    // the network between an agent and PostgreSQL
	receivers   kind = "receivers"   // the network between the agents and the receivers
	upgrade     kind = "upgrade"     // SIGTERM of an agent, which is then started again
	slot        kind = "slot"        // the replication slot is dropped
	publication kind = "publication" // the publications are dropped and made again
	clock       kind = "clock"       // an agent's clock jumps by an hour, and back
)

// role says which agent a fault is meant for. Which process that is is decided when the fault
// happens.
type role string

const (
	leader  role = "leader"
	standby role = "standby"
	both    role = "both"
	nobody  role = ""
)

// These are the ways in which a network fails.
const (
	stalled  = "stall"
	refused  = "refuse"
	dripping = "drip"
	breaking = "reset" // connections break every half second, and new ones are possible
	deaf     = "deaf"  // what the agent sends passes, but nothing comes back
	// commits breaks a connection after a COMMIT was carried out, before its answer, every half
	// second.
	commits = "commits"
)

// stroke is one fault of the schedule.
type stroke struct {
	At     moment
	Kind   kind
	Target role
	How    string // how a network fails
	// Lasts is how long the fault holds. For a process that ends, it is how long until it starts
	// again.
	Lasts time.Duration
	Shift time.Duration // how far a clock moves
}

// String returns the stroke in the form in which it is printed before the run.
func (s stroke) String() string {
	parts := []string{fmt.Sprintf("%6.1fs", s.At.Seconds()), string(s.Kind)}
	if s.Target != nobody {
		parts = append(parts, "of the "+string(s.Target))
	}
	if s.How != "" {
		parts = append(parts, s.How)
	}
	if s.Shift != 0 {
		parts = append(parts, fmt.Sprintf("%+.0fh", s.Shift.Hours()))
	}
	if s.Lasts > 0 {
		parts = append(parts, fmt.Sprintf("for %.1fs", s.Lasts.Seconds()))
	}
	return strings.Join(parts, " ")
}

// plan says how often a kind of fault occurs in ten minutes, how long it takes besides
// stroke.Lasts, and how long the next fault waits after it. The waits are then stretched or shrunk
// to the length of the run.
var plan = map[kind]struct {
	inTenMinutes int
	takes, rest  time.Duration
}{
	kill:        {62, 0, 2200 * time.Millisecond},
	crash:       {11, 2 * time.Second, 4 * time.Second},
	terminate:   {8, 0, 3 * time.Second},
	freeze:      {5, 0, 4 * time.Second},
	database:    {8, 0, 3 * time.Second},
	upgrade:     {7, 2 * time.Second, 3 * time.Second},
	slot:        {4, time.Second, 5 * time.Second},
	publication: {4, 0, 4 * time.Second},
	receivers:   {7, 0, 15 * time.Second},
	clock:       {6, 0, 15 * time.Second},
}

// The faults of mainKinds happen one after another, so that the recovery from each can be measured.
// Those of sideKinds happen meanwhile, also one after another.
var (
	mainKinds = []kind{kill, crash, terminate, freeze, database, upgrade, slot, publication}
	sideKinds = []kind{receivers, clock}
)

// leadIn and leadOut are the parts of a run without a fault, in which everything works. In leadOut
// the agents recover from the last fault under load.
const (
	leadIn  = 2 * time.Second
	leadOut = 3 * time.Second
)

// shortRun is the longest run in which faults last only as long as they must.
const shortRun = 3 * time.Minute

// newSchedule returns the faults of a run in two tracks. The result depends on the arguments only.
func newSchedule(seed uint64, length time.Duration, only []kind) (main, side []stroke) {
	random := rand.New(rand.NewPCG(seed, 1))
	main = newTrack(random, mainKinds, length, only)
	return main, newTrack(random, sideKinds, length, only)
}

func newTrack(random *rand.Rand, kinds []kind, length time.Duration, only []kind) []stroke {
	var strokes []stroke
	first := random.IntN(60) // the way in which the first network fails
	for _, k := range kinds {
		n := max(1, int(math.Round(float64(plan[k].inTenMinutes)*length.Minutes()/10)))
		if len(only) > 0 && !slices.Contains(only, k) {
			n = 0
		}
		for i := range n {
			strokes = append(strokes, newStroke(random, k, i, first, length <= shortRun))
		}
	}
	random.Shuffle(len(strokes), func(i, j int) { strokes[i], strokes[j] = strokes[j], strokes[i] })

	gaps := make([]float64, len(strokes))
	var busy, idle float64
	for i, s := range strokes {
		gaps[i] = plan[s.Kind].rest.Seconds() * between(random, 0.6, 1.4)
		busy += (s.Lasts + plan[s.Kind].takes).Seconds()
		idle += gaps[i]
	}
	// With few kinds the gaps would be far too long, so the strokes are repeated instead.
	available := (length - leadIn - leadOut).Seconds()
	if len(only) > 0 && len(strokes) > 0 && busy+2*idle < available {
		return repeatTrack(strokes, gaps, available)
	}
	return place(strokes, gaps, max(0.3, (available-busy)/idle))
}

// repeatTrack repeats strokes with their gaps until the time is used up.
func repeatTrack(strokes []stroke, gaps []float64, available float64) []stroke {
	var (
		repeated []stroke
		waits    []float64
	)
	for i := 0; available > 0; i = (i + 1) % len(strokes) {
		repeated, waits = append(repeated, strokes[i]), append(waits, gaps[i])
		available -= (strokes[i].Lasts + plan[strokes[i].Kind].takes).Seconds() + gaps[i]
	}
	return place(repeated, waits, 1)
}

// place sets the moments of strokes. gaps are the seconds after each, which are multiplied by
// stretch.
func place(strokes []stroke, gaps []float64, stretch float64) []stroke {
	at := leadIn
	for i, s := range strokes {
		strokes[i].At = at.Round(100 * time.Millisecond)
		at += s.Lasts + plan[s.Kind].takes + time.Duration(gaps[i]*stretch*float64(time.Second))
	}
	return strokes
}

// newStroke returns the i-th stroke of a kind. The agents that it hits take turns, the leader
// first. So do the ways in which a network fails; they start with the one that has the number
// first.
func newStroke(random *rand.Rand, k kind, i, first int, short bool) stroke {
	s := stroke{Kind: k}
	seconds := func(least, most float64) time.Duration {
		return time.Duration(between(random, least, most) * float64(time.Second)).Round(100 * time.Millisecond)
	}
	inTurn := func(roles ...role) role { return roles[i%len(roles)] }
	ways := []string{stalled, commits, refused, breaking, deaf, dripping}
	if k == receivers {
		ways = slices.Delete(ways, 1, 2)
	}
	way := ways[(first+i)%len(ways)]
	switch k {
	case kill:
		s.Target, s.Lasts = inTurn(leader, leader, leader, both, leader, leader, standby, leader), seconds(0, 2)
	case crash:
		s.Lasts = seconds(0, 1)
	case freeze:
		s.Target, s.Lasts = inTurn(leader, leader, standby, leader, leader), seconds(15, 20)
		if short {
			s.Lasts = 15 * time.Second
		}
	case database:
		s.Target, s.How, s.Lasts = inTurn(leader, leader, both, leader, standby), way, seconds(3, 15)
		if short {
			s.Lasts = seconds(3, 5)
		}
	case receivers:
		s.How, s.Lasts = way, seconds(3, 15)
		if short {
			s.Lasts = 3 * time.Second
		}
	case upgrade:
		s.Target, s.Lasts = inTurn(leader, leader, standby), seconds(0, 1)
	case publication:
		s.Lasts = seconds(0.5, 3)
	case clock:
		s.Target, s.Lasts = leader, seconds(5, 12)
		if short {
			s.Lasts = seconds(3, 5)
		}
		if s.Shift = time.Hour; i%2 == 1 {
			s.Shift = -time.Hour
		}
	case terminate, slot:
	}
	return s
}

func between(random *rand.Rand, least, most float64) float64 {
	return least + random.Float64()*(most-least)
}

// parseKinds parses the value of the flag -only.
func parseKinds(text string) (kinds []kind, err error) {
	if text == "" {
		return nil, nil
	}
	for name := range strings.SplitSeq(text, ",") {
		k := kind(strings.TrimSpace(name))
		if _, known := plan[k]; !known {
			return nil, fmt.Errorf("there is no fault %q; the faults are %s", name, joinKinds(slices.Concat(mainKinds, sideKinds)))
		}
		kinds = append(kinds, k)
	}
	return kinds, nil
}

func joinKinds(kinds []kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}
