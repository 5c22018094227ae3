package cli

import (
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// blocks returns the blocks of a page in a language.
func blocks(t *testing.T, path, language string) (blocks []string) {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		blocks = append(blocks, found[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no block of %s", path, language)
	}
	return blocks
}

func TestSupportPage_NamesCommandsThatExist(t *testing.T) {
	for _, block := range blocks(t, "../../docs/support.md", "sh") {
		for line := range strings.Lines(block) {
			line, _, _ = strings.Cut(line, " #")
			words := strings.Fields(line)
			if len(words) == 0 {
				continue
			}
			a := &app{stdout: io.Discard, stderr: io.Discard}
			cmd, rest, err := a.rootCommand().Find(words[1:])
			if words[0] != "webhook-agent" || err != nil || !cmd.Runnable() || cmd.HasSubCommands() {
				t.Errorf("%q is no command: %v", line, err)
				continue
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
	}
}

func TestSupportPage_HasSQLThatRuns(t *testing.T) {
	env := testenv.NewDB(t)
	for _, block := range blocks(t, "../../docs/support.md", "sql") {
		if err := testenv.ExecSQL(t.Context(), env.URL, block); err != nil {
			t.Errorf("%s\n%v", block, err)
		}
	}
}
