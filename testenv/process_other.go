//go:build unix && !linux

package testenv

import "syscall"

// processAttributes puts a child in a process group of its own. So Ctrl-C on the terminal reaches
// only this process, which then stops the child in good order. These systems cannot tie the child's
// life to ours; if we die, the sweep of the next Start stops the child.
func processAttributes(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// childProcesses returns none. PostgreSQL's children notice the death of their postmaster and end
// by themselves.
func childProcesses(int) []int { return nil }

// processRuns reports whether pid exists.
func processRuns(pid int) bool { return syscall.Kill(pid, 0) == nil }
