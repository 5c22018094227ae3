package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	startTimeout = 30 * time.Second // for initdb, and then for the server to accept connections
	// stopTimeout bounds an immediate stop, which takes milliseconds on a healthy machine.
	stopTimeout = 30 * time.Second

	superuser = "postgres"
	// maintenanceDatabase is the database that initdb makes. The others are created through it.
	maintenanceDatabase = "postgres"
)

// These are the roles of every cluster. They have LOGIN and REPLICATION only, because a test that
// needs a superuser should not pass.
const (
	AgentRole = "agent"         // owns the databases of NewDB
	LeastRole = "webhook_agent" // owns nothing; its rights are the grants of Options.Template
)

// Options says how to make a cluster. The zero value is right for most tests.
type Options struct {
	// Template prepares the database that NewDB clones. It is called once for each cluster. The URL
	// connects as the role that owns the database, as DB.URL does. Template must close its
	// connections. NewCluster uses the Template of Main if this one is nil.
	Template func(ctx context.Context, url string) error
	// Settings are server parameters (postgresql.conf). They are added to the parameters that every
	// cluster has, or replace them.
	Settings map[string]string
	// Durable turns fsync on. Without it the data survive a crash of PostgreSQL, but not a crash of
	// the machine.
	Durable bool
	// OwnIdentity gives a cluster of NewCluster a system identifier that no other cluster has. This
	// costs more than a second.
	OwnIdentity bool

	inMemory bool // the folder may be in memory (parentFolder), as tests need no disk
}

// hugePages has the C library take the memory of a server process in pages of 2 MB and keep it. A
// server process takes a few MB for each connection, and in a virtual machine a page fault costs
// tens of microseconds, so that faults of 4 KB are a sixth of what the tests of whole agents cost. A
// C library or kernel that knows nothing of it ignores it.
const hugePages = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:" +
	"glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864"

// StopMode says how to stop a server.
type StopMode syscall.Signal

// These are the modes of pg_ctl stop that tests use.
const (
	// Fast ends sessions, and then waits until replication clients have confirmed everything.
	Fast      = StopMode(syscall.SIGINT)
	Immediate = StopMode(syscall.SIGQUIT) // ends at once; the next start recovers from WAL
)

// Cluster is a running PostgreSQL server in a temporary folder. Any number of goroutines may call
// its methods, except Stop, Resume, Restart, Crash and Close: only one goroutine at a time may call
// these.
type Cluster struct {
	binaries Binaries
	opts     Options
	as       serverUser
	folder   *folder
	// password is that of all roles, for TCP. The socket needs none, as its folder is closed to
	// others.
	password string
	port     int
	server   *Process // nil while stopped

	template     sync.Once
	templateErr  error
	lastDatabase atomic.Int64 // counts the databases of NewDB

	mu          sync.Mutex // guards maintenance
	maintenance *pgx.Conn  // makes and drops databases; nil before the first one
}

// Start makes and starts a cluster. Before that it removes the clusters of processes that have
// died. The caller must call Close. It returns a *NotFoundError if there are no server binaries.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	return start(ctx, opts, (*Cluster).initialize)
}

// start is Start with a choice of how to make the data folder. makeData finds the binaries, makes
// the folder with the roles of every cluster, and starts the server.
func start(ctx context.Context, opts Options, makeData func(*Cluster, context.Context) error) (_ *Cluster, err error) {
	if err := sweepClusters(); err != nil {
		return nil, err
	}
	as, err := findServerUser()
	if err != nil {
		return nil, err
	}
	f, err := makeFolder(opts.parentFolder(), clusterFolder, as)
	if err != nil {
		return nil, err
	}
	c := &Cluster{opts: opts, as: as, folder: f, password: rand.Text()}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.port, err = FreePort(); err != nil {
		return nil, err
	}
	if err := makeData(c, ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// NewCluster starts a cluster for one test and closes it at the test's end.
func NewCluster(t testing.TB, opts Options) *Cluster {
	t.Helper()
	makeData := (*Cluster).copyPattern
	if opts.OwnIdentity || opts.Template != nil {
		makeData = (*Cluster).initialize
	}
	if opts.Template == nil {
		opts.Template = shared.opts.Template
	}
	opts.inMemory = true
	c, err := start(t.Context(), opts, makeData)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Binaries returns the server binaries that the cluster runs on.
func (c *Cluster) Binaries() Binaries { return c.binaries }

// Folder returns the folder of the cluster. It holds the data, the unix socket, and the file log.
// Close removes it.
func (c *Cluster) Folder() string { return c.folder.path }

// Addr returns the address of the server, "host:port".
func (c *Cluster) Addr() string { return fmt.Sprintf("127.0.0.1:%d", c.port) }

// URL returns the connection URL of a superuser, by TCP. The URL holds a password.
func (c *Cluster) URL(database string) string { return c.RoleURL(superuser, database) }

// RoleURL returns the connection URL of AgentRole, LeastRole or a role made by CreateRole, by TCP.
// The URL holds a password.
func (c *Cluster) RoleURL(role, database string) string {
	// The server speaks no TLS. A client that asks for it first connects twice, and starting a
	// backend is most of the cost of a short test.
	return c.connectionURL(role, database, c.Addr(), url.Values{"sslmode": {"disable"}})
}

// SocketURL does the same as RoleURL by the unix socket.
func (c *Cluster) SocketURL(role, database string) string {
	return c.connectionURL(role, database, "", url.Values{"host": {c.folder.path}, "port": {strconv.Itoa(c.port)}})
}

func (c *Cluster) connectionURL(role, database, host string, parameters url.Values) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(role, c.password), Host: host, Path: "/" + database, RawQuery: parameters.Encode()}
	return u.String()
}

// CreateRole makes a role that can log in. attributes are further ones in the words of SQL, such as
// "replication".
func (c *Cluster) CreateRole(ctx context.Context, role, attributes string) error {
	secret, err := scramSecret(c.password)
	if err != nil {
		return err
	}
	if err := c.maintainSQL(ctx, fmt.Sprintf("create role %s login %s password '%s'", role, attributes, secret)); err != nil {
		return fmt.Errorf("create role %s: %w", role, err)
	}
	return nil
}

// maintain calls use with a superuser's connection that is kept open. Each connection costs the
// server a process, and this one makes and drops the databases of hundreds of tests.
func (c *Cluster) maintain(ctx context.Context, use func(*pgx.Conn) error) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The connection may have ended, because the server was restarted.
	if c.maintenance != nil && c.maintenance.Ping(ctx) != nil {
		_ = c.maintenance.Close(ctx)
		c.maintenance = nil
	}
	if c.maintenance == nil {
		if c.maintenance, err = pgx.Connect(ctx, c.URL(maintenanceDatabase)); err != nil {
			return err
		}
	}
	return use(c.maintenance)
}

// maintainSQL runs one statement by maintain.
func (c *Cluster) maintainSQL(ctx context.Context, sql string) error {
	return c.maintain(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
}

// SocketDSN returns a connection string for psql, as a superuser by the unix socket. It holds no
// password, because the folder of the socket is closed to other users.
func (c *Cluster) SocketDSN(database string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s", c.folder.path, c.port, superuser, database)
}

// initialize makes the data folder by initdb, starts the server, and makes the roles of every
// cluster.
func (c *Cluster) initialize(ctx context.Context) (err error) {
	if c.binaries, err = FindPostgres(ctx); err != nil {
		return err
	}
	if err := c.initdb(ctx); err != nil {
		return err
	}
	if err := c.configure(); err != nil {
		return err
	}
	if err := c.Resume(ctx); err != nil {
		return err
	}
	for _, role := range []string{AgentRole, LeastRole} {
		if err := c.CreateRole(ctx, role, "replication"); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) initdb(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("initdb took longer than %s", startTimeout))
	defer cancel()

	passwordFile := c.folder.join("password")
	secret, err := scramSecret(c.password)
	if err != nil {
		return err
	}
	if err := os.WriteFile(passwordFile, []byte(secret+"\n"), 0o600); err != nil {
		return fmt.Errorf("prepare initdb: %w", err)
	}
	if err := c.as.own(passwordFile); err != nil {
		return fmt.Errorf("prepare initdb: %w", err)
	}
	args := []string{"--pgdata=" + c.dataDir(), "--username=" + superuser, "--pwfile=" + passwordFile,
		"--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"}
	initdb := c.command(ctx, "initdb", args...)
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", errors.Join(err, context.Cause(ctx)), strings.TrimSpace(string(out)))
	}
	if err := os.Remove(passwordFile); err != nil {
		return fmt.Errorf("after initdb: %w", err)
	}
	return nil
}

// configuration returns the content of postgresql.conf.
func (c *Cluster) configuration() []byte {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    fmt.Sprint(c.port),
		"unix_socket_directories": c.folder.path,
		"wal_level":               "logical",
		"max_slot_wal_keep_size":  "100GB",
		"max_connections":         "200",
		"max_wal_senders":         "64",
		"max_replication_slots":   "64",
		"log_line_prefix":         "%m [%p] %d %a ",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
	}
	if c.opts.inMemory {
		// These make a start and a connection cheaper, and nothing in a test depends on them.
		settings["shared_buffers"] = "32MB"
		settings["max_logical_replication_workers"] = "0"
		if c.binaries.Major >= 18 {
			settings["io_method"] = "sync"
		}
	}
	if !c.opts.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	for name, value := range c.opts.Settings {
		settings[name] = value
	}
	var text strings.Builder
	for name, value := range settings {
		fmt.Fprintf(&text, "%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''"))
	}
	return []byte(text.String())
}

func (c *Cluster) dataDir() string { return c.folder.join("data") }
func (c *Cluster) logFile() string { return c.folder.join("log") }

// command returns a command for a server program. It runs as the user of the cluster, in a folder
// that this user may enter, and without the PG variables of this process.
func (c *Cluster) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.binaries.Dir, program), args...)
	cmd.Dir = c.folder.path
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	if c.opts.inMemory {
		cmd.Env = append(cmd.Env, hugePages)
	}
	cmd.SysProcAttr = processAttributes(syscall.SIGQUIT)
	cmd.SysProcAttr.Credential = c.as.credential
	return cmd
}

// Resume starts the server after Stop or Crash, on the same port. It returns when the server
// accepts connections.
func (c *Cluster) Resume(ctx context.Context) error {
	if c.server != nil {
		return errors.New("start PostgreSQL: it runs already")
	}
	log, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	defer func() { _ = log.Close() }() // the child has a descriptor of its own
	// The server must outlive ctx, which bounds the start only.
	cmd := c.command(context.WithoutCancel(ctx), "postgres", "-D", c.dataDir())
	cmd.Stdout, cmd.Stderr = log, log
	server, err := StartProcess(cmd)
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	c.server = server
	if err := c.awaitReady(ctx); err != nil {
		return fmt.Errorf("start PostgreSQL %d: %w; its log ends:\n%s", c.binaries.Major, errors.Join(err, c.Crash()), LogTail(c.logFile()))
	}
	return nil
}

// awaitReady waits until the server accepts connections. It returns an error if the server ends, or
// does not accept one within startTimeout.
func (c *Cluster) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no connection within %s", startTimeout))
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if c.saysReady() && c.maintain(ctx, func(*pgx.Conn) error { return nil }) == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.server.Ended():
			return errors.New("it ended")
		case <-tick.C:
		}
	}
}

// saysReady reports whether the server has written into its pid file that it accepts connections. A
// connection before that costs the server a process, which refuses it.
func (c *Cluster) saysReady() bool {
	file, err := os.ReadFile(filepath.Join(c.dataDir(), "postmaster.pid"))
	if err != nil {
		return false
	}
	// The first line is the process, the eighth is the state. A crash leaves the file of the last
	// process.
	lines := strings.Split(string(file), "\n")
	return len(lines) > 7 && lines[0] == fmt.Sprint(c.server.PID) && strings.TrimSpace(lines[7]) == "ready"
}

// LogTail returns the last 15 lines of a log file, for an error that shows why a program has
// failed. If the file cannot be read, it returns that error's text.
func LogTail(path string) string {
	log, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const tailLines = 15
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// Stop stops the server and returns when it has ended. A fast stop waits for replication clients,
// so ctx should have a deadline.
func (c *Cluster) Stop(ctx context.Context, mode StopMode) error {
	if c.server == nil {
		return nil
	}
	if err := c.server.Signal(syscall.Signal(mode)); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	select {
	case <-c.server.Ended():
		c.server = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop PostgreSQL: it still runs: %w", context.Cause(ctx))
	}
}

// Restart stops the server and starts it again.
func (c *Cluster) Restart(ctx context.Context, mode StopMode) error {
	if err := c.Stop(ctx, mode); err != nil {
		return err
	}
	return c.Resume(ctx)
}

// Crash kills all processes of the server by SIGKILL, as a crash of its machine would, and returns
// when they are gone. Resume starts the server again. Committed data survive, because the kernel
// keeps what was written.
func (c *Cluster) Crash() error {
	if c.server == nil {
		return nil
	}
	// A stopped postmaster cannot start another child while its children are listed.
	if err := c.server.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("crash PostgreSQL: %w", err)
	}
	children := childProcesses(c.server.PID)
	if err := c.server.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("crash PostgreSQL: %w", err)
	}
	for _, child := range children {
		if err := syscall.Kill(child, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("crash PostgreSQL: kill process %d: %w", child, err)
		}
	}
	<-c.server.Ended()
	c.server = nil
	// A new server refuses to start while a child of the last one is attached to shared memory.
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(stopTimeout); slices.ContainsFunc(children, processRuns); <-tick.C {
		if time.Now().After(deadline) {
			return fmt.Errorf("crash PostgreSQL: a child process still runs %s after SIGKILL", stopTimeout)
		}
	}
	return nil
}

// Close stops the server at once and removes the folder. The cluster must not be used any more.
func (c *Cluster) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.maintenance != nil {
		_ = c.maintenance.Close(ctx) // an error does not matter: the server is about to end
	}
	err := c.Stop(ctx, Immediate)
	if err != nil {
		err = errors.Join(err, c.Crash())
	}
	return errors.Join(err, c.folder.remove())
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on. The port is outside the range
// that the kernel uses for outgoing connections. With a port of that range, a client that dials
// again and again while the server restarts may connect to itself and keep the port.
func FreePort() (int, error) {
	// These are below the ephemeral ranges of Linux (32768) and macOS (49152).
	const lowest, highest = 20000, 32000
	for range 100 {
		var random [2]byte
		_, _ = rand.Read(random[:]) // never fails
		port := lowest + (int(random[0])<<8|int(random[1]))%(highest-lowest)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, listener.Close()
	}
	return 0, fmt.Errorf("found no free TCP port between %d and %d", lowest, highest)
}
