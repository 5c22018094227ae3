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
	state    bool // texts that begin with a state, which is coloured and stays whole
	least    int  // a text is cut below this width only when everything is narrow; 0 for wantedWidth
	optional int  // the column with the highest number is left out first where there is no room; 0 stays
}

const (
	columnGap    = 2
	easyWidth    = 32 // texts are cut to this before ids are cut
	wantedWidth  = 8  // a column is cut below this only when every column is that narrow
	minimalWidth = 2  // no column is cut below this
)

// table prints rows. On a terminal they stand below their heads in aligned columns, cut to the
// width of the terminal. Elsewhere a row is a line of whole cells with tabs between them, for cut
// and awk: sink.Printable lets no tab and no line break into a cell.
func (p *printer) table(columns []column, rows [][]string) {
	table := tableStream{p: p, columns: columns, whole: true}
	table.add(rows)
}

// contextRows is how many rows a table remembers for the widths of those that follow.
const contextRows = 200

// tableStream is a table whose rows come little by little.
type tableStream struct {
	p       *printer
	columns []column
	whole   bool       // all rows come at once, so a column without a value can be left out
	kept    []int      // the columns that are shown, which the first rows decide
	before  [][]string // the last rows, as they were given
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
	first := t.kept == nil
	if first {
		t.keep(lines)
	}
	columns := pick(t.columns, t.kept)
	for i, cells := range lines {
		lines[i] = pick(cells, t.kept)
	}
	all := slices.Concat(t.before, lines)
	widths := t.p.columnWidths(columns, all)
	t.before = all[max(0, len(all)-contextRows):]
	if first {
		heads := make([]string, len(columns))
		for i, c := range columns {
			heads[i] = pad(strings.ToUpper(c.name), widths[i])
		}
		fmt.Fprintln(t.p.w, t.p.paint(bold, joinCells(heads)))
	}
	for _, cells := range lines {
		fmt.Fprintln(t.p.w, t.p.fit(columns, cells, widths))
	}
}

// keep decides which columns are shown: not those in which no row has a value, and not those that
// can be spared where the others would be cut too much.
func (t *tableStream) keep(lines [][]string) {
	for i := range t.columns {
		if !t.whole || slices.ContainsFunc(lines, func(cells []string) bool { return cells[i] != "" }) {
			t.kept = append(t.kept, i)
		}
	}
	natural, least := measureColumns(t.columns, lines)
	for t.p.width > 0 {
		total, spared := columnGap*(len(t.kept)-1), -1
		for place, i := range t.kept {
			total += min(natural[i], least[i])
			if c := t.columns[i]; c.optional > 0 && (spared < 0 || c.optional > t.columns[t.kept[spared]].optional) {
				spared = place
			}
		}
		if total <= t.p.width || spared < 0 {
			return
		}
		t.kept = slices.Delete(t.kept, spared, spared+1)
	}
}

// pick returns those elements of a list that are at the given places.
func pick[T any](list []T, places []int) []T {
	picked := make([]T, len(places))
	for i, place := range places {
		picked[i] = list[place]
	}
	return picked
}

// fit makes a line of cells, cut to the widths of their columns.
func (p *printer) fit(columns []column, cells []string, widths []int) string {
	line := make([]string, len(cells))
	for i, c := range columns {
		text := cells[i]
		if c.id {
			text = cutMiddle(text, widths[i])
		}
		if line[i] = pad(text, widths[i]); c.state {
			line[i] = p.paintState(line[i])
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

// measureColumns returns the width of each column in cells of the terminal, that of its widest
// text, and the least width at which it is still of use: an id that differs from the others, a
// whole number, the word of a state.
func measureColumns(columns []column, lines [][]string) (natural, least []int) {
	natural, least = make([]int, len(columns)), make([]int, len(columns))
	for i, c := range columns {
		texts := make([]string, len(lines))
		natural[i], least[i] = textWidth(c.name), max(c.least, wantedWidth)
		for j, cells := range lines {
			texts[j] = cells[i]
			natural[i] = max(natural[i], textWidth(cells[i]))
			if c.state {
				least[i] = max(least[i], textWidth(firstWord(cells[i]))+1)
			}
		}
		switch {
		case c.id:
			least[i] = max(textWidth(c.name), shortestCut(texts))
		case !c.flexible:
			least[i] = natural[i]
		}
	}
	return natural, least
}

// columnWidths returns the widths of columns: the natural ones, less what does not fit. It shortens
// texts to an easy width, then ids as far as they still differ, then texts again, and at last
// everything.
func (p *printer) columnWidths(columns []column, lines [][]string) []int {
	widths, least := measureColumns(columns, lines)
	if p.width == 0 {
		return widths
	}
	leastOf := func(i int) int { return least[i] }
	for _, s := range []step{
		{isText, func(i int) int { return max(easyWidth, least[i]) }},
		{isID, leastOf},
		{isText, leastOf},
		{isPlainText, to(wantedWidth)},
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

func isText(c column) bool      { return c.flexible }
func isPlainText(c column) bool { return c.flexible && !c.state }
func isID(c column) bool        { return c.id }
func isAny(column) bool         { return true }

// to returns the same width for each column.
func to(width int) func(int) int { return func(int) int { return width } }
