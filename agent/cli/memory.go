package cli

import (
	"os"
	"runtime/debug"

	"github.com/quintago/webhook-agent/agent"
	"github.com/quintago/webhook-agent/agent/config"
)

const (
	// gcPercent lets garbage grow to four times what is in use before it is collected. The limit is that of memoryBase, twice the
	// memory of the queues, and what the endpoints and their idle connections take; close to it the collector would take half of
	// the processor, so it must have room for all that can be in use.
	gcPercent      = 400
	memoryBase     = 104 << 20
	endpointMemory = 3 << 9
	// idleMemory is what an idle connection takes over TLS (BenchmarkIdle of package sink), rounded up.
	idleMemory = 16 << 10
)

// tuneMemory trades memory for processor time, unless GOGC or GOMEMLIMIT say otherwise.
func tuneMemory(queues config.ByteSize, endpoints int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryBase + 2*int64(queues) + endpointMemory*int64(endpoints) + idleMemory*int64(min(endpoints, agent.MostIdle)))
	}
}
