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
	// standbyInterval is how often an agent that waits tries to get the slot.
	standbyInterval = time.Second
	// batchQueue is how many batches may wait between the tailer and the router.
	batchQueue = 4
)

// candidate is this agent as it tries to lead with a slot, again and again: it waits for the slot, begins a term, and tries anew
// when that is over. It is what outlives a term.
type candidate struct {
	*agent
	slot    *outbox.Slot
	term    atomic.Pointer[term]   // in which this agent leads, nil while it does not
	standby atomic.Bool            // another agent holds the slot
	problem atomic.Pointer[string] // why there is no term

	// Of the goroutine of lead.
	trouble backoff.Trouble // why nothing is delivered
	warned  map[string]bool // warnings of the preflight that were logged
	// undecodable is how far the stream had come when it met changes that cannot be decoded, zero when it has not: a slot that
	// stands there or before has to be given up for a new one. A stream sets it, which has ended before the next try.
	undecodable outbox.LSN
	replaced    replacements
}

// newCandidate makes a candidate for a slot.
func newCandidate(a *agent, slot *outbox.Slot) *candidate {
	return &candidate{
		agent: a, slot: slot, warned: map[string]bool{},
		trouble: backoff.Trouble{Log: a.log, Level: slog.LevelError, Begins: "cannot stream the outbox; trying again"}, // "leading" is its end
	}
}

// lead leads in one term after another until ctx ends. It returns an error only for what waiting does not mend, and only before
// the first term.
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
		c.db.Reset() // what the server or its settings have become shows on new connections only
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
		case isPanic: // logged already
			text := panicked.Error()
			c.problem.Store(&text)
		case errors.Is(err, outbox.ErrFenced):
			c.log.Warn("another agent has taken over; standing by")
		case errors.Is(err, errCoverage):
			c.log.Warn(err.Error())
		default:
			c.tellProblem(err)
		}
		if !backoff.Sleep(ctx, pace.next(err, time.Now())) {
			return nil
		}
	}
}

// try makes one try to lead: it waits for the slot, takes over, and delivers until the term is over. It returns why that is, nil
// when ctx ended it, and reports whether this agent has led.
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

	// The tailer runs from here on, so that its connection stays alive while the state is loaded.
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

// acquire waits until this agent holds the stream.
func (c *candidate) acquire(ctx context.Context, tailer *outbox.Tailer) error {
	if err := c.db.Ping(ctx); err != nil {
		return err
	}
	c.mendPublications(ctx)
	warnings, err := c.db.Preflight(ctx)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		if text := w.Thing + ": " + w.Reason; !c.warned[text] {
			c.warned[text] = true
			c.log.Warn(text, "remedy", w.Remedy)
		}
	}
	if err := tailer.Connect(ctx); err != nil {
		return err
	}
	for {
		err := c.startStream(ctx, tailer)
		if !errors.Is(err, outbox.ErrSlotActive) {
			c.standby.Store(false)
			return err
		}
		if !c.standby.Swap(true) {
			c.log.Info("standing by: another agent holds the slot", "slot", c.cfg.Outbox.Slot)
		}
		if !backoff.Sleep(ctx, standbyInterval) {
			return context.Cause(ctx)
		}
	}
}

// startStream starts the stream, with a new slot where there is none or where it must be given up. It returns ErrSlotActive while another
// agent holds it.
func (c *candidate) startStream(ctx context.Context, tailer *outbox.Tailer) error {
	replacing := false
	replace := func(confirmed outbox.LSN) (bool, error) {
		// The preflight has passed, so what could not be decoded may have been mended. Another agent may have made a new slot since.
		if replacing = c.undecodable != 0 && confirmed <= c.undecodable; !replacing {
			return false, nil
		}
		return true, c.replaced.tooSoon(time.Now())
	}
	from, err := c.slot.PrepareSlot(ctx, tailer, c.holder, replace, func(err error) {
		c.standby.Store(false) // nobody leads
		c.tellProblem(err)
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

// mendPublications makes what is missing of the publications where the agent's role may. What it may not make, the preflight and
// recovery.look say.
func (c *candidate) mendPublications(ctx context.Context) {
	mended, err := c.db.MendPublications(ctx)
	for _, statement := range mended {
		c.log.Warn("a publication was mended", "statement", statement)
	}
	if err != nil {
		c.log.Debug("the publications could not be mended", "error", err)
	}
}

// hasWarned reports whether the preflight has found this problem.
func (c *candidate) hasWarned(p *outbox.Problem) bool { return c.warned[p.Thing+": "+p.Reason] }

// noteUndecodable takes note of where a stream ended that met changes which cannot be decoded.
func (c *candidate) noteUndecodable(tailer *outbox.Tailer, err error) {
	if errors.Is(err, outbox.ErrUndecodable) {
		c.undecodable = tailer.Reached()
	}
}

// takeOver begins a term: from here on earlier leaders record nothing. It returns the term with all of its parts, and the state of the
// database that its router is to load.
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
	if err := c.db.SyncManaged(ctx, c.cfg.Managed()); err != nil {
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
		Confirm:    tailer.Confirm,
		Committed:  func(r []*outbox.Record) { c.metrics.recorded(r); t.lanes.Committed(r) },
		Requeued:   func(endpointID string) { t.lanes.Requeued(endpointID) },
		Recovered:  func(n int) { c.metrics.swept.Add(float64(n)) },
		Stalled:    func(stalled bool) { t.lanes.Stall(stalled) },
		ServerEnds: tailer.Interrupt,
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
		target: t.target, seal: t.sealer.look, removed: t.sealer.remove, metrics: c.metrics, log: c.log, term: held, suspects: &c.suspects,
		tune: c.tune, tuned: endpoints,
	}
	t.recovery = newRecovery(c.db, c.slot, c.log, held, t.ledger, c.mendPublications)
	return t, state, nil
}

// watchSlot keeps the metric of what the slot holds on the server's disk until ctx ends, also while this agent stands by or cannot
// lead: that is when the disk fills. While it leads, term.watch does. An agent that leads before the first look has opened no connection
// for it.
func (c *candidate) watchSlot(ctx context.Context) error {
	for backoff.Sleep(ctx, c.vitals) {
		if c.term.Load() == nil {
			if bytes, err := c.slot.RetainedBytes(ctx); err == nil { // an error shows where the agent tries to lead
				c.metrics.vitals.retainedBytes.Set(float64(bytes))
			}
		}
	}
	return nil
}

// tellProblem says why nothing is delivered: once in the log, and on /readyz.
func (c *candidate) tellProblem(err error) {
	text := err.Error()
	c.problem.Store(&text)
	c.trouble.Note(err)
}

// ready says what the agent is doing, or why it is not ready: another agent holds the slot, or the stream advances and is recorded.
func (c *candidate) ready() (string, error) {
	if t := c.term.Load(); t != nil {
		if err := t.unready(); err != nil {
			return "", err
		}
		if err := c.local.lasting(); err != nil {
			return "", fmt.Errorf("attempts cannot be made: %w", err)
		}
		return "leading", nil
	}
	if c.standby.Load() {
		return "standing by", nil
	}
	if p := c.problem.Load(); p != nil {
		return "", errors.New(*p)
	}
	return "", errors.New("not leading yet")
}
