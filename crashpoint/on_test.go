//go:build crashpoints

package crashpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// childVariable is set in a process that TestMain must run as a child.
const childVariable = "CRASHPOINT_CHILD"

// TestMain runs the tests. In a process that child has started, it calls Hit instead: twice with
// one point, then with another.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	for _, p := range []Point{AfterRead, AfterRead, BeforeDial} {
		fmt.Println("at", p)
		Hit(p)
	}
	fmt.Println("survived")
}

// child runs a child with the Variable set to value.
func child(t *testing.T, value string) (string, *os.ProcessState) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), Variable+"="+value, childVariable+"=1")
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(exit, err)
	}
	return string(out), cmd.ProcessState
}

func TestHit_KillsAtTheChosenPass(t *testing.T) {
	for value, want := range map[string]string{
		"after-read":    "at after-read\n",
		"after-read:2":  "at after-read\nat after-read\n",
		"before-dial:1": "at after-read\nat after-read\nat before-dial\n",
	} {
		out, state := child(t, value)
		if status := state.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
			t.Errorf("%s: ended with %s, want a kill", value, state)
		}
		if out != want {
			t.Errorf("%s: it came to\n%swant\n%s", value, out, want)
		}
	}
	for _, value := range []string{"", "after-read:3", "in-replay"} {
		if out, state := child(t, value); !state.Success() || !strings.Contains(out, "survived") {
			t.Errorf("%q: ended with %s\n%s", value, state, out)
		}
	}
}

func TestInit_RefusesWhatNamesNothing(t *testing.T) {
	for value, want := range map[string]string{
		"after-lunch":   `there is no crash point "after-lunch"; the points are after-read, `,
		"after-read:0":  `the pass must be a number from 1 on, not "0"`,
		"after-read:":   `the pass must be a number from 1 on, not ""`,
		"after-read:-1": `the pass must be a number from 1 on, not "-1"`,
	} {
		out, state := child(t, value)
		if state.ExitCode() != 2 || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: status %d and %q, want 2 and one line with %q", value, state.ExitCode(), out, want)
		}
	}
}
