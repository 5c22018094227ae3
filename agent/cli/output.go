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

// printer writes the answer of a command: for people as lines and tables, for programs (--json) as one JSON value. What it
// prints may come from customers and their servers, so all text passes sink.Printable.
type printer struct {
	w      io.Writer
	asJSON bool
	width  int // columns of the terminal; 0 when w is none, and lines are then as long as they are
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

// line writes one line for people.
func (p *printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, sink.Printable(fmt.Sprintf(format, args...)))
}

// json writes v, indented. A sequence for the terminal can only stand inside of a string of the document, so it is
// escaped there without a change of meaning (encoding/json does so for the ASCII half).
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

// escapeJSON writes the runes beyond ASCII that are not safe on a terminal as \u escapes; none of them needs a surrogate
// pair.
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

// column heads a column of a table. A flexible one gives way first when the table is wider than the terminal; the others hold
// what people copy, and are cut only when that is not enough.
type column struct {
	name     string
	flexible bool
}

const (
	columnGap    = 2
	wantedWidth  = 8 // a column is cut below this only when no other is above it
	minimalWidth = 2 // a column is not cut below this
)

// table writes rows under their heads, cut to the width of the terminal.
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

// columnWidths returns the width of each column in characters: that of its widest cell, less what does not fit, taken from the
// widest flexible column first, then from the widest of the others, and at last from what is narrow already.
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

// widestColumn returns the widest column of one kind that is wider than least, or -1.
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

// field is one line of fields.
type field struct{ name, value string }

// fields writes names and values below each other and leaves out those without a value.
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

// formatAge says how far t is from now: 2m ago, in 30s. A missing time is a dash.
func formatAge(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	if d := t.Sub(now); d > 0 {
		return "in " + config.FormatDuration(d.Round(time.Second))
	}
	return config.FormatDuration(now.Sub(*t).Round(time.Second)) + " ago"
}

// formatTime says when t is in the zone of now, in UTC where that differs, and how far from now. A missing time is empty.
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

// formatBytes writes a count of bytes with one digit after the point: 1.5 MiB.
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
