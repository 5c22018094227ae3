package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// binary returns the path of the binary for t.
func (r *release) binary(t target) string { return filepath.Join(r.work, t.String(), "webhook-agent") }

// build builds the binary for t. Go records the version itself: that of the tag that is checked out,
// or one that it makes of the revision. So no tag is needed.
func (r *release) build(ctx context.Context, t target) error {
	fmt.Println("build", t)
	return r.command(ctx, t, "go", "build", "-trimpath", "-buildvcs=true", "-ldflags", "-s -w", "-o", r.binary(t), ".")
}

// command runs a program with the settings of t.
func (r *release) command(ctx context.Context, t target, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+t.system, "GOARCH="+t.architecture,
		// The settings of whoever makes the release must not change it.
		"GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0",
		// These are for nfpm.yaml.
		"VERSION="+r.version, "WORK="+r.work, "TARGET="+t.String(),
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.time.Unix()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s for %s: %w\n%s", filepath.Base(name), t, err, out)
	}
	return nil
}

// readVersion reads from a binary which version it is, and from when. All files of the release get
// this time.
func (r *release) readVersion(t target) error {
	info, err := buildinfo.ReadFile(r.binary(t))
	if err != nil {
		return err
	}
	r.version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.time":
			if r.time, err = time.Parse(time.RFC3339, s.Value); err != nil {
				return fmt.Errorf("the time of the commit: %w", err)
			}
		case "vcs.modified":
			if s.Value == "true" {
				fmt.Println("the checkout has changes that are not committed: this is a release to try out")
			}
		}
	}
	if r.time.IsZero() {
		return fmt.Errorf("%s does not record its commit; make the release in a checkout by git", r.binary(t))
	}
	fmt.Println("version", r.version)
	return nil
}
