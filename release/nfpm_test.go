package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// nfpmConfig is what the tests read of nfpm.yaml.
type nfpmConfig struct {
	Contents []struct {
		Source string `yaml:"src"`
		Target string `yaml:"dst"`
		Type   string `yaml:"type"`
		Info   struct {
			Mode  os.FileMode `yaml:"mode"`
			Group string      `yaml:"group"`
		} `yaml:"file_info"`
	} `yaml:"contents"`
	Scripts map[string]string `yaml:"scripts"`
}

func readConfig(t *testing.T) nfpmConfig {
	t.Helper()
	text, err := os.ReadFile("nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c nfpmConfig
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPackage_EveryFileThatTheRepositoryGivesExists(t *testing.T) {
	c := readConfig(t)
	var sources []string
	for _, content := range c.Contents {
		sources = append(sources, content.Source)
	}
	for _, script := range c.Scripts {
		sources = append(sources, script)
	}
	checked := 0
	for _, source := range append(sources, pages...) {
		if source == "" || strings.HasPrefix(source, "${WORK}") {
			continue
		}
		checked++
		if info, err := os.Stat(filepath.Join("..", source)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s is no file: %v", source, err)
		}
	}
	if checked < 10 || len(c.Scripts) != 4 {
		t.Errorf("%d files and %d scripts were found, which is too few", checked, len(c.Scripts))
	}
}

func TestPackage_TheConfigurationIsKeptAndClosedToOthers(t *testing.T) {
	for _, content := range readConfig(t).Contents {
		if content.Target == "/etc/quintago/webhook-agent.toml" {
			if content.Type != "config|noreplace" || content.Info.Mode != 0o640 || content.Info.Group != "webhook-agent" {
				t.Errorf("it is %+v", content)
			}
			return
		}
	}
	t.Error("the package has no configuration file")
}

func TestInstallPage_NamesPathsThatThePackageHas(t *testing.T) {
	page, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, content := range readConfig(t).Contents {
		targets[content.Target] = true
	}
	_, table, _ := strings.Cut(string(page), "The package brings:")
	table, _, _ = strings.Cut(table, "The configuration may hold secrets")
	paths := regexp.MustCompile("`(/[a-z/.-]+)`").FindAllStringSubmatch(table, -1)
	if len(paths) != 3 {
		t.Errorf("the table has the paths %v, want those of the binary, the configuration and the unit", paths)
	}
	for _, path := range paths {
		if !targets[path[1]] {
			t.Errorf("the package does not bring %s", path[1])
		}
	}
}

func TestRelease_MakesAManualAndCompletionsOfAllCommands(t *testing.T) {
	r := release{work: t.TempDir(), version: "v1.2.3"}
	if err := r.document(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"man/webhook-agent.1.gz", "man/webhook-agent-run.1.gz", "man/webhook-agent-endpoints-rotate-secret.1.gz",
		"completions/webhook-agent.bash", "completions/_webhook-agent", "completions/webhook-agent.fish",
	} {
		if info, err := os.Stat(filepath.Join(r.work, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRelease_EmptiesNoFolderThatHoldsSomethingElse(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-o", dir}); err == nil || !strings.Contains(err.Error(), "it is no release") {
		t.Errorf("the error is %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

func TestRelease_NamesTheTargetsThatItKnows(t *testing.T) {
	if err := run(t.Context(), []string{"-only", "plan9_mips", "-o", t.TempDir()}); err == nil || !strings.Contains(err.Error(), "linux_arm64") {
		t.Errorf("the error is %v", err)
	}
}
