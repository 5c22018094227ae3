package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	databaseName = "quintago"
	appRole      = "app"
)

//go:embed install.sh
var installScript string

// appSchema is the app's own schema. It has the business data that events are about.
const appSchema = `
create schema crm authorization app;
set role app;
create table crm.leads (
	id text primary key, venue text not null, name text not null, email text not null, phone text not null,
	stage text not null, event_date date not null, guests int not null
);
create table crm.proposals (id text primary key, lead_id text not null references crm.leads, total numeric(10, 2) not null, status text not null);
create table crm.payments (id text primary key, proposal_id text not null references crm.proposals, amount numeric(10, 2) not null, method text not null);
`

// appRights lets the app write events and register endpoints. The agent grants these rights,
// because it owns the schema.
const appRights = `
grant usage on schema webhooks to app;
grant select, insert on webhooks.outbox to app;
grant select, insert, update, delete on webhooks.endpoints to app;
`

// server is the private PostgreSQL, with the app's database.
type server struct {
	cluster *testenv.Cluster
}

// startServer finds or installs PostgreSQL and starts a cluster with the app's database.
func startServer(ctx context.Context, out *printer) (_ *server, err error) {
	if err := ensurePostgres(ctx, out); err != nil {
		return nil, err
	}
	cluster, err := testenv.Start(ctx, testenv.Options{Durable: true})
	if err != nil {
		return nil, err
	}
	s := &server{cluster}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := cluster.CreateRole(ctx, appRole, ""); err != nil {
		return nil, err
	}
	if err := testenv.ExecSQL(ctx, cluster.URL("postgres"), "create database "+databaseName); err != nil {
		return nil, fmt.Errorf("create the app's database: %w", err)
	}
	// The agent makes its schema and its publications itself, and needs this right for it.
	rights := "grant create on database " + databaseName + " to " + testenv.AgentRole
	if err := testenv.ExecSQL(ctx, cluster.URL(databaseName), rights+";"+appSchema); err != nil {
		return nil, fmt.Errorf("create the app's schema: %w", err)
	}
	binaries := cluster.Binaries()
	out.step("PostgreSQL %d.%d with the app's tables, in %s", binaries.Major, binaries.Minor, cluster.Folder())
	return s, nil
}

func (s *server) close() error { return s.cluster.Close() }

// grantToApp gives the app its rights on the agent's schema. The schema must exist.
func (s *server) grantToApp(ctx context.Context) error {
	if err := testenv.ExecSQL(ctx, s.agentURL(), appRights); err != nil {
		return fmt.Errorf("let the app write events: %w", err)
	}
	return nil
}

func (s *server) appURL() string   { return s.cluster.RoleURL(appRole, databaseName) }
func (s *server) agentURL() string { return s.cluster.RoleURL(testenv.AgentRole, databaseName) }

// ensurePostgres installs PostgreSQL if the machine has none and apt-get can do it without a
// question (except for the password that sudo asks for on a terminal). If the user chose a version
// by PG or PG_BIN, it installs nothing.
func ensurePostgres(ctx context.Context, out *printer) error {
	_, missing := testenv.FindPostgres(ctx)
	if _, ok := errors.AsType[*testenv.NotFoundError](missing); !ok || os.Getenv("PG") != "" || os.Getenv("PG_BIN") != "" {
		return missing
	}
	install, err := installCommand(ctx)
	if err != nil {
		return fmt.Errorf("%w (it is not installed for you: %w)", missing, err)
	}
	out.line("  …  there is no PostgreSQL here: installing it with apt-get")
	if output, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("install PostgreSQL with apt-get: %w: %s", err, strings.TrimSpace(string(output)))
	}
	_, err = testenv.FindPostgres(ctx)
	return err
}

// installCommand returns the command that installs PostgreSQL as root.
func installCommand(ctx context.Context) (*exec.Cmd, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("there is no apt-get")
	}
	install := []string{"sh", "-c", installScript, "install.sh", "postgresql"}
	switch {
	case os.Geteuid() == 0:
	case exec.CommandContext(ctx, "sudo", "-n", "true").Run() == nil:
		install = append([]string{"sudo", "-n"}, install...)
	case hasProgram("sudo") && term.IsTerminal(int(os.Stdin.Fd())):
		install = append([]string{"sudo"}, install...)
	default:
		return nil, errors.New("that needs root, or sudo without a password")
	}
	cmd := exec.CommandContext(ctx, install[0], install[1:]...)
	cmd.Stdin = os.Stdin
	cmd.WaitDelay = 5 * time.Second
	return cmd, nil
}

func hasProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}
