// Command release builds what a release consists of, and uploads nothing. For each target it builds
// a static binary and packs an archive, with a list of what the binary is made of (CycloneDX). For
// Linux it makes a package for dpkg and one for rpm as well, as nfpm.yaml says. All of it comes from
// the commit that is checked out, and the same commit gives the same bytes. `make release` runs it
// and knows the tools that it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// release is one run of this program.
type release struct {
	dir       string // for what is published
	work      string // for what it is made of: a folder inside of dir
	nfpm      string // the program nfpm
	cyclonedx string // the program cyclonedx-gomod
	version   string // such as v1.2.3
	time      time.Time
}

// target is a system that binaries are built for, by the names that Go has for it.
type target struct{ system, architecture string }

func (t target) String() string { return t.system + "_" + t.architecture }

// targets are the systems of a release.
var targets = []target{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}}

func run(ctx context.Context, args []string) error {
	r := release{}
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.StringVar(&r.dir, "o", "dist", "the `folder` for the release; what it holds is removed")
	flags.StringVar(&r.nfpm, "nfpm", "nfpm", "the `program` nfpm")
	flags.StringVar(&r.cyclonedx, "cyclonedx", "cyclonedx-gomod", "the `program` cyclonedx-gomod")
	only := flags.String("only", "", "build for this `target` alone, such as linux_amd64")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	r.work = filepath.Join(r.dir, "work")
	if err := r.clear(); err != nil {
		return err
	}
	for _, t := range chosen {
		if err := r.build(ctx, t); err != nil {
			return err
		}
	}
	if err := r.readVersion(chosen[0]); err != nil {
		return err
	}
	if err := r.document(); err != nil {
		return err
	}
	// Two at a time, since most of the work of one is done by one core.
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for _, t := range chosen {
		group.Go(func() error { return r.publish(ctx, t) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return r.sum()
}

// choose returns the target that only names, or all targets if it names none.
func choose(only string) ([]target, error) {
	if only == "" {
		return targets, nil
	}
	var names []string
	for _, t := range targets {
		if t.String() == only {
			return []target{t}, nil
		}
		names = append(names, t.String())
	}
	return nil, fmt.Errorf("there is no target %q; -only takes one of %s", only, strings.Join(names, ", "))
}

// markFile shows that a folder holds a release, so that clear may empty it.
const markFile = "checksums.txt"

// clear empties the folder of the release. It refuses a folder that holds something else, which
// somebody may have named by mistake.
func (r *release) clear() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, marked := os.Stat(filepath.Join(r.dir, markFile))
	if len(entries) > 0 && marked != nil {
		return fmt.Errorf("%s holds files and no %s, so it is no release; remove it, or name another folder with -o", r.dir, markFile)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(r.dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(r.work, 0o755); err != nil {
		return err
	}
	// The mark comes first, so that a release that was interrupted can be made anew.
	return os.WriteFile(filepath.Join(r.dir, markFile), nil, 0o644)
}

// publish makes the files of one target.
func (r *release) publish(ctx context.Context, t target) error {
	if err := r.archive(t); err != nil {
		return fmt.Errorf("archive for %s: %w", t, err)
	}
	if err := r.listModules(ctx, t); err != nil {
		return err
	}
	if t.system != "linux" {
		return nil
	}
	for _, kind := range []string{"deb", "rpm"} {
		if err := r.pack(ctx, t, kind); err != nil {
			return err
		}
	}
	return nil
}

// name returns the path of a file to publish.
func (r *release) name(t target, ending string) string {
	return filepath.Join(r.dir, fmt.Sprintf("webhook-agent_%s_%s%s", strings.TrimPrefix(r.version, "v"), t, ending))
}
