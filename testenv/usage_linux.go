package testenv

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// clockTick is the unit of the times in /proc/PID/stat: USER_HZ, which is 100 for every program on
// Linux.
const clockTick = time.Second / 100

// CPU returns the processor time of a process, and that of its children that have ended. See
// proc(5), stat.
func CPU(pid int) (own, children time.Duration, err error) {
	fields, err := processStat(pid)
	if err != nil {
		return 0, 0, fmt.Errorf("read the processor time of process %d: %w", pid, err)
	}
	const utime = 14 - 3 // the 14th of all fields
	var ticks [4]int64
	for i := range ticks {
		if ticks[i], err = strconv.ParseInt(string(fields[utime+i]), 10, 64); err != nil {
			return 0, 0, fmt.Errorf("read the processor time of process %d: %w", pid, err)
		}
	}
	return time.Duration(ticks[0]+ticks[1]) * clockTick, time.Duration(ticks[2]+ticks[3]) * clockTick, nil
}

// Processors returns how long this machine's processors have been idle, and how long a hypervisor has
// taken them for others: since the start of the machine, and of all processors together. See proc(5),
// /proc/stat.
func Processors() (idle, stolen time.Duration, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read the times of the processors: %w", err)
	}
	// After the name are user, nice, system, idle, iowait, irq, softirq, steal.
	total, _, _ := bytes.Cut(stat, []byte("\n"))
	var name string
	var ticks [8]int64
	if _, err := fmt.Sscan(string(total), &name, &ticks[0], &ticks[1], &ticks[2], &ticks[3], &ticks[4], &ticks[5], &ticks[6], &ticks[7]); err != nil {
		return 0, 0, fmt.Errorf("read the times of the processors: /proc/stat begins with %q: %w", total, err)
	}
	return time.Duration(ticks[3]+ticks[4]) * clockTick, time.Duration(ticks[7]) * clockTick, nil
}

// PeakMemory returns the most resident memory, in bytes, that a process has had so far.
func PeakMemory(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kilobytes, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB")))), 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("read the memory of process %d: no VmHWM", pid)
}

// CPU returns the processor time of all processes of the server, also of those that have ended.
func (c *Cluster) CPU() (time.Duration, error) {
	if c.server == nil {
		return 0, fmt.Errorf("read the processor time of PostgreSQL: it does not run")
	}
	for {
		own, ended, err := CPU(c.server.PID)
		if err != nil {
			return 0, err
		}
		total := own + ended
		for _, child := range childProcesses(c.server.PID) {
			if own, ended, err := CPU(child); err == nil {
				total += own + ended
			}
		}
		// If a child ended between the readings, its time is in neither part of the sum. The
		// server's count of ended children has then changed, so read again.
		if _, now, err := CPU(c.server.PID); err == nil && now == ended {
			return total, nil
		}
	}
}
