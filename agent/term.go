package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/agent/tracing"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// maxClockSkew is the difference of the clocks from which on a warning is logged. Receivers check
// the time of a signature; most accept a difference of five minutes.
const maxClockSkew = 30 * time.Second

// silence is how long the stream may bring nothing before the agent counts as not ready. The server
// sends something at least every five seconds, which is half of its own timeout.
const silence = 15 * time.Second

// term is one period in which this agent leads, with all of its parts. candidate.takeOver makes it,
// and it is over when run returns. The package documentation has a table of its goroutines.
type term struct {
	*agent
	outbox.Term
	slot     *outbox.Slot
	life     *lifetime
	tailer   *outbox.Tailer
	stream   *stream
	router   *router
	lanes    *lanes.Scheduler
	ledger   *outbox.Ledger
	lease    *lease
	recovery *recovery
	sealer   *sealer
	pruning  *pruning
	leads    func() // called when the term begins to deliver
	// managedLater reports that somebody held an endpoint of the configuration file.
	managedLater bool
}

// run loads the state, delivers what the stream brings until take ends, and drains. led reports
// whether it has begun to deliver. err says why the term is over. The tailer sends to batches.
// ended receives the error that ends its first connection.
func (t *term) run(state outbox.State, batches chan *outbox.Batch, ended <-chan error) (led bool, err error) {
	life := t.life
	var streaming, ledger, helpers errgroup.Group
	streaming.Go(life.guarded(func() error {
		err := t.stream.run(batches, ended)
		life.stop(err)
		return err
	}))
	// When nothing can be recorded any more, everything ends at once. The next leader repeats what
	// was under way.
	ledger.Go(life.vital(func() error { return t.ledger.Run(life.alive) }))
	helpers.Go(life.guarded(func() error { return t.lanes.Refill(life.take, t.slot.Due) }))
	helpers.Go(life.guarded(func() error { t.watch(life.take); return nil }))
	helpers.Go(life.guarded(func() error { t.recovery.run(life.take); return nil }))
	if t.managedLater {
		helpers.Go(t.dispensable("managed", func() { t.syncManaged(life.take) }))
	}
	helpers.Go(t.dispensable("prune", func() { t.pruning.run(life.take, t.recovery.compared) }))
	helpers.Go(t.dispensable("seal", func() { t.sealer.run(life.take) }))
	helpers.Go(life.vital(func() error {
		ask := func(ctx context.Context) error { return t.slot.CheckEpoch(ctx, t.Term) }
		// Resume starts what did not start while the lease had run out.
		return t.lease.keep(life.take, t.tailer.Heard, ask, t.lanes.Resume)
	}))

	err = life.guarded(func() error {
		if err := t.router.load(life.alive, state); err != nil {
			return err
		}
		led = true
		t.leads()
		t.log.Info("leading", "slot", t.cfg.Outbox.Slot, "epoch", t.Epoch, "from", t.LSN.String(), "endpoints", len(state.Endpoints))
		state = outbox.State{} // frees the memory, which may be large
		return t.routeAll(batches)
	})()
	life.stop(err)

	t.log.Info("draining", "attempts_in_flight", t.lanes.Stats().InFlight, "shutdown_timeout", t.cfg.Delivery.ShutdownTimeout)
	t.lanes.Stop(life.alive)
	err = errors.Join(err, helpers.Wait())
	t.ledger.Close()
	err = errors.Join(err, ledger.Wait())
	life.kill(nil) // ends the stream, whose connection was kept to confirm the position
	err = errors.Join(err, streaming.Wait())
	t.recovery.end()
	return led, err
}

// syncManaged takes over the endpoints of the configuration file once nobody holds their rows. The
// stream brings what that changes.
func (t *term) syncManaged(take context.Context) {
	trouble := backoff.Trouble{
		Log: t.log, Level: slog.LevelWarn,
		Begins: "the endpoints of the configuration file are not taken over yet; trying again", Ends: "the endpoints of the configuration file are taken over",
	}
	// Only the end of the term ends it without success.
	_ = backoff.Retry(take, backoff.New(), &trouble, backoff.Never, func(ctx context.Context) error {
		return t.db.SyncManaged(ctx, t.cfg.Managed())
	})
}

// routeAll routes batches until take ends. The next leader gets again what is left in batches and
// in the backlog then. The backlog is served while the stream has nothing, and half of the time
// while it has.
func (t *term) routeAll(batches <-chan *outbox.Batch) error {
	take, alive, r := t.life.take, t.life.alive, t.router
	full := int(t.cfg.Delivery.QueueMemory) / backlogShare
	nothing := make(chan struct{}) // a closed channel, which can always be received from
	close(nothing)
	for take.Err() == nil {
		var (
			err  error
			idle <-chan struct{} // not nil while there is a backlog
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

// loadAnew reloads the endpoints and replays from the database into the router. The state is read
// by the router's goroutine. So it contains every change that the router has applied, and the
// router skips every change that the state contains.
func (t *term) loadAnew() error {
	state, err := t.slot.LoadState(t.life.take)
	if err != nil {
		return nil //nolint:nilerr // the ledger and the stream report it, and the next comparison reloads again
	}
	return t.router.reload(t.life.alive, state)
}

// attempt makes an attempt. It reports a panic in it, and a fault of this host.
func (t *term) attempt(ctx context.Context, d *outbox.Delivery, r sink.Request) sink.Result {
	var traced *tracing.Attempt
	if t.tracer != nil {
		traced = t.tracer.Attempt(d, &r)
	}
	result := t.webhook.Attempt(ctx, r)
	if traced != nil {
		traced.End(result)
	}
	if result.Panic != nil {
		t.caught(result.Panic)
	}
	if result.Outcome == sink.NotMade {
		if t.local.met(result.Fault, result.Error) && result.Fault == sink.FaultDescriptors {
			t.webhook.CloseIdle() // the database may need the files
		}
	}
	return result
}

// committed hands on what the ledger has committed. The ledger's goroutine calls it.
func (t *term) committed(records []*outbox.Record) {
	if t.tracer != nil {
		t.tracer.Recorded(records) // before the lanes let go of them
	}
	t.metrics.recorded(records)
	t.lanes.Committed(records)
	t.feed.Recorded(records)
}

// target returns the target of an endpoint. The error says why nothing can be sent there.
func (t *term) target(e *outbox.Endpoint) (*sink.Target, error) {
	return config.OpenTarget(t.webhook, t.keys, e)
}

// watch looks at the slot, the clocks and what is published every VitalsInterval, until ctx ends.
// It ends the term when what is published has changed.
func (t *term) watch(ctx context.Context) {
	tick := time.NewTicker(t.vitals)
	defer tick.Stop()
	defer t.recovery.hasLooked()
	skew := backoff.Trouble{
		Log: t.log, Level: slog.LevelWarn, Ends: "the clocks agree again",
		Begins: "this host's clock differs from the database's; receivers may refuse the time of signatures",
	}
	for {
		// The ledger and the stream use the same server and report the error.
		if v, err := t.slot.Vitals(ctx); err == nil {
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

// unready returns why events are not delivered or not recorded. It returns nil when they are.
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

// dispensable is guarded for a helper without which deliveries go on. A helper that panics again
// and again is left out.
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
