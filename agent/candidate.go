package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
)

const (
	// standbyInterval is the wait between two tries to get the slot while another agent holds it.
	standbyInterval = time.Second
	// batchQueue is how many batches may wait between the tailer and the router.
	batchQueue = 4
)

// candidate is this agent as it tries to lead with a slot. It waits for the slot, begins a term,
// and tries again when the term is over. A candidate outlives its terms.
type candidate struct {
	*agent
	slot    *outbox.Slot
	term    atomic.Pointer[term]   // the current term; nil while this agent does not lead
	standby atomic.Bool            // reports that another agent holds the slot
	problem atomic.Pointer[string] // why there is no term; nil before the first problem
	ahead   atomic.Pointer[string] // that the schema is newer than this agent, as the last preflight says; or nil

	// The fields below belong to the goroutine of lead.
	trouble backoff.Trouble  // why nothing is delivered
	warned  map[warning]bool // those of the preflight that are logged already
	// undecodable is the position at which the stream met changes that cannot be decoded; zero when
	// it has met none. A slot that stands there or before must be replaced by a new one.
	undecodable outbox.LSN
	replaced    replacements
}

// warning identifies a finding of the preflight.
type warning struct{ thing, reason string }

// newCandidate returns a candidate for a slot. It starts nothing.
func newCandidate(a *agent, slot *outbox.Slot) *candidate {
	return &candidate{
		agent: a, slot: slot, warned: map[warning]bool{},
		// The log line "leading" says that the trouble is over.
		trouble: backoff.Trouble{Log: a.log, Level: slog.LevelError, Begins: "cannot stream the outbox; trying again"},
	}
}

// lead leads in one term after the other until ctx ends. It returns an error only before the first
// term, and only for a problem that waiting does not solve.
func (c *candidate) lead(ctx context.Context) error {
	ever := false
	pace := newPace()
	for {
		began := time.Now()
		var led bool
		err := panics.Guard(c.caught, func() (err error) {
			led, err = c.try(ctx)
			return err
		})()
		// New connections see what the server and its settings are now; old ones may not.
		c.db.Reset()
		panicked, isPanic := errors.AsType[*panics.Error](err)
		ever = ever || led
		if led && (!isPanic && !isFatal(err) || time.Since(began) > soundConnection) {
			c.trouble.Note(nil)
			pace = newPace()
		}
		if ctx.Err() != nil {
			if led && err != nil {
				c.log.Warn("ended before everything was recorded; the next leader sends the rest again", "error", err)
			}
			return nil
		}
		if problem, _ := errors.AsType[*outbox.Problem](err); isFatal(err) && !ever {
			return problem
		}
		switch {
		case isPanic: // agent.caught has logged it
			text := panicked.Error()
			c.problem.Store(&text)
		case errors.Is(err, outbox.ErrFenced):
			c.log.Warn("another agent has taken over; standing by")
		case errors.Is(err, errCoverage):
			c.log.Warn(err.Error())
		default:
			c.reportProblem(err)
		}
		if !backoff.Sleep(ctx, pace.next(err, time.Now())) {
			return nil
		}
	}
}

// try makes one try to lead: it waits for the slot, takes over, and delivers until the term is
// over. led reports whether this agent has led. err says why the term ended, and is nil when ctx
// ended it.
func (c *candidate) try(ctx context.Context) (led bool, err error) {
	tailer := outbox.NewTailer(c.outboxConfig(), c.log)
	tailer.SetAside = c.setAside
	defer tailer.Close()
	defer c.standby.Store(false)
	life := newLifetime(ctx, c.cfg.Delivery.ShutdownTimeout, c.caught)
	defer life.kill(nil)
	if err := c.acquire(ctx, tailer); err != nil {
		return false, err
	}

	// The tailer runs from here on, so that its connection stays alive while takeOver loads the
	// state.
	taking, broke := context.WithCancelCause(life.take)
	batches, ended := make(chan *outbox.Batch, batchQueue), make(chan error, 1)
	run := life.guarded(func() error { return tailer.Run(life.take, life.alive, batches) })
	go panics.GuardFunc(life.caught, func() { // ends with life
		err := run()
		broke(err)
		ended <- err
	})()
	t, state, err := c.takeOver(taking, life, tailer)
	if err != nil {
		life.kill(err)
		broken := <-ended
		c.noteUndecodable(tailer, broken)
		if broken != nil && !errors.Is(err, broken) {
			err = errors.Join(err, broken)
		}
		return false, err
	}
	defer c.term.Store(nil)
	led, err = t.run(state, batches, ended)
	c.noteUndecodable(tailer, err)
	if err == nil && ctx.Err() == nil {
		err = context.Cause(life.take)
	}
	return led, err
}

// acquire waits until this agent holds the slot and the stream has started.
func (c *candidate) acquire(ctx context.Context, tailer *outbox.Tailer) error {
	if err := c.db.Ping(ctx); err != nil {
		return err
	}
	c.mendPublications(ctx)
	warnings, err := c.db.Preflight(ctx)
	if err != nil {
		return err
	}
	c.ahead.Store(nil)
	for _, w := range warnings {
		if w.SchemaIsAhead() {
			c.ahead.Store(&w.Reason)
		}
		if key := (warning{w.Thing, w.Reason}); !c.warned[key] {
			c.warned[key] = true
			c.log.Warn(w.Thing+": "+w.Reason, "remedy", w.Remedy)
		}
	}
	if err := tailer.Connect(ctx); err != nil {
		return err
	}
	for {
		err := c.startStream(ctx, tailer)
		if !errors.Is(err, outbox.ErrSlotActive) {
			if err == nil && c.standby.Load() {
				err = c.db.SchemaFits(ctx) // a migration may have come since the preflight
			}
			c.standby.Store(false)
			return err
		}
		if !c.standby.Swap(true) {
			c.log.Info("standing by: another agent holds the slot", "slot", c.cfg.Outbox.Slot)
			c.webhook.CloseIdle() // those of a former term
		}
		if !backoff.Sleep(ctx, standbyInterval) {
			return context.Cause(ctx)
		}
	}
}

// startStream starts the stream. It makes a new slot when there is none, or when the slot must be
// replaced. It returns ErrSlotActive while another agent holds the slot.
func (c *candidate) startStream(ctx context.Context, tailer *outbox.Tailer) error {
	replacing := false
	replace := func(confirmed outbox.LSN) (bool, error) {
		// The preflight has passed, so the cause of the changes that cannot be decoded may be gone.
		// Another agent may have made a new slot since.
		if replacing = c.undecodable != 0 && confirmed <= c.undecodable; !replacing {
			return false, nil
		}
		return true, c.replaced.tooSoon(time.Now())
	}
	from, err := c.slot.PrepareSlot(ctx, tailer, c.holder, replace, func(err error) {
		c.standby.Store(false) // no other agent leads
		c.reportProblem(err)
	})
	if err == nil {
		err = tailer.Start(ctx, from)
	}
	if err != nil {
		return err
	}
	if replacing {
		c.replaced.made(time.Now())
	}
	c.undecodable = 0
	return nil
}

// mendPublications repairs the publications as far as the agent's role may. The preflight and
// recovery.look report what it may not repair.
func (c *candidate) mendPublications(ctx context.Context) {
	mended, err := c.db.MendPublications(ctx)
	for _, statement := range mended {
		c.log.Warn("a publication was mended", "statement", statement)
	}
	if err != nil {
		c.log.Debug("the publications could not be mended", "error", err)
	}
}

// hasWarned reports whether the preflight has found and logged this problem.
func (c *candidate) hasWarned(p *outbox.Problem) bool { return c.warned[warning{p.Thing, p.Reason}] }

// noteUndecodable stores the position at which a stream ended that met changes which cannot be
// decoded.
func (c *candidate) noteUndecodable(tailer *outbox.Tailer, err error) {
	if errors.Is(err, outbox.ErrUndecodable) {
		c.undecodable = tailer.Reached()
	}
}

// takeOver begins a term. From then on earlier leaders can record nothing. It returns the complete
// term, and the state of the database for its router to load.
func (c *candidate) takeOver(ctx context.Context, life *lifetime, tailer *outbox.Tailer) (*term, outbox.State, error) {
	held, err := c.slot.TakeOver(ctx, tailer, c.holder)
	if err != nil {
		return nil, outbox.State{}, err
	}
	t := &term{
		agent: c.agent, Term: held, slot: c.slot, life: life, tailer: tailer, lease: newLease(),
		sealer: newSealer(c.db, c.log, c.metrics.sealed),
		pruning: &pruning{
			pruner: c.slot.NewPruner(held), retention: c.cfg.Outbox.Retention, log: c.log, pruned: c.metrics.pruned, known: c.hasWarned,
		},
	}
	t.leads = func() {
		c.term.Store(t)
		c.problem.Store(nil)
	}
	switch err := c.db.SyncManaged(ctx, c.cfg.Managed()); {
	case outbox.IsLocked(err):
		t.managedLater = true // nobody waits for the app's locks
	case err != nil:
		return nil, outbox.State{}, err
	}
	state, err := c.slot.LoadState(ctx)
	if err != nil {
		return nil, outbox.State{}, err
	}
	endpoints := len(state.Endpoints)
	c.tune(endpoints)
	t.ledger = outbox.NewLedger(outbox.LedgerConfig{
		Config: c.outboxConfig(), Term: held, Log: c.log, Clock: c.db.Clock(),
		DisableAfter: c.cfg.Delivery.DisableAfter,
		Confirm:      tailer.Confirm,
		Committed:    t.committed,
		Withdraw:     func(endpointID, replayID string) []string { return t.lanes.Withdraw(endpointID, replayID) },
		Requeued:     func(endpointID string) { t.lanes.Requeued(endpointID) },
		Recovered:    func(n int) { c.metrics.swept.Add(float64(n)) },
		Stalled:      func(stalled bool) { t.lanes.Stall(stalled) },
		ServerEnds:   tailer.Interrupt,
	})
	d := c.cfg.Delivery
	t.lanes = lanes.New(life.alive, lanes.Config{
		Concurrency: d.Concurrency, EndpointConcurrency: d.EndpointConcurrency, DisableAfter: d.DisableAfter,
		Retries: d.Retries, FailingInterval: d.FailingInterval, QueueBytes: int(d.QueueMemory),
		Attempt: t.attempt, Leads: t.lease.holds, Now: c.db.Clock().Now, Write: t.ledger.Write, Meter: c.metrics, Log: c.log,
		Caught: life.caught, Aside: c.suspects.aside,
	})
	t.router = &router{
		subs: newSubscriptions(), lanes: t.lanes, track: t.ledger.Track, write: t.ledger.Write, lookup: c.slot.Lookup, markLate: c.slot.MarkLate,
		target: t.target, seal: t.sealer.look, removed: t.sealer.remove, metrics: c.metrics, tracer: c.tracer, log: c.log, term: held, suspects: &c.suspects,
		tune: c.tune, tuned: endpoints,
	}
	t.stream = &stream{life: life, term: held, db: c.db, slot: c.slot, tailer: tailer, lease: t.lease, log: c.log}
	t.recovery = newRecovery(c.db, c.slot, c.log, held, t.ledger, c.mendPublications)
	return t, state, nil
}

// watchSlot updates the metric slot_retained_bytes until ctx ends, while this agent does not lead:
// the server's disk may fill then. While it leads, term.watch does that. The first query comes
// after one interval, so an agent that leads by then opens no connection for it.
func (c *candidate) watchSlot(ctx context.Context) error {
	for backoff.Sleep(ctx, c.vitals) {
		if c.term.Load() == nil {
			// An error is logged where the agent tries to lead.
			if bytes, err := c.slot.RetainedBytes(ctx); err == nil {
				c.metrics.vitals.retainedBytes.Set(float64(bytes))
			}
		}
	}
	return nil
}

// reportProblem logs a problem, once, and shows it on /readyz.
func (c *candidate) reportProblem(err error) {
	text := err.Error()
	c.problem.Store(&text)
	c.trouble.Note(err)
}

// ready returns what the agent is doing, or the reason why it is not ready. An agent is ready while
// another one holds the slot, or while it leads and the stream advances and is recorded.
func (c *candidate) ready() (string, error) {
	if t := c.term.Load(); t != nil {
		if err := t.unready(); err != nil {
			return "", err
		}
		if err := c.local.lasting(); err != nil {
			return "", fmt.Errorf("attempts cannot be made: %w", err)
		}
		return c.withNotice("leading"), nil
	}
	if c.standby.Load() {
		return c.withNotice("standing by"), nil
	}
	if p := c.problem.Load(); p != nil {
		return "", errors.New(*p)
	}
	return "", errors.New("not leading yet")
}

// withNotice adds to what an agent is doing that its schema is newer than itself.
func (c *candidate) withNotice(doing string) string {
	if ahead := c.ahead.Load(); ahead != nil {
		return doing + "; schema webhooks: " + *ahead
	}
	return doing
}
