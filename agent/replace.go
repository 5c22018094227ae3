package agent

import (
	"fmt"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

const (
	// firstReplacement is how long a second new slot waits after the first one, and each further one twice as long, up to lastReplacement.
	// After calmReplacement without one it begins anew.
	firstReplacement = 5 * time.Second
	lastReplacement  = 5 * time.Minute
	calmReplacement  = time.Hour
)

// replacements bounds how often the slot is given up for a new one. A new slot costs a sweep, and if what could not be decoded comes
// again, it costs one for ever.
type replacements struct {
	last time.Time
	wait time.Duration
}

// tooSoon returns the Problem that another new slot has to wait, nil when it may be made.
func (r *replacements) tooSoon(now time.Time) error {
	if r.last.IsZero() || now.Sub(r.last) >= r.wait {
		return nil
	}
	return &outbox.Problem{Thing: "replication slot",
		Reason: fmt.Sprintf("its changes cannot be decoded, and it was made anew at %s for the same reason", r.last.UTC().Format(time.RFC3339)),
		Remedy: "see that the tables and the publications stay as webhook-agent check wants them; the agent tries again by itself"}
}

// made notes a new slot.
func (r *replacements) made(now time.Time) {
	if r.last.IsZero() || now.Sub(r.last) >= calmReplacement {
		r.wait = firstReplacement
	} else {
		r.wait = min(2*r.wait, lastReplacement)
	}
	r.last = now
}
