package cli

import (
	"bytes"
	"io/fs"
	"syscall"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// brokenFile is a file that nothing can be written to.
type brokenFile struct{ reason error }

func (f brokenFile) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: f.reason}
}

// TestMain_FailsWhereItsAnswerCouldNotBeWritten runs commands whose standard output is on a full
// disk. A pipe whose reader has gone, such as head, is no failure.
func TestMain_FailsWhereItsAnswerCouldNotBeWritten(t *testing.T) {
	env := testenv.NewDB(t)
	config := configFile(t, env)
	run := func(reason error, args ...string) (status int, stderr string) {
		var errs bytes.Buffer
		status = Main(t.Context(), append([]string{"--config", config}, args...), brokenFile{reason}, &errs)
		return status, errs.String()
	}
	for _, args := range [][]string{
		{"version"}, {"--version"}, {"help"}, {"status", "--help"}, {"completion", "bash"}, {"config", "validate"}, {"init", "--stdout"}, {"migrate", "--dry-run"}, {"migrate", "--print"},
		{"endpoints", "add", "--url", "https://h.example/", "--venue", "venue_a", "--events", "*"}, {"endpoints", "list"}, {"endpoints", "list", "--json"}, {"status"}, {"check"}, {"uninstall"},
	} {
		if status, stderr := run(syscall.ENOSPC, args...); status != exitFailed || stderr != "webhook-agent: write /dev/stdout: no space left on device\n" {
			t.Errorf("%v: status %d, stderr %q", args, status, stderr)
		}
	}
	for _, args := range [][]string{{"version"}, {"help"}, {"endpoints", "list"}, {"check"}} {
		if status, stderr := run(syscall.EPIPE, args...); status != exitFine || stderr != "" {
			t.Errorf("%v into a pipe that is closed: status %d, stderr %q", args, status, stderr)
		}
	}
	env.Exec(t, `drop publication webhooks_outbox`)
	if status, stderr := run(syscall.ENOSPC, "check"); status != exitFailed || stderr == "" {
		t.Errorf("check, which finds something: status %d, stderr %q", status, stderr)
	}
}
