package testenv

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// processAttributes puts a child in a process group of its own. So Ctrl-C on the terminal reaches
// only this process, which then stops the child in good order. If this process dies, the kernel
// sends the child onParentDeath.
func processAttributes(onParentDeath syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: onParentDeath}
}

// childProcesses returns the running children of pid.
func childProcesses(pid int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	var children []int
	for _, path := range stats {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if state, parent := processState(child); parent == pid && state != 'Z' {
			children = append(children, child)
		}
	}
	return children
}

// processRuns reports whether pid exists and is no zombie. Where nobody reaps an orphan (a
// container without an init), a zombie remains, but it holds no resources.
func processRuns(pid int) bool {
	state, _ := processState(pid)
	return state != 0 && state != 'Z'
}

// processState returns the state letter and the parent of pid, or zeros if there is no such
// process.
func processState(pid int) (state byte, parent int) {
	fields, err := processStat(pid)
	if err != nil || len(fields) < 2 {
		return 0, 0
	}
	parent, err = strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0, 0
	}
	return fields[0][0], parent
}

// processStat returns the fields of /proc/PID/stat from the third on. It finds the third by the
// parenthesis that ends the second: the second is the name, which may hold anything. See proc(5),
// stat.
func processStat(pid int) (fields [][]byte, err error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]), err
}
