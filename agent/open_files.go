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
	// An attempt that connects may open two at a time: questions for both kinds of addresses, or
	// connections to two of them.
	filesPerAttempt = 2
	// ownFiles is how many files the agent opens beside its attempts: the database, the listener
	// and who asks it, logs.
	ownFiles = 64
	// MostIdle bounds the idle connections where there are files for more: each takes idleMemory.
	MostIdle = 10_000
)

// openFiles is how many attempts and idle connections the limit of open files leaves room for.
type openFiles struct {
	limit, wanted     int
	concurrency, idle int
}

// OpenFilesFor divides the limit of this process, which the Go runtime has raised to the hard one
// when it started.
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

// Finding says whether the limit is enough.
func (f openFiles) Finding() outbox.Finding {
	if f.limit >= f.wanted {
		return outbox.Finding{Level: outbox.LevelOK, Thing: "open files", Reason: fmt.Sprintf("%d may be open here, %d are enough for the configuration", f.limit, f.wanted)}
	}
	return outbox.Finding{Level: outbox.LevelWarn, Thing: "open files",
		Reason: fmt.Sprintf("only %d may be open here: an agent with this limit makes at most %d attempts at a time and keeps %d idle connections", f.limit, f.concurrency, f.idle),
		Remedy: fmt.Sprintf("raise the limit to %d (LimitNOFILE= of systemd, ulimit -n), or lower delivery.concurrency", f.wanted)}
}
