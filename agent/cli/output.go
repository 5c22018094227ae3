package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/sink"
)

// printer prints the answer of a command: lines and tables for people, or one JSON value for
// programs (--json). The text may come from customers and their servers, so all of it passes
// sink.Printable before it is measured, cut or coloured.
type printer struct {
	w        io.Writer
	aside    io.Writer // for what is no part of an answer that a program reads; nil for w
	asJSON   bool
	compact  bool // each JSON value is one line
	terminal bool // w is a terminal: tables have a head line, and their columns are aligned
	color    bool
	noTrunc  bool
	width    int // columns of the terminal; 0 when nothing is cut or wrapped
	height   int // lines of the terminal
}

func newPrinter(w io.Writer, asJSON bool) *printer {
	p := &printer{w: w, asJSON: asJSON}
	p.measure()
	return p
}

// measure reads the size of the terminal, if there is one.
func (p *printer) measure() {
	w := p.w
	if out, ok := w.(*answer); ok {
		w = out.Writer
	}
	file, ok := w.(*os.File)
	if !ok {
		return
	}
	if width, height, err := term.GetSize(int(file.Fd())); err == nil {
		p.terminal, p.width, p.height = true, width, height
		if p.noTrunc {
			p.width = 0
		}
	}
}

// line prints one line for people. It goes on below at the same indent where the terminal ends.
func (p *printer) line(format string, args ...any) {
	text := sink.Printable(fmt.Sprintf(format, args...))
	words := strings.TrimLeft(text, " ")
	indent := len(text) - len(words)
	p.wrapped(text[:indent], indent, words, false)
}

// note prints what a person wants to know beside a list: that it is empty, or where it goes on. In
// a pipe it is no row, so it goes to standard error.
func (p *printer) note(format string, args ...any) {
	if p.terminal || p.aside == nil {
		p.line(format, args...)
		return
	}
	fmt.Fprintln(p.aside, "webhook-agent: "+sink.Printable(fmt.Sprintf(format, args...)))
}

// help prints what a command does and how it is used, wrapped to the terminal: paragraphs at
// blanks, and what stands behind the name of a command or a flag below itself.
func (p *printer) help(cmd *cobra.Command) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(cmp.Or(cmd.Long, cmd.Short)), "\n\n") {
		if p.width > 0 {
			paragraph = strings.ReplaceAll(paragraph, "\n", " ")
		}
		for line := range strings.SplitSeq(paragraph, "\n") {
			p.line("%s", line)
		}
		fmt.Fprintln(p.w)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(cmd.UsageString(), "\n"), "\n") {
		end := describedAt.FindStringIndex(line)
		if len(end) == 0 || p.width > 0 && end[1] > p.width-leastRoom {
			p.line("%s", line)
			continue
		}
		p.wrapped(line[:end[1]], end[1], line[end[1]:], false)
	}
}

// describedAt matches what stands before a description in the usage of a command.
var describedAt = regexp.MustCompile(`^ +\S+(?: \S+)*? {2,}`)

// levelWidth is the width of the longest level of a finding.
const levelWidth = 4

// finding prints a level, coloured, and what it is about.
func (p *printer) finding(level, text string) {
	head := p.paintState(pad(level, levelWidth)) + strings.Repeat(" ", columnGap)
	p.wrapped(head, levelWidth+columnGap, sink.Printable(text), false)
}

// leastRoom is the least width that text is wrapped to. Where less is left beside a name, the
// terminal wraps it.
const leastRoom = 20

// wrapped prints text behind head, and what does not fit below it, behind indent blanks. state says
// that the text begins with a state.
func (p *printer) wrapped(head string, indent int, text string, state bool) {
	lines := []string{text}
	if p.width >= indent+leastRoom {
		lines = wrap(text, p.width-indent)
	}
	if state {
		lines[0] = p.paintState(lines[0])
	}
	for _, line := range lines {
		fmt.Fprintln(p.w, strings.TrimRight(head+line, " "))
		head = strings.Repeat(" ", indent)
	}
}

// json prints v as indented JSON. A terminal's control sequence can only be inside a string of the
// document. So escaping it does not change the meaning (encoding/json escapes the ASCII part
// itself).
func (p *printer) json(v any) error {
	indent := "  "
	if p.compact {
		indent = ""
	}
	text, err := encodeJSON(v, "", indent)
	if err != nil {
		return err
	}
	_, err = io.WriteString(p.w, text)
	return err
}

func encodeJSON(v any, prefix, indent string) (string, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent(prefix, indent)
	if err := encoder.Encode(v); err != nil {
		return "", fmt.Errorf("write the answer as JSON: %w", err)
	}
	return escapeJSON(text.String()), nil
}

// jsonArray prints an array whose elements come little by little, as json prints a whole one.
type jsonArray struct {
	out   *printer
	begun bool
}

// add prints a further element.
func (a *jsonArray) add(v any) error {
	text, err := encodeJSON(v, "  ", "  ")
	if err != nil {
		return err
	}
	before := ",\n  "
	if !a.begun {
		before, a.begun = "[\n  ", true
	}
	_, err = io.WriteString(a.out.w, before+strings.TrimSuffix(text, "\n"))
	return err
}

// end prints the end of the array.
func (a *jsonArray) end() error {
	text := "\n]\n"
	if !a.begun {
		text = "[]\n"
	}
	_, err := io.WriteString(a.out.w, text)
	return err
}

// escapeJSON replaces the runes beyond ASCII that are not safe on a terminal by \u escapes. None of
// them needs a surrogate pair.
func escapeJSON(document string) string {
	var b strings.Builder
	for _, r := range document {
		if r >= 0x7f && sink.Printable(string(r)) != string(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// field is one line that fields prints.
type field struct{ name, value string }

// paintedFields are the names of fields whose first word is a state.
var paintedFields = map[string]bool{"state": true, "status": true}

// fields prints names and values below each other. It leaves out those without a value.
func (p *printer) fields(fields []field) {
	width := 0
	for _, f := range fields {
		width = max(width, textWidth(f.name))
	}
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		head := pad(f.name, width) + strings.Repeat(" ", columnGap)
		p.wrapped(head, width+columnGap, sink.Printable(f.value), paintedFields[f.name])
	}
}

// formatAge formats how far t is from now: 2m ago, in 30s. For nil it returns a dash.
func formatAge(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	if d := t.Sub(now); d > 0 {
		return "in " + config.FormatDuration(d.Round(time.Second))
	}
	return config.FormatDuration(now.Sub(*t).Round(time.Second)) + " ago"
}

// formatTime formats t in the time zone of now, in UTC when that is another one, and how far it is
// from now. For nil it returns "".
func formatTime(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	local, utc := t.In(now.Location()).Format("2006-01-02 15:04:05 MST"), t.UTC().Format("2006-01-02 15:04:05 MST")
	if local == utc {
		return fmt.Sprintf("%s (%s)", utc, formatAge(t, now))
	}
	return fmt.Sprintf("%s = %s (%s)", local, utc, formatAge(t, now))
}

// formatBytes formats a number of bytes with two digits or more: 1.5 MiB.
func formatBytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// formatCount formats a number for people: 1,234,567.
func formatCount[T int | int64](n T) string { return humanize.Comma(int64(n)) }
