package agent

import (
	"bytes"
	"errors"
	"os/exec"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// statusFailed is the exit status of a command that failed.
const statusFailed = 1

// command runs a command of the built agent on a test's database and returns the exit status and
// what it printed.
func command(t *testing.T, env *testenv.DB, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return commandWith(t, agenttest.ConfigText(env, env.LeastURL), args...)
}

// commandWith runs a command with a configuration of its own.
func commandWith(t *testing.T, config string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, append([]string{"--config", agenttest.WriteFile(t, config)}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if exit, ended := errors.AsType[*exec.ExitError](err); ended {
		return exit.ExitCode(), out.String(), errs.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out.String(), errs.String()
}

// commandSucceeds runs a command that must end with status 0 and returns what it printed.
func commandSucceeds(t *testing.T, env *testenv.DB, args ...string) string {
	t.Helper()
	return commandSucceedsWith(t, agenttest.ConfigText(env, env.LeastURL), args...)
}

func commandSucceedsWith(t *testing.T, config string, args ...string) string {
	t.Helper()
	status, stdout, stderr := commandWith(t, config, args...)
	if status != 0 || stderr != "" {
		t.Fatalf("%q ended with status %d: %s%s", args, status, stdout, stderr)
	}
	return stdout
}
