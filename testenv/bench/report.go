package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// report is the table.
type report struct {
	head string
	rows []row
}

// row is one line of the table.
type row struct {
	scenario, value string
	compared        string // what it is compared with; "" for nothing
	ratio           string
	goal            string // "" when there is none
	reached         bool
}

func newReport(commit string, postgres testenv.Binaries) *report {
	return &report{head: fmt.Sprintf("%s, commit %s, PostgreSQL %d.%d, %d cores",
		time.Now().UTC().Format("2006-01-02 15:04 UTC"), commit, postgres.Major, postgres.Minor, runtime.NumCPU())}
}

func (r *report) add(row row) { r.rows = append(r.rows, row) }

func (r row) verdict() string {
	switch {
	case r.goal == "":
		return ""
	case r.reached:
		return "yes"
	}
	return "NO"
}

func (r row) cells() []string {
	return []string{r.scenario, r.value, r.compared, r.ratio, r.goal, r.verdict()}
}

var columns = []string{"scenario", "agent", "compared with", "ratio", "goal", "reached"}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n", r.head)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(columns, "\t"))
	for _, row := range r.rows {
		fmt.Fprintln(t, strings.Join(row.cells(), "\t"))
	}
	_ = t.Flush() // it is standard output; there is no other place for an error
}

func (r *report) printMarkdown(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n| %s |\n|%s\n", r.head, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, row := range r.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row.cells(), " | "))
	}
}

func perSecond(rate float64) string { return fmt.Sprintf("%.0f/s", rate) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
