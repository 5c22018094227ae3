package limits

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestLimits_BoundEachCallerAndAllTogether(t *testing.T) {
	rates := Default()
	w := New(Default())
	for range 2 * rates.CallerWork.Burst {
		w.Worked("a", 0) // a millisecond at least
	}
	if wait := w.Request("a", false); wait <= 0 {
		t.Error("a caller that has used up its budget need not wait")
	}
	if wait := w.Request("b", false); wait != 0 {
		t.Errorf("another caller waits %v for it", wait)
	}
	for i := range 5 * rates.Work.Burst {
		w.Worked(strconv.Itoa(i%7), time.Millisecond)
	}
	if wait := w.Request("b", false); wait <= 0 {
		t.Error("nobody waits though the budget of all is used up")
	}

	l := New(Default())
	done, ok := l.Heavy("a")
	if _, again := l.Heavy("a"); !ok || again {
		t.Error("a caller has two heavy requests at a time")
	}
	done()
	if _, ok := l.Heavy("a"); !ok {
		t.Error("the place of a heavy request that has ended is not free")
	}
	if wait := l.Sample("a", "ep_1"); wait != 0 {
		t.Errorf("the first sample waits %v", wait)
	}
	if wait := l.Sample("a", "ep_1"); wait <= 0 || wait > samplePause {
		t.Errorf("the second sample waits %v", wait)
	}
	if wait := l.Sample("a", "ep_2"); wait != 0 {
		t.Errorf("a sample to another endpoint waits %v", wait)
	}
	for range maxStreamsOfCaller {
		if _, ok := l.Stream("a"); !ok {
			t.Error("a caller has fewer streams than allowed")
		}
	}
	if _, ok := l.Stream("a"); ok {
		t.Error("a caller has more streams than allowed")
	}
	for i := range maxStreams - maxStreamsOfCaller {
		if _, ok := l.Stream("b" + strings.Repeat("b", i)); !ok {
			t.Error("there are fewer streams than allowed")
		}
	}
	if _, ok := l.Stream("c"); ok {
		t.Error("there are more streams than allowed")
	}
}
