// Command webhook-agent delivers the events of a PostgreSQL outbox as signed webhooks. Package
// agent/cli is the program; this file gives it the command line and the signals.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/quintago/webhook-agent/agent/cli"
)

func main() {
	os.Exit(cli.Main(untilSignal(context.Background()), os.Args[1:], os.Stdout, os.Stderr))
}

// untilSignal returns a context that ends with the first signal, which asks for an orderly end. From
// then on SIGINT and SIGTERM act as usual, so a second one ends the process at once. SIGHUP does not:
// a terminal that closes may send several. Under nohup it is ignored, and stays so.
func untilSignal(ctx context.Context) context.Context {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		ctx, _ = signal.NotifyContext(ctx, syscall.SIGHUP)
	}
	context.AfterFunc(ctx, stop)
	return ctx
}
