package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/quintago/webhook-agent/sink"
)

// column is the head of a column of a table, and what its cells hold.
type column struct {
	name     string
	flexible bool // a text, which is cut at its end
	id       bool // ids, which are cut in the middle
	state    bool // texts that begin with a state, which is coloured
}

const (
	columnGap    = 2
	easyWidth    = 18 // texts are cut to this before ids are cut
	wantedWidth  = 8  // a column is cut below this only when every column is that narrow
	minimalWidth = 2  // no column is cut below this
)

// table prints rows. On a terminal they stand below their heads in aligned columns, cut to the
// width of the terminal. Elsewhere a row is a line of whole cells with tabs between them, for cut
// and awk: sink.Printable lets no tab and no line break into a cell.
func (p *printer) table(columns []column, rows [][]string) {
	table := tableStream{p: p, columns: columns}
	table.add(rows)
}

// contextRows is how many rows a table remembers for the widths of those that follow.
const contextRows = 200

// tableStream is a table whose rows come little by little.
type tableStream struct {
	p       *printer
	columns []column
	before  [][]string // the last rows, as they were printed but whole
	headed  bool
}

// add prints further rows.
func (t *tableStream) add(rows [][]string) {
	lines := make([][]string, len(rows))
	for i, row := range rows {
		lines[i] = make([]string, len(row))
		for j, cell := range row {
			lines[i][j] = sink.Printable(cell)
		}
	}
	if !t.p.terminal {
		for _, cells := range lines {
			fmt.Fprintln(t.p.w, strings.Join(cells, "\t"))
		}
		return
	}
	if len(rows) == 0 {
		return
	}
	all := slices.Concat(t.before, lines)
	widths := t.p.columnWidths(t.columns, all)
	t.before = all[max(0, len(all)-contextRows):]
	t.printHead(widths)
	for _, cells := range lines {
		fmt.Fprintln(t.p.w, t.fit(cells, widths))
	}
}

// printHead prints the heads of the columns, once.
func (t *tableStream) printHead(widths []int) {
	if t.headed {
		return
	}
	t.headed = true
	heads := make([]string, len(t.columns))
	for i, c := range t.columns {
		heads[i] = pad(strings.ToUpper(c.name), widths[i])
	}
	fmt.Fprintln(t.p.w, t.p.paint(bold, joinCells(heads)))
}

// fit makes a line of cells, cut to the widths of their columns.
func (t *tableStream) fit(cells []string, widths []int) string {
	line := make([]string, len(cells))
	for i, c := range t.columns {
		text := cells[i]
		if c.id {
			text = cutMiddle(text, widths[i])
		}
		if line[i] = pad(text, widths[i]); c.state {
			line[i] = t.p.paintState(line[i])
		}
	}
	return joinCells(line)
}

// joinCells makes a line of padded cells.
func joinCells(cells []string) string {
	return strings.TrimRight(strings.Join(cells, strings.Repeat(" ", columnGap)), " ")
}

// step is a way to shorten the columns of a table: those that it is for, each to a least width.
type step struct {
	of    func(column) bool
	least func(i int) int
}

// columnWidths returns the width of each column in cells of the terminal: that of its widest text,
// less what does not fit. It shortens texts to an easy width, then ids as far as they still differ,
// then texts again, and at last everything.
func (p *printer) columnWidths(columns []column, lines [][]string) []int {
	widths, shortest := make([]int, len(columns)), make([]int, len(columns))
	for i, c := range columns {
		texts := make([]string, len(lines))
		widths[i] = textWidth(c.name)
		for j, cells := range lines {
			texts[j] = cells[i]
			widths[i] = max(widths[i], textWidth(cells[i]))
		}
		if c.id {
			shortest[i] = max(textWidth(c.name), shortestCut(texts))
		}
	}
	if p.width == 0 {
		return widths
	}
	for _, s := range []step{
		{isText, to(easyWidth)},
		{isID, func(i int) int { return shortest[i] }},
		{isText, to(wantedWidth)},
		{isAny, to(wantedWidth)},
		{isText, to(minimalWidth)},
		{isAny, to(minimalWidth)},
	} {
		s.shorten(columns, widths, p.width)
	}
	return widths
}

// shorten takes from the widest of its columns until the table fits.
func (s step) shorten(columns []column, widths []int, room int) {
	total := columnGap * (len(columns) - 1)
	for _, width := range widths {
		total += width
	}
	for ; total > room; total-- {
		widest := -1
		for i, c := range columns {
			if s.of(c) && widths[i] > s.least(i) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

func isText(c column) bool { return c.flexible }
func isID(c column) bool   { return c.id }
func isAny(column) bool    { return true }

// to returns the same width for each column.
func to(width int) func(int) int { return func(int) int { return width } }
