package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	location, err := time.LoadLocation(name)
	if err != nil {
		t.Fatalf("this test needs the time zones of the system or of Go: %v", err)
	}
	return location
}

func TestReadTime_TakesWhatPeopleWriteInTheirZone(t *testing.T) {
	lisbon := zone(t, "Europe/Lisbon")
	now := time.Date(2026, 11, 29, 9, 30, 15, 0, lisbon) // a Sunday
	for text, want := range map[string]string{
		"24h":                       "2026-11-28T09:30:15Z",
		"90m":                       "2026-11-29T08:00:15Z",
		"2w":                        "2026-11-15T09:30:15Z",
		"1w2d12h":                   "2026-11-19T21:30:15Z",
		"3d":                        "2026-11-26T09:30:15Z",
		"now":                       "2026-11-29T09:30:15Z",
		"today":                     "2026-11-29T00:00:00Z",
		"Yesterday":                 "2026-11-28T00:00:00Z",
		"yesterday 14:00":           "2026-11-28T14:00:00Z",
		"monday":                    "2026-11-23T00:00:00Z",
		"sun":                       "2026-11-29T00:00:00Z",
		"14:00":                     "2026-11-29T14:00:00Z",
		"2026-11-28":                "2026-11-28T00:00:00Z",
		"2026-07-01":                "2026-06-30T23:00:00Z",
		"2026-11-28 14:00":          "2026-11-28T14:00:00Z",
		"2026-11-28 14:00:05":       "2026-11-28T14:00:05Z",
		"2026-11-28T14:00":          "2026-11-28T14:00:00Z",
		"2026-11-28T14:00:00+01:00": "2026-11-28T13:00:00Z",
		"2026-11-28t14:00:00z":      "2026-11-28T14:00:00Z",
	} {
		got, ok := readTime(text, now)
		if !ok || got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%s: %v, %v, want %s", text, got.UTC(), ok, want)
		}
	}
}

func TestReadTime_AtAChangeToAndFromSummerTime(t *testing.T) {
	for _, test := range []struct{ zone, now, text, want string }{
		// In Lisbon 01:00 is followed by 02:00 on 29 March, and 02:00 by 01:00 on 25 October.
		{"Europe/Lisbon", "2026-03-29T12:00:00Z", "today", "2026-03-29T00:00:00Z"},
		{"Europe/Lisbon", "2026-03-29T12:00:00Z", "01:30", "2026-03-29T01:00:00Z"},
		{"Europe/Lisbon", "2026-03-29T12:00:00Z", "02:00", "2026-03-29T01:00:00Z"},
		{"Europe/Lisbon", "2026-03-29T12:00:00Z", "24h", "2026-03-28T12:00:00Z"},
		{"Europe/Lisbon", "2026-03-30T12:00:00Z", "yesterday", "2026-03-29T00:00:00Z"},
		{"Europe/Lisbon", "2026-03-30T12:00:00Z", "monday", "2026-03-29T23:00:00Z"},
		{"Europe/Lisbon", "2026-10-25T12:00:00Z", "01:30", "2026-10-25T00:30:00Z"},
		{"Europe/Lisbon", "2026-10-25T12:00:00Z", "02:30", "2026-10-25T02:30:00Z"},
		{"America/New_York", "2026-11-01T18:00:00Z", "01:30", "2026-11-01T05:30:00Z"},
		{"America/New_York", "2026-03-08T18:00:00Z", "02:30", "2026-03-08T07:00:00Z"},
		// In Cairo midnight itself is skipped: 24 April 2026 begins at 01:00.
		{"Africa/Cairo", "2026-04-24T12:00:00Z", "today", "2026-04-23T22:00:00Z"},
		{"UTC", "2026-03-29T12:00:00Z", "today", "2026-03-29T00:00:00Z"},
	} {
		now, err := time.Parse(time.RFC3339, test.now)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := readTime(test.text, now.In(zone(t, test.zone)))
		if !ok || got.UTC().Format(time.RFC3339) != test.want {
			t.Errorf("%s in %s: %v, %v, want %s", test.text, test.zone, got.UTC(), ok, test.want)
		}
	}
}

func TestParseTime_NamesWhatItTakes(t *testing.T) {
	for _, text := range []string{"tomorrow", "1y", "-2h", "w", "2026-13-01", "2026-11-28 25:00", "28.11.2026", "9999w", "monday 99", "today today", " "} {
		got, err := parseTime(&cobra.Command{Use: "x"}, "since", text, time.Now())
		if err == nil || got != nil || !strings.Contains(err.Error(), "yesterday") || !strings.Contains(err.Error(), "'2026-11-28 14:00'") {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
