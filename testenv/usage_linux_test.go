package testenv

import (
	"testing"
	"time"
)

// The processors have been idle and taken away for no longer than this machine runs. Nothing is
// said of a difference: a busy machine is not idle at all, and Linux may correct its counts.
func TestProcessors_AreIdleNoLongerThanTheMachineRuns(t *testing.T) {
	idle, stolen, err := Processors()
	if err != nil {
		t.Fatal(err)
	}
	const long = 256 * 365 * 24 * time.Hour // a year of 256 processors
	if idle <= 0 || idle > long || stolen < 0 || stolen > long {
		t.Errorf("idle for %s, stolen for %s since the start of the machine", idle, stolen)
	}
}
