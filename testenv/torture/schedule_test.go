package main

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestSchedule_FollowsFromTheSeed(t *testing.T) {
	list := func(seed uint64) string {
		main, side := newSchedule(seed, 10*time.Minute, nil)
		return fmt.Sprint(main, side)
	}
	if first, second := list(1), list(1); first != second {
		t.Error("the same seed gives two schedules")
	}
	if list(1) == list(2) {
		t.Error("two seeds give the same schedule")
	}
}

func TestSchedule_HasEveryFaultOftenEnoughInTenMinutes(t *testing.T) {
	least := map[kind]int{kill: 60, crash: 10}
	for seed := range uint64(50) {
		main, side := newSchedule(seed, 10*time.Minute, nil)
		n := map[kind]int{}
		for _, s := range append(main, side...) {
			n[s.Kind]++
			if over := s.At + s.Lasts; over > 10*time.Minute {
				t.Errorf("seed %d: %s is over at %s", seed, s, over)
			}
		}
		for k := range plan {
			if n[k] < max(1, least[k]) {
				t.Errorf("seed %d: %s comes %d times", seed, k, n[k])
			}
		}
	}
}

func TestSchedule_HasEveryFaultInTheShortRun(t *testing.T) {
	for seed := range uint64(50) {
		main, side := newSchedule(seed, time.Minute, nil)
		for k := range plan {
			if !slices.ContainsFunc(append(main, side...), func(s stroke) bool { return s.Kind == k }) {
				t.Errorf("seed %d: no %s", seed, k)
			}
		}
		for _, track := range [][]stroke{main, side} {
			if last := track[len(track)-1]; last.At+last.Lasts > time.Minute {
				t.Errorf("seed %d: the last fault, %s, is over after the end", seed, last)
			}
		}
	}
}

func TestSchedule_FreezesLongerThanATakeoverTakes(t *testing.T) {
	for seed := range uint64(20) {
		main, _ := newSchedule(seed, 10*time.Minute, nil)
		for _, s := range main {
			if s.Kind == freeze && (s.Lasts < 15*time.Second || s.Lasts > 20*time.Second) {
				t.Errorf("seed %d: %s", seed, s)
			}
		}
	}
}

func TestSchedule_KeepsToTheKindsThatAreAskedFor(t *testing.T) {
	main, side := newSchedule(1, time.Minute, []kind{kill, clock})
	kills := 0
	for _, s := range append(main, side...) {
		if s.Kind != kill && s.Kind != clock {
			t.Errorf("%s was not asked for", s)
		}
		if s.Kind == kill {
			kills++
		}
	}
	if kills < 10 {
		t.Errorf("%d kills in a minute that has nothing else", kills)
	}
}

func TestParseKinds_NamesWhatItDoesNotKnow(t *testing.T) {
	if got, err := parseKinds("kill, slot"); err != nil || !slices.Equal(got, []kind{kill, slot}) {
		t.Errorf("parsed %v, %v", got, err)
	}
	if _, err := parseKinds("kill,earthquake"); err == nil {
		t.Error("took a fault that there is none of")
	}
}
