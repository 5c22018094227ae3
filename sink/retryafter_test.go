package sink

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestParseRetryAfter_IsBoundedAndIgnoresNonsense(t *testing.T) {
	now := time.Date(2025, 5, 10, 14, 32, 0, 0, time.UTC)
	for _, c := range []struct {
		value string
		want  time.Duration
	}{
		{"120", 2 * time.Minute},
		{"0", 0},
		{"3600", time.Hour},
		{"3601", time.Hour},
		{"9223372037", time.Hour}, // would overflow a Duration
		{"18446744073709551615", time.Hour},
		{"18446744073709551616", time.Hour},
		{"99999999999999999999999", time.Hour},
		{strings.Repeat("9", 30_000), time.Hour},
		{strings.Repeat("0", 1000) + "60", time.Minute},
		{"30, 60", 30 * time.Second},
		{"30,60", 30 * time.Second},
		{"soon, 60", time.Minute},
		{", 60", time.Minute},
		{"60;x", 0},
		{strings.Repeat("x,", 1000) + "60", 0},
		{"30, " + now.Add(time.Minute).Format(http.TimeFormat), 30 * time.Second},
		{now.Add(time.Minute).Format(http.TimeFormat) + ", 30", time.Minute},
		{"soon, " + now.Add(time.Minute).Format(http.TimeFormat), time.Minute},
		{"Sat, 10 May 2025 14:33:00 UTC", time.Minute},
		{"Sat, 10 May 2025 14:33:00 utc", time.Minute},
		{"Sat, 10 May 2025 14:33:00 UT", time.Minute},
		{"Sat, 10 May 2025 14:33:00 Z", time.Minute},
		{"Sat, 10 May 2025 14:33:00 +0000", time.Minute},
		{"Sat, 10 May 2025 16:33:00 +0200", time.Minute},
		{"Saturday, 10-May-25 14:33:00 UTC", time.Minute},
		{"Sat May 10 14:33:00 2025", time.Minute},
		{"2025-05-10T14:33:00Z", time.Minute},
		{"2025-05-10T16:33:00+02:00", time.Minute},
		{"Sat, 10 May 2025 14:33:00 EST", 0},
		{"Sat, 10 May 2025 14:33:00", 0},
		{"-5", 0},
		{"+5", 0},
		{"1.5", 0},
		{"NaN", 0},
		{"", 0},
		{"soon", 0},
		{"Wed, 99 Foo", 0},
		{now.Add(90 * time.Second).Format(http.TimeFormat), 90 * time.Second},
		{now.Add(90 * time.Second).Format(time.RFC850), 90 * time.Second},
		{now.Add(-time.Minute).Format(http.TimeFormat), 0},
		{"Fri, 31 Dec 9999 23:59:59 GMT", time.Hour},
		{"Mon, 01 Jan 0001 00:00:00 GMT", 0},
	} {
		r, usable := parseRetryAfter(c.value)
		if got := r.wait(now); got != c.want || !usable && got != 0 {
			t.Errorf("%.100q: %v, want %v", c.value, got, c.want)
		}
	}
}

// The first field that is usable counts.
func TestParseHead_TakesTheFirstUsableRetryAfter(t *testing.T) {
	for fields, want := range map[string]time.Duration{
		"Retry-After: 7\r\nRetry-After: 60\r\n":                  7 * time.Second,
		"Retry-After: 0\r\nRetry-After: 60\r\n":                  0,
		"Retry-After: abc\r\nRetry-After: 60\r\n":                time.Minute,
		"Retry-After:\r\nretry-after: -1\r\nRetry-After: 60\r\n": time.Minute,
		"Retry-After: abc\r\n":                                   0,
	} {
		h, err := parseHead([]byte("HTTP/1.1 503 No\r\n" + fields + "\r\n"))
		if got := h.retryAfter.wait(time.Now()); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", fields, got, err, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"120", "-1", "99999999999999999999", "Sat, 10 May 2025 14:32:00 GMT", "Sat, 10 May 2025 14:32:00 UTC, 5", "2025-05-10T14:32:00Z", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r, usable := parseRetryAfter(value)
		if got := r.wait(time.Unix(goldenTime, 0)); got < 0 || got > time.Hour || !usable && got != 0 {
			t.Errorf("%q: %v", value, got)
		}
	})
}
