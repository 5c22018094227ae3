package testenv

import (
	"errors"
	"testing"
	"time"
)

func TestProcessors_AreIdleNoLongerThanTimeHasPassed(t *testing.T) {
	began := time.Now()
	idle, stolen, err := Processors()
	if err != nil {
		t.Fatal(err)
	}
	if idle <= 0 || stolen < 0 {
		t.Errorf("idle for %s, stolen for %s since the start of the machine", idle, stolen)
	}
	var idleNow, stolenNow time.Duration
	Eventually(t, 10*time.Second, func() error {
		if idleNow, stolenNow, err = Processors(); err == nil && idleNow == idle && stolenNow == stolen {
			err = errors.New("the processors were not idle at all")
		}
		return err
	})
	// Linux counts in ticks, and each processor for itself.
	most := (time.Since(began) + 2*clockTick) * 1024
	if idleNow < idle || idleNow-idle > most || stolenNow < stolen || stolenNow-stolen > most {
		t.Errorf("within %s: idle %s to %s, stolen %s to %s", time.Since(began), idle, idleNow, stolen, stolenNow)
	}
}
