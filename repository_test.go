package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/config"
)

// The tests in this file check the repository itself: that everything named on the pages exists,
// and that packages import only what they may.

const module = "github.com/quintago/webhook-agent"

// packageFiles returns the Go files by folder, tests apart.
func packageFiles(t *testing.T) map[string][]string {
	t.Helper()
	files := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != ".":
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			files[filepath.Dir(path)] = append(files[filepath.Dir(path)], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestRepository_EveryPackageHasOneDocumentation(t *testing.T) {
	for dir, files := range packageFiles(t) {
		var documented []string
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Doc != nil {
				documented = append(documented, file)
			}
		}
		if len(documented) != 1 {
			t.Errorf("%s has its package documentation in %v, want one file", dir, documented)
		}
	}
}

func TestRepository_ImportsGoDownward(t *testing.T) {
	// What each package may import of this module. testenv's library part knows no product package.
	allowed := map[string][]string{
		".":                 {"agent/cli"},
		"agent/cli":         {"agent", "agent/access", "agent/config", "agent/manage", "outbox", "sink", "secret"},
		"agent":             {"agent/access", "agent/admin", "agent/api", "agent/config", "agent/console", "agent/feed", "agent/lanes", "agent/limits", "agent/tracing", "backoff", "outbox", "sink", "secret", "panics"},
		"agent/admin":       {"agent/api", "agent/config", "agent/console", "outbox", "panics"},
		"agent/api":         {"agent/access", "agent/config", "agent/feed", "agent/limits", "agent/manage", "outbox", "sink", "secret"},
		"agent/feed":        {"outbox"},
		"agent/limits":      nil,
		"agent/tracing":     {"backoff", "outbox", "sink", "secret"},
		"agent/console":     {"agent/access", "agent/api", "agent/config", "agent/feed", "agent/limits", "agent/manage", "outbox", "sink", "secret"},
		"agent/manage":      {"agent/config", "outbox", "sink", "secret"},
		"agent/lanes":       {"backoff", "outbox", "sink", "panics", "recent"},
		"agent/config":      {"agent/access", "outbox", "sink", "secret"},
		"agent/access":      {"outbox", "secret"},
		"testenv/agenttest": {"agent/config", "outbox", "secret", "sink", "testenv"}, // of tests of agents alone
		"backoff":           nil,
		"outbox":            {"backoff", "crashpoint", "secret", "panics", "recent"},
		"sink":              {"crashpoint", "secret", "panics"},
		"crashpoint":        nil,
		"panics":            nil,
		"recent":            nil,
		"secret":            nil,
		"testenv":           nil,
		"testenv/demo":      {"testenv"},
		"release":           {"agent/cli"}, // what the manual and the completions are made from

		"testenv/bench":   {"testenv", "outbox", "sink", "secret", "agent/access"}, // the client and the lists without the agent
		"testenv/torture": {"testenv"},
		"testenv/browser": {"testenv"}, // of tests of pages alone

		"testenv/zoo":       nil,
		"testenv/zoo/serve": {"testenv/zoo"},
	}
	for dir, files := range packageFiles(t) {
		may, known := allowed[dir]
		if !known {
			t.Errorf("package %s has no rule here", dir)
		}
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range parsed.Imports {
				name, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module+"/")
				if ours && !slices.Contains(may, name) {
					t.Errorf("%s imports %s", file, name)
				}
			}
		}
	}
}

var sqlStatement = regexp.MustCompile("[\"`]\\s*(?i:select .* from |insert into |update [a-z_.]+ set |delete from |(?:create|alter|drop) (?:table|schema|index|publication|role) )")

func TestRepository_OnlyOutboxHoldsSQL(t *testing.T) {
	for dir, files := range packageFiles(t) {
		if dir == "outbox" || strings.HasPrefix(dir, "testenv") {
			continue
		}
		for _, file := range files {
			text := read(t, file)
			if at := sqlStatement.FindString(text); at != "" {
				t.Errorf("%s holds SQL: %s", file, at)
			}
		}
	}
}

func TestCompose_HoldsAConfigurationThatLoads(t *testing.T) {
	_, rest, found := strings.Cut(read(t, "docker-compose.yml"), "    content: |\n")
	if !found {
		t.Fatal("docker-compose.yml has no configuration")
	}
	var text strings.Builder
	for line := range strings.Lines(rest) {
		inner, inside := strings.CutPrefix(line, "      ")
		if !inside && strings.TrimSpace(line) != "" {
			break
		}
		text.WriteString(strings.TrimLeft(inner, " "))
	}
	path := filepath.Join(t.TempDir(), "webhook-agent.toml")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	environment := []string{"DATABASE_URL=postgres://quintago:quintago@postgres:5432/quintago", "RECEIVER_SECRET=s3cret-of-the-test"}
	cfg, err := config.Load(config.Input{Path: path, Environ: environment})
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Endpoints) != 1 {
		t.Errorf("it has %d endpoints, want one", len(cfg.Endpoints))
	}
}

func TestShellScripts_Parse(t *testing.T) {
	scripts, err := filepath.Glob("release/*/*.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("%d scripts of releases, %v", len(scripts), err)
	}
	for _, script := range append(scripts, ".ci/run", "testenv/demo/install.sh") {
		if out, err := exec.Command("bash", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A database may have any encoding, and what a migration says must have a form in it.
func TestMigrations_AreASCII(t *testing.T) {
	files, err := filepath.Glob("outbox/migrations/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d migrations, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexFunc(string(text), func(r rune) bool { return r > '~' }); i >= 0 {
			t.Errorf("%s has a character that is not ASCII, at byte %d", file, i)
		}
	}
}
