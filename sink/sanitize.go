package sink

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Sanitize makes hostile text storable. It replaces each NUL and each byte that is not valid UTF-8
// by U+FFFD, and cuts the result to at most max bytes, between two characters. PostgreSQL refuses
// both in a text column. A row that cannot be saved would make its delivery repeat for ever.
func Sanitize(s string, max int) string {
	if len(s) <= max && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s { // range turns an invalid byte into utf8.RuneError
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

// Printable makes stored text safe on a terminal. It turns control characters (C0, DEL, C1, and so
// ESC and newlines), line and paragraph separators, and marks that change the direction of text
// into visible Go escapes such as \x1b or \u202e. Bytes that are not valid UTF-8 become U+FFFD.
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

// shorten cuts s to at most max characters. The last one is then an ellipsis.
func shorten(s string, max int) string {
	runes := []rune(s)
	if len(runes) <= max {
		return s
	}
	return string(runes[:max-1]) + "…"
}
