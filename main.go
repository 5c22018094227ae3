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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end. From then on signals act as usual, so a second one
	// ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
