package outbox

import (
	"embed"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration brings the schema from one version to the next. Its file begins with what it says of
// itself, one thing a line:
//
//	-- expansion: binaries of schema 18 or newer work with it
//	-- locks: webhooks.endpoints (access exclusive), webhooks.outbox (share)
//	-- costs: it reads all of webhooks.deliveries
//
// The costs are only there where time goes by the number of rows. An index of a table that may be
// large is made by CREATE INDEX IF NOT EXISTS: the Migrator has built it CONCURRENTLY by then.
type migration struct {
	name, sql string
	// expansion reports that every binary that worked with the schema before works with this one.
	// What is none is a contraction.
	expansion bool
	// compatible is the oldest binary that works with the schema that the migration makes, by the
	// number of the schema that it knows.
	compatible int
	// locks are in the order in which they are taken: first those that VACUUM alone waits for,
	// which may be held for hours, and the outbox last of those that writers wait for.
	locks   []tableLock
	costs   string
	indexes []laterIndex
}

// laterIndex is an index that is built before the transaction of its migration.
type laterIndex struct{ name, table, definition string }

// tableLock is a lock of a migration that other transactions may have to wait for, if only a
// VACUUM.
type tableLock struct{ table, mode string }

func (l tableLock) String() string { return l.table + " (" + l.mode + ")" }

// migrations returns the embedded migrations, first to last. Number n leads to version n. They only
// go forward, and they change no setting of the session.
func migrations() ([]migration, error) {
	paths, err := fs.Glob(migrationFiles, "migrations/*.sql") // sorted by name
	if err != nil {
		return nil, err
	}
	var ms []migration
	for i, p := range paths {
		sql, err := migrationFiles.ReadFile(p)
		if err != nil {
			return nil, err
		}
		ms = append(ms, parseMigration(path.Base(p), strings.TrimSpace(string(sql)), i+1))
	}
	return ms, nil
}

var (
	declaredKind  = regexp.MustCompile(`^-- (expansion|contraction): binaries of schema (\d+) or newer work with it$`)
	declaredLocks = regexp.MustCompile(`^-- locks: (nothing|.+)$`)
	declaredLock  = regexp.MustCompile(`^(webhooks\.[a-z_]+) \((share update exclusive|share|share row exclusive|exclusive|access exclusive)\)$`)
	declaredIndex = regexp.MustCompile(`(?m)^create index if not exists ([a-z_]+) on (webhooks\.[a-z_]+)([^;]*);`)
	declaredCosts = regexp.MustCompile(`^-- costs: (.+)$`)
)

// parseMigration reads what a file says of itself. A file that does not say which binaries work
// with its schema is a contraction that only its own binaries know, which is safe. A test holds
// that each says it.
func parseMigration(name, sql string, number int) migration {
	m := migration{name: name, sql: sql, compatible: number}
	lines := strings.SplitN(sql, "\n", 4)
	if found := declaredKind.FindStringSubmatch(lines[0]); found != nil {
		m.expansion = found[1] == "expansion"
		m.compatible, _ = strconv.Atoi(found[2]) // digits
	}
	for _, line := range lines[1:min(3, len(lines))] {
		if found := declaredCosts.FindStringSubmatch(line); found != nil {
			m.costs = found[1]
		}
		if found := declaredLocks.FindStringSubmatch(line); found != nil {
			m.locks = parseLocks(found[1])
		}
	}
	for _, found := range declaredIndex.FindAllStringSubmatch(sql, -1) {
		m.indexes = append(m.indexes, laterIndex{name: found[1], table: found[2], definition: found[1] + " on " + found[2] + found[3]})
	}
	return m
}

func parseLocks(text string) (locks []tableLock) {
	for lock := range strings.SplitSeq(text, ", ") {
		if found := declaredLock.FindStringSubmatch(lock); found != nil {
			locks = append(locks, tableLock{found[1], found[2]})
		}
	}
	return locks
}

// SchemaVersion is the version of the schema that this binary works with.
func SchemaVersion() int {
	ms, err := migrations()
	if err != nil {
		panic(err) // the files are embedded, so only a broken build gets here
	}
	return len(ms)
}
