package testenv

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	templateDatabase = "template_test"
	// dropTimeout bounds the clean-up of one database. A walsender notices that its client has gone in well under a second.
	dropTimeout = time.Minute
)

// shared is the cluster of this test binary: one for all tests, because making one takes a second.
var shared struct {
	start   sync.Once
	opts    Options
	cluster *Cluster
	err     error
}

// Main runs the tests of a package; TestMain calls it. The cluster that it keeps for NewDB is started by the first
// NewDB and closed after the last test.
func Main(m *testing.M, opts Options) {
	shared.opts = opts
	shared.opts.inMemory = true
	m.Run()
	for _, c := range []*Cluster{shared.cluster, pattern.cluster} {
		if c == nil {
			continue
		}
		if err := c.Close(); err != nil {
			panic(err) // the process is about to end, and there is no test left to report to
		}
	}
}

// DB is a database of one test. Its methods fail that test on an error.
type DB struct {
	Name string // unique in its cluster
	URL  string // connects as the owner of the database, who may log in, replicate, and nothing else; holds a password
	// LeastURL connects as LeastRole.
	LeastURL string
	Slot     string // a name for the replication slot; slots are named across the cluster, so it follows from Name

	// SuperuserURL connects as a superuser. Roles are shared by the whole cluster: name one after the database.
	SuperuserURL string

	cluster *Cluster
	mu      sync.Mutex // guards conn
	conn    *pgx.Conn  // of Exec and the queries; nil before the first one
}

// NewDB clones the template into a database for one test, in the cluster of the test binary (see Main). At the test's end
// the database goes, with its replication slots and whatever connections are open. Only replication connections the test
// must have closed itself: a slot that is still active after dropTimeout is an error of the test.
func NewDB(t testing.TB) *DB {
	t.Helper()
	shared.start.Do(func() {
		shared.cluster, shared.err = start(context.Background(), shared.opts, (*Cluster).copyPattern)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster.NewDB(t)
}

// NewDB is as the function NewDB, in a cluster of the test's own.
func (c *Cluster) NewDB(t testing.TB) *DB {
	t.Helper()
	c.template.Do(func() { c.templateErr = c.makeTemplate(context.Background()) })
	if c.templateErr != nil {
		t.Fatal(c.templateErr)
	}
	name := fmt.Sprintf("%s_%d", identifier(t.Name()), c.lastDatabase.Add(1))
	if err := c.maintainSQL(t.Context(), "create database "+name+" template "+templateDatabase+" owner "+AgentRole+c.copyStrategy()); err != nil {
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

// copyStrategy has CREATE DATABASE copy files, as PostgreSQL 14 does. To write all of the template to the WAL, which is the
// default since, takes three times as long.
func (c *Cluster) copyStrategy() string {
	if c.binaries.Major < 15 {
		return ""
	}
	return " strategy file_copy"
}

// Addr returns where the server listens, "host:port".
func (db *DB) Addr() string { return db.cluster.Addr() }

// identifier makes of a test's name one that needs no quotes in SQL and leaves room for suffixes within the 63 bytes of a name.
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
