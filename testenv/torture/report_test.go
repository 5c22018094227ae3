package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestReport_FitsATerminalAndTellsEverything(t *testing.T) {
	v := check(soundHistory().history)
	var out, page bytes.Buffer
	v.print(&out)
	v.printMarkdown(&page)
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 120 {
			t.Errorf("a line has %d columns: %s", n, line)
		}
	}
	for _, want := range []string{"seed 1", "kill 1", "10 committed", "lost         0", "phantoms     0", "1 of at most 1", "all promises were kept", "leader: goroutines 20 → 25"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, out.String())
		}
	}
	for _, want := range []string{"| verdict | all promises were kept |", "| kill | 1 of 1 | 1.0 s | 1.0 s | 10.0 s |"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page does not say %q:\n%s", want, page.String())
		}
	}
}

func TestReport_ShowsSomeViolationsOfEachRuleAndCountsTheOthers(t *testing.T) {
	v := &verdict{}
	for range shownOfRule + 3 {
		v.violations = append(v.violations, violation{ruleLost, "gone"})
	}
	v.violations = append(v.violations, violation{ruleBytes, "changed"})
	var out bytes.Buffer
	v.print(&out)
	for _, want := range []string{"BROKEN: 12 violations", "lost: 11", "and 3 more", "bytes: 1", "changed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, out.String())
		}
	}
}
