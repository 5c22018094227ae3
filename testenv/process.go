package testenv

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a started program that is waited for.
type process struct {
	pid   int
	ended chan struct{} // closed by the goroutine of startProcess when the program has ended
}

// startProcess starts cmd. One goroutine waits for it and ends with it.
func startProcess(cmd *exec.Cmd) (*process, error) {
	started := make(chan error) // sent to once by the goroutine below
	p := &process{ended: make(chan struct{})}
	go func() {
		// The kernel sends the signal of Pdeathsig when the thread ends that started the child, not when the process does.
		// The thread is kept for as long as the child runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // how a server ended is told by its log
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// signal sends sig to the process. One that has ended is no error.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
