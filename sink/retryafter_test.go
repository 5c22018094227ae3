package sink

import (
	"net/http"
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
		{"99999999999999999999", 0},
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
		if got := parseRetryAfter(c.value, now); got != c.want {
			t.Errorf("%q: %v, want %v", c.value, got, c.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"120", "-1", "99999999999999999999", "Sat, 10 May 2025 14:32:00 GMT", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if got := parseRetryAfter(value, time.Unix(goldenTime, 0)); got < 0 || got > time.Hour {
			t.Errorf("%q: %v", value, got)
		}
	})
}
