package cli

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersionOf_PrefersTheLinkerThenWhatGoHasRecorded(t *testing.T) {
	built := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	modified := debug.BuildSetting{Key: "vcs.modified", Value: "true"}
	clean := debug.BuildSetting{Key: "vcs.modified", Value: "false"}
	for name, c := range map[string]struct {
		linked string
		info   *debug.BuildInfo
		want   string
	}{
		"the linker wins":                    {"v2.0.0", built("v1.2.3", revision), "v2.0.0"},
		"go install of a version":            {"", built("v1.2.3"), "v1.2.3"},
		"go build of a checkout":             {"", built("v0.0.0-20260102030405-0123456789ab+dirty", revision, modified), "v0.0.0-20260102030405-0123456789ab+dirty"},
		"a revision without a version":       {"", built("(devel)", revision, clean), "0123456789ab"},
		"a changed one without a version":    {"", built("(devel)", revision, modified), "0123456789ab+dirty"},
		"a short revision":                   {"", built("", debug.BuildSetting{Key: "vcs.revision", Value: "42"}), "42"},
		"a build that recorded nothing":      {"", built("(devel)"), "dev"},
		"a binary without Go's build record": {"", nil, "dev"},
	} {
		if got := versionOf(c.linked, c.info); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestVersion_OfABinaryIsTheSameByCommandAndFlag(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "webhook-agent")
	build := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-X github.com/quintago/webhook-agent/agent/cli.version=v1.2.3-test", "-o", binary, ".")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(binary, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	line := run("version")
	if !strings.HasPrefix(line, "webhook-agent v1.2.3-test (go") || strings.Count(line, "\n") != 1 {
		t.Errorf("version: %q", line)
	}
	if flag := run("--version"); flag != line {
		t.Errorf("--version: %q, version: %q", flag, line)
	}
	var answer struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal([]byte(run("version", "--json")), &answer); err != nil || answer.Version != "v1.2.3-test" {
		t.Errorf("version --json: %+v, %v", answer, err)
	}
}

func TestVersion_TheFlagHasNoShortFormAndNeedsNoConfiguration(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if status := Main(t.Context(), []string{"--version"}, &stdout, &stderr); status != exitFine || stdout.String() != versionLine()+"\n" {
		t.Errorf("status %d: %s%s", status, stdout.String(), stderr.String())
	}
	if status := Main(t.Context(), []string{"-v"}, &stdout, &stderr); status != exitUsage {
		t.Errorf("-v: status %d, want %d", status, exitUsage)
	}
}
