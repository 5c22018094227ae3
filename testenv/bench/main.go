// Command bench measures the agent beside what it can be compared with, in one run on one machine,
// and prints a table. `make bench` runs it. `make bench-short` only shows that every part of it
// works.
//
// # What is compared
//
// The floor is the most that this machine can do with the standard library: a process that signs
// the same bodies and POSTs them to the same receiver by net/http, as many at a time, and without a
// database (floor.go). The table also has the floor with the agent's own client (package sink).
//
// The bare reader is the least that the stream costs: a process that decodes it with pglogrepl,
// POSTs each event at once and records nothing (bare.go). Neither keeps any of the agent's
// promises.
//
// With -peers, a table of its own has the agent beside pgstream, another system that POSTs what it
// reads from a replication slot (peers.go, pgstream.go).
//
// Machines differ and are noisy, so only ratios count. The agent and what it is compared with are
// measured in turn, for several rounds, and the ratio is the median over the rounds. Everything
// shares the machine: the producer, PostgreSQL, the agent and the receiver. Producer and receiver
// are this process; all others are processes of their own.
//
// # What is real
//
// PostgreSQL runs with fsync and full_page_writes. The producer inserts into the outbox as an app
// would, with the ids that the table gives. A delivery counts once the agent has recorded it. Each
// scenario has a database of its own, and begins with an agent that leads and has delivered.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // the second signal ends the program the hard way
	testenv.ClearEnvironment()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// config says how to make a run.
type config struct {
	agent    string
	commit   string
	only     *regexp.Regexp
	markdown bool
	socket   bool   // the agent connects to PostgreSQL by the Unix socket
	peers    bool   // measure pgstream, too
	pgstream string // the program pgstream; "" to build it
	size
}

// size says how much to measure.
type size struct {
	durable bool          // PostgreSQL keeps what it has committed, as everywhere but in tests
	rounds  int           // how often agent and floor are measured in turn
	stretch time.Duration // the length of one measurement
	latency time.Duration // the length of a measurement of the latency at a rate
	parked  int           // deliveries that wait for an endpoint that hangs
	log     int           // rows of the delivery log that has grown
	grown   int           // endpoints that are registered then
	burst   int           // rows of one transaction
	idle    time.Duration
	// statistics is how long to wait for PostgreSQL's counters: a session may keep its own for 10
	// s.
	statistics time.Duration
	venues     int           // venues with one endpoint each, which get events in turn
	costOver   int           // how many events the cost is measured over
	fanout     int           // how many endpoints want each event of a large import
	imported   int           // events of the import
	endpoints  int           // endpoints that change at once, or have a delivery due at once
	far        time.Duration // how long each answer of a distant database takes
	outbox     int           // rows of an outbox that is compared while the agent leads
	bodies     []int         // bytes of the data of large events, rising
	bodyEvents int           // of each of those sizes
	hanging    int           // endpoints that hang, each of which gets a large event
	hang       string        // how long an attempt to them takes; "" for the agent's default
}

var (
	full = size{durable: true, rounds: 3, stretch: 6 * time.Second, latency: 20 * time.Second, parked: 1_000_000, log: 10_000_000,
		grown: 100_000, burst: 1_000_000, idle: 30 * time.Second, statistics: 12 * time.Second, venues: 10_000, costOver: 100_000,
		fanout: 2000, imported: 500, endpoints: 100_000, outbox: 2_000_000, far: 300 * time.Millisecond,
		bodies: []int{1 << 20, 10 << 20, 100 << 20}, bodyEvents: 8, hanging: 300}
	short = size{rounds: 1, stretch: 500 * time.Millisecond, latency: time.Second, parked: 2000, log: 5000, grown: 500, burst: 5000,
		idle: time.Second, statistics: 100 * time.Millisecond, venues: 200, costOver: 2000,
		fanout: 50, imported: 30, endpoints: 500, outbox: 2000, far: 10 * time.Millisecond,
		bodies: []int{1 << 20, 5 << 20}, bodyEvents: 2, hanging: 5, hang: "1s"}
)

// run returns the exit status: 0 if everything was measured, whatever the results, 1 if not, and 2
// for a wrong command line. A peer that was left out is no failure.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := command(ctx, args, stdout, stderr)
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "bench:", usage.text)
		return 2
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "bench: interrupted")
	default:
		fmt.Fprintln(stderr, "bench:", err)
	}
	return 1
}

// usageError is a wrong command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case floorRole:
			return play(ctx, stdout, runFloor)
		case bareRole:
			return play(ctx, stdout, runBare)
		}
	}
	var (
		c       = config{size: full}
		only    string
		isShort bool
	)
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.agent, "agent", "bin/webhook-agent", "the agent")
	flags.StringVar(&c.commit, "commit", "unknown", "what is measured, for the table")
	flags.StringVar(&only, "only", "", "only the scenarios whose name matches this regular expression")
	flags.BoolVar(&isShort, "short", false, "measure hardly anything, to see that everything works")
	flags.BoolVar(&c.markdown, "markdown", false, "print the table as Markdown as well")
	flags.BoolVar(&c.socket, "socket", false, "connect the agent to PostgreSQL by its Unix socket instead of TCP")
	flags.BoolVar(&c.peers, "peers", false, "measure the agent beside pgstream as well, which is built from the Go module proxy; -only peers for that alone")
	flags.StringVar(&c.pgstream, "pgstream", "", "with -peers, the program pgstream, instead of building it")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err.Error()}
	}
	if flags.NArg() > 0 {
		return usageError{fmt.Sprintf("there is no command %q", flags.Arg(0))}
	}
	var err error
	if c.only, err = regexp.Compile(only); err != nil {
		return usageError{fmt.Sprintf("-only %q: %v", only, err)}
	}
	if c.pgstream != "" {
		if !c.peers {
			return usageError{"-pgstream names a program for -peers, which is not given: give both"}
		}
		if c.pgstream, err = exec.LookPath(c.pgstream); err != nil {
			return usageError{fmt.Sprintf("-pgstream: %v", err)}
		}
	}
	if isShort {
		c.size = short
	}
	b, err := newBench(ctx, c, stdout)
	if err != nil {
		return err
	}
	err = b.measure(ctx)
	return errors.Join(err, b.close())
}
