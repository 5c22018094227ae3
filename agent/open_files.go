//go:build unix

package agent

import (
	"fmt"
	"math"
	"syscall"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

const (
	// An attempt that connects may have two files open at a time: questions to the resolver for
	// both kinds of addresses, or connections to two addresses.
	filesPerAttempt = 2
	// ownFiles is how many files the agent opens beside those of its attempts: connections to the
	// database, the admin listener with its connections, and logs.
	ownFiles = 64
	// MostIdle limits the idle connections when there are files for more, because each takes memory
	// too (idleMemory of package cli).
	MostIdle = 10_000
)

// openFiles is how many attempts and idle connections are possible within the limit of open files.
type openFiles struct {
	limit, wanted     int
	concurrency, idle int
}

// OpenFilesFor divides the limit of open files of this process between attempts and idle
// connections. The Go runtime has raised the soft limit to the hard one at start. When the limit
// cannot be read, it counts as none.
func OpenFilesFor(concurrency int) openFiles {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		r.Cur = math.MaxInt32
	}
	return divideOpenFiles(int(min(r.Cur, math.MaxInt32)), concurrency)
}

func divideOpenFiles(limit, concurrency int) openFiles {
	idle := max(sink.DefaultMaxIdle, concurrency) // many endpoints may be on one host
	f := openFiles{limit: limit, wanted: ownFiles + filesPerAttempt*concurrency + idle, concurrency: concurrency, idle: idle}
	if limit >= f.wanted {
		f.idle = max(idle, min(limit/2, limit-ownFiles-filesPerAttempt*concurrency, MostIdle))
		return f
	}
	left := limit - min(ownFiles, limit/2)
	f.concurrency = max(1, min(concurrency, left/(1+filesPerAttempt)))
	f.idle = max(1, min(idle, left-filesPerAttempt*f.concurrency))
	return f
}

// Finding reports whether the limit is enough for the configuration.
func (f openFiles) Finding() outbox.Finding {
	if f.limit >= f.wanted {
		return outbox.Finding{Level: outbox.LevelOK, Thing: "open files", Reason: fmt.Sprintf("%d may be open here, %d are enough for the configuration", f.limit, f.wanted)}
	}
	return outbox.Finding{Level: outbox.LevelWarn, Thing: "open files",
		Reason: fmt.Sprintf("only %d may be open here: an agent with this limit makes at most %d attempts at a time and keeps %d idle connections", f.limit, f.concurrency, f.idle),
		Remedy: fmt.Sprintf("raise the limit to %d (LimitNOFILE= of systemd, ulimit -n), or lower delivery.concurrency", f.wanted)}
}
