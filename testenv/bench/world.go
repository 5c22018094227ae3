package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	readyTimeout = 30 * time.Second
	endTimeout   = 20 * time.Second // longer than the agent's shutdown_timeout
	patience     = 2 * time.Minute  // how long the agent may take to do its work
	poll         = 20 * time.Millisecond
)

// settings are the settings of a small production server with 2 cores.
var settings = map[string]string{
	"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "15min", "maintenance_work_mem": "512MB",
}

// bench is one run.
type bench struct {
	config
	cluster   *testenv.Cluster
	customers *customers
	report    *report
	out       io.Writer
	databases int
	peer      string // the program pgstream; "" if it is not measured
}

func newBench(ctx context.Context, c config, out io.Writer) (*bench, error) {
	customers, err := startCustomers()
	if err != nil {
		return nil, err
	}
	cluster, err := testenv.Start(ctx, testenv.Options{Durable: c.durable, Settings: settings})
	if err != nil {
		return nil, errors.Join(err, customers.close())
	}
	return &bench{config: c, cluster: cluster, customers: customers, out: out, report: newReport(c, cluster.Binaries())}, nil
}

func (b *bench) close() error { return errors.Join(b.cluster.Close(), b.customers.close()) }

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

// database is a database with the agent's schema, and the agent that serves it while it runs.
type database struct {
	b       *bench
	name    string
	conn    *pgx.Conn // of a superuser
	options agentOptions
	admin   string // host:port of the agent
	agent   *testenv.Process
}

// agentOptions are the settings in which measurements differ from the defaults.
type agentOptions struct {
	Concurrency         int // zero for the default
	EndpointConcurrency int
	MaxBody             string
	Timeout             string // of an attempt; "" for the default
}

// adminToken is the operator's token of every agent here.
const adminToken = "bench-operator-0123456789abcdef0123456789"

var configTemplate = template.Must(template.New("agent.toml").Parse(`[database]
url = "{{.URL}}"

[outbox]
slot = "{{.Slot}}"

[delivery]
{{with .Concurrency}}concurrency = {{.}}
{{end}}{{with .EndpointConcurrency}}endpoint_concurrency = {{.}}
{{end}}{{with .MaxBody}}max_body = "{{.}}"
{{end}}{{with .Timeout}}timeout = "{{.}}"
{{end}}shutdown_timeout = "1s"

[network]
allow_http = true
allow_networks = ["127.0.0.0/8"]

[admin]
listen = "{{.Admin}}"
token = "` + adminToken + `"

[console]
keys = ["` + consoleKey + `"]
`))

// newDatabase makes a database with the schema and without endpoints.
func (b *bench) newDatabase(ctx context.Context, options agentOptions) (_ *database, err error) {
	b.databases++
	d := &database{b: b, name: fmt.Sprintf("bench_%d", b.databases), options: options}
	err = testenv.ExecSQL(ctx, b.cluster.URL("postgres"), fmt.Sprintf(`create database %s owner %s`, d.name, testenv.AgentRole))
	if err != nil {
		return nil, err
	}
	port, err := testenv.FreePort()
	if err != nil {
		return nil, err
	}
	d.admin = fmt.Sprintf("127.0.0.1:%d", port)
	url := b.cluster.RoleURL(testenv.AgentRole, d.name)
	if b.socket {
		url = b.cluster.SocketURL(testenv.AgentRole, d.name)
	}
	if err := d.configure(url); err != nil {
		return nil, err
	}
	if err := b.customers.writeCA(d.file("ca")); err != nil {
		return nil, fmt.Errorf("configure the agent: %w", err)
	}
	if out, err := exec.CommandContext(ctx, b.agent, "migrate", "--config", d.file("toml")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s migrate: %w: %s", b.agent, err, out)
	}
	d.conn, err = pgx.Connect(ctx, b.cluster.URL(d.name))
	return d, err
}

// configure writes the agent's configuration. url is the URL of the database.
func (d *database) configure(url string) error {
	var text strings.Builder
	values := struct {
		URL, Slot, Admin string
		agentOptions
	}{url, d.slot(), d.admin, d.options}
	if err := configTemplate.Execute(&text, values); err != nil {
		return err
	}
	if err := os.WriteFile(d.file("toml"), []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("configure the agent: %w", err)
	}
	return nil
}

func (d *database) slot() string { return d.name + "_slot" }
func (d *database) file(extension string) string {
	return filepath.Join(d.b.cluster.Folder(), d.name+"."+extension)
}

// settle makes PostgreSQL do now what it would do some time after so many rows were written.
func (d *database) settle(ctx context.Context) error {
	for _, sql := range []string{`vacuum analyze`, `checkpoint`} {
		if _, err := d.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// drop stops the agent and removes the database.
func (d *database) drop(ctx context.Context) error {
	err := d.stop()
	ctx = context.WithoutCancel(ctx)
	_, slotErr := d.conn.Exec(ctx, `select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1`, d.slot())
	return errors.Join(err, slotErr, d.conn.Close(ctx),
		testenv.ExecSQL(ctx, d.b.cluster.URL("postgres"), `drop database `+d.name+` with (force)`))
}

const insertEndpoint = `
insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, $2, $3, '{*}', $4)`

// endpoint registers an endpoint for all events of a venue.
func (d *database) endpoint(ctx context.Context, id, venue, url string) error {
	_, err := d.conn.Exec(ctx, insertEndpoint, id, venue, url, secret)
	return err
}

// venue returns the name of the venue with this number.
func venue(number int) string { return fmt.Sprintf("venue_%06d", number) }

// start starts the agent. It returns when the agent leads and has compared the outbox with the log.
func (d *database) start(ctx context.Context) error {
	if err := d.launch(ctx, readyTimeout); err != nil {
		return err
	}
	return d.awaitRecovered(ctx, readyTimeout)
}

func (d *database) awaitRecovered(ctx context.Context, limit time.Duration) error {
	return d.await(ctx, limit, "the agent has recovered", func() (bool, error) {
		m, err := d.metrics(ctx)
		return m["webhook_agent_recovering"] == 0, err
	})
}

// launch starts the agent and returns when it leads. It fails if that takes longer than limit.
func (d *database) launch(ctx context.Context, limit time.Duration) (err error) {
	cmd := exec.Command(d.b.agent, "run", "--config", d.file("toml"))
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+d.file("ca"))
	if d.agent, err = startLogged(cmd, d.file("log")); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	return d.await(ctx, limit, "the agent leads", func() (bool, error) {
		body, err := d.get(ctx, "/readyz")
		return err == nil && body == "leading\n", nil
	})
}

// startLogged starts a program whose output is added to a file.
func startLogged(cmd *exec.Cmd, path string) (p *testenv.Process, err error) {
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	cmd.Stdout, cmd.Stderr = log, log
	return testenv.StartProcess(cmd)
}

// stop ends the agent, which finishes its attempts first.
func (d *database) stop() error {
	if d.agent == nil {
		return nil
	}
	if err := d.agent.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.AfterFunc(endTimeout, func() { _ = d.agent.Signal(syscall.SIGKILL) })
	defer timer.Stop()
	err := d.agent.Wait()
	d.agent = nil
	if err != nil {
		return fmt.Errorf("the agent: %w; its log ends:\n%s", err, testenv.LogTail(d.file("log")))
	}
	return nil
}

// await calls done again and again until it reports true. It fails after limit.
func (d *database) await(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	return program{name: "the agent", log: d.file("log"), process: d.agent}.await(ctx, limit, what, done)
}

// program is a program that runs, and its log.
type program struct {
	name, log string
	process   *testenv.Process
}

// await calls done again and again until it reports true. It fails after limit, and when the
// program ends.
func (p program) await(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		ok, err := done()
		switch {
		case ok || err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("not within %s: %s; the log of %s ends:\n%s", limit, what, p.name, testenv.LogTail(p.log))
		}
		select {
		case <-p.process.Ended():
			return fmt.Errorf("%s has ended; its log ends:\n%s", p.name, testenv.LogTail(p.log))
		case <-time.After(poll):
		}
	}
}

// adminClient does not ask for compression, which would cost the agent more than the answer itself.
var adminClient = &http.Client{Transport: &http.Transport{DisableCompression: true}}

func (d *database) get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.admin+path, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+adminToken)
	response, err := adminClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// metrics returns all metrics of the agent. The keys have the labels as they are printed.
func (d *database) metrics(ctx context.Context) (map[string]float64, error) {
	body, err := d.get(ctx, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("read the agent's metrics: %w", err)
	}
	metrics := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if ok && name != "#" {
			if metrics[name], err = strconv.ParseFloat(value, 64); err != nil {
				metrics[name] = math.NaN()
			}
		}
	}
	return metrics, nil
}

// recorded returns how many deliveries the agent has recorded as succeeded.
func (d *database) recorded(ctx context.Context) (int64, error) {
	m, err := d.metrics(ctx)
	return int64(m[`webhook_agent_deliveries_total{status="succeeded"}`]), err
}
