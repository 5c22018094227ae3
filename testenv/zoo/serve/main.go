// Command serve opens the zoo to visitors until it is interrupted: it prints each animal's URL and what it does, for endpoints of an
// agent with network.allow_http and allow_networks = ["127.0.0.0/8"].
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/quintago/webhook-agent/testenv/zoo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "zoo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	z, err := zoo.Open()
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, a := range z.Animals {
		fmt.Fprintf(table, "%s\t%s\n", a.URL, a.Does)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("%d animals; the names are answered by DNS at %s. Ctrl-C ends it.\n", len(z.Animals), z.DNS)
	<-ctx.Done()
	return z.Close()
}
