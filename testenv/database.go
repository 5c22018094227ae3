package testenv

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	templateDatabase = "template_test"
	// dropTimeout bounds dropping one database. A walsender normally notices within a second that
	// its client has gone.
	dropTimeout = time.Minute
)

// shared is the cluster of this test binary. All tests share it, because making one takes a second.
var shared struct {
	start   sync.Once
	opts    Options
	cluster *Cluster
	err     error
}

// atEnd has what Main calls after the last test.
var atEnd struct {
	mu        sync.Mutex // guards functions
	functions []func() error
}

// AtEnd has Main call f after the last test of the test binary. It is for what all tests share.
func AtEnd(f func() error) {
	atEnd.mu.Lock()
	defer atEnd.mu.Unlock()
	atEnd.functions = append(atEnd.functions, f)
}

// Main runs the tests of a package. TestMain must call it. The first NewDB starts the cluster, and
// Main closes it after the last test.
func Main(m *testing.M, opts Options) {
	raiseParallel()
	shared.opts = opts
	shared.opts.inMemory = true
	ClearEnvironment()
	m.Run()
	for _, f := range atEnd.functions {
		if err := f(); err != nil {
			panic(err) // no test is left to report to
		}
	}
	for _, c := range []*Cluster{shared.cluster, pattern.cluster} {
		if c == nil {
			continue
		}
		if err := c.Close(); err != nil {
			panic(err) // no test is left to report to
		}
	}
}

// leastParallel is how many tests of a package run in parallel if the command line does not say it.
const leastParallel = 6

// raiseParallel has more tests run in parallel than there are cores, because most of them wait
// nearly all the time.
func raiseParallel() {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", strconv.Itoa(max(leastParallel, runtime.GOMAXPROCS(0)))); err != nil {
			panic(err) // package testing has no such flag any more
		}
	}
}

// DB is the database of one test. Its methods fail that test on an error.
type DB struct {
	Name string // unique in its cluster
	URL  string // connects as AgentRole, which owns the database; holds a password
	// LeastURL connects as LeastRole, which owns nothing. It holds a password.
	LeastURL string
	// Slot is a name for a replication slot. It follows from Name, because all databases share the
	// names of slots.
	Slot string

	// SuperuserURL connects as a superuser. It holds a password. A test that makes a role should
	// name it after the database, because all databases share the roles.
	SuperuserURL string

	cluster *Cluster
	mu      sync.Mutex // guards conn
	conn    *pgx.Conn  // for Exec and the queries; nil before the first one
}

// NewDB clones the template into a database for one test, in the cluster of the test binary (see
// Main). At the end of the test it drops the database with its replication slots, and ends the
// connections to it. Only replication connections the test must close itself: if a slot is still
// active after dropTimeout, the test fails.
func NewDB(t testing.TB) *DB {
	t.Helper()
	return sharedCluster(t).NewDB(t)
}

func sharedCluster(t testing.TB) *Cluster {
	t.Helper()
	shared.start.Do(func() {
		shared.cluster, shared.err = start(context.Background(), shared.opts, (*Cluster).copyPattern)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster
}

// NewDB does the same as the function NewDB, in this cluster.
func (c *Cluster) NewDB(t testing.TB) *DB {
	t.Helper()
	c.template.Do(func() { c.templateErr = c.makeTemplate(context.Background()) })
	if c.templateErr != nil {
		t.Fatal(c.templateErr)
	}
	return c.clone(t, templateDatabase)
}

// Filled is a database with much in it, for several tests. It is filled once, and each test gets a
// copy of its files, which takes a tenth of the time.
type Filled struct {
	Name string // of the database that is copied
	// From is what Fill begins with. If it is nil, that is the template.
	From *Filled
	// Fill fills the database. The URL connects as AgentRole, which owns it. Fill must close its
	// connections.
	Fill func(ctx context.Context, url string) error

	once sync.Once
	err  error
}

// NewDB does the same as the function NewDB, with a copy of the database that Fill has filled.
func (f *Filled) NewDB(t testing.TB) *DB {
	t.Helper()
	c := sharedCluster(t)
	if err := f.fill(c); err != nil {
		t.Fatal(err)
	}
	return c.clone(t, f.Name)
}

// fill makes the database that is copied, and first the one that it begins with.
func (f *Filled) fill(c *Cluster) error {
	f.once.Do(func() {
		from := templateDatabase
		if f.From != nil {
			from = f.From.Name
			if f.err = f.From.fill(c); f.err != nil {
				return
			}
		}
		ctx := context.Background()
		if f.err = c.copyDatabase(ctx, f.Name, from); f.err == nil {
			f.err = f.Fill(ctx, c.RoleURL(AgentRole, f.Name))
		}
		if f.err != nil {
			f.err = fmt.Errorf("fill database %s: %w", f.Name, f.err)
		}
	})
	return f.err
}

// copyDatabase makes a database that AgentRole owns and that has what another one has.
func (c *Cluster) copyDatabase(ctx context.Context, name, template string) error {
	return c.maintainSQL(ctx, "create database "+name+" template "+template+" owner "+AgentRole+c.copyStrategy())
}

// clone copies a database for one test.
func (c *Cluster) clone(t testing.TB, template string) *DB {
	t.Helper()
	name := fmt.Sprintf("%s_%d", identifier(t.Name()), c.lastDatabase.Add(1))
	if err := c.copyDatabase(t.Context(), name, template); err != nil {
		t.Fatalf("make database %s: %v", name, err)
	}
	db := &DB{
		Name:         name,
		URL:          c.RoleURL(AgentRole, name),
		LeastURL:     c.RoleURL(LeastRole, name),
		Slot:         name + "_slot",
		SuperuserURL: c.URL(name),
		cluster:      c,
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), dropTimeout, fmt.Errorf("took longer than %s", dropTimeout))
		defer cancel()
		if err := db.drop(ctx); err != nil {
			t.Errorf("drop database %s: %v", name, err)
		}
	})
	return db
}

// copyStrategy returns the clause that makes CREATE DATABASE copy files, as PostgreSQL 14 does. The
// default since then is to write all of the template to the WAL, which takes three times as long.
func (c *Cluster) copyStrategy() string {
	if c.binaries.Major < 15 {
		return ""
	}
	return " strategy file_copy"
}

// Addr returns the address of the server, "host:port".
func (db *DB) Addr() string { return db.cluster.Addr() }

// identifier turns the name of a test into an identifier that needs no quotes in SQL. It is short
// enough for a suffix within the 63 bytes of a name.
func identifier(testName string) string {
	const maxBytes = 40
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(strings.TrimPrefix(testName, "Test")))
	return "t_" + strings.TrimLeft(name[:min(len(name), maxBytes)], "_")
}

func (c *Cluster) makeTemplate(ctx context.Context) error {
	if err := c.maintainSQL(ctx, "create database "+templateDatabase+" owner "+AgentRole); err != nil {
		return fmt.Errorf("make the template database: %w", err)
	}
	if c.opts.Template == nil {
		return nil
	}
	if err := c.opts.Template(ctx, c.RoleURL(AgentRole, templateDatabase)); err != nil {
		return fmt.Errorf("prepare the template database: %w", err)
	}
	return nil
}
