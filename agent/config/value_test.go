package config

import (
	"testing"
	"time"
)

func TestParseDuration_KnowsDays(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"15s": 15 * time.Second, "30d": 30 * Day, "1d12h": 36 * time.Hour, "0d": 0, "0s": 0, "-5s": -5 * time.Second, "106751d": 106751 * Day,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "5", "-1d", "1.5d", "106752d", "1d-2h", "1dd", "65535d999999h", "1d 2h", "soon"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is accepted as %v", text, got)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, text := range []string{"15s", "30d", "1d12h", "-5s", "1d-2h", "65535d999999h", "65530d8700m"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDuration(text)
		if err != nil {
			return
		}
		// The text has the two largest units. It can be parsed again, and loses less than the
		// second unit.
		again, err := ParseDuration(FormatDuration(d))
		if err != nil {
			t.Fatalf("%q is %v, written %q, which is refused: %v", text, d, FormatDuration(d), err)
		}
		if difference := (d - again).Abs(); difference > time.Hour || d.Abs() < time.Minute && difference > 100*time.Millisecond {
			t.Errorf("%q is %v, written %q, which is %v", text, d, FormatDuration(d), again)
		}
	})
}

func TestByteSize_IsReadAndWrittenWithItsUnit(t *testing.T) {
	for text, want := range map[string]ByteSize{"0B": 0, "1B": 1, "1000B": 1000, "2KiB": 2048, "64MiB": 64 << 20, "64GiB": 64 << 30} {
		got, err := parseByteSize(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q is %d, %v, written %q; want %d", text, got, err, got, want)
		}
	}
	for _, text := range []string{"", "64", "MiB", "-1MiB", "1.5MiB", "64MB", "5000000000GiB"} {
		if got, err := parseByteSize(text); err == nil {
			t.Errorf("%q is accepted as %d", text, got)
		}
	}
}
