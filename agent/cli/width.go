package cli

import (
	"strings"

	"github.com/mattn/go-runewidth"
)

// cells measures text in the cells of a terminal: a Chinese character or an emoji takes two, a
// combining mark none. It does not look at the locale, since most terminals show characters of
// ambiguous width, such as the ellipsis, in one cell everywhere.
var cells = runewidth.Condition{StrictEmojiNeutral: true}

const ellipsis = "…"

func textWidth(text string) int { return cells.StringWidth(text) }

// pad fills or cuts text to exactly width cells.
func pad(text string, width int) string {
	return cells.FillRight(cut(text, width), width)
}

// cut shortens text at its end to at most width cells.
func cut(text string, width int) string { return cells.Truncate(text, width, ellipsis) }

// wrap divides text at blanks into lines of at most width cells. A word that is wider stays whole
// on a line of its own, so that it can be copied: the terminal breaks it.
func wrap(text string, width int) (lines []string) {
	line, used := "", 0
	for text != "" {
		word := text
		if end := strings.IndexByte(strings.TrimLeft(text, " "), ' '); end >= 0 {
			word = text[:len(text)-len(strings.TrimLeft(text, " "))+end]
		}
		text = text[len(word):]
		wide := textWidth(word)
		if used > 0 && used+wide > width {
			lines = append(lines, line)
			word = strings.TrimLeft(word, " ")
			line, used, wide = "", 0, textWidth(word)
		}
		line, used = line+word, used+wide
	}
	return append(lines, line)
}

const (
	// idHead is how much of an id is shown behind its prefix (evt_) where it is cut in the middle,
	// and idTail how much of its end at least.
	idHead, idTail = 4, 4
	// longestPrefix is the longest prefix of ids that is shown.
	longestPrefix = 8
)

// headOf returns how many cells of the beginning of an id are shown where it is cut.
func headOf(id string) int {
	if end := strings.IndexByte(id, '_'); end >= 0 && end < longestPrefix {
		return end + 1 + idHead
	}
	return idHead
}

// cutMiddle shortens an id to at most width cells: evt_01K5…Q8ZC. Ids of the same time begin with
// the same characters and differ at their ends, so what does not fit is taken from the middle, and
// of a narrow column from the beginning.
func cutMiddle(id string, width int) string {
	whole := textWidth(id)
	if whole <= width {
		return id
	}
	head := min(headOf(id), max(0, width-1-idTail))
	tail := width - 1 - head
	return cells.Truncate(id, head, "") + cells.TruncateLeft(id, whole-tail, ellipsis)
}

// shortestCut returns the least width at which the ids of a column still differ from each other.
func shortestCut(ids []string) int {
	distinct := map[string]bool{}
	widest, least := 0, 0
	for _, id := range ids {
		distinct[id] = true
		widest, least = max(widest, textWidth(id)), max(least, headOf(id)+1+idTail)
	}
	for width := least; width < widest; width++ {
		shown := map[string]bool{}
		for id := range distinct {
			shown[cutMiddle(id, width)] = true
		}
		if len(shown) == len(distinct) {
			return width
		}
	}
	return widest
}
