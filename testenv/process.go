package testenv

import (
	"errors"
	"os/exec"
	"runtime"
	"syscall"
)

// Process is a program that StartProcess has started. Any number of goroutines may call its
// methods.
type Process struct {
	PID   int
	ended chan struct{} // StartProcess's goroutine closes it when the program has ended
	err   error         // what exec.Cmd.Wait returned; valid once ended is closed
}

// StartProcess starts cmd in a process group of its own, so that Ctrl-C on the terminal does not
// reach it. On Linux it ties the program's life to this process: if this process dies, the kernel
// kills the program, or sends it the Pdeathsig that cmd sets. One goroutine waits for the program
// and ends with it.
func StartProcess(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = processAttributes(syscall.SIGKILL)
	}
	started := make(chan error) // the goroutine below sends once, and this function receives
	p := &Process{ended: make(chan struct{})}
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, not when the
		// process ends. So this goroutine keeps its thread for as long as the child runs.
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

// Wait waits for the program's end and returns what exec.Cmd.Wait returned: nil for exit status 0.
// It may be called any number of times.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// Signal sends sig to the program. If the program has ended, Signal does nothing and returns nil.
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
