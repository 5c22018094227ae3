package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/panics"
)

const (
	// ParkAfter is how long a delivery may be without a row: after it, a pending one is inserted.
	ParkAfter = time.Second
	// stallAfter is how long a commit may take before new attempts wait for it, so that few results are lost with a
	// process that dies then.
	stallAfter = time.Second
	// resultQueue and batchQueue bound what waits for the next commit: calls of Write, one for each attempt, and deliveries of
	// the batches of the stream, each batch counting for one more. They wait apart, since a batch may bring many rows: attempts to all
	// endpoints would wait behind a burst for one. Many small transactions must fit as well as a large one.
	resultQueue = 1024
	batchQueue  = 4096
	// groupRows is how many rows one commit gathers before it leaves the rest to the next; the last batch that it takes may
	// exceed it. parkRows is how many it parks beside them. Whatever a transaction fans out to, a commit stays so small that it is
	// done in time.
	groupRows = 2048
	parkRows  = 2048
	// groupInterval is how soon after a commit the next one may come. A commit has a price whatever it holds: four statements,
	// a flush of the WAL, a version of the checkpoint's row. It is less than an attempt takes, and adds to no attempt.
	groupInterval = 20 * time.Millisecond
	// busyInterval and idleInterval are how often a watermark is stored that has moved without any record: over
	// events that nobody subscribed to, and over positions of other tables. The second is stored only after idleBytes
	// more, for storing it writes WAL as well, which would go round for ever.
	busyInterval = time.Second
	idleInterval = 10 * time.Second
	idleBytes    = 1 << 20
)

// LedgerConfig connects a Ledger with its surroundings. The functions are called by the Ledger's goroutine; they must
// not wait and must not call the Ledger.
type LedgerConfig struct {
	Config
	Term Term
	Log  *slog.Logger
	// Clock tells when what is parked is due.
	Clock *Clock
	// Confirm tells that the checkpoint holds this position.
	Confirm func(LSN)
	// Committed is called with the records that are durable now.
	Committed func([]*Record)
	// Requeued tells that an endpoint has pending rows that are due at once.
	Requeued func(endpointID string)
	// Recovered tells that a comparison has given so many deliveries their rows; nil for nothing.
	Recovered func(n int)
	// Stalled tells that a commit takes long (true), and that it is over (false).
	Stalled func(bool)
	// ServerEnds tells that PostgreSQL is shutting down (or starting up).
	ServerEnds func()
}

// Ledger is the only writer of deliveries, attempts, endpoint_health and checkpoint; only the Pruner deletes. It gathers what
// comes in while one transaction is on its way and commits it in the next. Its methods may be called from any goroutine
// and wait while the Ledger's queue is full.
type Ledger struct {
	cfg LedgerConfig
	// Sent by the methods, received by Run.
	batches chan *Tracked // has room for all that waiting admits
	entries chan []Entry
	closed  chan struct{}       // closed by Close
	waiting *semaphore.Weighted // of batchQueue, for what is in batches

	// The rest belongs to Run.
	conn     *pgx.Conn
	sequence int64
	mark     watermark
	jobs     []job     // between groups, the first one makes one step
	resting  []resting // jobs that pause
	missing  *missJob  // stands among jobs while it has something to do
	stopped  stops
	versions map[string]int64 // by endpoint, the latest Health that was taken in, until the endpoint is gone
	reused   reusedIDs
	stored   LSN // the checkpoint as committed
	storedAt time.Time
	pause    *time.Timer                  // of gather
	trouble  backoff.Trouble              // why it cannot commit
	panicked atomic.Pointer[panics.Error] // of a timer; it ends Run

	stats ledgerStats
}

// ledgerStats is what Stats reads from other goroutines.
type ledgerStats struct {
	groups, rows, parked atomic.Int64
	lag                  atomic.Int64 // nanoseconds
	stored               atomic.Uint64
	recorded             atomic.Uint64 // LSN; everything up to it has its rows, which the checkpoint may not tell yet
	failing              atomic.Pointer[string]
	stalled              atomic.Bool
	horizon              atomic.Bool // one was stored in this term
}

// LedgerStats is a view of the Ledger for metrics.
type LedgerStats struct {
	Groups, Rows, Parked int64         // commits, delivery rows in them, rows that were parked
	Lag                  time.Duration // age of the oldest batch that is not recorded completely
	Checkpoint           LSN
	Failing              string // why the last try to commit failed, "" when it did not
	Stalled              bool   // the commit under way takes long
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
		waiting:  semaphore.NewWeighted(batchQueue),
		versions: map[string]int64{}}
	l.missing = &missJob{waiting: map[string]Missing{}, finished: func(endpointID string) { delete(l.versions, endpointID) }}
	l.mark.low = cfg.Term.LSN
	l.stats.stored.Store(uint64(l.stored))
	l.stats.recorded.Store(uint64(l.stored))
	return l
}

// Track takes in a batch. It must be called in commit order.
func (l *Ledger) Track(ctx context.Context, b *Tracked) error {
	if err := l.waiting.Acquire(ctx, b.weight()); err != nil {
		return context.Cause(ctx)
	}
	l.batches <- b
	return nil
}

// weight is what a batch takes of batchQueue: a large one takes all of it.
func (b *Tracked) weight() int64 { return int64(min(1+len(b.Deliveries), batchQueue)) }

// Close tells Run to commit what it has and to return. Nothing may be sent after it.
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

// Run records until Close was called and everything is committed (nil), another agent has taken over (ErrFenced), or
// ctx ends. While the database is away it keeps what it has and tries again.
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
			last = true // all that will ever be sent waits in the channels now
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

// gather takes what waits already, entries first, and what comes within groupInterval of the last commit. It returns true when
// the group is full and more may wait.
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
			return false // commit will say so
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

// takeHealth keeps the latest state of an endpoint's counter. Attempts of one endpoint end in parallel, so an earlier
// state may come in later.
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

// wait returns how long Run may sleep when nothing comes in.
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

// storeInterval is how long a watermark may stay unstored that no record takes along.
func (l *Ledger) storeInterval() time.Duration {
	switch {
	case l.mark.busy:
		return busyInterval
	case l.mark.low-l.stored >= idleBytes:
		return idleInterval
	}
	return time.Hour
}

// commit makes g and the watermark durable, and then tells the surroundings.
func (l *Ledger) commit(ctx context.Context, g *group, last bool) error {
	lsn := l.mark.low
	if g.empty() {
		moved := lsn > l.stored
		if !moved || !last && time.Since(l.storedAt) < l.storeInterval() {
			return nil
		}
	}
	err := l.transact(ctx, lsn, func(ctx context.Context, tx querier) error {
		err := g.write(ctx, tx)
		if err == nil && g.reused > 0 {
			err = exec(ctx, tx, noteReused, l.cfg.Slot, g.reused)
		}
		if g.refused(SQLState(err)) {
			err = fmt.Errorf("%w: %w", errWrittenAnew, err)
		}
		return err
	})
	if err != nil {
		return err
	}
	l.tellAsides(g)
	l.tellReused(g.reused)
	l.stats.groups.Add(1)
	l.stats.rows.Add(int64(len(g.rows)))
	for _, r := range g.records {
		if r.Disable != "" {
			l.jobs = append(l.jobs, &disableJob{Disabling: Disabling{r.Delivery.EndpointID, r.Disable, r.Health.Generation}})
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
	var (
		finished bool
		tries    int
		fault    error // of the step itself
	)
	err := l.transact(ctx, l.mark.low, func(ctx context.Context, tx querier) (err error) {
		if fault != nil && tries >= jobTries {
			finished = true
			return j.abandon(ctx, tx, fault.Error())
		}
		err = panics.Guard(l.cfg.Caught, func() (err error) {
			finished, err = j.step(ctx, tx)
			return err
		})()
		if err != nil && !l.conn.IsClosed() && !transient(err) {
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
	default: // a long job lets the others go in turn
		l.jobs = append(l.jobs, j)
	}
	return nil
}

// wakeJobs puts the jobs back that have paused long enough.
func (l *Ledger) wakeJobs(now time.Time) {
	l.resting = slices.DeleteFunc(l.resting, func(r resting) bool {
		due := !r.until.After(now)
		if due {
			l.jobs = append(l.jobs, r.job)
		}
		return due
	})
}

func (l *Ledger) miss(m Missing) {
	if m.Version <= l.stopped.version(m.EndpointID) {
		return
	}
	if !slices.Contains(l.jobs, job(l.missing)) {
		l.jobs = append(l.jobs, l.missing)
	}
	l.missing.add(m)
}

// stopKept is how long a StopMissing is remembered at least. It overtakes a Missing by the time that a goroutine takes
// from deciding on it to writing it, while the ledger receives.
const stopKept = time.Minute

// stops remembers the latest StopMissing: up to which version Missing is over, by endpoint.
type stops struct {
	recent, before map[string]int
	since          time.Time // when recent was begun
}

func (s *stops) add(stop StopMissing, now time.Time) {
	if now.Sub(s.since) > stopKept {
		s.recent, s.before, s.since = map[string]int{}, s.recent, now
	}
	s.recent[stop.EndpointID] = stop.Version
}

func (s *stops) version(endpointID string) int {
	return max(s.recent[endpointID], s.before[endpointID])
}
