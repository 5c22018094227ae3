package testenv

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	folderPrefix    = "quintago-"     // of a folder that is locked; the kind of the folder follows
	newFolderPrefix = "quintago-new-" // of a folder that is not locked yet

	clusterFolder = "pg-" // is the kind of a cluster's folder
)

const (
	// memoryFolder is a file system in memory, which Linux has for every program.
	memoryFolder = "/dev/shm"
	// enoughMemory is how many bytes must be free in memoryFolder. The clusters of a test binary
	// take up to a tenth of that at a time.
	enoughMemory = 4 << 30
)

// parentFolder returns the folder in which to make the folder of a cluster. Clusters of tests go
// into memory if there is enough of it. Making and dropping the databases of hundreds of tests is
// mostly making and removing files, and a disk takes five times as long for that. TMPDIR, if it is
// set, takes precedence.
func (o Options) parentFolder() string {
	if o.inMemory && !o.Durable && os.Getenv("TMPDIR") == "" && freeMemory(memoryFolder) >= enoughMemory {
		return memoryFolder
	}
	return os.TempDir()
}

// folder holds everything of one program, as the data, the socket and the log of a cluster. It is
// locked as long as its owner lives.
type folder struct {
	path string
	lock *os.File // the open folder itself; the lock ends when it is closed or the process dies
}

// MakeFolder makes a folder for a program that this process starts. If the process dies before it
// calls remove, the next MakeFolder for the same kind of program removes the folder.
func MakeFolder(kind string) (path string, remove func() error, err error) {
	if err := sweep(kind, []string{os.TempDir()}, (*folder).remove); err != nil {
		return "", nil, err
	}
	f, err := makeFolder(os.TempDir(), kind, serverUser{})
	if err != nil {
		return "", nil, err
	}
	return f.path, f.remove, nil
}

// makeFolder makes and locks a folder inside parent, and gives it to the user who will run the
// program. The package documentation explains the order of the steps.
func makeFolder(parent, kind string, as serverUser) (*folder, error) {
	path, err := os.MkdirTemp(parent, newFolderPrefix+kind)
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	lock, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the new folder: %w", err)
	}
	f := &folder{path: path, lock: lock}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the new folder: %w", err), f.remove())
	}
	if err := as.own(path); err != nil {
		return nil, errors.Join(fmt.Errorf("give the new folder to its user: %w", err), f.remove())
	}
	final := filepath.Join(filepath.Dir(path), folderPrefix+strings.TrimPrefix(filepath.Base(path), newFolderPrefix))
	if err := os.Rename(path, final); err != nil {
		return nil, errors.Join(fmt.Errorf("name the new folder: %w", err), f.remove())
	}
	f.path = final
	return f, nil
}

// join returns the path of name inside the folder.
func (f *folder) join(name string) string { return filepath.Join(f.path, name) }

// remove deletes the folder and then gives up the lock. In this order no sweep interferes.
func (f *folder) remove() error {
	return errors.Join(os.RemoveAll(f.path), f.lock.Close())
}

// sweepClusters removes the clusters whose owner died without removing them. It stops their servers
// if the kernel has not done so.
func sweepClusters() error {
	return sweep(clusterFolder, []string{os.TempDir(), memoryFolder}, func(f *folder) error {
		return errors.Join(f.stopOrphan(), f.remove())
	})
}

// sweep calls remove for the folders of a kind whose owner died without removing them. It leaves the
// folders of other users alone.
func sweep(kind string, parents []string, remove func(*folder) error) error {
	var paths []string
	for _, parent := range parents {
		found, err := filepath.Glob(filepath.Join(parent, folderPrefix+kind+"*"))
		if err != nil {
			return fmt.Errorf("look for stale folders: %w", err)
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		lock, err := os.Open(path)
		if err != nil {
			continue // it is another user's, or its owner has just removed it
		}
		f := &folder{path: path, lock: lock}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = lock.Close()
			continue // in use
		}
		if err := remove(f); err != nil {
			return fmt.Errorf("remove the stale folder %s: %w", path, err)
		}
	}
	return nil
}

// stopOrphan ends the server in the folder if there is one.
func (f *folder) stopOrphan() error {
	content, err := os.ReadFile(f.join("data/postmaster.pid"))
	if err != nil {
		return nil // the server was stopped in good order, or never started
	}
	// The first line is the pid, and the fourth is the port, which names the socket. The pid alone
	// proves nothing, because it may belong to another process by now. A server that answers on a
	// socket in this folder is the right one.
	lines := strings.Split(string(content), "\n")
	if len(lines) < 4 {
		return nil
	}
	pid, err := strconv.Atoi(lines[0])
	if err != nil {
		return nil
	}
	answers := func() bool {
		conn, err := net.Dial("unix", f.join(".s.PGSQL."+lines[3]))
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}
	if !answers() {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(stopTimeout); processRuns(pid); <-tick.C {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d did not stop within %s", pid, stopTimeout)
		}
	}
	return nil
}

// serverUser is the user who runs the server. PostgreSQL refuses to run as root, so root uses an
// unprivileged user.
type serverUser struct {
	credential *syscall.Credential // nil for the user of this process
}

// findServerUser returns the current user. For root it returns the user postgres, or nobody if
// there is no postgres.
func findServerUser() (serverUser, error) {
	if os.Geteuid() != 0 {
		return serverUser{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return serverUser{}, fmt.Errorf("user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return serverUser{}, fmt.Errorf("user %s: %w", name, err)
		}
		return serverUser{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return serverUser{}, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// own changes the owner of a path to the user.
func (u serverUser) own(path string) error {
	if u.credential == nil {
		return nil
	}
	return os.Chown(path, int(u.credential.Uid), int(u.credential.Gid))
}
