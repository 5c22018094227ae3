package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// triesWithin returns how often an agent that fails with err tries within d, and the last wait.
func triesWithin(d time.Duration, err func(try int) error) (tries int, last time.Duration) {
	p, began := newPace(), time.Unix(1000, 0)
	for now := began; now.Sub(began) < d; now = now.Add(last) {
		last = p.next(err(tries), now)
		tries++
	}
	return tries, last
}

func TestPace_TriesLessOftenWhatWaitingDoesNotMend(t *testing.T) {
	always := func(err error) func(int) error { return func(int) error { return err } }
	fatal := always(&outbox.Problem{Thing: "a", Reason: "b", Remedy: "c", Fatal: true})
	passing := always(&outbox.Problem{Thing: "a", Reason: "b", Remedy: "c"})
	for name, err := range map[string]func(int) error{"a fatal problem": fatal, "a problem": passing, "an error": always(errors.New("a"))} {
		if _, last := triesWithin(10*time.Minute, err); last < 12*time.Second || last > 15*time.Second {
			t.Errorf("%s is tried again after %s in the end", name, last)
		}
	}
	if tries, last := triesWithin(sameFor, passing); last > 5*time.Second || tries < 12 {
		t.Errorf("what may pass was tried %d times in the first minute, last after %s", tries, last)
	}
	if tries, _ := triesWithin(3*time.Second, fatal); tries < 4 {
		t.Errorf("a fatal problem was tried %d times in the first three seconds", tries)
	}
	changing := func(try int) error { return errors.New(string(rune('a' + try%2))) }
	if _, last := triesWithin(10*time.Minute, changing); last > 5*time.Second {
		t.Errorf("what changes is tried again only after %s", last)
	}
}
