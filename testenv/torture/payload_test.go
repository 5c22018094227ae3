package main

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"regexp"
	"testing"
	"time"
)

func TestPayload_IsJSONThatAParserWouldSpellAnew(t *testing.T) {
	changed := 0
	for _, text := range oddities {
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			// Numbers beyond a float64, which PostgreSQL takes as well.
			if _, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok {
				t.Errorf("%s is no JSON: %v", text, err)
			}
		}
		if again, err := json.Marshal(value); err != nil || string(again) != text {
			changed++
		}
	}
	if changed < 8 {
		t.Errorf("only %d of %d texts would look different", changed, len(oddities))
	}
	random := rand.New(rand.NewPCG(1, 1))
	for n := range 1000 {
		if text := newData(random, n); !json.Valid([]byte(text)) {
			t.Fatalf("%s is no JSON", text)
		}
	}
}

func TestEventIDs_AreULIDsThatSortByTime(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	early := newEventID(random, begun)
	late := newEventID(random, begun.Add(time.Millisecond))
	if !regexp.MustCompile(`^evt_[0-7][0-9A-HJKMNP-TV-Z]{25}$`).MatchString(early) {
		t.Errorf("%s is no ULID", early)
	}
	if early >= late {
		t.Errorf("%s stands after %s, which was made later", early, late)
	}
}
