package agent

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
)

// localFor is how long a fault of this host counts after an attempt has met it last. Endpoints that
// wait for its end are tried more often.
const localFor = 3 * lanes.LocalMost

// localFaults are what fails on this side of the wire (sink.Fault): they count against no endpoint,
// and stand on /readyz while they last.
type localFaults struct {
	log    *slog.Logger
	caught func(*panics.Error)

	mu      sync.Mutex
	last    map[sink.Fault]localFault // those that last
	looking bool                      // look will be called
}

type localFault struct {
	sentence string
	at       time.Time // when it was met last
	acted    time.Time // when something was done against it last
}

// met takes note of an attempt that was none, and tells of the first one. It returns true at most
// once a second, when something may be done against the fault.
func (f *localFaults) met(fault sink.Fault, sentence string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(time.Now())
	l, lasts := f.last[fault]
	if !lasts {
		f.log.Error("attempts cannot be made; what they are for waits, and counts against no endpoint", "fault", fault, "error", sentence)
	}
	if f.last == nil {
		f.last = map[sink.Fault]localFault{}
	}
	now := time.Now()
	act := now.Sub(l.acted) > time.Second
	if act {
		l.acted = now
	}
	f.last[fault] = localFault{sentence: sentence, at: now, acted: l.acted}
	if !f.looking {
		f.looking = true
		time.AfterFunc(localFor, panics.GuardFunc(f.caught, f.look))
	}
	return act
}

// lasting returns what fails now, nil when nothing does.
func (f *localFaults) lasting() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(time.Now())
	var all []error
	for _, fault := range sink.Faults {
		if l, lasts := f.last[fault]; lasts {
			all = append(all, errors.New(l.sentence))
		}
	}
	return errors.Join(all...)
}

// look ends what lasts no longer, and comes again while anything lasts.
func (f *localFaults) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(time.Now())
	if f.looking = len(f.last) > 0; f.looking {
		time.AfterFunc(localFor/10, panics.GuardFunc(f.caught, f.look))
	}
}

func (f *localFaults) endLocked(now time.Time) {
	for fault, l := range f.last {
		if now.Sub(l.at) > localFor {
			delete(f.last, fault)
			f.log.Info("attempts can be made again", "fault", fault)
		}
	}
}
