package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// waitForSignals is a program that says which signal has asked it to end, and ends with its
// standard input.
func waitForSignals() {
	ctx := untilSignal(context.Background())
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// TestUntilSignal_TakesAHangupAsARequestToEnd: a terminal that closes sends several, and nohup means
// that they are ignored.
func TestUntilSignal_TakesAHangupAsARequestToEnd(t *testing.T) {
	// The tests may run under nohup. What this process catches is not ignored in its children.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	for name, tt := range map[string]struct {
		prefix string
		send   []syscall.Signal
		said   string
		after  syscall.Signal
		ended  string
	}{
		"a terminal closes":            {"", []syscall.Signal{syscall.SIGHUP}, "hangup", syscall.SIGHUP, "exit status 0"},
		"a service manager":            {"", []syscall.Signal{syscall.SIGTERM}, "terminated", syscall.SIGTERM, "signal: terminated"},
		"an interrupt after a hangup":  {"", []syscall.Signal{syscall.SIGHUP}, "hangup", syscall.SIGINT, "signal: interrupt"},
		"nohup, and a service manager": {"trap '' HUP; ", []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM}, "terminated", syscall.SIGHUP, "exit status 0"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // the process is killed then
			defer cancel()
			cmd := exec.CommandContext(ctx, "sh", "-c", tt.prefix+`exec "$0"`, os.Args[0])
			cmd.Env = append(os.Environ(), roleVariable+"=signals")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			lines.Scan() // ready
			for _, signal := range tt.send {
				if err := cmd.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
			}
			if lines.Scan(); !strings.HasPrefix(lines.Text(), tt.said) {
				t.Errorf("it says %q, want %q", lines.Text(), tt.said)
			}
			done := make(chan struct{})
			go func() { // ends with the process
				defer close(done)
				_ = cmd.Wait()
			}()
			if tt.ended == "exit status 0" {
				_ = cmd.Process.Signal(tt.after)
				_ = stdin.Close()
			}
			testenv.Eventually(t, time.Minute, func() error {
				select {
				case <-done:
					return nil
				default:
					_ = cmd.Process.Signal(tt.after) // until it acts as usual
					return errors.New("the process still runs")
				}
			})
			if cmd.ProcessState.String() != tt.ended {
				t.Errorf("it ended with %q, want %q", cmd.ProcessState, tt.ended)
			}
		})
	}
}
