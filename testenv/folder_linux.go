package testenv

import "syscall"

// tmpfsMagic is the type of a file system in memory. See statfs(2).
const tmpfsMagic = 0x01021994

// freeMemory returns how many bytes are free at path if it is a file system in memory, else zero.
func freeMemory(path string) uint64 {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(path, &fs); err != nil || fs.Type != tmpfsMagic {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize)
}
