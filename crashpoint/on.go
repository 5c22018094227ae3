//go:build crashpoints

package crashpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// chosen is the point at which this process ends. left is the number of calls of Hit until then.
// chosen is set before main and only read after that.
var (
	chosen Point
	left   atomic.Int64
)

// A wrong value of the variable ends the process before it does anything. Otherwise a test would
// believe that the process survived the crash point.
func init() {
	text := os.Getenv(Variable)
	if text == "" {
		return
	}
	point, pass, err := parse(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "webhook-agent: "+err.Error())
		os.Exit(2)
	}
	chosen = point
	left.Store(pass)
}

// parse parses "name" or "name:n".
func parse(text string) (point Point, pass int64, err error) {
	name, count, counted := strings.Cut(text, ":")
	point, pass = Point(name), 1
	if !slices.Contains(Points(), point) {
		return "", 0, fmt.Errorf("%s=%s: there is no crash point %q; the points are %s", Variable, text, name, list())
	}
	if counted {
		if pass, err = strconv.ParseInt(count, 10, 64); err != nil || pass < 1 {
			return "", 0, fmt.Errorf("%s=%s: the pass must be a number from 1 on, not %q", Variable, text, count)
		}
	}
	return point, pass, nil
}

func list() string {
	var names []string
	for _, p := range Points() {
		names = append(names, string(p))
	}
	return strings.Join(names, ", ")
}

// Hit ends the process when p is the chosen point and this is the chosen call.
func Hit(p Point) {
	if p != chosen {
		return
	}
	switch n := left.Add(-1); {
	case n > 0:
		return
	case n == 0:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	select {} // the signal may take a moment, and no goroutine may go on from here meanwhile
}
