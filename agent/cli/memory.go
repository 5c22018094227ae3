package cli

import (
	"os"
	"runtime/debug"

	"github.com/quintago/webhook-agent/agent"
	"github.com/quintago/webhook-agent/agent/config"
)

const (
	// gcPercent lets the heap grow to five times what is in use before a collection: garbage may
	// take four times as much. The memory limit is memoryBase, twice the memory of the queues, and
	// the memory of the endpoints and their idle connections. Near the limit the collector would
	// take half of the processor, so the limit leaves room for everything that can be in use.
	gcPercent      = 400
	memoryBase     = 104 << 20
	endpointMemory = 3 << 9
	// idleMemory is the memory of an idle TLS connection in bytes, rounded up (BenchmarkIdle of
	// package sink).
	idleMemory = 16 << 10
)

// tuneMemory lets the process use more memory and less processor time. It does nothing when GOGC or
// GOMEMLIMIT is set.
func tuneMemory(queues config.ByteSize, endpoints int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryBase + 2*int64(queues) + endpointMemory*int64(endpoints) + idleMemory*int64(min(endpoints, agent.MostIdle)))
	}
}
