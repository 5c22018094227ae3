package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// soundConnection is how long a connection must have lasted for the next one to be tried at once.
const soundConnection = 10 * time.Second

// batchQueue is how many batches may wait between the tailer and the router.
const batchQueue = 4

// session is one try to lead: it waits for the slot, takes over, delivers, and drains. See the package documentation
// for its goroutines.
type session struct {
	*agent
	tailer *outbox.Tailer
	ledger *outbox.Ledger
	lanes  *lanes.Scheduler
	term   outbox.Term
	taken  atomic.Bool               // term is set, by takeOver
	led    bool                      // it has begun to deliver
	lease  atomic.Pointer[time.Time] // when it was last sure to lead; set by takeOver and keepLease
	broken atomic.Bool               // the stream is down and being reconnected

	recovering atomic.Bool            // events may have passed by unseen and the comparison is not complete
	uncovered  atomic.Pointer[string] // why the stream does not bring all events; nil while it does
	// passedOver tells that the stream has passed events over in this term, or may have.
	passedOver atomic.Bool
	// uncover wakes reconcile when uncovered is set; sent without waiting by watch, so one place is enough.
	uncover chan struct{}
	// reloads asks the router to load endpoints and replays anew. It is sent by reconcile and received by routeAll, which closes
	// what it gets afterwards.
	reloads chan chan<- struct{}
	// looked is closed by watch after its first look. What comes after it finds a connection that is free, and need not
	// open one.
	looked chan struct{}
	// compared is closed by reconcile after its first comparison.
	compared chan struct{}
	keys     secret.Keyring
	unsealed *unsealed

	// The two levels of stopping, set by run: stopTaking ends what brings new work in, kill everything.
	stopTaking, kill context.CancelCauseFunc
}

func newSession(a *agent) *session {
	cfg := a.outboxConfig()
	s := &session{agent: a, tailer: outbox.NewTailer(cfg, a.log), keys: cfg.Keys, uncover: make(chan struct{}, 1), reloads: make(chan chan<- struct{}),
		looked: make(chan struct{}), compared: make(chan struct{}), unsealed: newUnsealed()}
	s.tailer.SetAside = s.setAside
	return s
}

// run returns nil when ctx ended it, and otherwise why the session is over.
func (s *session) run(ctx context.Context) error {
	defer s.tailer.Close()
	defer s.standby.Store(false)
	defer s.current.Store(nil)
	// Two levels of stopping: take ends what brings new work in, alive ends everything at once.
	var take, alive context.Context
	take, s.stopTaking = context.WithCancelCause(ctx)
	defer s.stopTaking(nil)
	alive, s.kill = context.WithCancelCause(context.WithoutCancel(ctx))
	defer s.kill(nil)
	hold, release := context.WithCancel(alive)
	defer release()
	if err := s.acquire(ctx); err != nil {
		return err
	}

	// The tailer runs from here on, so that the connection stays alive while the state is loaded.
	batches := make(chan *outbox.Batch, batchQueue)
	var stream errgroup.Group
	stream.Go(s.guarded(func() error {
		err := s.stream(take, hold, batches)
		s.stopTaking(err)
		return err
	}))
	err := s.guarded(func() error { return s.deliver(take, alive, batches) })()
	release()
	if err = errors.Join(err, stream.Wait()); err == nil && ctx.Err() == nil {
		err = context.Cause(take)
	}
	if s.passedOver.Load() {
		s.noteGap(ctx) // a comparison that was under way may have ended a recovery since
	}
	return err
}

// acquire waits until this agent holds the stream.
func (s *session) acquire(ctx context.Context) error {
	if err := s.db.Ping(ctx); err != nil {
		return err
	}
	s.mend(ctx)
	warnings, err := s.db.Preflight(ctx)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		if text := w.Thing + ": " + w.Reason; !s.warned[text] {
			s.warned[text] = true
			s.log.Warn(text, "remedy", w.Remedy)
		}
	}
	if err := s.tailer.Connect(ctx); err != nil {
		return err
	}
	for {
		replacing := false
		replace := func(confirmed outbox.LSN) (bool, error) {
			// The preflight has passed, so what could not be decoded may have been mended. Another agent may have made a new slot since.
			if replacing = s.undecodable != 0 && confirmed <= s.undecodable; !replacing {
				return false, nil
			}
			return true, s.replaced.tooSoon(time.Now())
		}
		from, err := s.slot.PrepareSlot(ctx, s.tailer, s.holder, replace, func(err error) {
			s.standby.Store(false) // nobody leads
			s.tellProblem(err)
		})
		if err == nil {
			err = s.tailer.Start(ctx, from)
		}
		if err == nil {
			if replacing {
				s.replaced.made(time.Now())
			}
			s.undecodable = 0
		}
		if !errors.Is(err, outbox.ErrSlotActive) {
			s.standby.Store(false)
			return err
		}
		if !s.standby.Swap(true) {
			s.log.Info("standing by: another agent holds the slot", "slot", s.cfg.Outbox.Slot)
		}
		if !backoff.Sleep(ctx, standbyInterval) {
			return context.Cause(ctx)
		}
	}
}

// stream runs the tailer until take and then hold end. It reconnects by itself: what was handed over stays with the
// lanes meanwhile. It ends with an error when another agent has taken over, the slot is gone, or the server is no
// longer the same.
func (s *session) stream(take, hold context.Context, batches chan<- *outbox.Batch) error {
	waits := backoff.New()
	for {
		began := time.Now()
		err := s.tailer.Run(take, hold, batches)
		if err == nil || take.Err() != nil {
			return nil // a connection that broke while draining is of no importance: the checkpoint is in the database
		}
		if errors.Is(err, outbox.ErrUndecodable) {
			s.undecodable = s.tailer.Reached()
			return err
		}
		if !s.taken.Load() {
			return err // there is no term yet that could go on
		}
		s.broken.Store(true)
		s.db.Reset() // what has broken the stream may have cut these connections off too
		s.log.Warn("the stream broke; reconnecting", "error", err)
		if time.Since(began) > soundConnection {
			waits = backoff.New()
		}
		for told := err.Error(); ; {
			wait, _ := waits.Next()
			if !backoff.Sleep(take, wait) {
				return nil
			}
			err := s.resume(take)
			if err == nil {
				break
			}
			if take.Err() != nil {
				return nil
			}
			if endsTerm(err) {
				return err
			}
			if text := err.Error(); text != told && !errors.Is(err, outbox.ErrSlotActive) {
				told = text
				s.log.Error("cannot resume the stream; trying again", "error", err)
			}
		}
		s.broken.Store(false)
		s.log.Info("the stream is back")
	}
}

// endsTerm tells that the stream cannot be resumed within the term: another one must begin.
func endsTerm(err error) bool {
	for _, end := range []error{outbox.ErrFenced, outbox.ErrSlotGone, outbox.ErrSlotMoved, outbox.ErrOtherServer} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// resume reconnects and goes on with the same term.
func (s *session) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.tailer.Connect(ctx); err != nil {
		return err
	}
	if err := s.slot.CheckEpoch(ctx, s.term); err != nil {
		return err
	}
	if err := s.slot.CheckSlot(ctx, s.tailer); err != nil {
		return err
	}
	if err := s.tailer.Start(ctx, 0); err != nil {
		return err
	}
	// Between the check and the start another agent may have come and gone.
	return s.slot.CheckEpoch(ctx, s.term)
}

// deliver takes over, runs the router, the lanes and the ledger until the batches end, and drains.
func (s *session) deliver(take, alive context.Context, batches <-chan *outbox.Batch) error {
	router, state, err := s.takeOver(take, alive)
	if err != nil {
		s.stopTaking(err)
		return err
	}
	var ledger errgroup.Group
	// When nothing can be recorded any more, what is under way is repeated by whoever leads next.
	ledger.Go(s.vital(func() error { return s.ledger.Run(alive) }))
	helpers, stopHelpers := context.WithCancel(alive)
	var aside errgroup.Group
	aside.Go(s.guarded(func() error { return s.lanes.Refill(helpers, s.slot.Due) }))
	aside.Go(s.guarded(func() error { s.watch(helpers); return nil }))
	aside.Go(s.guarded(func() error { s.reconcile(helpers); return nil }))
	aside.Go(s.dispensable("prune", func() { s.prune(helpers) }))
	aside.Go(s.dispensable("seal", func() { s.seal(helpers) }))
	aside.Go(s.vital(func() error { return s.keepLease(helpers) }))

	// Draining has its time from the end of take on, also while the router waits for a ledger that cannot record. A database that
	// is away may not keep the process for ever: what is not recorded then, the next leader sends again.
	grace, endGrace := context.WithCancelCause(alive)
	defer endGrace(nil)
	context.AfterFunc(take, panics.GuardFunc(s.caught, func() { // ends with grace
		timer := time.NewTimer(s.cfg.Delivery.ShutdownTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			endGrace(fmt.Errorf("delivery.shutdown_timeout (%s) has passed", s.cfg.Delivery.ShutdownTimeout))
		case <-grace.Done():
		}
	}))

	err = s.guarded(func() error {
		if err := router.load(grace, state); err != nil {
			return err
		}
		s.led = true
		s.current.Store(s)
		s.problem.Store(nil)
		s.log.Info("leading", "slot", s.cfg.Outbox.Slot, "epoch", s.term.Epoch, "from", s.term.LSN.String(), "endpoints", len(state.Endpoints))
		return s.routeAll(take, grace, router, batches)
	})()
	s.stopTaking(err)

	s.log.Info("draining", "attempts_in_flight", s.lanes.Stats().InFlight, "shutdown_timeout", s.cfg.Delivery.ShutdownTimeout)
	s.lanes.Stop(grace)
	stopHelpers()
	fenced := aside.Wait()
	s.ledger.Close()
	unregister := context.AfterFunc(grace, panics.GuardFunc(s.caught, func() { s.kill(context.Cause(grace)) }))
	defer unregister()
	return errors.Join(err, fenced, ledger.Wait())
}

// takeOver begins the term and makes the parts.
func (s *session) takeOver(take, alive context.Context) (*router, outbox.State, error) {
	var err error
	if s.term, err = s.slot.TakeOver(take, s.tailer, s.holder); err != nil {
		return nil, outbox.State{}, err
	}
	now := time.Now()
	s.lease.Store(&now)
	s.taken.Store(true)
	if s.term.Gap != "" {
		s.recovering.Store(true)
		s.log.Info("events may have passed the stream unseen; the outbox is compared with the delivery log beside the stream", "gap", s.term.Gap)
	}
	if err := s.db.SyncManaged(take, s.cfg.Managed()); err != nil {
		return nil, outbox.State{}, err
	}
	state, err := s.slot.LoadState(take)
	if err != nil {
		return nil, outbox.State{}, err
	}
	s.tune(len(state.Endpoints))
	s.ledger = outbox.NewLedger(outbox.LedgerConfig{
		Config: s.outboxConfig(), Term: s.term, Log: s.log, Clock: s.db.Clock(),
		Confirm:    s.tailer.Confirm,
		Committed:  func(r []*outbox.Result) { s.metrics.recorded(r); s.lanes.Committed(r) },
		Requeued:   func(endpointID string) { s.lanes.Requeued(endpointID) },
		Recovered:  func(n int) { s.metrics.swept.Add(float64(n)) },
		Stalled:    func(stalled bool) { s.lanes.Stall(stalled) },
		ServerEnds: s.tailer.Interrupt,
	})
	d := s.cfg.Delivery
	s.lanes = lanes.New(alive, lanes.Config{
		Concurrency: d.Concurrency, EndpointConcurrency: d.EndpointConcurrency, DisableAfter: d.DisableAfter,
		Retries: d.Retries, FailingInterval: d.FailingInterval, QueueBytes: int(d.QueueMemory),
		Attempt: s.attempt, Leads: s.leads, Now: s.db.Clock().Now, Write: s.ledger.Write, Meter: s.metrics, Log: s.log,
		Caught: s.caught, Aside: s.suspects.aside,
	})
	return &router{
		subs: newSubscriptions(), lanes: s.lanes, track: s.ledger.Track, write: s.ledger.Write, lookup: s.slot.Lookup, markLate: s.slot.MarkLate,
		target: s.target, seal: s.sealLater, removed: s.unsealed.remove, metrics: s.metrics, log: s.log, term: s.term, suspects: &s.suspects,
		tune: s.tune, tuned: len(state.Endpoints),
	}, state, nil
}

// attempt makes an attempt and takes note of a panic in it.
func (s *session) attempt(ctx context.Context, r sink.Request) sink.Result {
	result := s.webhook.Attempt(ctx, r)
	if result.Panic != nil {
		s.agent.caught(result.Panic)
	}
	if result.Outcome == sink.NotMade {
		if s.agent.local.met(result.Fault, result.Error) && result.Fault == sink.FaultDescriptors {
			s.webhook.Close() // lets go of idle connections, for the database may need the files
		}
	}
	return result
}

// target returns where an endpoint is.
func (s *session) target(e *outbox.Endpoint) (*sink.Target, error) {
	return OpenTarget(s.webhook, s.keys, e)
}

// sealLater has the secrets of an endpoint sealed if they are to be.
func (s *session) sealLater(e *outbox.Endpoint) {
	if s.db.Unsealed(e) {
		s.unsealed.add(e.ID)
	} else {
		s.unsealed.remove(e.ID)
	}
}

// routeAll routes batches until take ends; what is left in the channel then, and in the backlog, is sent again to
// whoever leads next. The backlog has its turn when the stream has nothing, and half of the time while it has.
func (s *session) routeAll(take, grace context.Context, r *router, batches <-chan *outbox.Batch) error {
	full := int(s.cfg.Delivery.QueueMemory) / backlogShare
	nothing := make(chan struct{}) // is always ready to be received from
	close(nothing)
	for take.Err() == nil {
		var (
			err  error
			idle <-chan struct{} // while there is a backlog
		)
		switch {
		case r.backlog.due() || r.backlog.bytes > full:
			err = r.expand(take, grace)
		default:
			if len(r.backlog.queue) > 0 && len(batches) == 0 {
				idle = nothing
			}
			select {
			case b := <-batches:
				err = r.route(take, grace, b)
			case done := <-s.reloads:
				err = s.loadAnew(take, grace, r)
				close(done)
			case <-idle:
				err = r.expand(take, grace)
			case <-take.Done():
			}
		}
		if err != nil && take.Err() == nil {
			return err
		}
	}
	return nil
}

// loadAnew has the router take over the endpoints and replays as they are in the database. The state is read in the router's turn:
// what it has applied already stands in it, and what the state contains beyond that is not applied once more.
func (s *session) loadAnew(take, grace context.Context, r *router) error {
	state, err := s.slot.LoadState(take)
	if err != nil {
		return nil // it shows elsewhere, and there is a next time
	}
	return r.reload(grace, state)
}

// watch looks at the slot, the clocks and what is published until ctx ends. It ends the session when that has changed.
func (s *session) watch(ctx context.Context) {
	tick := time.NewTicker(s.vitals)
	defer tick.Stop()
	tellLooked := sync.OnceFunc(func() { close(s.looked) })
	defer tellLooked()
	skewed := false
	for {
		if v, err := s.slot.Vitals(ctx); err == nil { // an error shows elsewhere: the ledger and the stream use the same server
			s.metrics.observe(v)
			if off := v.ClockSkew.Abs() > maxClockSkew; off != skewed {
				skewed = off
				level, text := slog.LevelInfo, "the clocks agree again"
				if off {
					level, text = slog.LevelWarn, "this host's clock differs from the database's; receivers may refuse the time of signatures"
				}
				s.log.Log(ctx, level, text, "difference", v.ClockSkew.Round(time.Millisecond))
			}
		}
		if err := s.checkCoverage(ctx); err != nil {
			s.stopTaking(err)
			return
		}
		tellLooked()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
