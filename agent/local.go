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

// localFor is how long a fault of this host counts after an attempt last met it. It is longer than
// the longest wait of a lane that such a fault blocks, so a fault that goes on is met again in that
// time.
const localFor = 3 * lanes.LocalMost

// localFaults are the faults of this host that keep attempts from being made (sink.Fault). They
// count against no endpoint. /readyz shows them while they last.
type localFaults struct {
	log    *slog.Logger
	caught func(*panics.Error)

	mu      sync.Mutex
	last    map[sink.Fault]localFault // faults that last
	looking bool                      // a timer will call look
}

type localFault struct {
	sentence string
	at       time.Time // when an attempt last met it
	acted    time.Time // when the caller was last asked to act against it
}

// met records that an attempt could not be made, and logs the fault when it begins. It returns true
// at most once a second: the caller may then do something against the fault.
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

// lasting returns the faults that last now, and nil when there are none.
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

// look ends the faults that last no longer. It sets a timer for the next look while any lasts.
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
