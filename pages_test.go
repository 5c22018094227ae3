package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/cli"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// The tests in this file hold that the pages name what exists, and that their code works.

// mostWords is how long the README may be.
const mostWords = 1200

// pages returns the pages that people read, by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("docs/*.md")
	if err != nil || len(paths) < 5 {
		t.Fatalf("%d pages in docs, %v", len(paths), err)
	}
	found := map[string]string{}
	for _, path := range append(paths, "README.md", "SECURITY.md") {
		found[path] = read(t, path)
	}
	return found
}

func TestReadme_IsShort(t *testing.T) {
	if n := len(strings.Fields(read(t, "README.md"))); n > mostWords {
		t.Errorf("the README has %d words, want at most %d", n, mostWords)
	}
}

func TestPages_LinkToWhatExists(t *testing.T) {
	linked := map[string]bool{}
	for path, text := range pages(t) {
		for _, link := range regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(link[1], "#")
			if strings.HasPrefix(target, "https://") {
				continue
			}
			if target = filepath.Join(filepath.Dir(path), target); link[1][0] == '#' {
				target = path
			}
			linked[target] = true
			content, err := os.ReadFile(target)
			if info, statErr := os.Stat(target); statErr != nil || err != nil && !info.IsDir() {
				t.Errorf("%s links to %s: %v", path, link[1], statErr)
			}
			if anchor != "" && !slices.Contains(anchors(string(content)), anchor) {
				t.Errorf("%s links to %s, which has no such heading", path, link[1])
			}
		}
	}
	for path := range pages(t) {
		if path != "README.md" && !linked[path] {
			t.Errorf("no page links to %s", path)
		}
	}
}

// anchors returns the anchors of the headings of a page.
func anchors(page string) (found []string) {
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(page, -1) {
		kept := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		found = append(found, strings.ReplaceAll(kept, " ", "-"))
	}
	return found
}

func TestPages_NameMetricsTargetsAndRoutesThatExist(t *testing.T) {
	metrics := read(t, "agent/metrics.go") + read(t, "agent/collector.go") + read(t, "agent/api/api.go")
	makefile, routes := read(t, "Makefile"), read(t, "agent/admin/admin.go")
	for path, text := range pages(t) {
		for _, name := range regexp.MustCompile(`webhook_agent_([a-z_]+[a-z])`).FindAllStringSubmatch(text, -1) {
			base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name[1], "")
			if !strings.Contains(metrics, `"`+name[1]+`"`) && !strings.Contains(metrics, `"`+base+`"`) {
				t.Errorf("%s: there is no metric %s", path, name[0])
			}
		}
		for _, target := range regexp.MustCompile("(?m)(?:`|^)make ([a-z]+(?:-[a-z]+)*)").FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + target[1] + `:`).MatchString(makefile) {
				t.Errorf("%s: there is no target %q", path, target[0])
			}
		}
		for _, route := range regexp.MustCompile("`(/[a-z]+)`").FindAllStringSubmatch(text, -1) {
			if route[1] == "/etc" { // a folder
				continue
			}
			if !strings.Contains(routes, route[1]+`"`) && !strings.Contains(read(t, "agent/console/console.go"), `"`+route[1]+`"`) {
				t.Errorf("%s: there is no route %s", path, route[1])
			}
		}
	}
}

// notCommands are words behind the name of the program that are no commands.
var notCommands = regexp.MustCompile(`^(?:and|as|is|has)$`)

func TestPages_NameCommandsThatExist(t *testing.T) {
	help := map[string]string{}
	helpOf := func(words []string) string {
		name := strings.Join(words, " ")
		if _, known := help[name]; !known {
			var out, errs bytes.Buffer
			if status := cli.Main(t.Context(), append(slices.Clone(words), "--help"), &out, &errs); status != 0 {
				out.Reset()
			}
			help[name] = out.String()
		}
		return help[name]
	}
	named := 0
	for path, text := range pages(t) {
		// A command stands in a block or between backticks.
		for _, c := range regexp.MustCompile("(?m)(?:`|^|&& |\\| )webhook-agent ([a-z][^`\n|#]*)").FindAllStringSubmatch(text, -1) {
			var words []string
			for _, word := range strings.Fields(c[1]) {
				if !regexp.MustCompile(`^[a-z][a-z-]*$`).MatchString(word) || len(words) == 2 {
					break
				}
				words = append(words, word)
			}
			if len(words) == 0 || notCommands.MatchString(words[0]) {
				continue
			}
			named++
			shown := helpOf(words)
			usage := regexp.MustCompile(`(?m)^  webhook-agent ` + strings.Join(words, " ") + `( |$)`)
			if len(words) == 2 && !usage.MatchString(shown) { // the second word may be an argument
				words = words[:1]
				shown = helpOf(words)
				usage = regexp.MustCompile(`(?m)^  webhook-agent ` + words[0] + `( |$)`)
			}
			if !usage.MatchString(shown) {
				t.Errorf("%s: there is no command webhook-agent %s", path, strings.Join(words, " "))
				continue
			}
			for _, flag := range regexp.MustCompile(`(?:^| )(--[a-z][a-z-]*)`).FindAllStringSubmatch(c[1], -1) {
				if !strings.Contains(shown, flag[1]) {
					t.Errorf("%s: webhook-agent %s has no flag %s", path, strings.Join(words, " "), flag[1])
				}
			}
		}
	}
	if named < 30 {
		t.Errorf("only %d commands were found on the pages", named)
	}
}

func TestPages_NameKeysThatExist(t *testing.T) {
	example := read(t, "config.example.toml")
	keys, table := map[string]bool{}, ""
	for line := range strings.Lines(example) {
		line = strings.TrimSpace(strings.TrimLeft(line, "# "))
		if header := regexp.MustCompile(`^\[+([a-z_.]+)\]+$`).FindStringSubmatch(line); header != nil {
			table = header[1]
			continue
		}
		if key, _, ok := strings.Cut(line, " ="); ok && regexp.MustCompile(`^[a-z_]+$`).MatchString(key) {
			keys[table+"."+key] = true
		}
	}
	tables := `database|outbox|delivery|network|security|admin|console|log|tracing|notices`
	inText := regexp.MustCompile("`(?:" + tables + `)\.[a-z_.]+`)
	inTable := regexp.MustCompile("`\\[(" + tables + `)\] ([a-z_]+)`)
	n := 0
	for path, text := range pages(t) {
		for _, key := range inText.FindAllString(text, -1) {
			n++
			if !keys[strings.Trim(key, "`.")] {
				t.Errorf("%s: there is no key %s", path, key)
			}
		}
		for _, key := range inTable.FindAllStringSubmatch(text, -1) {
			n++
			if !keys[key[1]+"."+key[2]] {
				t.Errorf("%s: there is no key %s", path, key[0])
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d keys were found on the pages", n)
	}
}

// TestPages_HoldConfigurationsThatLoad loads each block of TOML of the pages, with the database's URL.
func TestPages_HoldConfigurationsThatLoad(t *testing.T) {
	n := 0
	for path, text := range pages(t) {
		for _, b := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(text, -1) {
			n++
			toml := b[1]
			if !strings.Contains(toml, "[database]") {
				toml = "[database]\nurl = \"postgres://u@localhost/app\"\n" + toml
			}
			// A file that is named has the same content as the variables.
			file := filepath.Join(t.TempDir(), "value")
			value := strings.Repeat("0123456789abcdef", 4)
			if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
				t.Fatal(err)
			}
			toml = regexp.MustCompile(`"file:[^"]*"`).ReplaceAllString(toml, fmt.Sprintf("%q", "file:"+file))
			name := filepath.Join(t.TempDir(), "webhook-agent.toml")
			if err := os.WriteFile(name, []byte(toml), 0o600); err != nil {
				t.Fatal(err)
			}
			var environment []string
			for _, reference := range regexp.MustCompile(`"env:([A-Z_]+)"`).FindAllStringSubmatch(toml, -1) {
				switch name := reference[1]; {
				case strings.HasSuffix(name, "_URL"):
					environment = append(environment, name+"=postgres://u@localhost/app")
				case strings.HasSuffix(name, "_HEADER"):
					environment = append(environment, name+"=Authorization: Bearer "+value)
				default:
					environment = append(environment, name+"="+value)
				}
			}
			if _, err := config.Load(config.Input{Path: name, Environ: environment}); err != nil {
				t.Errorf("%s: %v\n%s", path, err, b[1])
			}
		}
	}
	if n < 4 {
		t.Errorf("only %d configurations were found on the pages", n)
	}
}

// TestReceivingPage_ItsCodeVerifies has the code of the page for customers judge signed requests.
func TestReceivingPage_ItsCodeVerifies(t *testing.T) {
	page := read(t, "docs/receiving.md")
	codeOf := func(language string) string {
		b := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(page)
		if b == nil {
			t.Fatalf("docs/receiving.md has no code in %s", language)
		}
		return b[1]
	}
	const body = `{"id":"evt_1","type":"lead.created","data":{"name":"Inês"}}`
	const plain, prefixed = "a-secret-as-it-is", "whsec_c2VjcmV0LW9mLXRoZS1kb2N1bWVudGF0aW9u"
	type request struct {
		Secret  string            `json:"secret"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
	}
	signed := func(with string, at time.Time, change func(string) string) request {
		h := http.Header{}
		if err := sink.Sign(h, "evt_1", at, []byte(body), secret.New(with)); err != nil {
			t.Fatal(err)
		}
		r := request{Secret: with, Headers: map[string]string{}, Body: body}
		for name := range h {
			r.Headers[change(name)] = h.Get(name)
		}
		return r
	}
	now := time.Now()
	right := []request{signed(plain, now, strings.ToLower), signed(prefixed, now, strings.ToUpper), signed(plain, now, strings.Clone)}
	changed, other, old := right[0], right[1], signed(plain, now.Add(-time.Hour), strings.ToLower)
	changed.Body = strings.Replace(changed.Body, "lead", "deal", 1)
	other.Secret = plain
	none := request{Secret: plain, Headers: map[string]string{}, Body: body}
	requests, err := json.Marshal(append(right, changed, other, none, old))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ program, flag, code, want string }{
		{"node", "-e", codeOf("js") + `
const all = JSON.parse(require("fs").readFileSync(0));
console.log(all.map((r) => verify(r.secret, r.headers, Buffer.from(r.body))).join(" "));`,
			"true true true false false false true"},
		{"python3", "-c", codeOf("python") + `
import json, sys
requests = json.load(sys.stdin)
for check in (verify, verify_standard):
    print(*[str(check(r["secret"], r["headers"], r["body"].encode())).lower() for r in requests])`,
			"true true true false false false true\ntrue true true false false false false"},
	} {
		path, err := exec.LookPath(test.program)
		if err != nil {
			t.Errorf("the code of docs/receiving.md needs %s; install it (Debian: apt-get install nodejs python3)", test.program)
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, test.flag, test.code)
		cmd.Stdin = bytes.NewReader(requests)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != test.want {
			t.Errorf("%s: %v, got\n%s\nwant\n%s", test.program, err, got, test.want)
		}
	}
}
