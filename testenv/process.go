package testenv

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
)

// Process is a program that was started by StartProcess.
type Process struct {
	PID   int
	ended chan struct{} // closed by the goroutine of StartProcess when the program has ended
	err   error         // how it ended; valid once ended is closed
}

// StartProcess starts cmd in a process group of its own, so that Ctrl-C on the terminal does not reach it, and ties its
// life to this process (on Linux): when this one dies, it is killed, or gets the Pdeathsig that cmd asks for itself. One
// goroutine waits for the program and ends with it.
func StartProcess(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = processAttributes(syscall.SIGKILL)
	}
	started := make(chan error) // sent to once by the goroutine below
	p := &Process{ended: make(chan struct{})}
	go func() {
		// The kernel sends the signal of Pdeathsig when the thread ends that started the child, not when the process does.
		// The thread is kept for as long as the child runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.PID = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// Ended returns a channel that is closed when the program has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the program's end and returns what exec.Cmd.Wait returned: nil for exit status 0. It may be called more
// than once.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// Signal sends sig to the program. One that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := syscall.Kill(p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
