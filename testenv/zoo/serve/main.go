// Command serve opens the zoo to visitors until it is interrupted. It prints each animal's URL and
// what it does. The URLs are for the endpoints of an agent with network.allow_http and
// allow_networks = ["127.0.0.0/8"].
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/quintago/webhook-agent/testenv/zoo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "zoo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
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
	authority, err := writeAuthority()
	if err != nil {
		return errors.Join(err, z.Close())
	}
	defer func() { err = errors.Join(err, os.Remove(authority)) }()
	fmt.Printf("%d animals; the names are answered by DNS at %s, and SSL_CERT_FILE=%s trusts their certificates. Ctrl-C ends it.\n",
		len(z.Animals), z.DNS, authority)
	<-ctx.Done()
	return z.Close()
}

// writeAuthority writes the certificate of the authority to a file. Clients that trust it trust the
// animals' certificates.
func writeAuthority() (path string, err error) {
	authority, err := zoo.Authority()
	if err != nil {
		return "", err
	}
	file, err := os.CreateTemp("", "zoo-*.pem")
	if err != nil {
		return "", err
	}
	_, err = file.Write(authority)
	return file.Name(), errors.Join(err, file.Close())
}
