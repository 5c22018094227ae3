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
	head    string
	rows    []row
	peers   []peerRow // a table of its own; none if no peer was measured
	peer    string    // the name of the peer
	leftOut string    // why the peer was not measured, as a sentence; "" if it was
}

// peerRow is one line of the table of the peer.
type peerRow struct{ scenario, agent, peer, ratio string }

func (r peerRow) cells() []string { return []string{r.scenario, r.agent, r.peer, r.ratio} }

// row is one line of the table.
type row struct {
	scenario, value string
	compared        string // what it is compared with; "" for nothing
	ratio           string
	goal            string // "" when there is none
	reached         bool
}

func newReport(c config, postgres testenv.Binaries) *report {
	by := "TCP"
	if c.socket {
		by = "its Unix socket"
	}
	return &report{head: fmt.Sprintf("%s, commit %s, PostgreSQL %d.%d by %s, %d cores",
		time.Now().UTC().Format("2006-01-02 15:04 UTC"), c.commit, postgres.Major, postgres.Minor, by, runtime.NumCPU())}
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

// compare adds what the agent and the peer have done. Each value is the median over the rounds.
func (r *report) compare(m match, agents, peers []effort) {
	add := func(scenario string, value func(effort) float64, text func(float64) string) {
		var agent, peer, ratios []float64
		for i := range agents {
			agent, peer = append(agent, value(agents[i])), append(peer, value(peers[i]))
			ratios = append(ratios, agent[i]/peer[i])
		}
		r.peers = append(r.peers, peerRow{scenario, text(median(agent)), text(median(peer)), fmt.Sprintf("%.2f", median(ratios))})
	}
	add(m.name, func(e effort) float64 { return e.rate }, perSecond)
	if m.cost {
		add("processor time of the system for 100,000 deliveries", func(e effort) float64 { return e.own.Seconds() }, seconds)
		add("of PostgreSQL, with the app's INSERTs", func(e effort) float64 { return e.server.Seconds() }, seconds)
		add("of both", func(e effort) float64 { return e.total().Seconds() }, seconds)
	}
}

// tables returns the tables that have lines: the head and the cells of each line.
func (r *report) tables() (tables [][][]string) {
	if len(r.rows) > 0 {
		table := [][]string{columns}
		for _, row := range r.rows {
			table = append(table, row.cells())
		}
		tables = append(tables, table)
	}
	if len(r.peers) > 0 {
		table := [][]string{{"", "agent", r.peer, "ratio"}}
		for _, row := range r.peers {
			table = append(table, row.cells())
		}
		tables = append(tables, table)
	}
	return tables
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", r.head)
	for _, table := range r.tables() {
		fmt.Fprintln(w)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, cells := range table {
			fmt.Fprintln(t, strings.Join(cells, "\t"))
		}
		_ = t.Flush() // it is standard output; there is no other place for an error
	}
	r.printLeftOut(w)
}

func (r *report) printMarkdown(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", r.head)
	for _, table := range r.tables() {
		fmt.Fprintln(w)
		for i, cells := range table {
			fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
			if i == 0 {
				fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(cells)))
			}
		}
	}
	r.printLeftOut(w)
}

func (r *report) printLeftOut(w io.Writer) {
	if r.leftOut != "" {
		fmt.Fprintf(w, "\n%s\n", r.leftOut)
	}
}

func perSecond(rate float64) string { return fmt.Sprintf("%.0f/s", rate) }

func seconds(s float64) string { return fmt.Sprintf("%.1f s", s) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
