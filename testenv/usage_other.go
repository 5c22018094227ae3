//go:build unix && !linux

package testenv

import (
	"errors"
	"time"
)

var errNoUsage = errors.New("what a process uses is read from /proc, which only Linux has")

// CPU returns an error.
func CPU(int) (own, children time.Duration, err error) { return 0, 0, errNoUsage }

// Processors returns an error.
func Processors() (idle, stolen time.Duration, err error) { return 0, 0, errNoUsage }

// PeakMemory returns an error, because this system has no /proc.
func PeakMemory(int) (int64, error) { return 0, errNoUsage }

// CPU returns an error.
func (c *Cluster) CPU() (time.Duration, error) { return 0, errNoUsage }
