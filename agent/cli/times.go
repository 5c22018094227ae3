package cli

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
)

// acceptedTimes names what --since and --until take.
const acceptedTimes = "how long ago (90m, 24h, 2w), a day (2026-11-28, today, yesterday, monday), " +
	"a day with a time ('2026-11-28 14:00'), a time of today (14:00), or RFC 3339 (2026-11-28T14:00:00Z)"

// parseTime parses the value of a flag that is a point in time, in the zone of now. It returns nil
// for an empty text.
func parseTime(cmd *cobra.Command, flag, text string, now time.Time) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	t, ok := readTime(text, now)
	if !ok {
		return nil, usagef(cmd, "--%s is %s, must be %s", flag, config.Quoted(text), acceptedTimes)
	}
	return &t, nil
}

// readTime reads a point in time as people write it. A day alone is its beginning. The name of a
// day of the week is the latest such day, which may be today.
func readTime(text string, now time.Time) (time.Time, bool) {
	text = strings.TrimSpace(text)
	if t, err := time.Parse(time.RFC3339, strings.ToUpper(text)); err == nil {
		return t, true
	}
	if ago, ok := readAge(text); ok {
		return now.Add(-ago), true
	}
	text = strings.ToLower(text)
	if text == "now" {
		return now, true
	}
	if clock, ok := readClock(text); ok {
		return wallTime(now, clock), true
	}
	day, clockText, hasClock := strings.Cut(text, " ")
	if !hasClock {
		day, clockText, hasClock = cutDate(text)
	}
	var clock time.Duration
	if hasClock {
		var ok bool
		if clock, ok = readClock(strings.TrimSpace(clockText)); !ok {
			return time.Time{}, false
		}
	}
	date, ok := readDay(day, now)
	if !ok {
		return time.Time{}, false
	}
	return wallTime(date, clock), true
}

// cutDate divides 2026-11-28t14:00.
func cutDate(text string) (day, clock string, found bool) {
	if len(text) > len(time.DateOnly) && text[len(time.DateOnly)] == 't' {
		return text[:len(time.DateOnly)], text[len(time.DateOnly)+1:], true
	}
	return text, "", false
}

// agePattern is a duration with weeks and days in front, both of 24 hours a day.
var agePattern = regexp.MustCompile(`^(?:([0-9]{1,4})w)?(.*)$`)

// longestAge is the longest time ago: longer than anything is kept.
const longestAge = 100 * 365 * config.Day

// readAge reads how long ago something was.
func readAge(text string) (time.Duration, bool) {
	match := agePattern.FindStringSubmatch(text)
	weeks, _ := strconv.Atoi(match[1]) // "" is none
	ago := time.Duration(weeks) * 7 * config.Day
	if match[2] != "" {
		rest, err := config.ParseDuration(match[2])
		if err != nil || rest < 0 || rest > longestAge {
			return 0, false
		}
		ago += rest
	}
	return ago, ago <= longestAge && text != ""
}

// readClock reads a time of day as the time since midnight on a clock on the wall.
func readClock(text string) (time.Duration, bool) {
	for _, layout := range []string{"15:04", time.TimeOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second, true
		}
	}
	return 0, false
}

// readDay reads a day. The result is some time on it, in the zone of now.
func readDay(text string, now time.Time) (time.Time, bool) {
	noon := func(t time.Time) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day(), 12, 0, 0, 0, now.Location())
	}
	switch text {
	case "today":
		return noon(now), true
	case "yesterday":
		return noon(now).AddDate(0, 0, -1), true
	}
	for back := range 7 {
		day := noon(now).AddDate(0, 0, -back)
		if name := strings.ToLower(day.Weekday().String()); text == name || text == name[:3] {
			return day, true
		}
	}
	t, err := time.Parse(time.DateOnly, text)
	return noon(t), err == nil
}

// wallTime returns when a clock on the wall shows a time on a day. A time that
// comes twice, when summer time ends, is the first. A time that is skipped, when it begins, is the
// moment of the change.
func wallTime(day time.Time, clock time.Duration) time.Time {
	hour, minute, second := int(clock/time.Hour), int(clock%time.Hour/time.Minute), int(clock%time.Minute/time.Second)
	wanted := time.Date(day.Year(), day.Month(), day.Day(), hour, minute, second, 0, time.UTC)
	at := time.Date(day.Year(), day.Month(), day.Day(), hour, minute, second, 0, day.Location())
	shown := func(t time.Time) time.Time { // by the clock on the wall
		_, offset := t.Zone()
		return t.UTC().Add(time.Duration(offset) * time.Second)
	}
	start, end := at.ZoneBounds()
	switch off := shown(at).Sub(wanted); {
	case off < 0:
		return end
	case off > 0:
		return start
	case start.IsZero():
		return at
	}
	before := start.Add(-time.Second)
	if first := before.Add(wanted.Sub(shown(before))); first.Before(start) {
		return first
	}
	return at
}
