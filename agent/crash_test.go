package agent

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// binaryDirs are where the built agents are; TestMain removes them.
var binaryDirs struct {
	mu   sync.Mutex
	list []string
}

// binary returns the path of the agent, and crashingBinary that of one with crash points.
var (
	binary         = builtOnce()
	crashingBinary = builtOnce("-tags", "crashpoints")
)

// builtOnce returns a function that builds the agent once for all tests of this package.
func builtOnce(flags ...string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "webhook-agent-test-")
		if err != nil {
			return "", err
		}
		binaryDirs.mu.Lock()
		binaryDirs.list = append(binaryDirs.list, dir)
		binaryDirs.mu.Unlock()
		path := filepath.Join(dir, "webhook-agent")
		// Without what a debugger reads, as the Makefile builds it, linking takes half the time.
		args := append(append([]string{"build", "-ldflags=-s -w"}, flags...), "-o", path, "..")
		out, err := exec.Command("go", args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("build the agent: %w\n%s", err, out)
		}
		return path, nil
	})
}

func removeBinaries() {
	binaryDirs.mu.Lock()
	defer binaryDirs.mu.Unlock()
	for _, dir := range binaryDirs.list {
		_ = os.RemoveAll(dir) // a leftover in the temporary folder is no reason to fail
	}
}

// process is the agent's binary, running.
type process struct {
	*testenv.Process
	stderr *agenttest.Buffer
	admin  string
}

// launch is how a built agent is started.
type launch struct {
	binary    func() (string, error)
	command   string   // "run" when empty
	url       string   // of the database, when it is not the test's own
	delivery  string   // lines for the section [delivery]
	variables []string // of the environment, NAME=value
}

// start starts the agent with a configuration file as an operator would write it.
func (l launch) start(t *testing.T, env *testenv.DB) *process {
	t.Helper()
	testenv.OtherProcess(t)
	path, err := l.binary()
	if err != nil {
		t.Fatal(err)
	}
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{stderr: &agenttest.Buffer{}, admin: fmt.Sprintf("127.0.0.1:%d", port)}
	file := filepath.Join(t.TempDir(), "webhook-agent.toml")
	text := fmt.Sprintf("[outbox]\nslot = %q\n[delivery]\nshutdown_timeout = \"5s\"\nfailing_interval = \"0s\"\n%s\n[network]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n[admin]\nlisten = %q\n",
		env.Slot, l.delivery, p.admin)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, cmp.Or(l.command, "run"), "--config", file)
	cmd.Env = append(append(os.Environ(), "DATABASE_URL="+cmp.Or(l.url, env.LeastURL)), l.variables...)
	cmd.Stderr = p.stderr
	if p.Process, err = testenv.StartProcess(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(t) })
	return p
}

// startBinary starts the agent and waits until it leads.
func startBinary(t *testing.T, env *testenv.DB) *process {
	t.Helper()
	p := launch{binary: binary}.start(t, env)
	p.awaitLeading(t)
	return p
}

func (p *process) awaitLeading(t *testing.T) {
	t.Helper()
	p.awaitReady(t, "leading\n")
}

func (p *process) hasEnded() bool {
	select {
	case <-p.Ended():
		return true
	default:
		return false
	}
}

// awaitReady waits until /readyz says want.
func (p *process) awaitReady(t *testing.T, want string) {
	t.Helper()
	testenv.Eventually(t, agenttest.Patience, func() error {
		if p.hasEnded() {
			t.Fatalf("the agent has ended: %v; log:\n%s", p.Wait(), p.stderr)
		}
		resp, err := http.Get("http://" + p.admin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(resp.Body); err != nil {
			return err
		}
		if body.String() != want {
			return fmt.Errorf("/readyz says %q, want %q; log:\n%s", body.String(), want, p.stderr)
		}
		return nil
	})
}

// terminate asks the agent to end and wants it to, in good order.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.stderr)
	}
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	_ = p.Signal(syscall.SIGKILL) // it may have ended
	<-p.Ended()
}

// killing is when a process was killed. On a machine that is busy it may live on for a while after
// the signal.
type killing struct{ signal, end time.Time }

func (p *process) killTimed(t *testing.T) killing {
	t.Helper()
	signal := time.Now()
	p.kill(t)
	return killing{signal, time.Now()}
}

// wantEachOnce fails the test unless exactly so many deliveries have arrived, each with one body. A
// delivery may arrive again only if its first arrival was at most this long before the agent was
// killed. It returns how many have arrived again.
func wantEachOnce(t *testing.T, received []testenv.Received, deliveries int, kills []killing, before time.Duration) (duplicates int) {
	t.Helper()
	type key struct{ path, id string }
	first := map[key]testenv.Received{}
	for _, got := range received {
		if got.SignatureErr != nil {
			t.Fatalf("event %s: %v", got.ID, got.SignatureErr)
		}
		k := key{got.Path, got.ID}
		earlier, again := first[k]
		if !again {
			first[k] = got
			continue
		}
		duplicates++
		if !bytes.Equal(earlier.Body, got.Body) {
			t.Errorf("the duplicate of %s has other bytes", got.ID)
		}
		nearKill := slices.ContainsFunc(kills, func(k killing) bool {
			return earlier.At.After(k.signal.Add(-before)) && earlier.At.Before(k.end.Add(lateRequest))
		})
		if !nearKill {
			t.Errorf("%s to %s came again although it arrived at %s, not within %s before a kill: %v", got.ID, got.Path, earlier.At, before, kills)
		}
	}
	if len(first) != deliveries {
		t.Errorf("%d deliveries arrived, want %d", len(first), deliveries)
	}
	return duplicates
}

// lateRequest is how long a request of an agent that has ended may wait in the receiver's sockets. It
// took 113 ms on a busy machine.
const lateRequest = 300 * time.Millisecond

func TestP1P3_KillNineLosesNothingAndRepeatsOnlyTheLastSecond(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	r.SetAnswer("/slow", testenv.Script(testenv.Answer{Delay: 15 * time.Millisecond}))
	agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/fast", "*")
	agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/slow", "lead.*")
	p := startBinary(t, env)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	inserting := make(chan error, 1)
	conn := connect(t, env)
	go func() {
		pace := time.NewTicker(2 * time.Millisecond) // 500 a second: less than the slow endpoint takes
		defer pace.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			// The connection outlives ctx, so that no insert is of unknown outcome.
			if _, err := conn.Exec(context.Background(), `insert into webhooks.outbox (type, venue, data) values ('lead.created', 'venue_1', $1)`,
				fmt.Sprintf(`{"n":%d}`, i)); err != nil {
				inserting <- err
				return
			}
			<-pace.C
		}
		inserting <- nil
	}()
	var kills []killing
	for kill := range 5 {
		// Killed while requests are under way, each time a little later in the agent's life.
		r.Wait(t, r.Count()+100*(kill+1), agenttest.Patience)
		kills = append(kills, p.killTimed(t))
		p = startBinary(t, env)
	}
	cancel()
	if err := <-inserting; err != nil {
		t.Fatal(err)
	}
	events := testenv.QueryOne[int](t, env, `select count(*) from webhooks.outbox`)
	testenv.Eventually(t, 3*agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != 2*events {
			return fmt.Errorf("%d deliveries succeeded, want %d; log:\n%s", n, 2*events, p.stderr)
		}
		return nil
	})

	duplicates := wantEachOnce(t, r.Received(), 2*events, kills, 3*time.Second)
	t.Logf("%d events, %d kills, %d duplicates", events, len(kills), duplicates)

	p.terminate(t)
}

// The position stays before a transaction until all of its fan-out is recorded. So the next leader
// gets all of it again.
func TestP1P3_KillNineInTheMiddleOfALargeFanoutLosesNothing(t *testing.T) {
	t.Parallel()
	const endpoints, events = 120, 100
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	env.Exec(t, `insert into webhooks.endpoints (venue, url, events, secret) select 'venue_1', $1 || n, '{*}', $2 from generate_series(1, $3::int) n`,
		r.URL+"/", agenttest.Secret, endpoints)
	other := agenttest.AddEndpoint(t, env, "venue_2", r.URL+"/other", "*")
	p := startBinary(t, env)
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.imported', 'venue_1', to_json(n) from generate_series(1, $1::int) n`, events)
	agenttest.WaitStatus(t, env, agenttest.AddEvent(t, env, "venue_2", "lead.created", `"beside it"`), other, "succeeded")
	var kills []killing
	for range 3 {
		r.Wait(t, r.Count()+endpoints*events/6, agenttest.Patience)
		kills = append(kills, p.killTimed(t))
		p = startBinary(t, env)
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != endpoints*events+1 {
			return fmt.Errorf("%d deliveries succeeded, want %d; log:\n%s", n, endpoints*events+1, p.stderr)
		}
		return nil
	})
	t.Logf("%d duplicates", wantEachOnce(t, r.Received(), endpoints*events+1, kills, agenttest.Patience))
	p.terminate(t)
}
