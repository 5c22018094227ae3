package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	databaseName = "torture"
	appRole      = "app"
)

// journals are the files that are written during a run.
type journals struct {
	writes     *journal[write]
	endings    *journal[ending]
	requests   *journal[request]
	answers    *journal[answer]
	faults     *journal[fault]
	agents     *journal[agentRun]
	operations *journal[operation]
	resources  *journal[resources]
}

func openJournals(dir string) (*journals, error) {
	j := &journals{}
	return j, errors.Join(
		open(&j.writes, dir, writesFile), open(&j.endings, dir, endingsFile), open(&j.requests, dir, requestsFile),
		open(&j.answers, dir, answersFile), open(&j.faults, dir, faultsFile), open(&j.agents, dir, agentsFile),
		open(&j.operations, dir, operationsFile), open(&j.resources, dir, resourcesFile),
	)
}

func open[T any](j **journal[T], dir, name string) (err error) {
	*j, err = openJournal[T](dir, name)
	return err
}

func (j *journals) close() error {
	return errors.Join(j.writes.close(), j.endings.close(), j.requests.close(), j.answers.close(), j.faults.close(),
		j.agents.close(), j.operations.close(), j.resources.close())
}

// world is the agents and everything around them. The tormentor, which breaks them, is not part of
// it.
type world struct {
	dir       string
	clock     stopwatch
	files     *journals
	cluster   *testenv.Cluster
	customers *customers
	receivers *testenv.Proxy // between the agents and the customers
	agents    []*agent
	endpoints []*endpointInfo
	venues    []string

	closers []func() error // close calls the last one first
}

// newWorld makes the world of a run: PostgreSQL with the schema, the receivers, the endpoints, and
// two agents that are not started yet. If it fails, it closes what it has made so far.
func newWorld(ctx context.Context, cfg config, dir string, clock stopwatch) (_ *world, err error) {
	w := &world{dir: dir, clock: clock}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.files, err = openJournals(dir); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, w.files.close)
	if err := w.startPostgres(ctx); err != nil {
		return nil, err
	}
	if err := w.startReceivers(cfg.seed); err != nil {
		return nil, err
	}
	if err := w.makeAgents(cfg); err != nil {
		return nil, err
	}
	if err := w.agents[0].command(ctx, "migrate"); err != nil {
		return nil, err
	}
	if err := testenv.ExecSQL(ctx, w.cluster.URL(databaseName), appRights+witness); err != nil {
		return nil, fmt.Errorf("prepare the database: %w", err)
	}
	return w, register(ctx, w.cluster.URL(databaseName), w.endpoints)
}

// close ends everything, in the reverse order of its making.
func (w *world) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	w.closers = nil
	return errors.Join(errs...)
}

const appRights = `
grant usage on schema webhooks to ` + appRole + `;
grant select, insert on webhooks.outbox to ` + appRole + `;
`

// witness records each change of a delivery that had ended, if no replay makes the change. There
// should be none: a recorded result is never recorded again.
const witness = `
create schema torture;
create table torture.rewritten (
	event text, endpoint text, before text, after text, at timestamptz not null default clock_timestamp()
);
create function torture.note() returns trigger language plpgsql security definer as $$
begin
	insert into torture.rewritten (event, endpoint, before, after)
	values (new.event_id, new.endpoint_id, old.status || ' ' || old.attempts, new.status || ' ' || new.attempts);
	return null;
end
$$;
create trigger torture_note after update on webhooks.deliveries for each row
	when (old.status <> 'pending' and not (new.status = 'pending' and new.replay_id is distinct from old.replay_id))
	execute function torture.note();

-- Nobody but the operator resumes a replay. A canceled one has nothing pending once it has finished.
create function torture.note_replay() returns trigger language plpgsql security definer as $$
begin
	if old.state = 'paused' and new.state in ('pending', 'running') and current_setting('torture.operator', true) is distinct from 'yes' then
		insert into torture.rewritten (event, endpoint, before, after) values (new.id, new.endpoint_id, 'a paused replay', new.state);
	elsif new.state = 'canceled' and new.finished is not null then
		insert into torture.rewritten (event, endpoint, before, after)
		select event_id, endpoint_id, 'set back by a replay that was canceled', 'pending for ever'
		from webhooks.deliveries d where d.endpoint_id = new.endpoint_id and d.replay_id = new.id and d.status = 'pending';
	end if;
	return null;
end
$$;
create trigger torture_note_replay after update on webhooks.replays for each row execute function torture.note_replay();

-- What is taken back without an attempt that ends it is what it was. No paused or canceled replay sets anything back.
create function torture.note_former() returns trigger language plpgsql security definer as $$
declare
	state text := (select r.state from webhooks.replays r where r.id = new.replay_id);
begin
	if new.status = 'pending' then
		if state in ('paused', 'canceled') then
			insert into torture.rewritten (event, endpoint, before, after)
			values (new.event_id, new.endpoint_id, old.status, 'pending, by a replay that is ' || state);
		end if;
	elsif state = 'canceled' and new.former is null
		and (new.status, new.attempts, new.last_code) is distinct from (old.former->>'status', (old.former->>'attempts')::smallint, (old.former->>'last_code')::int) then
		insert into torture.rewritten (event, endpoint, before, after)
		values (new.event_id, new.endpoint_id, 'before a canceled replay: ' || old.former::text, new.status || ' ' || new.attempts);
	end if;
	return null;
end
$$;
create trigger torture_note_set_back after update on webhooks.deliveries for each row
	when (new.status = 'pending' and new.replay_id is distinct from old.replay_id) execute function torture.note_former();
create trigger torture_note_taken_back after update on webhooks.deliveries for each row
	when (old.status = 'pending' and old.former is not null and new.former is null and new.status <> 'missed') execute function torture.note_former();
`

func (w *world) startPostgres(ctx context.Context) (err error) {
	// PostgreSQL decodes a transaction larger than logical_decoding_work_mem from a file. With the
	// least value it does so often.
	settings := map[string]string{"logical_decoding_work_mem": "64kB"}
	w.cluster, err = testenv.Start(ctx, testenv.Options{Durable: true, Settings: settings})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.cluster.Close)
	if err := w.cluster.CreateRole(ctx, appRole, ""); err != nil {
		return err
	}
	if err := testenv.ExecSQL(ctx, w.cluster.URL("postgres"), "create database "+databaseName); err != nil {
		return fmt.Errorf("create the database: %w", err)
	}
	// The agent makes its schema and its publications itself, and needs this right for it.
	rights := "grant create on database " + databaseName + " to " + testenv.AgentRole
	if err := testenv.ExecSQL(ctx, w.cluster.URL(databaseName), rights); err != nil {
		return fmt.Errorf("prepare the database: %w", err)
	}
	return nil
}

func (w *world) startReceivers(seed uint64) (err error) {
	if w.customers, err = startCustomers(w.clock, seed, w.files.requests, w.files.answers); err != nil {
		return err
	}
	w.closers = append(w.closers, w.customers.close)
	if w.receivers, err = testenv.NewProxy(w.customers.address()); err != nil {
		return err
	}
	w.closers = append(w.closers, w.receivers.Close)
	nowhere, err := testenv.FreePort()
	if err != nil {
		return err
	}
	w.endpoints, w.venues = makeEndpoints(seed, w.receivers.Addr(), net.JoinHostPort("127.0.0.1", strconv.Itoa(nowhere)))
	w.customers.serve(w.endpoints)
	return nil
}

func (w *world) makeAgents(cfg config) error {
	agentURL := w.cluster.RoleURL(testenv.AgentRole, databaseName)
	host, err := hostOf(agentURL)
	if err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		proxy, err := testenv.NewProxy(host)
		if err != nil {
			return err
		}
		w.closers = append(w.closers, proxy.Close)
		a, err := newAgent(name, w.dir, agentURL, cfg, proxy, w.clock, w.files.agents)
		if err != nil {
			return err
		}
		w.agents = append(w.agents, a)
		w.closers = append(w.closers, a.close)
	}
	return nil
}

// startAgents starts both agents, and waits until one leads and the other stands by. It then
// measures their resources as the base.
func (w *world) startAgents(ctx context.Context) error {
	for _, a := range w.agents {
		if err := a.start(); err != nil {
			return err
		}
		if err := w.awaitReady(ctx, a); err != nil {
			return err
		}
	}
	return w.measure(ctx, "base")
}

// awaitReady asks /readyz until it answers that the agent leads or stands by.
func (w *world) awaitReady(ctx context.Context, a *agent) error {
	deadline := w.clock.now() + readyTimeout
	for {
		said, err := a.get(ctx, "/readyz")
		if err == nil && (said == "leading\n" || said == "standing by\n") {
			return nil
		}
		if w.clock.now() > deadline {
			//nolint:errorlint // err is nil where the agent says that it is not ready
			return fmt.Errorf("agent %s is not ready within %s: %s%v; its log ends:\n%s",
				a.name, readyTimeout, said, err, testenv.LogTail(a.log))
		}
		pause(ctx, 50*time.Millisecond)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// measure writes down the resources of both agents.
func (w *world) measure(ctx context.Context, phase string) error {
	for _, a := range w.agents {
		r, err := a.measure(ctx, phase)
		if err != nil {
			return err
		}
		w.files.resources.add(r)
	}
	return nil
}

// describe writes down the settings of the run.
func (w *world) describe(cfg config) error {
	binaries := w.cluster.Binaries()
	info := runInfo{
		Begun: w.clock.begun, Seed: cfg.seed, Length: cfg.length(), Only: cfg.only, Commit: cfg.commit,
		PostgreSQL:   fmt.Sprintf("%d.%d", binaries.Major, binaries.Minor),
		DisableAfter: cfg.disableAfter, Attempts: 1 + len(retries), Timeout: attemptTimeout,
	}
	var endpoints []endpointInfo
	for _, e := range w.endpoints {
		endpoints = append(endpoints, *e)
	}
	return errors.Join(save(w.dir, runFile, []runInfo{info}), save(w.dir, endpointsFile, endpoints))
}

// newDir makes the folder for the files of a run.
func newDir() (string, error) {
	dir, err := os.MkdirTemp("", "webhook-torture-")
	if err != nil {
		return "", fmt.Errorf("make the folder of the run: %w", err)
	}
	return dir, nil
}
