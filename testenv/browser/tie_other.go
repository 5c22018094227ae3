//go:build browser && !linux

package browser

import (
	"os/exec"
	"syscall"
)

// tie puts Chromium in a process group of its own, which Ctrl-C on the terminal does not reach. It
// ends when the pipe to this process breaks.
func tie(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
