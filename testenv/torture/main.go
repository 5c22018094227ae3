// Command torture breaks everything around two agents that can break, for some minutes. Meanwhile
// writers write and customers' servers misbehave. Then it judges whether the agents have kept their
// promises. `make torture` runs it. `make mutants` shows that it notices broken promises.
//
// # A run
//
// A run has a PostgreSQL of its own, two agents with the same slot, four writers, and 50 endpoints
// of ten venues. The endpoints are healthy, slow, flaky, dead, hung, or reset the connection after
// they have received the request. There is a proxy between each agent and PostgreSQL, and one
// before the receivers.
//
// The faults come by a schedule that follows from the seed (schedule.go). Processes are killed,
// frozen and replaced; sessions are terminated; networks are stalled, refused, reset and slowed to
// a byte a second; the slot and the publications are dropped; clocks are moved. An operator enables
// endpoints that the agent has disabled, and asks for replays.
//
// At the end everything is repaired. All endpoints that can answer do so, and what they missed is
// replayed. Then nothing may be missing.
//
// # Files
//
// Everything that matters is appended to files before it happens: what a writer is about to write
// and how its transaction ended, each request before it is answered, each fault. At the end the
// tables of the database are copied beside them. The checker (check.go and check_*.go) reads these
// files and nothing else. It shares no code with the agent: it knows what customers and operators
// were promised. `torture check DIR` judges a run again.
//
// # The agent
//
// `torture build` builds the agent for the torture: the product's own source, with a clock that
// signals move (build.go). The product itself has no such clock. The same file gives each process
// its own User-Agent, so the receivers know which process sent what.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

func main() {
	// A second signal ends the program at once. The next start of a cluster then removes what is
	// left.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	testenv.ClearEnvironment()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// errBroken means that a promise was broken. The report says which.
var errBroken = errors.New("the agent has broken a promise")

// run returns the exit status: 0 if all promises were kept, 1 if one was broken or the run failed,
// and 2 for a wrong command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command, rest := "run", args
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, rest = args[0], args[1:]
	}
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"run": tortureCommand, "build": buildCommand, "check": checkCommand, "mutants": mutantsCommand,
	}
	do, known := commands[command]
	if !known {
		fmt.Fprintf(stderr, "torture: there is no command %q; the commands are run, build, check and mutants\n", command)
		return 2
	}
	err := do(ctx, rest, stdout, stderr)
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "torture:", usage.text)
		return 2
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "torture: interrupted")
		return 1
	default:
		fmt.Fprintln(stderr, "torture:", err)
		return 1
	}
}

// usageError is a wrong command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// parse parses the flags of a command, which takes n arguments besides them.
func parse(flags *flag.FlagSet, args []string, n int) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err.Error()}
	}
	if flags.NArg() != n {
		return usageError{fmt.Sprintf("%s takes %d arguments beside its flags, not %d", flags.Name(), n, flags.NArg())}
	}
	return nil
}

// config says how to make a run.
type config struct {
	agent    string
	seed     uint64
	minutes  float64
	rate     float64
	only     []kind
	commit   string
	patience time.Duration
	// disableAfter is delivery.disable_after of the agents. A low one lets a short run see
	// endpoints disabled.
	disableAfter int
	markdown     bool
	keep         bool
	quiet        bool
}

func (c config) length() time.Duration {
	return time.Duration(c.minutes * float64(time.Minute)).Round(time.Second)
}

func tortureCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var (
		c    config
		only string
	)
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.agent, "agent", "bin/torture-agent", "the agent, as torture build has built it")
	flags.Uint64Var(&c.seed, "seed", 0, "the seed; 0 is a random one, which is printed")
	flags.Float64Var(&c.minutes, "minutes", 10, "how long faults come")
	flags.Float64Var(&c.rate, "rate", 60, "events a second")
	flags.StringVar(&only, "only", "", "only these faults, with commas between them; again and again")
	flags.StringVar(&c.commit, "commit", "unknown", "what is tortured, for the table")
	flags.IntVar(&c.disableAfter, "disable-after", 100, "delivery.disable_after of the agents")
	flags.DurationVar(&c.patience, "patience", 30*time.Second, "how long to wait at the end while nothing moves")
	flags.BoolVar(&c.markdown, "markdown", false, "print the table as Markdown as well")
	flags.BoolVar(&c.keep, "keep", false, "keep the files in any case")
	flags.BoolVar(&c.quiet, "quiet", false, "print the table only")
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	var err error
	if c.only, err = parseKinds(only); err != nil {
		return usageError{err.Error()}
	}
	if c.minutes <= 0 || c.rate <= 0 || c.disableAfter <= 0 {
		return usageError{"-minutes, -rate and -disable-after must be above zero"}
	}
	if c.seed == 0 {
		c.seed = rand.Uint64N(1_000_000_000) + 1
	}
	if err := checkBinary(ctx, c.agent); err != nil {
		return err
	}
	say := func(format string, args ...any) {
		if !c.quiet {
			fmt.Fprintf(stdout, format+"\n", args...)
		}
	}
	dir, err := torture(ctx, c, say)
	if err != nil {
		return err
	}
	v, err := judge(dir, c.markdown, stdout)
	switch {
	case err != nil:
		return err
	case len(v.violations) > 0:
		return fmt.Errorf("%w; seed %d, the files are in %s", errBroken, c.seed, dir)
	case c.keep:
		say("the files are in %s", dir)
		return nil
	}
	return os.RemoveAll(dir)
}

// torture makes a run and returns the folder of its files. The folder also exists after an error,
// unless ctx has ended.
func torture(ctx context.Context, c config, say func(string, ...any)) (dir string, err error) {
	dir, err = newDir()
	if err != nil {
		return "", err
	}
	say("seed %d, %s; files in %s", c.seed, c.length(), dir)
	err = carryOut(ctx, c, dir, say)
	switch {
	case ctx.Err() != nil:
		return "", errors.Join(ctx.Err(), os.RemoveAll(dir)) // half a run proves nothing
	case err != nil:
		return dir, fmt.Errorf("%w; seed %d, the files are in %s", err, c.seed, dir)
	}
	return dir, nil
}

// judge reads a run, prints the report, and returns the verdict.
func judge(dir string, markdown bool, stdout io.Writer) (*verdict, error) {
	h, err := loadHistory(dir)
	if err != nil {
		return nil, err
	}
	v := check(h)
	v.print(stdout)
	if markdown {
		v.printMarkdown(stdout)
	}
	return v, nil
}

// checkCommand judges a run again.
func checkCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	markdown := flags.Bool("markdown", false, "print the table as Markdown as well")
	if err := parse(flags, args, 1); err != nil {
		return err
	}
	v, err := judge(flags.Arg(0), *markdown, stdout)
	if err == nil && len(v.violations) > 0 {
		err = errBroken
	}
	return err
}
