package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/quintago/webhook-agent/testenv"
)

// pgstream is the peer that does the same job from the same source: it reads a logical replication
// slot and POSTs each row. It is built as a program of its own, at a pinned version and outside
// this module, so go.mod, the linters and CI know nothing of it.
const (
	pgstreamModule = "github.com/xataio/pgstream"
	// pgstreamVersion is the first version that tries a failed webhook again.
	pgstreamVersion = "v1.4.0"
	// pgstreamPlugin is the output plugin that it needs. PostgreSQL does not come with it.
	pgstreamPlugin = "wal2json"
)

const (
	buildTimeout = 10 * time.Minute
	// peerEndTimeout is how long pgstream may take to end, and its slot to become free.
	peerEndTimeout = 10 * time.Second
	// undefinedFile is the SQLSTATE of a library that is not installed.
	undefinedFile = "58P01"
)

// pgstreamTemplate is the configuration of pgstream. Where it differs from the defaults, it is
// faster:
//   - Without the cache, pgstream asks the database for the subscriptions of each row.
//   - worker_count is how many endpoints get an event at a time (10 by default). It has as many
//     workers as endpoints, so that none waits for a slow one, and none starts in vain.
//   - Its log level is a flag (see pgstreamLog).
//
// There is nothing to batch: pgstream sends one row at a time, and confirms each.
var pgstreamTemplate = template.Must(template.New("pgstream.yaml").Parse(`source:
  postgres:
    url: "{{.URL}}"
    mode: replication
    replication:
      replication_slot: "{{.Slot}}"
target:
  webhooks:
    subscriptions:
      store:
        url: "{{.URL}}"
        cache:
          enabled: true
          refresh_interval: 60
      server:
        address: "{{.Server}}"
    notifier:
      worker_count: {{.Workers}}
`))

// pgstreamLog is the log level of pgstream. By default, it logs several lines for each row (debug).
const pgstreamLog = "warn"

// leftOutError says why the peer is not measured. Its text is a sentence.
type leftOutError struct{ reason string }

func (e leftOutError) Error() string { return "pgstream is left out: " + e.reason + "." }

// findPgstream returns the program pgstream: that of the command line, or the one that it builds.
// It returns a leftOutError if pgstream or what it needs cannot be had.
func (b *bench) findPgstream(ctx context.Context) (path string, err error) {
	if err := b.lookForPlugin(ctx, pgstreamPlugin); err != nil {
		return "", err
	}
	if b.pgstream != "" {
		return b.pgstream, nil
	}
	folder, err := filepath.Abs(filepath.Dir(b.agent))
	if err != nil {
		return "", err
	}
	b.say("%s: build pgstream %s", time.Now().Format(time.TimeOnly), pgstreamVersion)
	if err := installPgstream(ctx, folder); err != nil {
		return "", err
	}
	return filepath.Join(folder, filepath.Base(pgstreamModule)), nil
}

// installPgstream builds pgstream into a folder. The go command takes it from the module proxy, or
// from its cache, and checks the sums of its modules.
func installPgstream(ctx context.Context, folder string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	module := pgstreamModule + "@" + pgstreamVersion
	cmd := exec.CommandContext(ctx, "go", "install", module)
	cmd.Env = append(os.Environ(), "GOBIN="+folder, "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return leftOutError{fmt.Sprintf("`go install %s` has failed (%s), so connect this machine to the Go module proxy, or name a program that you have: -pgstream FILE",
		module, complaint(out, err))}
}

// complaint returns why the go command has failed, on one line.
func complaint(out []byte, err error) string {
	const most = 400 // bytes; a build may fail with pages of errors
	var kept []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "go: downloading ") {
			kept = append(kept, strings.Fields(line)...)
		}
	}
	text := strings.Join(kept, " ")
	if text == "" {
		text = err.Error()
	}
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

const createProbe = `select pg_create_logical_replication_slot('bench_probe', $1, true)`

// lookForPlugin returns a leftOutError if PostgreSQL does not have the output plugin.
func (b *bench) lookForPlugin(ctx context.Context, plugin string) (err error) {
	conn, err := pgx.Connect(ctx, b.cluster.URL("postgres"))
	if err != nil {
		return err
	}
	// The slot is temporary, so it ends with the connection.
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	_, err = conn.Exec(ctx, createProbe, plugin)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == undefinedFile {
		return leftOutError{fmt.Sprintf("it reads the stream by %s, which this PostgreSQL lacks (Debian and Ubuntu: apt-get install postgresql-%d-%s)",
			plugin, b.cluster.Binaries().Major, plugin)}
	}
	return err
}

// pgstream is the peer while it serves a database.
type pgstream struct {
	d       *database
	path    string
	server  string // host:port where it takes subscriptions
	process *testenv.Process
}

// newPgstream prepares a database for pgstream, and starts it with a subscription for each URL.
func newPgstream(ctx context.Context, d *database, path string, urls []string) (p *pgstream, err error) {
	port, err := testenv.FreePort()
	if err != nil {
		return nil, err
	}
	p = &pgstream{d: d, path: path, server: fmt.Sprintf("127.0.0.1:%d", port)}
	if err := p.configure(len(urls)); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, path, "init", "--config", d.file("yaml")).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s init: %w: %s", path, err, out)
	}
	if err := p.subscribe(ctx, urls); err != nil {
		return nil, errors.Join(err, p.stop(ctx))
	}
	return p, nil
}

// subscribe starts pgstream and registers the URLs. It then starts it again, because pgstream fills
// its cache of subscriptions when it starts.
func (p *pgstream) subscribe(ctx context.Context, urls []string) error {
	if err := p.start(ctx); err != nil {
		return err
	}
	for _, url := range urls {
		err := p.program().await(ctx, readyTimeout, "pgstream takes subscriptions", func() (bool, error) { return p.register(ctx, url) })
		if err != nil {
			return err
		}
	}
	if err := p.stop(ctx); err != nil {
		return err
	}
	return p.start(ctx)
}

func (p *pgstream) configure(workers int) error {
	var text strings.Builder
	values := struct {
		URL, Slot, Server string
		Workers           int
	}{p.d.b.cluster.URL(p.d.name), p.d.slot(), p.server, workers}
	if err := pgstreamTemplate.Execute(&text, values); err != nil {
		return err
	}
	if err := os.WriteFile(p.d.file("yaml"), []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("configure pgstream: %w", err)
	}
	return nil
}

// subscription is what pgstream's server takes.
type subscription struct {
	URL        string   `json:"url"`
	EventTypes []string `json:"event_types"`
	Schema     string   `json:"schema"`
	Table      string   `json:"table"`
}

// register asks pgstream to send each row of the outbox to a URL. It reports false while pgstream
// takes no connections yet.
func (p *pgstream) register(ctx context.Context, url string) (bool, error) {
	body, err := json.Marshal(subscription{URL: url, EventTypes: []string{"I"}, Schema: "webhooks", Table: "outbox"})
	if err != nil {
		return false, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.server+"/webhooks/subscribe", bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := adminClient.Do(request)
	if err != nil {
		return false, ctx.Err()
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusCreated {
		err = fmt.Errorf("pgstream refuses a subscription: %s: %s", response.Status, answer)
	}
	return err == nil, err
}

// program returns pgstream as a program to wait for.
func (p *pgstream) program() program {
	return program{name: "pgstream", log: p.d.file("log"), process: p.process}
}

// start starts pgstream and returns when it streams.
func (p *pgstream) start(ctx context.Context) (err error) {
	cmd := exec.Command(p.path, "run", "--config", p.d.file("yaml"), "--log-level", pgstreamLog)
	if p.process, err = startLogged(cmd, p.d.file("log")); err != nil {
		return fmt.Errorf("start pgstream: %w", err)
	}
	return p.program().await(ctx, readyTimeout, "pgstream streams", func() (bool, error) { return p.streams(ctx) })
}

func (p *pgstream) streams(ctx context.Context) (active bool, err error) {
	err = p.d.conn.QueryRow(ctx, selectStreaming, p.d.slot()).Scan(&active)
	return active, err
}

// stop ends pgstream and returns when its slot is free. How pgstream ends does not matter here.
func (p *pgstream) stop(ctx context.Context) error {
	if p.process == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if err := p.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.AfterFunc(peerEndTimeout, func() { _ = p.process.Signal(syscall.SIGKILL) })
	defer timer.Stop()
	_ = p.process.Wait()
	for deadline := time.Now().Add(peerEndTimeout); ; time.Sleep(poll) {
		switch active, err := p.streams(ctx); {
		case err != nil:
			return err
		case !active:
			p.process = nil
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the slot of pgstream is still active %s after its end", peerEndTimeout)
		}
	}
}

// deliver writes events and waits until the receiver has answered all requests, since pgstream
// records nothing.
func (p *pgstream) deliver(ctx context.Context, l load) (r delivered, err error) {
	answered := &p.d.b.customers.answered
	before, began := answered.Load(), time.Now()
	if r.written, err = p.d.write(ctx, l); err != nil {
		return r, err
	}
	r.deliveries = r.events * l.fanout
	err = p.program().await(ctx, patience, "all requests are answered", func() (bool, error) {
		return answered.Load()-before >= r.deliveries, nil
	})
	r.took = time.Since(began)
	return r, err
}
