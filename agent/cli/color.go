package cli

import "strings"

// The modes of --color.
const (
	colorAuto   = "auto"
	colorAlways = "always"
	colorNever  = "never"
)

var colorModes = []string{colorAuto, colorAlways, colorNever}

// colored reports whether answers have colours. The flag decides. Without it the environment does,
// by the conventions of no-color.org and bixense.com/clicolors: NO_COLOR is stronger than
// CLICOLOR_FORCE. At last a terminal has colours, unless it calls itself dumb.
func colored(mode string, terminal bool, getenv func(string) string) bool {
	force := getenv("CLICOLOR_FORCE")
	switch {
	case mode == colorAlways:
		return true
	case mode == colorNever, getenv("NO_COLOR") != "":
		return false
	case force != "" && force != "0":
		return true
	}
	return terminal && !dumb(getenv) && getenv("CLICOLOR") != "0"
}

// dumb reports whether the terminal knows no control sequences.
func dumb(getenv func(string) string) bool { return getenv("TERM") == "dumb" }

// The control sequences of colours (ECMA-48, SGR).
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// stateColors has the colour of each state. The word always stands there as well, so that nobody
// has to see the colour.
var stateColors = map[string]string{
	"ok": green, "enabled": green, "succeeded": green, "done": green, "active": green,
	"warn": yellow, "pending": yellow, "running": yellow, "paused": yellow, "held": yellow,
	"fail": red, "failed": red, "missed": red, "disabled": red, "unusable": red, "canceled": red,
}

// paintState colours the first word of text if it is a state.
func (p *printer) paintState(text string) string {
	word := firstWord(text)
	return p.paint(stateColors[word], word) + text[len(word):]
}

func firstWord(text string) string {
	if end := strings.IndexAny(text, " :,…"); end >= 0 {
		return text[:end]
	}
	return text
}

// paint gives text a colour, which may be "".
func (p *printer) paint(color, text string) string {
	if !p.color || color == "" {
		return text
	}
	return color + text + plain
}
