package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/sink"
)

// printer prints the answer of a command: lines and tables for people, or one JSON value for
// programs (--json). The text may come from customers and their servers, so all of it passes
// sink.Printable.
type printer struct {
	w      io.Writer
	asJSON bool
	width  int // columns of the terminal; 0 when w is no terminal, and lines are then not cut
}

func newPrinter(w io.Writer, asJSON bool) *printer {
	p := &printer{w: w, asJSON: asJSON}
	if file, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil {
			p.width = width
		}
	}
	return p
}

// line prints one line for people.
func (p *printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, sink.Printable(fmt.Sprintf(format, args...)))
}

// json prints v as indented JSON. A terminal's control sequence can only be inside a string of the
// document. So escaping it does not change the meaning (encoding/json escapes the ASCII part
// itself).
func (p *printer) json(v any) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("write the answer as JSON: %w", err)
	}
	_, err := io.WriteString(p.w, escapeJSON(text.String()))
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

// column is the head of a column of a table. When the table is wider than the terminal, flexible
// columns are cut first. The others hold what people copy, so they are cut only when that is not
// enough.
type column struct {
	name     string
	flexible bool
}

const (
	columnGap    = 2
	wantedWidth  = 8 // a column is cut below this only when every column is that narrow
	minimalWidth = 2 // no column is cut below this
)

// table prints rows below their heads, cut to the width of the terminal.
func (p *printer) table(columns []column, rows [][]string) {
	lines := make([][]string, 0, len(rows)+1)
	head := make([]string, len(columns))
	for i, c := range columns {
		head[i] = strings.ToUpper(c.name)
	}
	lines = append(lines, head)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = sink.Printable(cell)
		}
		lines = append(lines, cells)
	}
	widths := p.columnWidths(columns, lines)
	for _, cells := range lines {
		var b strings.Builder
		for i, cell := range cells {
			if i > 0 {
				b.WriteString(strings.Repeat(" ", columnGap))
			}
			b.WriteString(pad(cell, widths[i]))
		}
		fmt.Fprintln(p.w, strings.TrimRight(b.String(), " "))
	}
}

// columnWidths returns the width of each column in characters: that of its widest cell, less what
// does not fit. It cuts the widest flexible column first, then the widest of the others, and at
// last the columns that are narrow already.
func (p *printer) columnWidths(columns []column, lines [][]string) []int {
	widths := make([]int, len(columns))
	total := columnGap * (len(columns) - 1)
	for i := range columns {
		for _, cells := range lines {
			widths[i] = max(widths[i], utf8.RuneCountInString(cells[i]))
		}
		total += widths[i]
	}
	for _, step := range []struct {
		flexible bool
		least    int
	}{{true, wantedWidth}, {false, wantedWidth}, {true, minimalWidth}, {false, minimalWidth}} {
		for p.width > 0 && total > p.width {
			widest := widestColumn(columns, widths, step.flexible, step.least)
			if widest < 0 {
				break
			}
			widths[widest]--
			total--
		}
	}
	return widths
}

// widestColumn returns the index of the widest column of one kind that is wider than least, or -1.
func widestColumn(columns []column, widths []int, flexible bool, least int) int {
	widest := -1
	for i, c := range columns {
		if c.flexible == flexible && widths[i] > least && (widest < 0 || widths[i] > widths[widest]) {
			widest = i
		}
	}
	return widest
}

// pad fills or cuts text to exactly width characters.
func pad(text string, width int) string {
	n := utf8.RuneCountInString(text)
	if n > width {
		return string([]rune(text)[:width-1]) + "…"
	}
	return text + strings.Repeat(" ", width-n)
}

// field is one line that fields prints.
type field struct{ name, value string }

// fields prints names and values below each other. It leaves out those without a value.
func (p *printer) fields(fields []field) {
	width := 0
	for _, f := range fields {
		width = max(width, utf8.RuneCountInString(f.name))
	}
	for _, f := range fields {
		if f.value != "" {
			fmt.Fprintf(p.w, "%s  %s\n", pad(f.name, width), sink.Printable(f.value))
		}
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

// formatBytes formats a number of bytes with one digit after the point: 1.5 MiB.
func formatBytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB"} {
		if value /= 1 << 10; value < 1<<10 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
