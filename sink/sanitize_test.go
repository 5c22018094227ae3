package sink

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestSanitize_MakesTextStorable(t *testing.T) {
	for _, c := range []struct {
		in   string
		max  int
		want string
	}{
		{"plain", 5, "plain"},
		{"plain", 4, "plai"},
		{"", 4, ""},
		{"x", 0, ""},
		{"a\x00b", 10, "a\uFFFDb"},
		{"a\xff\xfeb", 10, "a\uFFFD\uFFFDb"},
		{"año", 3, "añ"},
		{"año", 2, "a"}, // not half a letter
		{"\x00\x00", 5, "\uFFFD"},
		{"\x1b[2J", 10, "\x1b[2J"}, // storable; Printable is for terminals
	} {
		if got := Sanitize(c.in, c.max); got != c.want {
			t.Errorf("Sanitize(%q, %d) = %q, want %q", c.in, c.max, got, c.want)
		}
	}
}

func TestPrintable_ShowsWhatATerminalWouldObey(t *testing.T) {
	for in, want := range map[string]string{
		"Ana & Pedro, 20 €":  "Ana & Pedro, 20 €",
		"\x1b[2J":            `\x1b[2J`,
		"a\nb\tc\rd\x00\x7f": `a\x0ab\x09c\x0dd\x00\x7f`,
		"\u009b31m":          `\u009b31m`,
		"a\u202eb\u2066c":    `a\u202eb\u2066c`,
		"a\u2028b":           `a\u2028b`,
		"a\xffb":             "a\uFFFDb",
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzSanitize(f *testing.F) {
	f.Add("a\x00b\xff€", 4)
	f.Add("\u202e", 3)
	f.Add("", -1)
	f.Fuzz(func(t *testing.T, s string, max int) {
		got := Sanitize(s, max)
		if !utf8.ValidString(got) || strings.IndexByte(got, 0) >= 0 || len(got) > max && got != "" {
			t.Errorf("Sanitize(%q, %d) = %q", s, max, got)
		}
		if Sanitize(got, max) != got {
			t.Errorf("Sanitize changes its own result %q", got)
		}
		for _, r := range Printable(s) {
			if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
				t.Errorf("Printable(%q) leaves %q", s, r)
			}
		}
	})
}
