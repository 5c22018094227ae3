package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestConfigValidate_SaysWhereEachValueComesFrom(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile(localConfigPath, []byte("[delivery]\ntimeout = \"20s\"\nconcurrency = 256\n[log]\nlevel = \"warn\""), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WEBHOOK_AGENT_LOG_LEVEL", "debug")
	t.Setenv("WEBHOOK_AGENT_TOKEN", "sentinel")
	status, stdout, stderr := run(t, "config", "validate", "--database-url", nowhere)
	want := "ok\n" +
		"database.url\t[redacted]\t--database-url\n" +
		"delivery.timeout\t20s\twebhook-agent.toml\n" +
		"log.level\tdebug\tWEBHOOK_AGENT_LOG_LEVEL\n" + `notice: the environment variable "WEBHOOK_AGENT_TOKEN" names no key, and no value refers to it by env:WEBHOOK_AGENT_TOKEN, so it is not used
`
	if status != exitFine || stdout != want || stderr != "" {
		t.Errorf("status %d: %s%s\nwant %s", status, stdout, stderr, want)
	}
	_, stdout, _ = run(t, "config", "validate", "--json", "--database-url", nowhere)
	v := agenttest.Decode[verdict](t, stdout)
	if !v.OK || *v.File != localConfigPath || len(v.Problems) != 0 || len(v.Settings) != 3 || v.Settings[1] != (config.Setting{Key: "delivery.timeout", Value: "20s", Source: localConfigPath}) ||
		len(v.Notices) != 1 || strings.Contains(stdout, "sentinel") {
		t.Errorf("in JSON: %s", stdout)
	}

	t.Setenv("WEBHOOK_AGENT_LOG_LEVEL", "loud")
	t.Setenv("WEBHOOK_AGENT_DELIVERY_TIMEOUT", "90s")
	status, stdout, stderr = run(t, "config", "validate")
	want = `webhook-agent: WEBHOOK_AGENT_LOG_LEVEL: "loud" is not one of debug, info, warn, error
webhook-agent: webhook-agent.toml: database.url: is missing; set it, or the environment variable DATABASE_URL, to postgres://user:password@host:5432/database
webhook-agent: WEBHOOK_AGENT_DELIVERY_TIMEOUT: is 1m30s, must be between 1s and 1m
`
	if status != exitUsage || stderr != want || stdout != "" {
		t.Errorf("status %d: %s%s\nwant %s", status, stdout, stderr, want)
	}
	status, stdout, stderr = run(t, "config", "validate", "--json")
	v = agenttest.Decode[verdict](t, stdout)
	if status != exitUsage || stderr != "" || v.OK || len(v.Problems) != 3 || v.Problems[2].Source != "WEBHOOK_AGENT_DELIVERY_TIMEOUT" {
		t.Errorf("in JSON: status %d: %s%s", status, stdout, stderr)
	}
}

func TestInit_WritesAFileThatTheAgentTakes(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	t.Setenv("DATABASE_URL", nowhere)
	status, stdout, stderr := run(t, "init")
	if status != exitFine || !strings.HasPrefix(stdout, "wrote webhook-agent.toml; ") || stderr != "" {
		t.Fatalf("status %d: %s%s", status, stdout, stderr)
	}
	check := func(path string) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil || string(text) != config.Example || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v and %d bytes (%v), want 0600 and the example", path, info.Mode(), len(text), err)
		}
		if status, stdout, stderr := run(t, "config", "validate", "--config", path); status != exitFine || !strings.HasPrefix(stdout, "ok\n") {
			t.Errorf("the file is refused: status %d: %s%s", status, stdout, stderr)
		}
	}
	check(localConfigPath)

	if err := os.WriteFile(localConfigPath, []byte(strings.Repeat("# mine\n", 9999)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(localConfigPath, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := run(t, "init"); status != exitFailed || stderr != "webhook-agent: webhook-agent.toml exists; name another file, or write over it by --force\n" {
		t.Errorf("over a file: status %d: %s", status, stderr)
	}
	if text, err := os.ReadFile(localConfigPath); err != nil || !strings.HasPrefix(string(text), "# mine\n") {
		t.Errorf("a file was written over: %v", err)
	}
	if status, _, stderr := run(t, "init", "--force"); status != exitFine {
		t.Errorf("with --force: status %d: %s", status, stderr)
	}
	check(localConfigPath)

	for _, args := range [][]string{{"other.toml"}, {"--config", "named.toml"}} {
		if status, stdout, stderr := run(t, append([]string{"init", "--json"}, args...)...); status != exitFine || !strings.Contains(stdout, `"path": "`+args[len(args)-1]+`"`) {
			t.Errorf("%q: status %d: %s%s", args, status, stdout, stderr)
		}
		check(args[len(args)-1])
	}
	for _, args := range [][]string{{"-"}, {"--stdout"}} {
		if status, stdout, stderr := run(t, append([]string{"init"}, args...)...); status != exitFine || stdout != config.Example || stderr != "" {
			t.Errorf("%q: status %d, %d bytes: %s", args, status, len(stdout), stderr)
		}
	}
	for _, test := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"no/such/folder.toml"}, exitFailed, "no/such/folder.toml cannot be written: no such file or directory; name a file in a folder that exists and that you may write to\n"},
		{[]string{"--force", folder}, exitFailed, folder + " cannot be written: is a directory; name a file in a folder that exists and that you may write to\n"},
		{[]string{"a", "b"}, exitUsage, "webhook-agent init may take the path of one file; see webhook-agent init --help\n"},
		{[]string{""}, exitUsage, "webhook-agent init may take the path of one file; see webhook-agent init --help\n"},
		{[]string{"--database-url", nowhere}, exitUsage, "--database-url is not written into a file; set database.url in it; see webhook-agent init --help\n"},
	} {
		if status, stdout, stderr := run(t, append([]string{"init"}, test.args...)...); status != test.status || stderr != "webhook-agent: "+test.want || stdout != "" {
			t.Errorf("%q: status %d: %s%s\nwant %s", test.args, status, stdout, stderr, test.want)
		}
	}
	entries, err := filepath.Glob("*")
	if err != nil || len(entries) != 3 {
		t.Errorf("init has left %q (%v)", entries, err)
	}
}
