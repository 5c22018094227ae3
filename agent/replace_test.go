package agent

import (
	"testing"
	"time"
)

func TestReplacements_OfASlotComeLessAndLessOften(t *testing.T) {
	var r replacements
	now, made := time.Now(), 0
	for end := now.Add(time.Hour); now.Before(end); now = now.Add(time.Second) {
		if r.tooSoon(now) == nil {
			r.made(now)
			made++
		}
	}
	if made < 2 || made > 20 {
		t.Errorf("%d new slots in an hour", made)
	}
	now = now.Add(calmReplacement)
	r.made(now)
	if r.tooSoon(now.Add(firstReplacement-1)) == nil || r.tooSoon(now.Add(firstReplacement)) != nil {
		t.Error("after a calm hour it does not begin anew")
	}
}
