package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// patches has the mutants. Each is a unified diff against the product.
//
//go:embed mutants/*.patch
var patches embed.FS

// mutant is a fault of the product that the torture must notice.
type mutant struct {
	name    string // the name of its patch
	only    []kind // the faults that reveal it
	minutes float64
	// caught are the rules of which the mutant must break at least one.
	caught []rule
}

// mutants are faults that an agent could have without any ordinary test noticing them.
var mutants = []mutant{
	{"confirm-before-record", []kind{kill}, 0.5, []rule{ruleLost, ruleUnseen}},
	{"skip-restart-lookup", []kind{kill}, 0.6, []rule{ruleLog}},
	{"no-epoch-fence", []kind{freeze}, 0.6, []rule{ruleLog, ruleDuplicate}},
	{"deliver-before-commit", []kind{terminate}, 0.5, []rule{rulePhantom}},
	{"resume-paused", []kind{kill}, 1.2, []rule{ruleLog}},
	{"forget-missed", []kind{kill}, 0.5, []rule{ruleLost, ruleUnseen}},
}

const (
	// mutantPatience is how long a mutant's run waits at the end for what is lost.
	mutantPatience = 10 * time.Second
	// mutantDisableAfter is low, so that endpoints are disabled within so short a run, although
	// failing ones are paced.
	mutantDisableAfter = 15
)

func mutantsCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	flags.SetOutput(stderr)
	source := flags.String("C", ".", "the folder of the product's module")
	only := flags.String("only", "", "only the mutant of this name")
	seed := flags.Uint64("seed", 1, "the seed of the runs")
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	survivors := 0
	fmt.Fprintf(stdout, "  %-24s %-8s %s\n", "mutant", "", "caught by")
	for _, m := range mutants {
		if *only != "" && m.name != *only {
			continue
		}
		v, err := m.run(ctx, *source, *seed)
		if err != nil {
			return fmt.Errorf("mutant %s: %w", m.name, err)
		}
		by, caught := m.caughtBy(v)
		state := "caught"
		if !caught {
			state = "SURVIVED"
			survivors++
		}
		fmt.Fprintf(stdout, "  %-24s %-8s %s\n", m.name, state, by)
	}
	if survivors > 0 {
		return fmt.Errorf("%d mutants were not caught", survivors)
	}
	return nil
}

// run builds the mutant from a copy of the product, tortures it for a short time, and returns the
// verdict.
func (m mutant) run(ctx context.Context, source string, seed uint64) (v *verdict, err error) {
	dir, err := os.MkdirTemp("", "webhook-torture-mutant-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tree, binary := filepath.Join(dir, "tree"), filepath.Join(dir, "agent")
	if err := copyTree(source, tree); err != nil {
		return nil, fmt.Errorf("copy the product: %w", err)
	}
	if err := m.apply(ctx, tree); err != nil {
		return nil, err
	}
	if err := buildAgent(ctx, tree, binary); err != nil {
		return nil, err
	}
	c := config{agent: binary, seed: seed, minutes: m.minutes, rate: 60, only: m.only, patience: mutantPatience, disableAfter: mutantDisableAfter}
	files, err := torture(ctx, c, func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	h, err := loadHistory(files)
	if err != nil {
		return nil, err
	}
	return check(h), os.RemoveAll(files)
}

// apply applies the patch to the product in the folder tree.
func (m mutant) apply(ctx context.Context, tree string, args ...string) error {
	patch, err := patches.ReadFile("mutants/" + m.name + ".patch")
	if err != nil {
		return err
	}
	// One line of context is enough: the code may move, and its surroundings may change.
	cmd := exec.CommandContext(ctx, "git", append([]string{"apply", "-C1"}, append(args, "-")...)...)
	cmd.Dir = tree
	// If tree is inside some other repository, git would look for the files from the root of that.
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(tree))
	cmd.Stdin = strings.NewReader(string(patch))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply the patch: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// caughtBy returns which rules a mutant has broken, the expected ones first. caught reports whether
// one of the expected rules is among them.
func (m mutant) caughtBy(v *verdict) (by string, caught bool) {
	n := map[rule]int{}
	for _, found := range v.violations {
		n[found.rule]++
	}
	expected := func(r rule) int {
		if slices.Contains(m.caught, r) {
			return 0
		}
		return 1
	}
	var parts []string
	broken := slices.SortedFunc(maps.Keys(n), func(x, y rule) int {
		return cmp.Or(expected(x)-expected(y), cmp.Compare(x, y))
	})
	for _, r := range broken {
		parts = append(parts, fmt.Sprintf("%s %d", r, n[r]))
		caught = caught || expected(r) == 0
	}
	return strings.Join(parts, ", "), caught
}

// copyTree copies the files of a module, without hidden folders and built programs.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch {
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || name == "bin" || name == "dist"):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, content, 0o600)
	})
}
