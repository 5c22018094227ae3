package testenv

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
)

func TestProcess_TellsHowItEnded(t *testing.T) {
	if _, err := StartProcess(exec.Command("/nonexistent")); err == nil {
		t.Error("started a program that does not exist")
	}
	p, err := StartProcess(exec.Command("sh", "-c", "exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	exit, ok := errors.AsType[*exec.ExitError](p.Wait())
	if !ok || exit.ExitCode() != 3 {
		t.Errorf("ended with %v, want exit status 3", exit)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("a signal to a program that has ended: %v", err)
	}
}

func TestProcess_RunsInAGroupOfItsOwnUntilSignaled(t *testing.T) {
	p, err := StartProcess(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	if group, err := syscall.Getpgid(p.PID); err != nil || group != p.PID {
		t.Errorf("process %d is in group %d, %v: Ctrl-C would reach it", p.PID, group, err)
	}
	select {
	case <-p.Ended():
		t.Error("ended by itself")
	default:
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	if processRuns(p.PID) {
		t.Error("still runs after it has ended")
	}
}
