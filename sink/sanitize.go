package sink

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Sanitize makes hostile text storable: each NUL and each byte that is not valid UTF-8 becomes U+FFFD, and the result
// is cut on a rune boundary to at most max bytes. PostgreSQL refuses both kinds in a text column, and a row that cannot be
// saved would have its delivery repeated for ever.
func Sanitize(s string, max int) string {
	if len(s) <= max && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s { // an invalid byte yields utf8.RuneError
		if r == 0 {
			r = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(r) > max {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Printable makes stored text safe on a terminal: control characters (C0, DEL, C1, and with them ESC and newlines), line
// and paragraph separators, and the marks that change the direction of text become visible Go escapes such as \x1b or
// \u202e, and bytes that are not valid UTF-8 become U+FFFD.
func Printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case !unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp, unicode.Bidi_Control):
			b.WriteRune(r)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// shorten cuts s to at most max characters and marks the cut.
func shorten(s string, max int) string {
	runes := []rune(s)
	if len(runes) <= max {
		return s
	}
	return string(runes[:max-1]) + "…"
}
