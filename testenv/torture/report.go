package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// shownOfRule is how many violations of a rule are printed. The files have the others.
const shownOfRule = 8

// print prints the report. It is at most 120 columns wide, except the violations.
func (v *verdict) print(w io.Writer) {
	fmt.Fprintln(w)
	for _, row := range v.rows() {
		fmt.Fprintf(w, "  %-12s %s\n", row[0], row[1])
	}
	if len(v.recovery) > 0 {
		const columns = "  %-12s %7s %9s %9s %9s   %s"
		row := func(cells ...any) { fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf(columns, cells...), " ")) }
		fmt.Fprintln(w)
		row("recovery", "judged", "median", "most", "limit", "until an event arrives that was committed after the fault")
		for _, k := range sortedKinds(v.recovery) {
			r := v.recovery[k]
			judged := fmt.Sprintf("%d/%d", len(r), v.led[k])
			row(k, judged, tenths(median(r)), tenths(slices.Max(r)), tenths(limits[k]), counted[k])
		}
	}
	v.printViolations(w)
	fmt.Fprintln(w)
}

// counted says from when the recovery from a fault is counted, if it is not from its end.
var counted = map[kind]string{freeze: "(from its beginning)", clock: "(from its beginning)"}

// rows returns the lines of the report as name and text, without the recovery.
func (v *verdict) rows() [][2]string {
	var faults []string
	total := 0
	for _, k := range slices.Concat(mainKinds, sideKinds) {
		if n := v.faults[k]; n > 0 {
			faults = append(faults, fmt.Sprintf("%s %d", k, n))
			total += n
		}
	}
	d := v.duplicates
	duplicates := fmt.Sprintf("%d of at most %d; not explained by a fault: %d", d.measured, d.allowed, d.unexplained)
	if d.measured > 0 {
		duplicates += fmt.Sprintf("; the worst fault (%s at %s) made %d of %d",
			d.worst.Kind, seconds(d.worst.Start), d.worstMeasured, d.worstAllowed)
	}
	outcome := "all promises were kept"
	if n := len(v.violations); n > 0 {
		outcome = fmt.Sprintf("BROKEN: %d violations", n)
	}
	return [][2]string{
		{"torture", fmt.Sprintf("%s UTC, commit %s, seed %d, %s, PostgreSQL %s",
			v.run.Begun.UTC().Format("2006-01-02 15:04"), v.run.Commit, v.run.Seed, v.run.Length, v.run.PostgreSQL)},
		{"faults", fmt.Sprintf("%d: %s", total, strings.Join(faults, ", "))},
		{"events", fmt.Sprintf("%d committed, %d rolled back; COMMIT without an answer %d times, %d of them committed",
			v.committed, v.rolledBack, v.unsure, v.unsureHeld)},
		{"deliveries", fmt.Sprintf("%d, by %d requests: %d retries, %d replayed, %d since the network lost the answer, %d on another connection",
			v.deliveries, v.requests, v.retries, v.replayed, v.unheard, v.resent)},
		{"lost", fmt.Sprint(v.lost)},
		{"phantoms", fmt.Sprint(v.phantoms)},
		{"duplicates", duplicates},
		{"silence", fmt.Sprintf("%s at most without a new arrival", tenths(v.silence))},
		{"disabled", fmt.Sprintf("endpoints %d times", v.disabled)},
		{"resources", v.resourcesText()},
		{"verdict", outcome},
	}
}

func (v *verdict) resourcesText() string {
	var parts []string
	for _, leading := range []bool{true, false} {
		is := func(r resources) bool { return r.Leading == leading }
		b, e := slices.IndexFunc(v.base, is), slices.IndexFunc(v.end, is)
		if b < 0 || e < 0 {
			continue
		}
		base, end := v.base[b], v.end[e]
		role := "standby"
		if leading {
			role = "leader"
		}
		parts = append(parts, fmt.Sprintf("%s: goroutines %d → %d, files %d → %d, memory %d → %d MiB",
			role, base.Goroutines, end.Goroutines, base.Files, end.Files, base.Bytes>>20, end.Bytes>>20))
	}
	return strings.Join(parts, "; ")
}

// printViolations prints the violations by rule.
func (v *verdict) printViolations(w io.Writer) {
	byRule := map[rule][]string{}
	for _, found := range v.violations {
		byRule[found.rule] = append(byRule[found.rule], found.text)
	}
	for _, r := range slices.Sorted(maps.Keys(byRule)) {
		texts := byRule[r]
		slices.Sort(texts)
		fmt.Fprintf(w, "\n  %s: %d\n", r, len(texts))
		for _, text := range texts[:min(len(texts), shownOfRule)] {
			fmt.Fprintf(w, "    %s\n", text)
		}
		if more := len(texts) - shownOfRule; more > 0 {
			fmt.Fprintf(w, "    and %d more\n", more)
		}
	}
}

// printMarkdown prints the report as Markdown.
func (v *verdict) printMarkdown(w io.Writer) {
	fmt.Fprint(w, "\n| | |\n|---|---|\n")
	for _, row := range v.rows() {
		fmt.Fprintf(w, "| %s | %s |\n", row[0], row[1])
	}
	fmt.Fprint(w, "\n| recovery from | judged | median | most | limit |\n|---|---|---|---|---|\n")
	for _, k := range sortedKinds(v.recovery) {
		r := v.recovery[k]
		name := strings.TrimSpace(string(k) + " " + counted[k])
		fmt.Fprintf(w, "| %s | %d of %d | %s | %s | %s |\n",
			name, len(r), v.led[k], tenths(median(r)), tenths(slices.Max(r)), tenths(limits[k]))
	}
}

// sortedKinds returns the kinds of a map in the order of the schedule.
func sortedKinds[V any](byKind map[kind]V) []kind {
	order := slices.Concat(mainKinds, sideKinds)
	return slices.SortedFunc(maps.Keys(byKind), func(x, y kind) int {
		return cmp.Compare(slices.Index(order, x), slices.Index(order, y))
	})
}

// median returns the middle value, and of two the lower one.
func median(values []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

func tenths(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
