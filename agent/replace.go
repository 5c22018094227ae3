package agent

import (
	"fmt"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

const (
	// firstReplacement is the shortest time between two replacements of the slot. It doubles with
	// each further replacement, up to lastReplacement. After calmReplacement without a replacement
	// it begins again with firstReplacement.
	firstReplacement = 5 * time.Second
	lastReplacement  = 5 * time.Minute
	calmReplacement  = time.Hour
)

// replacements limits how often the slot is replaced by a new one. A new slot costs a comparison of
// the whole outbox. If changes that cannot be decoded came again each time, the agent would compare
// for ever.
type replacements struct {
	last time.Time
	wait time.Duration
}

// tooSoon returns the Problem that another replacement has to wait, and nil when it may be made.
func (r *replacements) tooSoon(now time.Time) error {
	if r.last.IsZero() || now.Sub(r.last) >= r.wait {
		return nil
	}
	return &outbox.Problem{Thing: "replication slot",
		Reason: fmt.Sprintf("its changes cannot be decoded, and it was made anew at %s for the same reason", r.last.UTC().Format(time.RFC3339)),
		Remedy: "see that the tables and the publications stay as webhook-agent check wants them; the agent tries again by itself"}
}

// made records a replacement.
func (r *replacements) made(now time.Time) {
	if r.last.IsZero() || now.Sub(r.last) >= calmReplacement {
		r.wait = firstReplacement
	} else {
		r.wait = min(2*r.wait, lastReplacement)
	}
	r.last = now
}
