//go:build browser

package browser

import (
	"os/exec"
	"syscall"
)

// tie puts Chromium in a process group of its own, which Ctrl-C on the terminal does not reach, and
// has the kernel kill it if this process dies. chromedp starts it on a thread that lives as long.
func tie(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
