package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) {
	if os.Getenv(abandonEnv) != "" {
		abandonCluster()
		return
	}
	Main(m, Options{Template: func(ctx context.Context, url string) error {
		return ExecSQL(ctx, url, "create table guests (name text); insert into guests values ('Ana')")
	}})
}

func TestCluster_KeepsWhatWasCommittedOverCrashAndRestart(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, Options{})
	db := c.NewDB(t)
	port := c.port
	db.Exec(t, "create table visitors (name text)")

	for i, interrupt := range []func() error{
		func() error { return errors.Join(c.Crash(), c.Resume(t.Context())) },
		func() error { return c.Restart(t.Context(), Immediate) },
		func() error { return c.Restart(t.Context(), Fast) },
	} {
		db.Exec(t, "insert into visitors values ('Ana')")
		backend := QueryOne[int](t, db, "select pg_backend_pid()")
		if err := interrupt(); err != nil {
			t.Fatal(err)
		}
		if processRuns(backend) {
			t.Errorf("interruption %d left process %d of the server", i, backend)
		}
		if got := QueryOne[int](t, db, "select count(*) from visitors"); got != i+1 {
			t.Errorf("after interruption %d there are %d rows, want %d", i, got, i+1)
		}
	}
	if c.port != port {
		t.Errorf("the port changed from %d to %d", port, c.port)
	}
}

// A backend that is computing does not check whether its postmaster lives.
func TestCluster_CrashKillsBusyBackends(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, Options{})
	db := c.NewDB(t)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	backend := int(conn.PgConn().PID())
	result := conn.PgConn().Exec(t.Context(), "do 'begin loop perform 1; end loop; end'") // sent; nobody waits for an answer
	Eventually(t, 5*time.Second, func() error {
		if QueryOne[string](t, db, "select state from pg_stat_activity where pid = $1", backend) != "active" {
			return errors.New("the query has not begun")
		}
		return nil
	})
	if err := c.Crash(); err != nil {
		t.Fatal(err)
	}
	if processRuns(backend) {
		t.Errorf("process %d of the server is left", backend)
	}
	if err := result.Close(); err == nil {
		t.Error("the query that was cut off has no error")
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCluster_CloseLeavesNeitherProcessNorFolder(t *testing.T) {
	t.Parallel()
	c, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	pid := c.server.PID
	children := childProcesses(pid)
	if len(children) == 0 {
		t.Error("the server has no child processes, so this test proves nothing about them")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range append(children, pid) {
		if processRuns(pid) {
			t.Errorf("process %d still runs", pid)
		}
	}
	if _, err := os.Stat(c.Folder()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder still exists: %v", err)
	}
}

func TestCluster_UsesSettings(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, Options{Durable: true, Settings: map[string]string{"max_replication_slots": "3", "cluster_name": "it's"}})
	db := c.NewDB(t)
	for setting, want := range map[string]string{
		"wal_level": "logical", "fsync": "on", "max_replication_slots": "3", "cluster_name": "it's",
	} {
		if got := QueryOne[string](t, db, "select current_setting($1)", setting); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
}

func TestStart_TellsTheServersReason(t *testing.T) {
	t.Parallel()
	c, err := Start(t.Context(), Options{Settings: map[string]string{"wal_level": "illogical"}})
	if err == nil {
		t.Fatal("a server with a wrong setting started", c.Close())
	}
	if !strings.Contains(err.Error(), "illogical") {
		t.Errorf("the error does not name the reason: %v", err)
	}
}

// If a process dies by SIGKILL, the kernel stops its server, and the next Start removes the folder.
func TestStart_SweepsTheClusterOfADeadProcess(t *testing.T) {
	t.Parallel()
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), abandonEnv+"=1")
	owner.Stderr = os.Stderr
	said, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.StdinPipe(); err != nil { // open until this process ends
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var folder string
	var postmaster int
	if _, err := fmt.Fscanln(said, &postmaster, &folder); err != nil {
		t.Fatal(err)
	}

	mine := NewCluster(t, Options{}) // sweeps
	if _, err := os.Stat(folder); err != nil {
		t.Errorf("the folder of a living process was swept: %v", err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // always "signal: killed"
	Eventually(t, 5*time.Second, func() error {
		if processRuns(postmaster) {
			return fmt.Errorf("the server %d outlives its owner", postmaster)
		}
		return nil
	})
	NewCluster(t, Options{}) // sweeps
	if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of the dead process is still there: %v", err)
	}
	if _, err := os.Stat(mine.Folder()); err != nil {
		t.Errorf("the folder of this process was swept: %v", err)
	}
}

// If the kernel does not stop the server, the sweep does.
func TestSweep_StopsAnOrphanedServer(t *testing.T) {
	t.Parallel()
	c, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	server := c.server
	if err := c.folder.lock.Close(); err != nil { // as the owner's death does
		t.Fatal(err)
	}
	if err := sweepClusters(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 5*time.Second, func() error { // another test's sweep may have been the first
		if processRuns(server.PID) {
			return errors.New("the server still runs")
		}
		_, err := os.Stat(c.Folder())
		if err == nil {
			return errors.New("the folder is still there")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// abandonEnv is the environment variable that makes this test binary play a process which dies
// without closing its cluster.
const abandonEnv = "TESTENV_ABANDON"

// abandonCluster starts a cluster, prints its postmaster and folder, and waits until it is killed
// or the test ends.
func abandonCluster() {
	c, err := Start(context.Background(), Options{})
	if err != nil {
		panic(err)
	}
	fmt.Println(c.server.PID, c.Folder())
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(c) // a collected file is closed, and the lock of the folder with it
}
