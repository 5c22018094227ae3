package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/recent"
)

const (
	// ParkAfter is how long a delivery may have no row. After that, a pending row is inserted.
	ParkAfter = time.Second
	// stallAfter is how long a commit may take before new attempts wait for it. If the process dies
	// then, few results are lost.
	stallAfter = time.Second
	// resultQueue and batchQueue bound what waits for the next commit. resultQueue counts calls of
	// Write, one for each attempt. batchQueue counts deliveries of the stream's batches, and one
	// more for each batch. The two queues are separate, because a batch may bring many rows: a
	// burst for one endpoint would delay the attempts to all. batchQueue must also have room for
	// many small transactions.
	resultQueue = 1024
	batchQueue  = 4096
	// groupRows is how many rows one commit gathers before it leaves the rest to the next. The last
	// batch that it takes may exceed this. parkRows is how many rows the commit parks in addition.
	// So a commit stays small and is done in time, however many deliveries a transaction brings.
	groupRows = 2048
	parkRows  = 2048
	// groupInterval is the least time between two commits. Each commit has a fixed cost: four
	// statements, a flush of the WAL, and a version of the checkpoint's row. The interval is
	// shorter than an attempt and delays no attempt.
	groupInterval = 20 * time.Millisecond
	// busyInterval and idleInterval are how often a watermark is stored if it has moved without any
	// record. busyInterval is for events that nobody subscribed to. idleInterval is for positions
	// of other tables, and applies only after idleBytes more. Without idleBytes, storing would
	// write WAL, which would move the position again, and so on for ever.
	busyInterval = time.Second
	idleInterval = 10 * time.Second
	idleBytes    = 1 << 20
)

// LedgerConfig connects a Ledger with the rest of the agent. The Ledger's goroutine calls the
// functions. They must not wait and must not call the Ledger.
type LedgerConfig struct {
	Config
	Term Term
	Log  *slog.Logger
	// Clock gives the time at which a parked delivery is due.
	Clock *Clock
	// DisableAfter is the number of failures in a row that disables an endpoint, for notices.
	DisableAfter int
	// Confirm is called when the checkpoint holds this position.
	Confirm func(LSN)
	// Committed is called with the records that are durable now.
	Committed func([]*Record)
	// Requeued is called when an endpoint has pending rows that are due at once.
	Requeued func(endpointID string)
	// Withdraw stops the sending of a replay. It returns the endpoint's events whose attempts may be
	// under way or whose results are not committed. It is nil if nothing is sent.
	Withdraw func(endpointID, replayID string) []string
	// Recovered is called with the number of rows that a comparison has added. It may be nil.
	Recovered func(n int)
	// Stalled is called with true when a commit takes long, and with false when that is over.
	Stalled func(bool)
	// ServerEnds is called when PostgreSQL is shutting down or starting up.
	ServerEnds func()
}

// Ledger is the only writer of deliveries, attempts and endpoint_health while a term lasts. It also
// deletes the health of removed endpoints; the Pruner deletes the other rows. While one transaction
// is under way, the Ledger gathers what comes in, and commits it in the next one. Any goroutine may
// call its methods. They wait while the Ledger's queue is full.
type Ledger struct {
	cfg LedgerConfig
	// The methods send to these channels, and Run receives.
	batches chan *Tracked // has room for everything that waiting lets in
	entries chan []Entry
	closed  chan struct{}       // closed by Close
	waiting *semaphore.Weighted // has batchQueue places, for the content of batches

	// Only Run uses the fields below.
	conn     *pgx.Conn
	sequence int64
	mark     watermark
	jobs     []job     // between two groups, the first job makes one step
	resting  []resting // jobs that pause
	missing  *missJob  // is one of jobs while it has something to do
	// stopped has the version of the latest StopMissing of an endpoint. Each Missing up to it is over: a
	// StopMissing can overtake a Missing that was decided on before.
	stopped recent.Map[int]
	// By endpoint, the version of the latest Health, until the endpoint is gone.
	versions  map[string]int64
	announcer *announcer
	reused    reusedIDs
	stored    LSN // the checkpoint as committed
	storedAt  time.Time
	pause     *time.Timer                  // belongs to gather
	trouble   backoff.Trouble              // why it cannot commit
	panicked  atomic.Pointer[panics.Error] // a timer's panic, which ends Run

	stats ledgerStats
}

// ledgerStats is what Stats reads from other goroutines.
type ledgerStats struct {
	groups, rows, parked atomic.Int64
	lag                  atomic.Int64 // nanoseconds
	stored               atomic.Uint64
	// LSN; everything up to it has its rows, but the checkpoint may be behind
	recorded atomic.Uint64
	failing  atomic.Pointer[string]
	stalled  atomic.Bool
	horizon  atomic.Bool // a horizon was stored in this term
}

// LedgerStats is a view of the Ledger for metrics.
type LedgerStats struct {
	Groups, Rows, Parked int64         // commits, delivery rows in them, rows that were parked
	Lag                  time.Duration // age of the oldest batch that is not recorded completely
	Checkpoint           LSN
	Failing              string // why the last try to commit failed; "" if it did not
	Stalled              bool   // the current commit takes long
}

// resting is a job that pauses.
type resting struct {
	job   job
	until time.Time
}

// NewLedger makes a Ledger for one term. It starts nothing.
func NewLedger(cfg LedgerConfig) *Ledger {
	l := &Ledger{cfg: cfg, trouble: backoff.Trouble{
		Log: cfg.Log, Level: slog.LevelError, Begins: "cannot record deliveries; the agent keeps them and tries again", Ends: "recording deliveries again",
	},
		sequence: cfg.Term.Sequence, stored: cfg.Term.LSN,
		batches: make(chan *Tracked, batchQueue), entries: make(chan []Entry, resultQueue), closed: make(chan struct{}),
		waiting:   semaphore.NewWeighted(batchQueue),
		versions:  map[string]int64{},
		announcer: newAnnouncer(cfg.Config, cfg.DisableAfter, cfg.Log)}
	l.missing = &missJob{slot: cfg.Slot, waiting: map[string]Missing{}, finished: func(endpointID string) {
		delete(l.versions, endpointID)
		delete(l.announcer.handled, endpointID)
	}}
	l.mark.low = cfg.Term.LSN
	l.stats.stored.Store(uint64(l.stored))
	l.stats.recorded.Store(uint64(l.stored))
	return l
}

// Track hands a batch to the Ledger. It must be called in commit order.
func (l *Ledger) Track(ctx context.Context, b *Tracked) error {
	if err := l.waiting.Acquire(ctx, b.weight()); err != nil {
		return context.Cause(ctx)
	}
	l.batches <- b
	return nil
}

// weight returns how much of batchQueue a batch takes. A large batch takes all of it.
func (b *Tracked) weight() int64 { return int64(min(1+len(b.Deliveries), batchQueue)) }

// Close makes Run commit what it has and return. Nothing may be sent after it.
func (l *Ledger) Close() { close(l.closed) }

// Stats is safe for concurrent use.
func (l *Ledger) Stats() LedgerStats {
	s := LedgerStats{
		Groups: l.stats.groups.Load(), Rows: l.stats.rows.Load(), Parked: l.stats.parked.Load(),
		Lag: time.Duration(l.stats.lag.Load()), Checkpoint: LSN(l.stats.stored.Load()), Stalled: l.stats.stalled.Load(),
	}
	if why := l.stats.failing.Load(); why != nil {
		s.Failing = *why
	}
	return s
}

// Run records until everything is committed after Close (nil), another agent has taken over
// (ErrFenced), or ctx ends. While the database is unavailable, Run keeps what it has and tries
// again.
func (l *Ledger) Run(ctx context.Context) error {
	defer func() {
		if l.conn != nil {
			closeConn(l.conn)
		}
	}()
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	l.pause = time.NewTimer(time.Hour)
	defer l.pause.Stop()
	l.storedAt = time.Now()
	for last := false; !last; {
		g := newGroup()
		g.slot = l.cfg.Slot
		if len(l.jobs) == 0 {
			wake.Reset(l.wait(time.Now()))
			select {
			case e := <-l.entries:
				l.take(g, e)
			case b := <-l.batches:
				l.track(g, b)
			case <-wake.C:
			case <-l.closed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		select {
		case <-l.closed:
			last = true // everything that will ever be sent is in the channels now
		default:
		}
		full := l.gather(ctx, g)
		last = last && !full
		now := time.Now()
		l.wakeJobs(now)
		l.mark.overdue(now.Add(-ParkAfter), parkRows, func(d *Delivery) {
			l.stats.parked.Add(1)
			g.add(&Record{Delivery: d, Status: Pending, NextAttempt: l.cfg.Clock.Now(), Parked: true})
			l.mark.recorded(d)
		})
		l.mark.advance()
		l.noteLag(now)
		if err := l.commit(ctx, g, last); err != nil {
			return err
		}
		l.stats.recorded.Store(uint64(l.mark.low))
		if err := l.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// gather takes what is waiting, entries first, and what comes within groupInterval of the last
// commit. It returns true if the group is full and more may be waiting.
func (l *Ledger) gather(ctx context.Context, g *group) (full bool) {
	for len(g.records)+len(g.health)+len(g.former) < groupRows {
		select {
		case e := <-l.entries:
			l.take(g, e)
			continue
		default:
		}
		select {
		case b := <-l.batches:
			l.track(g, b)
			continue
		default:
		}
		rest := groupInterval - time.Since(l.storedAt)
		if g.empty() || rest <= 0 || len(l.jobs) > 0 {
			return false
		}
		l.pause.Reset(rest)
		select {
		case e := <-l.entries:
			l.take(g, e)
		case b := <-l.batches:
			l.track(g, b)
		case <-l.pause.C:
			return false
		case <-l.closed:
			return false
		case <-ctx.Done():
			return false // commit will report that
		}
	}
	return true
}

func (l *Ledger) track(g *group, b *Tracked) {
	l.waiting.Release(b.weight())
	l.mark.track(b)
	for _, r := range b.Records {
		g.add(r)
		l.mark.recorded(r.Delivery)
	}
}

// takeHealth keeps the latest state of an endpoint's counter. Attempts of one endpoint end in
// parallel, so an earlier state may arrive later.
func (l *Ledger) takeHealth(g *group, h *Health) {
	if h == nil || h.Version <= l.versions[h.EndpointID] {
		return
	}
	l.versions[h.EndpointID] = h.Version
	g.health[h.EndpointID] = h
}

func (l *Ledger) noteLag(now time.Time) {
	var lag time.Duration
	if read, ok := l.mark.oldest(); ok {
		lag = now.Sub(read)
	}
	l.stats.lag.Store(int64(lag))
}

// wait returns how long Run may sleep if nothing comes in.
func (l *Ledger) wait(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	if read, ok := l.mark.oldestUnrecorded(); ok {
		next = read.Add(ParkAfter)
	}
	if l.mark.low > l.stored {
		if due := l.storedAt.Add(l.storeInterval()); due.Before(next) {
			next = due
		}
	}
	for _, r := range l.resting {
		if r.until.Before(next) {
			next = r.until
		}
	}
	return max(0, next.Sub(now))
}

// storeInterval returns how long a watermark may stay unstored if no record takes it along.
func (l *Ledger) storeInterval() time.Duration {
	switch {
	case l.mark.busy:
		return busyInterval
	case l.mark.low-l.stored >= idleBytes:
		return idleInterval
	}
	return time.Hour
}

// commit makes g and the watermark durable. Then it calls the functions of LedgerConfig.
func (l *Ledger) commit(ctx context.Context, g *group, last bool) error {
	lsn := l.mark.low
	if g.empty() {
		moved := lsn > l.stored
		if !moved || !last && time.Since(l.storedAt) < l.storeInterval() {
			return nil
		}
	}
	notices := l.announcer.pending(g)
	err := l.transact(ctx, lsn, func(ctx context.Context, tx *pgx.Conn) error {
		err := g.write(ctx, tx)
		if err == nil && g.reused > 0 {
			err = exec(ctx, tx, noteReused, l.cfg.Slot, g.reused)
		}
		if g.refused(SQLState(err)) {
			err = fmt.Errorf("%w: %w", errWrittenAnew, err)
		}
		if err == nil {
			err = l.announcer.write(ctx, tx, notices)
		}
		return err
	})
	if err != nil {
		return err
	}
	l.announcer.done(notices)
	l.wakeReplays(&g.ended)
	l.tellAsides(g)
	l.tellReused(g.reused)
	l.stats.groups.Add(1)
	l.stats.rows.Add(int64(len(g.rows)))
	for _, r := range g.records {
		if r.Disable != "" {
			l.jobs = append(l.jobs, &disableJob{Disabling: Disabling{r.Delivery.EndpointID, r.Disable, r.Health.Generation}, announcer: l.announcer})
		}
	}
	if len(g.records) > 0 {
		l.cfg.Committed(g.records)
	}
	return nil
}

// step makes one step of the first job.
func (l *Ledger) step(ctx context.Context) error {
	if len(l.jobs) == 0 {
		return nil
	}
	j := l.jobs[0]
	if l.idle(ctx, j) {
		l.jobs = l.jobs[1:]
		l.resting = append(l.resting, resting{j, time.Now().Add(j.pause())})
		return nil
	}
	var (
		finished bool
		tries    int
		fault    error // the error of the step itself
	)
	err := l.transact(ctx, l.mark.low, func(ctx context.Context, tx *pgx.Conn) (err error) {
		if fault != nil && tries >= jobTries {
			finished = true
			return j.abandon(ctx, tx, fault.Error())
		}
		err = panics.Guard(l.cfg.Caught, func() (err error) {
			finished, err = j.step(ctx, tx)
			return err
		})()
		if err != nil && failedByItself(ctx, err, l.conn.IsClosed()) {
			tries++
			fault = err
		}
		return err
	})
	if err != nil {
		return err
	}
	if fault != nil && tries >= jobTries {
		l.cfg.Log.Error("a job of the ledger was given up", "error", fault)
	}
	for _, endpointID := range j.committed() {
		l.cfg.Requeued(endpointID)
	}
	l.jobs = l.jobs[1:]
	switch pause := j.pause(); {
	case finished && (j != job(l.missing) || len(l.missing.waiting) == 0):
	case pause > 0:
		l.resting = append(l.resting, resting{j, time.Now().Add(pause)})
	default: // the next job gets its turn before a long job goes on
		l.jobs = append(l.jobs, j)
	}
	return nil
}

// failedByItself reports whether a step of a job is at fault for err, and not the database. ctx is
// that of the try. A step that began, and had no answer in time, takes too long: if the database were
// away, the next try could not even connect.
func failedByItself(ctx context.Context, err error, closed bool) bool {
	return errors.Is(context.Cause(ctx), errNoAnswer) || !closed && !transient(err)
}

// idle reports whether a step of j would change nothing, so that it needs no commit. A failure is left
// to the step.
func (l *Ledger) idle(ctx context.Context, j job) (idle bool) {
	looks, ok := j.(looker)
	if !ok || l.conn == nil {
		return false
	}
	defer l.watchStall()()
	ctx, cancel := answered(ctx)
	defer cancel()
	err := panics.Guard(l.cfg.Caught, func() (err error) {
		idle, err = looks.look(ctx, l.conn)
		return err
	})()
	if err != nil {
		closeConn(l.conn)
		l.conn = nil
	}
	return idle && err == nil
}

// wakeJobs puts jobs back that have paused long enough.
func (l *Ledger) wakeJobs(now time.Time) {
	l.resting = slices.DeleteFunc(l.resting, func(r resting) bool {
		due := !r.until.After(now)
		if due {
			l.jobs = append(l.jobs, r.job)
		}
		return due
	})
}

// replay begins a replay, unless it is under way: the state is loaded again during a term.
func (l *Ledger) replay(r Replay) {
	same := func(j job) bool {
		other, ok := j.(*replayJob)
		return ok && other.ID == r.ID
	}
	if slices.ContainsFunc(l.jobs, same) || slices.ContainsFunc(l.resting, func(r resting) bool { return same(r.job) }) {
		return
	}
	l.jobs = append(l.jobs, &replayJob{Replay: r, slot: l.cfg.Slot, withdraw: l.cfg.Withdraw})
}

// wakeReplays has those replays go on whose look-ahead was full, and of which a good part has ended.
func (l *Ledger) wakeReplays(ended *replayCounts) {
	if len(ended.ids) == 0 {
		return
	}
	for i, r := range l.resting {
		j, ok := r.job.(*replayJob)
		if !ok {
			continue
		}
		if at, counted := ended.place[j.ID]; counted {
			j.ended += ended.done[at] + ended.unsent[at]
			if j.full && j.ended >= lookAhead/4 {
				l.resting[i].until = time.Time{}
			}
		}
	}
}

func (l *Ledger) miss(m Missing) {
	if stopped, _ := l.stopped.Get(m.EndpointID); m.Version <= stopped {
		return
	}
	if !slices.Contains(l.jobs, job(l.missing)) {
		l.jobs = append(l.jobs, l.missing)
	}
	l.missing.add(m)
}
