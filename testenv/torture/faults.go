package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// fault is a fault that has happened. It is entered when it begins, and again with the same number
// when it is over.
type fault struct {
	N      int
	Kind   kind
	Target role          `json:",omitempty"`
	How    string        `json:",omitempty"`
	Shift  time.Duration `json:",omitempty"`
	Agents []string      // the processes that it hit
	Led    bool          // one of these processes led
	// Start is when the fault began, and End when it was over: the process is gone, the server
	// accepts connections, the network passes everything, the process goes on, or the clock is
	// right.
	Start, End moment
	// Restart is when a process that the fault has ended was started again.
	Restart moment `json:",omitempty"`
	Over    bool
	Failed  string `json:",omitempty"` // why the torture could not cause it
}

// tormentor carries out the schedule of faults.
type tormentor struct {
	cluster   *testenv.Cluster
	database  string // the URL of a superuser, without a proxy
	agents    []*agent
	receivers *testenv.Proxy
	clock     stopwatch
	faults    *journal[fault]
	say       func(format string, args ...any)

	// apart keeps faults of the network before the receivers and freezes of an agent apart.
	// Otherwise nothing would arrive during a takeover, and nobody could say how long the takeover
	// took.
	apart sync.Mutex

	mu   sync.Mutex // guards all below
	last int        // the number of the last fault
	led  *agent     // the agent that led when it was last asked
}

// run carries out one track of the schedule. It returns early if ctx ends.
func (t *tormentor) run(ctx context.Context, strokes []stroke) {
	for _, s := range strokes {
		pause(ctx, s.At-t.clock.now())
		if ctx.Err() != nil {
			return
		}
		t.strike(ctx, s)
	}
}

// strike carries out one stroke, until the fault is over.
func (t *tormentor) strike(ctx context.Context, s stroke) {
	if s.Kind == freeze || s.Kind == receivers {
		t.apart.Lock()
		defer t.apart.Unlock()
	}
	hit, led := t.choose(ctx, s.Target)
	t.mu.Lock()
	t.last++
	f := fault{N: t.last, Kind: s.Kind, Target: s.Target, How: s.How, Shift: s.Shift, Led: led}
	t.mu.Unlock()
	for _, a := range hit {
		f.Agents = append(f.Agents, a.run())
	}
	f.Start = t.clock.now()
	t.faults.add(f)
	t.say("%v: %v", s, f.Agents)
	err := t.carryOut(ctx, s, hit, &f)
	if f.End == 0 {
		f.End = t.clock.now()
	}
	f.Over = true
	if err != nil {
		f.Failed = err.Error()
		t.say("    failed: %v", err)
	}
	t.faults.add(f)
}

func (t *tormentor) carryOut(ctx context.Context, s stroke, hit []*agent, f *fault) error {
	switch s.Kind {
	case kill, upgrade:
		return t.endAgents(ctx, s, hit, f)
	case crash:
		err := t.cluster.Crash()
		pause(ctx, s.Lasts)
		return errors.Join(err, t.cluster.Resume(context.WithoutCancel(ctx)))
	case terminate:
		return t.sql(ctx, terminateSessions, testenv.AgentRole)
	case freeze:
		return t.freeze(ctx, s, hit, f)
	case database:
		proxies := make([]*testenv.Proxy, len(hit))
		for i, a := range hit {
			proxies[i] = a.proxy
		}
		breakNetwork(ctx, s, proxies)
		return nil
	case receivers:
		breakNetwork(ctx, s, []*testenv.Proxy{t.receivers})
		return nil
	case slot:
		return t.dropSlot(ctx)
	case publication:
		return t.remakePublications(ctx, s.Lasts)
	case clock:
		return shiftClock(ctx, s, hit)
	}
	return fmt.Errorf("there is no fault %q", s.Kind)
}

// choose returns the agents that a fault is meant for, or all if it names no role, and whether one
// of them leads. If an agent does not answer, choose assumes that its role has not changed.
func (t *tormentor) choose(ctx context.Context, r role) (hit []*agent, led bool) {
	if r == nobody || r == both {
		return t.agents, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	const tries = 10
	found := false
	for i := 0; i < tries && !found; i++ {
		if i > 0 {
			pause(ctx, 100*time.Millisecond) // nobody leads, because one agent is taking over
		}
		for _, a := range t.agents {
			if a.leads(ctx) {
				t.led, found = a, true
			}
		}
	}
	if t.led == nil {
		t.led = t.agents[0]
	}
	if r == leader {
		return []*agent{t.led}, found
	}
	return slices.DeleteFunc(slices.Clone(t.agents), func(a *agent) bool { return a == t.led }), false
}

// endAgents kills agents, or asks them to end, and starts them again after a while.
func (t *tormentor) endAgents(ctx context.Context, s stroke, hit []*agent, f *fault) error {
	end := (*agent).kill
	if s.Kind == upgrade {
		end = (*agent).terminate
	}
	ends := make([]error, len(hit))
	var all sync.WaitGroup
	for i, a := range hit {
		all.Go(func() { ends[i] = end(a) })
	}
	all.Wait()
	err := errors.Join(ends...)
	f.End = t.clock.now()
	pause(ctx, s.Lasts)
	f.Restart = t.clock.now()
	for _, a := range hit {
		err = errors.Join(err, a.start())
	}
	return err
}

func (t *tormentor) freeze(ctx context.Context, s stroke, hit []*agent, f *fault) error {
	for _, a := range hit {
		if err := a.signal(syscall.SIGSTOP); err != nil {
			return err
		}
	}
	pause(ctx, s.Lasts)
	f.End = t.clock.now()
	for _, a := range hit {
		if err := a.signal(syscall.SIGCONT); err != nil {
			return err
		}
	}
	return nil
}

// breakEvery is the time between two breaks, for a fault that has to be repeated to last.
const breakEvery = 500 * time.Millisecond

// breakNetwork disturbs the traffic of proxies for as long as the stroke lasts.
func breakNetwork(ctx context.Context, s stroke, proxies []*testenv.Proxy) {
	faults := map[string]testenv.Fault{
		stalled: testenv.Stall, refused: testenv.Refuse, dripping: testenv.Drip, deaf: testenv.HalfOpen,
	}
	each := func(do func(*testenv.Proxy)) {
		for _, p := range proxies {
			do(p)
		}
	}
	if fault, holds := faults[s.How]; holds {
		each(func(p *testenv.Proxy) { p.SetFault(fault) })
		pause(ctx, s.Lasts)
		each(func(p *testenv.Proxy) { p.SetFault(testenv.Pass) })
		return
	}
	for left := s.Lasts; left > 0 && ctx.Err() == nil; left -= breakEvery {
		if s.How == commits {
			each(func(p *testenv.Proxy) { p.BreakCommit(testenv.LoseAnswer) })
		} else {
			each((*testenv.Proxy).Reset)
		}
		pause(ctx, min(left, breakEvery))
	}
	each(func(p *testenv.Proxy) { p.BreakCommit(testenv.KeepCommits) })
}

// shiftClock moves the clocks of agents, and then moves them back.
func shiftClock(ctx context.Context, s stroke, hit []*agent) error {
	there, back := syscall.SIGUSR1, syscall.SIGUSR2
	if s.Shift < 0 {
		there, back = back, there
	}
	var runs []string
	var errs []error
	for _, a := range hit {
		runs = append(runs, a.run())
		errs = append(errs, a.signal(there))
	}
	pause(ctx, s.Lasts)
	for i, a := range hit {
		if a.run() == runs[i] { // a new process has the right time
			errs = append(errs, a.signal(back))
		}
	}
	return errors.Join(errs...)
}

const (
	slotName = "webhooks_agent" // the agent's default

	terminateSessions = `select pg_terminate_backend(pid) from pg_stat_activity where usename = $1`

	// dropSlot ends the walsender that holds the slot, as a DBA has to, and then drops the slot, in
	// one statement.
	dropSlot = `
do $$
declare
    holder int;
begin
    for i in 1..200 loop
        select active_pid into holder from pg_replication_slots where slot_name = '` + slotName + `';
        if not found then
            return;
        end if;
        perform pg_terminate_backend(holder) where holder is not null;
        begin
            perform pg_drop_replication_slot('` + slotName + `');
            return;
        exception when object_in_use then
            perform pg_sleep(0.005);
        end;
    end loop;
    raise 'the slot stays in use';
end $$`

	dropPublications = `drop publication if exists webhooks_outbox, webhooks_outbox_endpoints`

	// createPublications makes the publications as the agent's migration does, unless the agent was
	// quicker.
	createPublications = `
set role ` + testenv.AgentRole + `;
do $$
begin
    create publication webhooks_outbox for table webhooks.outbox, webhooks.replays
        with (publish = 'insert', publish_via_partition_root = true);
exception when duplicate_object then null;
end $$;
do $$
begin
    create publication webhooks_outbox_endpoints for table webhooks.endpoints
        with (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);
exception when duplicate_object then null;
end $$`
)

func (t *tormentor) dropSlot(ctx context.Context) error { return t.sql(ctx, dropSlot) }

func (t *tormentor) remakePublications(ctx context.Context, without time.Duration) error {
	err := t.sql(ctx, dropPublications)
	pause(ctx, without)
	return errors.Join(err, t.sql(ctx, createPublications))
}

// sqlTimeout bounds one statement of the tormentor or the operator.
const sqlTimeout = 15 * time.Second

// sql runs one statement as a superuser, on a connection of its own.
func (t *tormentor) sql(ctx context.Context, statement string, args ...any) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sqlTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, t.database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, statement, args...)
	return err
}
