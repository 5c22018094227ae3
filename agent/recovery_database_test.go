package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file let the database refuse to record for a while. The agent keeps what it
// has, says so, and goes on by itself.

func TestRecovery_AReadOnlyDatabaseIsWaitedFor(t *testing.T) {
	t.Parallel()
	readOnly := func(s *outage) {
		s.t.Helper()
		s.event() // the test's own connection is there from now on, and writes
		s.super(`alter database ` + s.env.Name + ` set default_transaction_read_only = on`)
	}
	t.Run("while the agent runs", func(t *testing.T) {
		t.Parallel()
		s := newOutage(t, testenv.NewDB(t))
		readOnly(s)
		s.endConnections()
		for range 3 {
			s.event()
		}
		s.unready("deliveries cannot be recorded")
		s.agent.WaitLog("it is read-only")
		s.event()
		s.super(`alter database ` + s.env.Name + ` reset default_transaction_read_only`)
		s.eachOnce()
	})
	t.Run("when the agent starts", func(t *testing.T) {
		t.Parallel()
		s := newQuietOutage(t, testenv.NewDB(t))
		readOnly(s)
		s.agent = start(t, s.cfg)
		s.unready("it is read-only", "default_transaction_read_only")
		s.super(`alter database ` + s.env.Name + ` reset default_transaction_read_only`)
		s.ready()
		s.eachOnce()
	})
}

func TestRecovery_AStatementTimeoutOfAMillisecondIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	s.event()
	s.super(`alter database ` + s.env.Name + ` set statement_timeout = '1ms'`)
	s.endConnections()
	began := time.Now()
	s.eventually(func() error {
		s.event()
		if passed := time.Since(began); passed < 3*time.Second {
			return fmt.Errorf("%s of the trouble have passed", passed)
		}
		return nil
	})
	s.super(`alter database ` + s.env.Name + ` reset statement_timeout`)
	s.eachOnce()
}

func TestRecovery_ADatabaseWithoutAFreeConnectionIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	admit := s.disconnect()
	for range 3 {
		s.event()
	}
	s.unready("the stream is broken")
	s.agent.WaitLog("too many connections")
	admit()
	s.eachOnce()
}

func TestRecovery_ALockOnTheLogIsWaitedForWithinTheBoundsOfMemory(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, ownDB(t))
	s.cfg.Delivery.QueueMemory = 256 << 10
	s.start()
	s.settle()
	lock := s.hold()
	if _, err := lock.Exec(context.Background(), `lock table webhooks.deliveries`); err != nil {
		t.Fatal(err)
	}
	const large = 1500 // of a kilobyte, six times what may wait in memory
	s.wrote(fmt.Sprintf(`insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(repeat('x', 1000)) from generate_series(1, %d) returning id`, large))
	s.unready("deliveries cannot be recorded")
	s.agent.WaitLog("lock timeout") // after five seconds
	most := float64(s.cfg.Delivery.QueueMemory)
	if queued := s.metric("webhook_agent_lane_queue_bytes"); number(t, queued) > most {
		t.Errorf("%s bytes wait in memory, want %g at most", queued, most)
	}
	if err := lock.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.ready()
	s.allSucceeded()
	s.eachOnce()
}

func number(t *testing.T, text string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// allSucceeded waits until the log has as many successes as there are events. For many it is
// cheaper than wait. It is patient as long as there are ever more of them, since a busy machine
// delivers a hundred a second under the race detector.
func (s *outage) allSucceeded() {
	s.t.Helper()
	for before := -1; ; {
		var n int
		s.eventually(func() error {
			n = testenv.QueryOne[int](s.t, s.env, `select count(*) from webhooks.deliveries where status = 'succeeded'`)
			if n == before {
				return fmt.Errorf("%d deliveries of %d succeeded, and no more come", n, len(s.events))
			}
			return nil
		})
		if n == len(s.events) {
			return
		}
		before = n
	}
}

func TestRecovery_AFullDiskIsWaitedFor(t *testing.T) {
	t.Parallel()
	s, cluster := ownOutage(t, nil)
	free := fillDisk(s, cluster)
	s.wrote(`insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', '{}' from generate_series(1, 300) returning id`)
	s.unready("deliveries cannot be recorded")
	s.agent.WaitLog("SQLSTATE 53100")
	s.event()
	free()
	s.ready()
	s.allSucceeded()
	s.eachOnce()
}

// fillDisk leaves no room for the log of deliveries until the returned function is called: in a
// small file system where this process may mount one, and by a trigger that fails as a full disk
// does where not.
func fillDisk(s *outage, cluster *testenv.Cluster) (free func()) {
	s.t.Helper()
	dir := filepath.Join(cluster.Folder(), "small")
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dir).CombinedOutput(); err != nil {
		s.t.Logf("a trigger plays the full disk, since nothing can be mounted here: %v: %s", err, strings.TrimSpace(string(out)))
		s.env.Exec(s.t, `create function full_disk() returns trigger language plpgsql as $$ begin raise 'no space left on device' using errcode = '53100'; end $$`)
		s.env.Exec(s.t, `create trigger full_disk before insert on webhooks.deliveries for each statement execute function full_disk()`)
		return func() { s.env.Exec(s.t, `drop trigger full_disk on webhooks.deliveries`) }
	}
	s.t.Cleanup(func() {
		s.agent.End()
		s.super(`drop schema webhooks cascade`, `drop tablespace if exists small`)
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil { // the server may have a file open still
			s.t.Errorf("unmount: %v: %s", err, out)
		}
	})
	data, err := os.Stat(filepath.Join(cluster.Folder(), "data"))
	if err != nil {
		s.t.Fatal(err)
	}
	owner := data.Sys().(*syscall.Stat_t)
	if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
		s.t.Fatal(err)
	}
	s.super(`create tablespace small location '`+dir+`'`, `alter table webhooks.deliveries set tablespace small`)
	ballast := filepath.Join(dir, "ballast")
	file, err := os.Create(ballast)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if _, err := file.ReadFrom(zeros{}); !errors.Is(err, syscall.ENOSPC) {
		s.t.Fatalf("the small file system did not fill up: %v", err)
	}
	return func() {
		s.t.Helper()
		if err := os.Remove(ballast); err != nil {
			s.t.Fatal(err)
		}
	}
}

// zeros is endless.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// What a customer's server says may hold bytes that PostgreSQL stores in no text.
func TestRecovery_AnAnswerThatPostgreSQLRefusesBlocksNobody(t *testing.T) {
	t.Parallel()
	s := newOutage(t, testenv.NewDB(t))
	for i, answer := range []string{
		"HTTP/1.1 500 Error\r\nContent-Length: 6\r\n\r\na\x00b\xff\xc3(",
		"HTTP/1.1 500 \xff\x00\xc3(\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 500 Error\r\nX-Odd: \xff\xc3(\r\nX-\x00: \x00\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 429 Error\r\nRetry-After: \xff\x00\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: http://\xff\x00/\r\nContent-Length: 0\r\n\r\n",
		"\xff\x00\xc3(\r\n\r\n",
	} {
		venue := fmt.Sprintf("odd_%d", i)
		endpoint := agenttest.AddEndpoint(t, s.env, venue, "http://"+answerWith(t, answer), "*")
		agenttest.WaitStatus(t, s.env, agenttest.AddEvent(t, s.env, venue, "lead.created", `{}`), endpoint, "failed, attempts 6")
	}
	if strings.Contains(s.agent.Log.String(), "cannot record") {
		t.Errorf("the ledger was held up:\n%s", s.agent.Log)
	}
	s.eachOnce()
}

// answerWith serves TCP connections, each with the same bytes as soon as something has come, and
// returns where.
func answerWith(t *testing.T, answer string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() { // ends with the listener
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 64<<10)) // the client may break off, which is its affair
			_, _ = conn.Write([]byte(answer))
			_ = conn.Close()
		}
	}()
	return listener.Addr().String()
}

func TestRecovery_AComparisonMayTakeLongerThanTheStatementTimeoutOfTheRole(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, testenv.NewDB(t))
	// Before there is a slot, for the stream need not bring them.
	s.env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_9', '{}' from generate_series(1, 200000)`)
	s.start()
	s.settle()
	s.agent.End()
	s.env.Exec(t, `update webhooks.checkpoint set recovering = true, horizon = pg_current_snapshot()`) // none of them is to be looked at
	s.event()
	s.super(`alter database ` + s.env.Name + ` set statement_timeout = '50ms'`)
	s.start()
	s.eachOnce()
}

func TestCheck_RefusesAnOutboxWhoseRowsTheRoleCannotSee(t *testing.T) {
	t.Parallel()
	s := newQuietOutage(t, testenv.NewDB(t))
	s.env.Exec(t, `alter table webhooks.outbox enable row level security`)
	s.agent = start(t, s.cfg)
	if err := s.agent.EndsBy(); err == nil || !strings.Contains(err.Error(), "row-level security") || !strings.Contains(err.Error(), "BYPASSRLS") {
		t.Errorf("the agent ends with %v", err)
	}
}
