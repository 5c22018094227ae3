// Command demo shows the webhook agent at work on one machine. It starts a private PostgreSQL, the
// real agent binary and a receiver, and plays the QuintaGo app. It prints each delivery after its
// signatures were verified, and ends with a summary. `make demo` runs it.
//
// It leaves nothing behind. Everything it makes is in the folder of its cluster, which it removes.
// If it dies, the kernel ends its child processes (see package testenv).
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
	busyPause     = 90 * time.Millisecond // between two transactions, until the summary
	calmPause     = 2 * time.Second       // the same after the summary
	// settleTimeout bounds the wait for the last delivery. A first retry comes after five seconds.
	settleTimeout = 15 * time.Second
)

func main() {
	// A second signal ends the program at once. The next start of a cluster then removes what is
	// left.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	testenv.ClearEnvironment()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit status: 0 if everything arrived as it should, also when interrupted after
// that; 1 if not; 2 for a wrong command line.
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

// demonstrate runs the whole demonstration in its order. It ends everything that it starts, the
// last first.
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

	page, err := listenSettings(venues)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, page.close()) }()
	a, err := startAgent(ctx, binary, s, venues, base, page, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	if err := a.registerEndpoints(ctx, venues, base); err != nil {
		return err
	}
	page.start("http://" + a.admin)
	if err := checkPages(ctx, page, a); err != nil {
		return fmt.Errorf("%w; the agent's log ends:\n%s", err, testenv.LogTail(a.log))
	}
	out.step("the webhooks within the app's Settings page, and the operators' console")
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
	link, err := a.consoleLink(ctx)
	if err != nil {
		return err
	}
	out.lookInside(s, a, page, link)
	err = app.playOn(playing, calmPause)
	if ctx.Err() != nil {
		out.line("")
		out.step("stopping")
		return nil // it was interrupted, which is the normal end
	}
	return causeOr(playing, err)
}

// causeOr returns the cause if ctx was canceled, because errors after that come from it. Otherwise
// it returns err.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
