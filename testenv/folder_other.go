//go:build unix && !linux

package testenv

// freeMemory returns zero, because only Linux has such a file system everywhere.
func freeMemory(string) uint64 { return 0 }
