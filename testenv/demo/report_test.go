package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestPrinter_AlignsColumnsWithAndWithoutColor(t *testing.T) {
	for _, color := range []bool{false, true} {
		var plain bytes.Buffer
		p := newPrinter(&plain, color)
		p.arrival(arrival{venue: "Palácio da Ribeira Velha", eventType: "lead.stage_changed", attempt: 1, latency: 1500 * time.Microsecond, status: 500})
		p.arrival(arrival{venue: "Quinta das Amendoeiras", eventType: "payment.received", attempt: 2, latency: 5021 * time.Millisecond, status: 200})
		p.arrival(arrival{venue: "Quinta das Amendoeiras", eventType: "payment.received", attempt: 1, status: 200, fault: "does not match"})
		if got := strings.Contains(plain.String(), "\x1b"); got != color {
			t.Errorf("escape sequences with color %t: %t", color, got)
		}
		for _, style := range []string{dim, red, green, yellow, "0"} {
			text := strings.ReplaceAll(plain.String(), "\x1b["+style+"m", "")
			plain.Reset()
			plain.WriteString(text)
		}
		for line := range strings.Lines(plain.String()) {
			before, _, found := strings.Cut(line, " ms")
			if column := utf8.RuneCountInString(before); !found || column != 72 { // three more end the line at 75 without a note
				t.Errorf("with color %t the latency ends in column %d:\n%s", color, column, line)
			}
		}
		for _, note := range []string{"✓", "✗", "↻", "answered 500", "retried", "does not match"} {
			if !strings.Contains(plain.String(), note) {
				t.Errorf("with color %t %q is not printed:\n%s", color, note, plain.String())
			}
		}
	}
}

func TestPrinter_SummaryNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		counts  counts
		present []string
		absent  []string
	}{
		{counts{expected: 3, accepted: 3, rolledBack: 1}, []string{"never seen", "every committed event arrived"}, []string{"did not arrive"}},
		{counts{expected: 3, accepted: 2}, []string{"deliveries that did not arrive: 1"}, []string{"every committed event"}},
		{counts{expected: 3, accepted: 3, faults: 2, phantoms: 1, rolledBack: 1}, []string{"seen in 1 requests", "as they were: 2"}, []string{"never seen", "every committed event"}},
	} {
		var text bytes.Buffer
		newPrinter(&text, false).summary(summary{counts: c.counts})
		for _, part := range c.present {
			if !strings.Contains(text.String(), part) {
				t.Errorf("the summary of %+v lacks %q:\n%s", c.counts, part, text.String())
			}
		}
		for _, part := range c.absent {
			if strings.Contains(text.String(), part) {
				t.Errorf("the summary of %+v says %q:\n%s", c.counts, part, text.String())
			}
		}
	}
}
