package outbox

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestClock_FollowsTheDatabaseAndNotEachRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Clock
		off := func() time.Duration { return time.Until(c.Now()) }
		if off() != 0 {
			t.Errorf("before the first look it is off by %s", off())
		}
		look := func(ahead, roundTrip time.Duration) {
			sent := time.Now()
			<-time.After(roundTrip)
			c.set(sent.Add(roundTrip/2+ahead), sent)
		}
		look(time.Hour, 10*time.Millisecond)
		if off() != time.Hour {
			t.Errorf("off by %s, want an hour", off())
		}
		<-time.After(time.Minute)
		// Within the uncertainty of the round trip.
		look(time.Hour+4*time.Millisecond, 10*time.Millisecond)
		if off() != time.Hour {
			t.Errorf("off by %s after a look that says nothing new", off())
		}
		look(-time.Minute, 10*time.Millisecond)
		if off() != -time.Minute {
			t.Errorf("off by %s, want a minute less: the database's clock was set", off())
		}
	})
}
