package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
)

// terminalPrinter is one for a terminal of a width.
func terminalPrinter(out *bytes.Buffer, width int) *printer {
	p := newPrinter(out, false)
	p.terminal, p.width = true, width
	return p
}

// hostile has what must not reach a terminal: a colour sequence, a C1 control character, a mark
// that reverses text, and a line break.
const hostile = "a\x1b[31mb\u009bc\u202ed\ne"

func TestTable_FitsTheTerminalWithoutCuttingIDs(t *testing.T) {
	columns := []column{{name: "id"}, {name: "error", flexible: true}, {name: "venue", flexible: true}}
	rows := [][]string{
		{"ep_01K5M2000000000000000000", strings.Repeat("é", 60), "venue_01H0000000000"},
		{"ep_2", "short", "v"},
	}
	print := func(width int) string {
		var out bytes.Buffer
		p := newPrinter(&out, false)
		p.terminal, p.width = true, width
		p.table(columns, rows)
		return out.String()
	}
	want := "" +
		"ID                           ERROR               VENUE\n" +
		"ep_01K5M2000000000000000000  ééééééééééééééééé…  venue_01H0000000000\n" +
		"ep_2                         short               v\n"
	if diff := cmp.Diff(want, print(68)); diff != "" {
		t.Errorf("68 columns (-want +got):\n%s", diff)
	}
	for line := range strings.Lines(print(40)) {
		if n := textWidth(strings.TrimSuffix(line, "\n")); n > 40 {
			t.Errorf("40 columns: a line of %d characters: %s", n, line)
		}
	}
	if narrow := print(40); !strings.Contains(narrow, "ep_01K5M200000") {
		t.Errorf("an id was cut while there was something else to cut:\n%s", narrow)
	}
	if whole := print(0); !strings.Contains(whole, rows[0][1]) {
		t.Errorf("cut although it goes to no terminal:\n%s", whole)
	}
}

func TestTable_FitsANarrowTerminalWithManyColumns(t *testing.T) {
	var out bytes.Buffer
	p := newPrinter(&out, false)
	p.terminal, p.width = true, 60
	p.table(deliveryTable, deliveryRows(p, []outbox.DeliveryInfo{{EventID: "evt_01K5M2000000000000000000000", EndpointID: "ep_01K5M2000000000000000000000",
		Type: "lead.stage_changed", Status: outbox.Succeeded, Created: new(time.Time), LastError: "none"}}, time.Time{}))
	for line := range strings.Lines(out.String()) {
		if n := textWidth(strings.TrimSuffix(line, "\n")); n > 60 {
			t.Errorf("a line of %d characters: %s", n, line)
		}
	}
}

func TestPrinter_MakesHostileTextVisible(t *testing.T) {
	var out bytes.Buffer
	p := newPrinter(&out, false)
	p.line("%s", hostile)
	p.table([]column{{name: "x"}}, [][]string{{hostile}})
	p.fields([]field{{"x", hostile}, {"state", hostile}})
	p.finding("ok", hostile)
	p.terminal, p.color, p.width = true, false, 30
	p.line("%s", hostile)
	p.table([]column{{name: "x", id: true}, {name: "y", flexible: true, state: true}}, [][]string{{hostile, hostile}})
	p.fields([]field{{"state", hostile}})
	if text := out.String(); strings.ContainsAny(text, "\x1b\u009b\u202e") || strings.Count(text, "\n") != 9 {
		t.Errorf("hostile text passed: %q", text)
	}
	if !strings.Contains(out.String(), `a\x1b[31mb`) {
		t.Errorf("the text is not visible: %q", out.String())
	}
}

func TestPrinter_JSONKeepsTextExactlyAndTheTerminalSafe(t *testing.T) {
	var out bytes.Buffer
	if err := newPrinter(&out, true).json([]string{hostile, "<&>", "Ana & José"}); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\u009b\u202e") {
		t.Errorf("hostile text passed: %q", out.String())
	}
	var got []string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{hostile, "<&>", "Ana & José"}, got); diff != "" {
		t.Errorf("the text changed (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), "<&>") || !strings.Contains(out.String(), "José") {
		t.Errorf("harmless text was escaped: %s", out.String())
	}
}

func TestFields_LeavesOutWhatHasNoValue(t *testing.T) {
	var out bytes.Buffer
	newPrinter(&out, false).fields([]field{{"id", "1"}, {"disabled", ""}, {"events", "*"}})
	if want := "id        1\nevents    *\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestFormat_TimesAndSizesReadWell(t *testing.T) {
	now := time.Date(2026, 1, 31, 9, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	for _, test := range []struct{ got, want string }{
		{config.FormatDuration(0), "0s"},
		{config.FormatDuration(250 * time.Millisecond), "250ms"},
		{config.FormatDuration(1500 * time.Millisecond), "1.5s"},
		{config.FormatDuration(2 * time.Minute), "2m"},
		{config.FormatDuration(90 * time.Minute), "1h30m"},
		{config.FormatDuration(99*time.Hour + 59*time.Minute), "4d3h"},
		{formatAge(nil, now), "-"},
		{formatAge(at(0), now), "0s ago"},
		{formatAge(at(-130*time.Second), now), "2m10s ago"},
		{formatAge(at(30*time.Second), now), "in 30s"},
		{formatTime(nil, now), ""},
		{formatBytes(0), "0 B"},
		{formatBytes(1023), "1023 B"},
		{formatBytes(1536), "1.5 KiB"},
		{formatBytes(5 << 30), "5.0 GiB"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	west := now.In(time.FixedZone("WEST", 3600))
	if got, want := formatTime(at(-time.Minute), west), "2026-01-31 09:59:00 WEST = 2026-01-31 08:59:00 UTC (1m ago)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := formatTime(at(-time.Minute), now), "2026-01-31 08:59:00 UTC (1m ago)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTable_AlignsWideAndCombiningCharacters(t *testing.T) {
	var out bytes.Buffer
	terminalPrinter(&out, 40).table([]column{{name: "venue"}, {name: "error", flexible: true}, {name: "end"}}, [][]string{
		{"婚礼会场", "数据库无法连接数据库无法连接数据库", "|"},
		{"jose\u0301", "👩‍👩‍👧 family 🎉 and more and more words", "|"},
		{"plain", "short", "|"},
	})
	for line := range strings.Lines(out.String()) {
		text, found := strings.CutSuffix(strings.TrimSuffix(line, "\n"), "|")
		if found && textWidth(text) != 37 {
			t.Errorf("the last column begins at cell %d: %s", textWidth(text), line)
		}
	}
}

func TestTable_CutsIDsInTheMiddleAndShowsWhatDiffers(t *testing.T) {
	columns := []column{{name: "id", id: true}, {name: "text", flexible: true}}
	text := strings.Repeat("x", 30)
	for _, test := range []struct {
		ids  []string
		want string
	}{
		{[]string{"evt_01K5M2AAAAAAAAAAAAAAAAQ8ZC", "evt_01K5M2AAAAAAAAAAAAAAAAQ8ZD"}, "evt_01K5…Q8ZC"},
		{[]string{"evt_01K5M2AAAAAAAABAAAAAAAQ8ZC", "evt_01K5M2AAAAAAAACAAAAAAAQ8ZC"}, "evt_01K5…BAAAAAAAQ8ZC"},
		{[]string{"order-2026-11-28-000000000001", "order-2026-11-28-000000000002"}, "orde…0001"},
		{[]string{"short", "ids"}, "short"},
	} {
		var out bytes.Buffer
		terminalPrinter(&out, 20).table(columns, [][]string{{test.ids[0], text}, {test.ids[1], text}})
		if lines := strings.Split(out.String(), "\n"); len(test.want) < 14 && !strings.HasPrefix(lines[1], test.want) {
			t.Errorf("20 columns: %s, want %s", lines[1], test.want)
		}
		if got := cutMiddle(test.ids[0], shortestCut(test.ids)); got != test.want {
			t.Errorf("the shortest form of %s is %s, want %s", test.ids[0], got, test.want)
		}
		out.Reset()
		if newPrinter(&out, false).table(columns, [][]string{{test.ids[0], text}}); out.String() != test.ids[0]+"\t"+text+"\n" {
			t.Errorf("in a pipe: %q", out.String())
		}
	}
}

func TestLine_WrapsAtBlanksAndLeavesLongWordsWhole(t *testing.T) {
	var out bytes.Buffer
	p := terminalPrinter(&out, 24)
	p.line("  the quick  brown fox 婚礼会场婚礼 and https://example.com/a/long/url end")
	want := "  the quick  brown fox\n  婚礼会场婚礼 and\n  https://example.com/a/long/url\n  end\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	out.Reset()
	p.width = 40
	p.fields([]field{{"state", "disabled 2h ago: too many failures in a row"}})
	want = "state  disabled 2h ago: too many\n       failures in a row\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

func TestColored_FollowsTheFlagThenTheEnvironmentThenTheTerminal(t *testing.T) {
	for _, test := range []struct {
		mode     string
		terminal bool
		env      map[string]string
		want     bool
	}{
		{colorAuto, true, nil, true},
		{colorAuto, false, nil, false},
		{colorAuto, true, map[string]string{"NO_COLOR": "1"}, false},
		{colorAuto, true, map[string]string{"NO_COLOR": ""}, true},
		{colorAuto, true, map[string]string{"TERM": "dumb"}, false},
		{colorAuto, true, map[string]string{"CLICOLOR": "0"}, false},
		{colorAuto, false, map[string]string{"CLICOLOR_FORCE": "1"}, true},
		{colorAuto, false, map[string]string{"CLICOLOR_FORCE": "0"}, false},
		{colorAuto, false, map[string]string{"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, false},
		{colorAlways, false, map[string]string{"NO_COLOR": "1", "TERM": "dumb"}, true},
		{colorNever, true, map[string]string{"CLICOLOR_FORCE": "1"}, false},
	} {
		if got := colored(test.mode, test.terminal, func(name string) string { return test.env[name] }); got != test.want {
			t.Errorf("--color %s, terminal %v, %v: %v", test.mode, test.terminal, test.env, got)
		}
	}
}

func TestPrinter_ColoursStatesAndKeepsTheirWords(t *testing.T) {
	var out bytes.Buffer
	p := terminalPrinter(&out, 80)
	p.color = true
	p.table([]column{{name: "status", state: true}, {name: "x"}}, [][]string{{"pending", "succeeded"}, {"odd", "y"}})
	p.fields([]field{{"state", "disabled 2h ago"}, {"url", "failed"}})
	p.finding("ok", "fine")
	want := bold + "STATUS   X" + plain + "\n" + yellow + "pending" + plain + "  succeeded\nodd      y\n" +
		"state  " + red + "disabled" + plain + " 2h ago\nurl    failed\n" + green + "ok" + plain + "    fine\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTable_LeavesOutWhatCanBeSparedInANarrowTerminal(t *testing.T) {
	columns := []column{{name: "id", id: true}, {name: "empty"}, {name: "count", optional: 1}, {name: "pace", optional: 2}, {name: "text", flexible: true}}
	rows := [][]string{{"ep_1", "", "1,234,567", "10,000", "some text of a length"}, {"ep_2", "", "7", "8", "other"}}
	for width, want := range map[int]string{
		60: "ID    COUNT      PACE    TEXT",
		34: "ID    COUNT      PACE    TEXT",
		28: "ID    COUNT      TEXT",
		20: "ID    TEXT",
	} {
		var out bytes.Buffer
		terminalPrinter(&out, width).table(columns, rows)
		if got := strings.SplitN(out.String(), "\n", 2)[0]; got != want {
			t.Errorf("%d columns: %q, want %q", width, got, want)
		}
	}
	var out bytes.Buffer
	stream := tableStream{p: terminalPrinter(&out, 28), columns: columns}
	stream.add(rows)
	stream.add([][]string{{"ep_3", "x", "9", "9", "more"}})
	if want := "ID    EMPTY  TEXT\nep_1         some text of a…\nep_2         other\nep_3  x      more\n"; out.String() != want {
		t.Errorf("rows that come later: %q, want %q", out.String(), want)
	}
	newPrinter(&out, false).table(columns, rows)
	if !strings.Contains(out.String(), "ep_1\t\t1,234,567\t10,000\tsome text of a length\n") {
		t.Errorf("a pipe lacks a column: %s", out.String())
	}
}

func TestHelp_FitsTheTerminal(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		var out bytes.Buffer
		terminalPrinter(&out, 72).help(cmd)
		for line := range strings.Lines(out.String()) {
			if line = strings.TrimSpace(line); textWidth(line) > 72 && strings.ContainsRune(line, ' ') {
				t.Errorf("%s: %s", cmd.CommandPath(), line)
			}
		}
	}
	walk((&app{}).rootCommand())
}

func TestQuestion_FitsTheTerminal(t *testing.T) {
	text := "1 of them was delivered already, and the receiver gets the event once more. Go on?"
	if got := question(text, 0); got != text+" [y/N] " {
		t.Errorf("without a width: %q", got)
	}
	got := question(text, 50)
	for line := range strings.SplitSeq(got, "\n") {
		if textWidth(line) > 47 {
			t.Errorf("a line is too wide: %q", line)
		}
	}
	if strings.Join(strings.Fields(got), " ") != text+" [y/N]" || !strings.HasSuffix(got, "[y/N] ") {
		t.Errorf("got %q", got)
	}
}
