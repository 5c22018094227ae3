// Command demo shows the webhook agent at work on one machine: it starts a private PostgreSQL, the real agent binary and a
// receiver, plays the QuintaGo app, prints each delivery as its signatures are verified, and sums up. `make demo` runs it.
//
// It leaves nothing behind: everything it makes is in the folder of its cluster, which goes with it, and the kernel ends its
// child processes should it die (see package testenv).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	leadsPerVenue = 3
	busyPause     = 90 * time.Millisecond // between transactions until the summary
	calmPause     = 2 * time.Second       // and after it
	// settleTimeout bounds the wait for the last delivery: the first retry comes after five seconds.
	settleTimeout = 15 * time.Second
)

func main() {
	// The second signal ends the program the hard way: what is left then is swept by the next start of a cluster.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit status: 0 when everything arrived as it should, or when interrupted after that; 1 when not; 2 for a
// wrong command line.
func run(ctx context.Context, args []string, stdout *os.File, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	binary := flags.String("agent", "bin/webhook-agent", "the agent `binary`; make builds it")
	once := flags.Bool("once", false, "end after the summary")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "demo: unknown argument %q\n", flags.Arg(0))
		return 2
	}

	err := demonstrate(ctx, *binary, *once, newPrinter(stdout, useColor(stdout)))
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "demo: interrupted before the summary")
		return 1
	default:
		fmt.Fprintln(stderr, "demo:", err)
		return 1
	}
}

// demonstrate is the whole demonstration, in its order. What it starts it ends, the last first.
func demonstrate(ctx context.Context, binary string, once bool, out *printer) (err error) {
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("there is no agent binary %s: build it with make build, or name it with -agent", binary)
	}
	s, err := startServer(ctx, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	tally := newTally()
	venues := makeVenues()
	base, closeReceiver, err := startReceiver(venues, tally, out)
	if err != nil {
		return err
	}
	defer closeReceiver()

	a, err := startAgent(ctx, binary, s, venues, base, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	if err := a.registerEndpoints(ctx, venues, base); err != nil {
		return err
	}
	out.venues(venues)

	app, err := openApp(ctx, s, venues, tally, out)
	if err != nil {
		return err
	}
	defer app.close()
	playing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer a.watch(cancel)()
	if err := app.playLeads(playing, leadsPerVenue, busyPause); err != nil {
		return causeOr(playing, err)
	}
	if err := tally.awaitAll(playing, settleTimeout); err != nil {
		return causeOr(playing, err)
	}
	summary := tally.summary()
	out.summary(summary)
	if !summary.sound() {
		return fmt.Errorf("not everything arrived as it should; the agent's log ends:\n%s", testenv.LogTail(a.log))
	}
	if once {
		return nil
	}
	out.lookInside(s, a)
	err = app.playOn(playing, calmPause)
	if ctx.Err() != nil {
		out.line("")
		out.step("stopping")
		return nil // interrupted, which is how this ends
	}
	return causeOr(playing, err)
}

// causeOr returns why ctx was canceled, or err when it was not: what fails after the end of ctx fails because of it.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
