package agent

import (
	"os"
	"runtime/debug"
)

const (
	// gcPercent lets garbage grow to four times what is in use before it is collected: each attempt leaves several kB, most of
	// it net/http's. The limit is that of memoryBase, twice the memory of the queues, and what the endpoints take; close to it the
	// collector would take half of the processor, so it must have room for all that can be in use.
	gcPercent      = 400
	memoryBase     = 104 << 20
	endpointMemory = 3 << 9
	// tuneStep is how many endpoints more or fewer are not worth a change.
	tuneStep = 4096
)

// tuneMemory trades memory for processor time, unless GOGC or GOMEMLIMIT say otherwise.
func tuneMemory(queues ByteSize, endpoints int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryBase + 2*int64(queues) + endpointMemory*int64(endpoints))
	}
}
