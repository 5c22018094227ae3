package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests of this file write much at once, or much that is none of the agent's business.

const (
	// largeTransaction is the number of events of a transaction, each of largeBody bytes. Together
	// they are larger than largeMemory.
	largeTransaction = 10_000
	largeBody        = 18_000
	// largeMemory is what the agent may take from the system. With queues of 16 MiB, its own limit
	// is 136 MiB.
	largeMemory = 160 << 20
)

func TestRecovery_ALargeTransactionToASlowEndpointKeepsMemoryAndConnection(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	var (
		mu      sync.Mutex // guards arrived
		arrived = make(map[string]int, largeTransaction)
	)
	r.SetAnswer("", func(got testenv.Received) testenv.Answer {
		mu.Lock()
		defer mu.Unlock()
		arrived[got.ID]++
		return testenv.Answer{Delay: 3 * time.Millisecond}
	})
	agenttest.AddEndpoint(t, env, "venue_1", r.URL, "*")
	p := launch{binary: binary, delivery: "endpoint_concurrency = 64\nqueue_memory = \"16MiB\""}.start(t, env)
	p.awaitReady(t, "leading\n")
	super := agenttest.ConnectURL(t, env.SuperuserURL)
	stream := func() (connection string) {
		t.Helper()
		err := super.QueryRow(context.Background(), `select coalesce(string_agg(pid || ' since ' || backend_start, ', '), 'none') from pg_stat_replication
			join pg_replication_slots on active_pid = pid where slot_name = $1`, env.Slot).Scan(&connection)
		if err != nil {
			t.Fatal(err)
		}
		return connection
	}
	before := stream()
	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(repeat('x', $2)) from generate_series(1, $1)`, largeTransaction, largeBody)
	most := 0.0
	testenv.Eventually(t, 3*agenttest.Patience, func() error {
		most = max(most, p.metric(t, "go_memstats_sys_bytes"))
		mu.Lock()
		defer mu.Unlock()
		if len(arrived) < largeTransaction {
			return fmt.Errorf("%d events arrived; log:\n%s", len(arrived), p.stderr)
		}
		return nil
	})
	if after := stream(); after != before {
		t.Errorf("the connection of the stream is %s and was %s", after, before)
	}
	if most > largeMemory {
		t.Errorf("the agent took %.0f MiB, want %d at most", most/(1<<20), largeMemory>>20)
	}
	testenv.Eventually(t, agenttest.Patience, func() error {
		if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where status = 'succeeded'`); n != largeTransaction {
			return fmt.Errorf("%d deliveries succeeded", n)
		}
		return nil
	})
	p.terminate(t)
	mu.Lock()
	defer mu.Unlock()
	for id, n := range arrived {
		if n != 1 {
			t.Errorf("%s arrived %d times", id, n)
		}
	}
	t.Logf("at most %.0f MiB", most/(1<<20))
}

// metric returns the value of a metric without labels.
func (p *process) metric(t *testing.T, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// Before version 15, PostgreSQL sends a message about every transaction. From 15 on it sends a
// position now and then.
func TestRecovery_WhatIsWrittenElsewhereKeepsLittleWALAndIsSeldomNoted(t *testing.T) {
	t.Parallel()
	s, _ := ownOutage(t, nil)
	sequence := func() int {
		t.Helper()
		return testenv.QueryOne[int](t, s.env, `select sequence from webhooks.checkpoint`)
	}
	s.env.Exec(t, `create table elsewhere (text text)`)
	before := sequence()
	s.env.Exec(t, `do $$ begin for i in 1..3000 loop insert into elsewhere values ('small'); commit; end loop; end $$`)
	const megabyte = `insert into elsewhere select repeat('x', 1000) from generate_series(1, 900)`
	for range 64 {
		s.env.Exec(t, megabyte)
	}
	// A checkpoint records which transactions run. The slot drops what is before that record when a
	// position after it was confirmed.
	kept := 0
	for range 3 {
		s.super(`checkpoint`)
		s.env.Exec(t, megabyte)
		s.env.Exec(t, megabyte)
		written := testenv.QueryOne[string](t, s.env, `select pg_current_wal_lsn()::text`)
		s.eventually(func() error { return slotReached(t, s.env, written) })
		if kept = testenv.QueryOne[int](t, s.env, `select (pg_current_wal_lsn() - restart_lsn)::bigint from pg_replication_slots where slot_name = $1`, s.env.Slot); kept < 16<<20 {
			break
		}
	}
	if kept >= 16<<20 {
		t.Errorf("the slot keeps %d bytes of WAL", kept)
	}
	if n := sequence() - before; n > 4 {
		t.Errorf("the ledger committed %d times while only other tables were written", n)
	}
	s.eachOnce()
}

// PostgreSQL 18 sends the end of such a transaction although it has never sent its beginning.
func TestRecovery_ALargeTransactionThatRollsBackDoesNotEndTheStream(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `alter database `+env.Name+` set logical_decoding_work_mem = '64kB'`)
	s := newOutage(t, env)
	for range 3 {
		tx := s.hold()
		for _, sql := range []string{
			`savepoint s`,
			`insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(repeat('x', 1000)) from generate_series(1, 1000)`,
			`release savepoint s`,
			`rollback`,
		} {
			if _, err := tx.Exec(context.Background(), sql); err != nil {
				t.Fatal(err)
			}
		}
		s.wait(s.event())
	}
	if strings.Contains(s.agent.Log.String(), "the stream broke") {
		t.Errorf("the stream broke:\n%s", s.agent.Log)
	}
	s.eachOnce()
}

func TestRecovery_ACrashOfPostgreSQLRepeatsNothingThoughItsSlotGoesBack(t *testing.T) {
	t.Parallel()
	s, cluster := ownOutage(t, nil)
	s.super(`checkpoint`)
	s.wait(s.event())
	written := testenv.QueryOne[string](t, s.env, `select pg_current_wal_lsn()::text`)
	s.wait(s.event())
	s.eventually(func() error { return slotReached(t, s.env, written) }) // and PostgreSQL has it on disk, for the last time before the crash
	for range 20 {
		s.event()
	}
	s.wait(s.events...)
	s.agent.End()
	if err := cluster.Restart(t.Context(), testenv.Immediate); err != nil {
		t.Fatal(err)
	}
	if behind := testenv.QueryOne[bool](t, s.env, `select confirmed_flush_lsn < lsn from pg_replication_slots s join webhooks.checkpoint c on c.slot = s.slot_name`); !behind {
		t.Error("the slot has not gone back: the test shows nothing")
	}
	s.start()
	s.wait(s.event())
	for _, mode := range []testenv.StopMode{testenv.Immediate, testenv.Fast} {
		s.event()
		if err := cluster.Restart(t.Context(), mode); err != nil {
			t.Fatal(err)
		}
		s.wait(s.events...)
	}
	s.eachOnce()
}

// tcp_user_timeout counts while the agent does not read, however alive it is.
func TestRecovery_AServerThatGivesUpABlockedAgentIsGoneOnWith(t *testing.T) {
	t.Parallel()
	env := ownDB(t)
	env.Exec(t, `alter database `+env.Name+` set tcp_user_timeout = '1s'`)
	s := newOutage(t, env)
	super := agenttest.ConnectURL(t, env.SuperuserURL)
	backends := func() (pids []int32) {
		t.Helper()
		err := super.QueryRow(context.Background(), `select coalesce(array_agg(active_pid), '{}') from pg_replication_slots where slot_name = $1 and active`, env.Slot).Scan(&pids)
		if err != nil {
			t.Fatal(err)
		}
		return pids
	}
	before := backends()
	lock := s.hold()
	if _, err := lock.Exec(context.Background(), `lock table webhooks.deliveries`); err != nil {
		t.Fatal(err)
	}
	s.wrote(`insert into webhooks.outbox (type, venue, data) select 'lead.created', 'venue_1', to_json(repeat('x', 5000)) from generate_series(1, 12000) returning id`)
	s.eventually(func() error {
		if after := backends(); slices.Equal(after, before) {
			return fmt.Errorf("the server still serves the stream by process %v", after)
		}
		return nil
	})
	if err := lock.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.ready()
	s.allSucceeded()
	s.eachOnce()
}
