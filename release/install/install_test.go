//go:build release

// The tests in this file make a release for this machine and install what is in it. They are behind
// the tag release, since they need root, systemd, and the programs of `make release-tools`.
package install

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// made is the folder of the release that the tests share.
var made string

func TestMain(m *testing.M) {
	flag.Parse()
	status, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func testMain(m *testing.M) (status int, err error) {
	if err := os.Chdir("../.."); err != nil {
		return 0, err
	}
	if made, err = os.MkdirTemp("", "webhook-agent-release-"); err != nil {
		return 0, err
	}
	defer func() {
		if removed := os.RemoveAll(made); err == nil {
			err = removed
		}
	}()
	if err := makeRelease(made); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// target is the system that this machine can run.
const target = "linux_" + runtime.GOARCH

// makeRelease makes a release for this machine.
func makeRelease(dir string) error {
	cmd := exec.Command("go", "run", "./release", "-o", dir, "-only", target, "-nfpm", os.Getenv("NFPM"), "-cyclonedx", os.Getenv("CYCLONEDX"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the release: %w\n%s", err, out)
	}
	return nil
}

// file returns the file of the release with this ending.
func file(t *testing.T, ending string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(made, "webhook-agent_*"+target+ending))
	if err != nil || len(found) != 1 {
		t.Fatalf("the files that end with %s are %v, %v", ending, found, err)
	}
	return found[0]
}

func TestRelease_TheSameCommitGivesTheSameBytes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := makeRelease(dir); err != nil {
		t.Fatal(err)
	}
	first, second := read(t, filepath.Join(made, "checksums.txt")), read(t, filepath.Join(dir, "checksums.txt"))
	if first != second || strings.Count(first, "\n") != 4 {
		t.Errorf("the checksums are\n%s\nand\n%s", first, second)
	}
}

func TestRelease_TheChecksumsAreRight(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sha256sum", "--check", "--strict", "checksums.txt")
	cmd.Dir = made
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), ": OK\n") != 4 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestRelease_TheListOfModulesNamesThoseOfTheBinaryAndTheirLicenses(t *testing.T) {
	t.Parallel()
	list := read(t, file(t, ".cdx.json"))
	for _, want := range []string{`"CycloneDX"`, "pkg:golang/github.com/jackc/pgx/v5@v5", "pkg:golang/std@", `"Apache-2.0"`, `"MIT"`} {
		if !strings.Contains(list, want) {
			t.Errorf("it has no %s", want)
		}
	}
	if strings.Contains(list, "github.com/chromedp") {
		t.Error("it names a module that only tests use")
	}
}

func TestPackage_ForDebianIsInstalledRunsIsUpgradedRemovedAndPurged(t *testing.T) {
	t.Parallel()
	boot(t, "deb.sh", ".deb")
}

func TestPackage_ForRPMIsInstalledRunsIsUpgradedAndRemoved(t *testing.T) {
	t.Parallel()
	boot(t, "rpm.sh", ".rpm")
}

func TestArchive_IsInstalledByHandAndRunsUnderSystemd(t *testing.T) {
	t.Parallel()
	boot(t, "archive.sh", ".tar.gz")
}

// boot runs a script of this folder, and gives it the file of the release with this ending. It runs on
// a machine of its own, so nothing stays behind on this one.
func boot(t *testing.T, script, ending string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test starts systemd in namespaces of its own, which needs root: run sudo --preserve-env make test-release")
	}
	for _, program := range []string{"/lib/systemd/systemd", "unshare", "dpkg", "rpm", "man", "mandoc", "bash", "zsh", "fish", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v; install the packages that .ci/run installs", err)
		}
	}
	out, versionFile := t.TempDir(), filepath.Join(t.TempDir(), "version")
	if err := os.WriteFile(versionFile, []byte(version(t)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join("release", "install")
	cmd := exec.Command("bash", filepath.Join(folder, "machine.sh"), filepath.Join(folder, script), out,
		filepath.Join(folder, "checks.sh"), versionFile, file(t, ending))
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, text)
	}
	if status := read(t, filepath.Join(out, "status")); status != "0\n" {
		t.Errorf("%s: status %s\n%s", script, status, lastLines(read(t, filepath.Join(out, "log")), 60))
	}
}

// version returns the version that the binary of the release shows.
func version(t *testing.T) string {
	t.Helper()
	line := command(t, nil, filepath.Join(made, "work", target, "webhook-agent"), "--version")
	_, rest, _ := strings.Cut(line, " ")
	name, _, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(name, "v") {
		t.Fatalf("the version is %q", line)
	}
	return name
}

// goInstallVersion is the version that the module has for the test of go install.
const goInstallVersion = "v1.2.3"

func TestGoInstall_ShowsTheVersionThatWasAskedFor(t *testing.T) {
	t.Parallel()
	const path = "github.com/quintago/webhook-agent"
	proxy := t.TempDir()
	versions := filepath.Join(proxy, path, "@v")
	if err := os.MkdirAll(versions, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"list":                     goInstallVersion + "\n",
		goInstallVersion + ".info": fmt.Sprintf(`{"Version": %q}`, goInstallVersion),
		goInstallVersion + ".mod":  read(t, "go.mod"),
	} {
		if err := os.WriteFile(filepath.Join(versions, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command(t, nil, "git", "archive", "--format", "zip", "--prefix", path+"@"+goInstallVersion+"/",
		"--output", filepath.Join(versions, goInstallVersion+".zip"), "HEAD")

	// A cache of its own, for this version is none that stays. What it needs of others comes from the usual cache, if it is there.
	folder := t.TempDir()
	cached := "file://" + filepath.Join(strings.TrimSpace(command(t, nil, "go", "env", "GOMODCACHE")), "cache", "download")
	usual := strings.TrimSpace(command(t, nil, "go", "env", "GOPROXY"))
	command(t, []string{
		"GOBIN=" + folder, "GOMODCACHE=" + t.TempDir(), "GOFLAGS=-modcacherw -trimpath", "CGO_ENABLED=0", "GONOSUMDB=" + path,
		"GOPROXY=file://" + proxy + "," + cached + "," + usual,
	}, "go", "install", path+"@"+goInstallVersion)
	if line := command(t, nil, filepath.Join(folder, "webhook-agent"), "--version"); !strings.HasPrefix(line, "webhook-agent "+goInstallVersion+" (") {
		t.Errorf("it says %s", line)
	}
}

// command runs a program with additional settings of the environment, and returns what it prints on
// standard output.
func command(t *testing.T, environment []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), environment...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, errs.String())
	}
	return string(out)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// lastLines returns the last n lines of text.
func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
