package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// wallClockRead is the only place where package time reads the wall clock for Now. Since, Until and
// everything else that uses the wall clock call Now. The monotonic reading stays unchanged. So
// waits and deadlines do not notice a jump, as on a machine whose clock is set.
const (
	wallClockRead = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n"
	wallClockSet  = "\tsec, nsec, mono := runtimeNow()\n\tsec += tortureOffset.Load()\n\tif mono == 0 {\n"
)

// timeAddition is an additional file of package time.
const timeAddition = `package time

import "sync/atomic"

var tortureOffset atomic.Int64 // seconds

// TortureMoveClock moves the wall clock of this process.
func TortureMoveClock(seconds int64) { tortureOffset.Add(seconds) }
`

// mainAddition is an additional file of the agent's package main.
const mainAddition = `package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "unsafe" // for go:linkname

	_ "github.com/quintago/webhook-agent/agent/cli"
)

//go:linkname agentVersion github.com/quintago/webhook-agent/agent/cli.version
var agentVersion string

func init() {
	if name := os.Getenv("` + agentName + `"); name != "" {
		agentVersion = name
	}
	moves := make(chan os.Signal, 8)
	signal.Notify(moves, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for s := range moves {
			if s == syscall.SIGUSR1 {
				time.TortureMoveClock(3600)
			} else {
				time.TortureMoveClock(-3600)
			}
		}
	}()
}
`

func buildCommand(ctx context.Context, args []string, _, stderr io.Writer) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	flags.SetOutput(stderr)
	output := flags.String("o", "bin/torture-agent", "where to put the binary")
	source := flags.String("C", ".", "the folder of the agent's main package")
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	return buildAgent(ctx, *source, *output)
}

// buildAgent builds the agent of the module in the folder source, for the torture. Its wall clock
// moves by SIGUSR1 and SIGUSR2, and its version comes from the environment. It uses an overlay, so
// all files of source stay as they are.
func buildAgent(ctx context.Context, source, output string) (err error) {
	output, err = filepath.Abs(output)
	if err != nil {
		return fmt.Errorf("build the agent: %w", err)
	}
	source, err = filepath.Abs(source)
	if err != nil {
		return fmt.Errorf("build the agent: %w", err)
	}
	dir, err := os.MkdirTemp("", "webhook-torture-build-")
	if err != nil {
		return fmt.Errorf("build the agent: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	overlay, err := makeOverlay(ctx, dir, source)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-overlay", overlay, "-o", output, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return nil
}

// makeOverlay writes the file for go build -overlay, and the files that it names, into dir.
func makeOverlay(ctx context.Context, dir, source string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOROOT")
	cmd.Dir = source
	goroot, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find GOROOT: %w", err)
	}
	timeDir := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time")
	original, err := os.ReadFile(filepath.Join(timeDir, "time.go"))
	if err != nil {
		return "", fmt.Errorf("read package time: %w", err)
	}
	moved, err := moveClock(string(original))
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	add := func(original, name, content string) error {
		replace[original] = filepath.Join(dir, name)
		return os.WriteFile(replace[original], []byte(content), 0o600)
	}
	err = errors.Join(
		add(filepath.Join(timeDir, "time.go"), "time.go", moved),
		add(filepath.Join(timeDir, "torture.go"), "time_torture.go", timeAddition),
		add(filepath.Join(source, "torture.go"), "main_torture.go", mainAddition),
	)
	if err != nil {
		return "", fmt.Errorf("write the overlay: %w", err)
	}
	content, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("write the overlay: %w", err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, content, 0o600); err != nil {
		return "", fmt.Errorf("write the overlay: %w", err)
	}
	return overlay, nil
}

// moveClock returns the source of package time with a wall clock that can be moved.
func moveClock(source string) (string, error) {
	if strings.Count(source, wallClockRead) != 1 {
		return "", errors.New("time.Now of this version of Go does not read the clock as testenv/torture/build.go expects: " +
			"adapt wallClockRead there")
	}
	return strings.Replace(source, wallClockRead, wallClockSet, 1), nil
}
