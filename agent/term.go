package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// maxClockSkew is the difference of the clocks that is worth a warning: receivers check the time of a signature, mostly to five minutes.
const maxClockSkew = 30 * time.Second

// silence is how long the stream may say nothing before the agent counts as not ready. The server speaks every half of its own timeout of
// ten seconds.
const silence = 15 * time.Second

// term is one time of leading, with all of its parts. candidate.takeOver makes it; it is over when run returns. See the package
// documentation for its goroutines.
type term struct {
	*agent
	outbox.Term
	slot     *outbox.Slot
	life     *lifetime
	tailer   *outbox.Tailer
	router   *router
	lanes    *lanes.Scheduler
	ledger   *outbox.Ledger
	lease    *lease
	recovery *recovery
	sealer   *sealer
	pruning  *pruning
	leads    func() // is called when it begins to deliver
}

// run loads the state, delivers what the stream brings until take ends, and drains. It returns why the term is over, and reports whether it
// has begun to deliver. The tailer fills batches; what ends its first connection comes by ended.
func (t *term) run(state outbox.State, batches chan *outbox.Batch, ended <-chan error) (led bool, err error) {
	life := t.life
	var streaming, ledger, helpers errgroup.Group
	s := &stream{life: life, term: t.Term, db: t.db, slot: t.slot, tailer: t.tailer, lease: t.lease, log: t.log}
	streaming.Go(life.guarded(func() error {
		err := s.run(batches, ended)
		life.stop(err)
		return err
	}))
	// When nothing can be recorded any more, what is under way is repeated by whoever leads next.
	ledger.Go(life.vital(func() error { return t.ledger.Run(life.alive) }))
	helpers.Go(life.guarded(func() error { return t.lanes.Refill(life.take, t.slot.Due) }))
	helpers.Go(life.guarded(func() error { t.watch(life.take); return nil }))
	helpers.Go(life.guarded(func() error { t.recovery.run(life.take); return nil }))
	helpers.Go(t.dispensable("prune", func() { t.pruning.run(life.take, t.recovery.compared) }))
	helpers.Go(t.dispensable("seal", func() { t.sealer.run(life.take) }))
	helpers.Go(life.vital(func() error {
		ask := func(ctx context.Context) error { return t.slot.CheckEpoch(ctx, t.Term) }
		return t.lease.keep(life.take, t.tailer.Heard, ask, t.lanes.Resume) // what did not start while the lease had run out
	}))

	err = life.guarded(func() error {
		if err := t.router.load(life.alive, state); err != nil {
			return err
		}
		led = true
		t.leads()
		t.log.Info("leading", "slot", t.cfg.Outbox.Slot, "epoch", t.Epoch, "from", t.LSN.String(), "endpoints", len(state.Endpoints))
		state = outbox.State{} // it may be large
		return t.routeAll(batches)
	})()
	life.stop(err)

	t.log.Info("draining", "attempts_in_flight", t.lanes.Stats().InFlight, "shutdown_timeout", t.cfg.Delivery.ShutdownTimeout)
	t.lanes.Stop(life.alive)
	err = errors.Join(err, helpers.Wait())
	t.ledger.Close()
	err = errors.Join(err, ledger.Wait())
	life.kill(nil) // the stream, which has kept its connection so that the position could be confirmed
	err = errors.Join(err, streaming.Wait())
	t.recovery.end()
	return led, err
}

// routeAll routes batches until take ends; what is left in the channel then, and in the backlog, is sent again to whoever leads next. The
// backlog has its turn when the stream has nothing, and half of the time while it has.
func (t *term) routeAll(batches <-chan *outbox.Batch) error {
	take, alive, r := t.life.take, t.life.alive, t.router
	full := int(t.cfg.Delivery.QueueMemory) / backlogShare
	nothing := make(chan struct{}) // is always ready to be received from
	close(nothing)
	for take.Err() == nil {
		var (
			err  error
			idle <-chan struct{} // while there is a backlog
		)
		switch {
		case r.backlog.due() || r.backlog.bytes > full:
			err = r.expand(take, alive)
		default:
			if len(r.backlog.queue) > 0 && len(batches) == 0 {
				idle = nothing
			}
			select {
			case b := <-batches:
				err = r.route(take, alive, b)
			case done := <-t.recovery.reloads:
				err = t.loadAnew()
				close(done)
			case <-idle:
				err = r.expand(take, alive)
			case <-take.Done():
			}
		}
		if err != nil && take.Err() == nil {
			return err
		}
	}
	return nil
}

// loadAnew has the router take over the endpoints and replays as they are in the database. The state is read in the router's turn: what it
// has applied already stands in it, and what the state contains beyond that is not applied once more.
func (t *term) loadAnew() error {
	state, err := t.slot.LoadState(t.life.take)
	if err != nil {
		return nil //nolint:nilerr // it shows elsewhere, and there is a next time
	}
	return t.router.reload(t.life.alive, state)
}

// attempt makes an attempt and takes note of a panic in it.
func (t *term) attempt(ctx context.Context, r sink.Request) sink.Result {
	result := t.webhook.Attempt(ctx, r)
	if result.Panic != nil {
		t.caught(result.Panic)
	}
	if result.Outcome == sink.NotMade {
		if t.local.met(result.Fault, result.Error) && result.Fault == sink.FaultDescriptors {
			t.webhook.Close() // lets go of idle connections, for the database may need the files
		}
	}
	return result
}

// target returns where an endpoint is.
func (t *term) target(e *outbox.Endpoint) (*sink.Target, error) {
	return OpenTarget(t.webhook, t.keys, e)
}

// watch looks at the slot, the clocks and what is published until ctx ends. It ends the term when that has changed.
func (t *term) watch(ctx context.Context) {
	tick := time.NewTicker(t.vitals)
	defer tick.Stop()
	defer t.recovery.hasLooked()
	skew := backoff.Trouble{
		Log: t.log, Level: slog.LevelWarn, Ends: "the clocks agree again",
		Begins: "this host's clock differs from the database's; receivers may refuse the time of signatures",
	}
	for {
		if v, err := t.slot.Vitals(ctx); err == nil { // an error shows elsewhere: the ledger and the stream use the same server
			t.metrics.observe(v)
			var off error
			if v.ClockSkew.Abs() > maxClockSkew {
				off = fmt.Errorf("the difference is more than %v", maxClockSkew)
			}
			skew.Note(off, "difference", v.ClockSkew.Round(time.Millisecond))
		}
		if err := t.recovery.look(ctx); err != nil {
			t.life.stop(err)
			return
		}
		t.recovery.hasLooked()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// unready returns what keeps events from being delivered and recorded, nil when nothing does.
func (t *term) unready() error {
	if heard := t.tailer.Heard(); time.Since(heard) > silence {
		return fmt.Errorf("the stream is silent since %s", heard.UTC().Format(time.RFC3339))
	}
	if t.lease.broken.Load() {
		return errors.New("the stream is broken; reconnecting")
	}
	if why := t.recovery.uncovered.Load(); why != nil {
		return errors.New("the stream does not bring all events: " + *why)
	}
	switch stats := t.ledger.Stats(); {
	case stats.Failing != "":
		return errors.New("deliveries cannot be recorded: " + stats.Failing)
	case stats.Stalled:
		return errors.New("deliveries cannot be recorded in time: the commit under way takes long")
	}
	return nil
}

// dispensable is guarded for a helper without which deliveries go on. One that panics again and again is
// left out.
func (t *term) dispensable(part string, f func()) func() error {
	at := outbox.Subject{Part: part}
	return t.life.guarded(func() error {
		if t.suspects.aside(at) {
			t.log.Error("a helper of the agent is left out until the agent is restarted: it failed again and again by a fault of its own", "helper", part)
			return nil
		}
		defer at.Blame()
		f()
		return nil
	})
}
