package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	readyTimeout = 15 * time.Second
	stopTimeout  = 25 * time.Second // longer than the agent's own shutdown_timeout
	readyPoll    = 20 * time.Millisecond
)

// configTemplate is the agent's configuration file. [network] allows this machine, because the
// customers' servers are on it.
var configTemplate = template.Must(template.New("agent.toml").Parse(`# The configuration of the demo's agent.

[database]
url = "{{.DatabaseURL}}"

[network]
allow_http = true
allow_networks = ["127.0.0.0/8"]

[admin]
listen = "{{.Admin}}"
token = "{{.Token}}"

[console]
keys = ["{{.Key}}"] # the app signs with it
origins = ["{{.App}}"] # and shows the pages inside its own
{{range .Endpoints}}
[[endpoint]]
venue = "{{.Venue}}"
url = "{{.URL}}"
events = [{{range $i, $e := .Events}}{{if $i}}, {{end}}"{{$e}}"{{end}}]
secret = "{{.Secret}}"
description = "registered in the configuration file"
{{end}}`))

type configValues struct {
	DatabaseURL, Admin, Token, Key, App string
	Endpoints                           []configEndpoint
}

type configEndpoint struct {
	Venue, URL, Secret string
	Events             []string
}

// agent is the running agent with its files. The files are in the folder of the cluster, which is
// removed with it.
type agent struct {
	binary, config, log string
	admin               string // host:port
	token               string // of the operator
	server              *server
	process             *testenv.Process
}

// startAgent migrates the database, writes the configuration, and starts the agent. It returns when
// the agent is ready.
func startAgent(ctx context.Context, binary string, s *server, venues []*venue, base string, app *settings, out *printer) (_ *agent, err error) {
	port, err := testenv.FreePort()
	if err != nil {
		return nil, err
	}
	a := &agent{
		binary: binary,
		config: filepath.Join(s.cluster.Folder(), "agent.toml"),
		log:    filepath.Join(s.cluster.Folder(), "agent.log"),
		admin:  fmt.Sprintf("127.0.0.1:%d", port),
		token:  randomHex(),
		server: s,
	}
	if err := a.writeConfig(venues, base, app); err != nil {
		return nil, err
	}
	if err := a.command(ctx, nil, "migrate"); err != nil {
		return nil, err
	}
	if err := s.grantToApp(ctx); err != nil {
		return nil, err
	}
	if err := a.start(); err != nil {
		return nil, err
	}
	if err := a.awaitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the agent: %w; its log ends:\n%s", err, testenv.LogTail(a.log)), a.stop())
	}
	out.step("%s, configured by %s", a.binary, a.config)
	return a, nil
}

// writeConfig writes the configuration, with the endpoints that the file registers.
func (a *agent) writeConfig(venues []*venue, base string, app *settings) (err error) {
	values := configValues{DatabaseURL: a.server.agentURL(), Admin: a.admin, Token: a.token, Key: app.key, App: app.base}
	for _, v := range venues {
		for _, e := range v.endpoints {
			if e.registered == byTOML {
				values.Endpoints = append(values.Endpoints, configEndpoint{v.id, base + e.path, e.secret, e.events})
			}
		}
	}
	var text strings.Builder
	if err := configTemplate.Execute(&text, values); err != nil {
		return fmt.Errorf("write the agent's configuration: %w", err)
	}
	if err := os.WriteFile(a.config, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write the agent's configuration: %w", err)
	}
	return nil
}

// registerEndpoints registers the endpoints that are not in the configuration file, while the agent
// runs.
func (a *agent) registerEndpoints(ctx context.Context, venues []*venue, base string) (err error) {
	conn, err := pgx.Connect(ctx, a.server.appURL())
	if err != nil {
		return fmt.Errorf("register endpoints: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	for _, v := range venues {
		for _, e := range v.endpoints {
			switch e.registered {
			case bySQL:
				_, err = conn.Exec(ctx, "insert into webhooks.endpoints (venue, url, events, secret, description) values ($1, $2, $3, $4, $5)",
					v.id, base+e.path, e.events, e.secret, "registered by SQL")
			case byCLI:
				// The secret goes through the environment, because others on this machine can read
				// a command line.
				err = a.command(ctx, []string{"ENDPOINT_SECRET=" + e.secret}, "endpoints", "add", "--venue", v.id, "--url", base+e.path,
					"--events", strings.Join(e.events, ","), "--secret", "env:ENDPOINT_SECRET", "--description", "registered by the command line")
			case byTOML:
			}
			if err != nil {
				return fmt.Errorf("register the endpoint %s: %w", e.path, err)
			}
		}
	}
	return nil
}

// command runs one of the agent's commands and waits for its end.
func (a *agent) command(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, a.binary, append(args, "--config", a.config)...)
	cmd.Env = append(os.Environ(), env...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", a.binary, args[0], err, strings.TrimSpace(string(output)))
	}
	return nil
}

func (a *agent) start() error {
	log, err := os.OpenFile(a.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	defer func() { _ = log.Close() }() // the child has a descriptor of its own
	cmd := exec.Command(a.binary, "run", "--config", a.config)
	cmd.Stdout, cmd.Stderr = log, log
	if a.process, err = testenv.StartProcess(cmd); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	return nil
}

// awaitReady asks /readyz until the answer is 200.
func (a *agent) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("/readyz does not answer 200 within %s", readyTimeout))
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.admin+"/readyz", nil)
		if err != nil {
			return err
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.process.Ended():
			return errEndedEarly
		case <-tick.C:
		}
	}
}

var errEndedEarly = errors.New("it ended before it was told to")

// watch calls cancel with the reason when the agent ends. The function that it returns stops the
// watch and its goroutine.
func (a *agent) watch(cancel context.CancelCauseFunc) (stop func()) {
	stopped := make(chan struct{}) // the returned function closes it
	go func() {
		select {
		case <-a.process.Ended():
			//nolint:errorlint // Wait returns nil for an agent that ended with status 0
			cancel(fmt.Errorf("the agent failed: %w: %v; its log ends:\n%s", errEndedEarly, a.process.Wait(), testenv.LogTail(a.log)))
		case <-stopped:
		}
	}()
	return func() { close(stopped) }
}

// stop asks the agent to finish its attempts and end, and kills it if it does not. If the agent
// ended before, watch has reported that.
func (a *agent) stop() error {
	select {
	case <-a.process.Ended():
		return nil
	default:
	}
	if err := a.process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the agent: %w", err)
	}
	deadline := time.NewTimer(stopTimeout)
	defer deadline.Stop()
	select {
	case <-a.process.Ended():
		if err := a.process.Wait(); err != nil {
			return fmt.Errorf("the agent did not end in order: %w; its log ends:\n%s", err, testenv.LogTail(a.log))
		}
		return nil
	case <-deadline.C:
		err := fmt.Errorf("the agent did not stop within %s and was killed", stopTimeout)
		if killErr := a.process.Signal(syscall.SIGKILL); killErr != nil {
			return errors.Join(err, killErr)
		}
		<-a.process.Ended()
		return err
	}
}
