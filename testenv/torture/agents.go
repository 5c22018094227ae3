package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	// The agents are configured with short waits, so that everything happens often.
	attemptTimeout  = 2 * time.Second
	shutdownTimeout = 5 * time.Second

	readyTimeout = 15 * time.Second
	// endTimeout is how long an agent may take to end after SIGTERM. It is longer than
	// shutdownTimeout.
	endTimeout = 20 * time.Second
	askTimeout = 400 * time.Millisecond
)

// retries are the waits before each attempt after the first. One second is the least that the agent
// accepts.
var retries = []time.Duration{time.Second, time.Second, time.Second, 2 * time.Second, 2 * time.Second}

// agentName is the environment variable from which a binary of `torture build` takes its version,
// and with it the User-Agent. So each request shows which process of which agent sent it.
const agentName = "TORTURE_AGENT"

var configTemplate = template.Must(template.New("agent.toml").Parse(`[database]
url = "{{.URL}}"

[delivery]
timeout = "{{.Timeout}}"
retries = [{{range $i, $wait := .Retries}}{{if $i}}, {{end}}"{{$wait}}"{{end}}]
disable_after = {{.DisableAfter}}
failing_interval = "500ms"
shutdown_timeout = "{{.ShutdownTimeout}}"

[network]
allow_http = true
allow_networks = ["127.0.0.0/8"]

[admin]
listen = "{{.Admin}}"

# The judge knows every event that was written. One of the agent's own would look like a phantom.
[notices]
enabled = false

[log]
format = "text"
`))

type configValues struct {
	URL, Admin               string
	Timeout, ShutdownTimeout time.Duration
	Retries                  []time.Duration
	DisableAfter             int
}

// agent is one of the two agents: its files, and the process that runs now. Any goroutine may call
// its methods, except those that start or end the process: only one goroutine may call these.
type agent struct {
	name                string
	binary, config, log string
	admin               string         // host:port
	proxy               *testenv.Proxy // between the agent and PostgreSQL
	clock               stopwatch
	lives               *journal[agentRun]

	mu      sync.Mutex // guards all below
	number  int        // how many processes there were so far
	current *life
	watched sync.WaitGroup
}

// life is one process of an agent.
type life struct {
	*testenv.Process
	name     string
	expected string // why it may end; "" while it should run; guarded by agent.mu
}

// newAgent writes the configuration of an agent. The agent reaches the database at url through
// proxy.
func newAgent(
	name, dir, url string, cfg config, proxy *testenv.Proxy, clock stopwatch, lives *journal[agentRun],
) (*agent, error) {
	port, err := testenv.FreePort()
	if err != nil {
		return nil, err
	}
	a := &agent{
		name: name, binary: cfg.agent, clock: clock, lives: lives, proxy: proxy, admin: fmt.Sprintf("127.0.0.1:%d", port),
		config: filepath.Join(dir, "agent-"+name+".toml"), log: filepath.Join(dir, "agent-"+name+".log"),
	}
	var content strings.Builder
	values := configValues{
		URL: proxy.Via(url), Admin: a.admin, Timeout: attemptTimeout, ShutdownTimeout: shutdownTimeout, Retries: retries,
		DisableAfter: cfg.disableAfter,
	}
	if err := configTemplate.Execute(&content, values); err != nil {
		return nil, fmt.Errorf("configure agent %s: %w", name, err)
	}
	if err := os.WriteFile(a.config, []byte(content.String()), 0o600); err != nil {
		return nil, fmt.Errorf("configure agent %s: %w", name, err)
	}
	return a, nil
}

// checkBinary returns an error if the binary is not one of `torture build`. The torture of any
// other binary would prove nothing.
func checkBinary(ctx context.Context, binary string) error {
	const probe = "probe.1"
	cmd := exec.CommandContext(ctx, binary, "version")
	cmd.Env = append(os.Environ(), agentName+"="+probe)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("run %s version: %w", binary, err)
	}
	if !strings.Contains(string(out), probe) {
		return fmt.Errorf("%s was not built by the subcommand build: its requests do not tell which process sent them",
			binary)
	}
	return nil
}

// command runs one of the agent's commands and waits for its end.
func (a *agent) command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, a.binary, append(args, "--config", a.config)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", a.binary, args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// start starts the next process. A goroutine watches the process and ends with it.
func (a *agent) start() error {
	log, err := os.OpenFile(a.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start agent %s: %w", a.name, err)
	}
	defer func() { _ = log.Close() }() // the child has a descriptor of its own
	a.mu.Lock()
	defer a.mu.Unlock()
	a.number++
	name := a.runLocked()
	cmd := exec.Command(a.binary, "run", "--config", a.config)
	cmd.Env = append(os.Environ(), agentName+"="+name)
	cmd.Stdout, cmd.Stderr = log, log
	if _, err := fmt.Fprintf(log, "--- %s starts at %.1fs\n", name, a.clock.now().Seconds()); err != nil {
		return fmt.Errorf("start agent %s: %w", a.name, err)
	}
	a.lives.add(agentRun{Agent: name, At: a.clock.now()})
	p, err := testenv.StartProcess(cmd)
	if err != nil {
		return fmt.Errorf("start agent %s: %w", a.name, err)
	}
	l := &life{Process: p, name: name}
	a.current = l
	a.watched.Go(func() { a.watch(l) })
	return nil
}

// watch records how a process ends. If it ends by itself, that is a fault of the agent, and watch
// starts another one so that the run goes on.
func (a *agent) watch(l *life) {
	err := l.Wait()
	a.mu.Lock()
	expected := l.expected
	a.mu.Unlock()
	record := agentRun{Agent: l.name, At: a.clock.now(), Ended: true, How: expected}
	switch expected {
	case "":
		record.How = "ended by itself"
		record.Fault = fmt.Sprintf("it ended by itself: %v; its log ends:\n%s", err, testenv.LogTail(a.log))
	case endedByTerm:
		if err != nil {
			record.Fault = fmt.Sprintf("after SIGTERM: %v; its log ends:\n%s", err, testenv.LogTail(a.log))
		}
	}
	a.lives.add(record)
	if expected == "" {
		if err := a.start(); err != nil {
			a.lives.add(agentRun{Agent: l.name, At: a.clock.now(), Ended: true, Fault: err.Error()})
		}
	}
}

// These are the reasons why a process may end.
const (
	endedByKill = "killed"
	endedByTerm = "told to end"
)

// run returns the name of the process that runs now.
func (a *agent) run() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.runLocked()
}

func (a *agent) runLocked() string { return a.name + "." + strconv.Itoa(a.number) }

// signal sends a signal to the process.
func (a *agent) signal(s syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current.Signal(s)
}

// kill kills the process by SIGKILL, and returns when it is gone.
func (a *agent) kill() error {
	return a.end(endedByKill, syscall.SIGKILL)
}

// terminate asks the process to end, and returns when it has. If it takes too long, terminate kills
// it and returns an error.
func (a *agent) terminate() error {
	return a.end(endedByTerm, syscall.SIGTERM)
}

func (a *agent) end(how string, s syscall.Signal) error {
	a.mu.Lock()
	l := a.current
	if l != nil {
		l.expected = how
	}
	a.mu.Unlock()
	if l == nil {
		return nil // it was never started
	}
	if err := l.Signal(s); err != nil {
		return fmt.Errorf("end agent %s: %w", a.name, err)
	}
	deadline := time.NewTimer(endTimeout)
	defer deadline.Stop()
	select {
	case <-l.Ended():
		return nil
	case <-deadline.C:
		err := fmt.Errorf("agent %s did not end within %s", a.name, endTimeout)
		return errors.Join(err, l.Signal(syscall.SIGKILL))
	}
}

// close ends the agent for good. It cannot be started again.
func (a *agent) close() error {
	err := a.end(endedByKill, syscall.SIGKILL)
	a.watched.Wait()
	return err
}

// get requests a route of the agent's admin listener. It returns an error if the agent is frozen or
// starting.
func (a *agent) get(ctx context.Context, route string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.admin+route, nil)
	if err != nil {
		return "", err
	}
	req.Close = true // an idle connection would count among the agent's resources
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return string(body), err
}

// leads reports whether the agent says that it leads.
func (a *agent) leads(ctx context.Context) bool {
	body, err := a.get(ctx, "/metrics")
	return err == nil && metric(body, "webhook_agent_leading") == 1
}

// metric returns the value of a metric without labels, or -1 if the page does not have it.
func metric(page, name string) float64 {
	for line := range strings.Lines(page) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			if v, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				return v
			}
		}
	}
	return -1
}

// measure returns the resources that the process uses, from its metrics.
func (a *agent) measure(ctx context.Context, phase string) (resources, error) {
	page, err := a.get(ctx, "/metrics")
	if err != nil {
		return resources{}, fmt.Errorf("ask agent %s for its metrics: %w", a.name, err)
	}
	return resources{
		At: a.clock.now(), Phase: phase, Agent: a.run(), Leading: metric(page, "webhook_agent_leading") == 1,
		Goroutines: int(metric(page, "go_goroutines")), Files: int(metric(page, "process_open_fds")),
		Bytes: int64(metric(page, "process_resident_memory_bytes")),
	}, nil
}
