package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/quintago/webhook-agent/agent/admin"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/lanes"
	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/sink"
)

const (
	// standbyInterval is how often an agent that waits tries to get the slot.
	standbyInterval = time.Second
	// silence is how long the stream may say nothing before the agent counts as not ready. The server speaks every
	// half of its own timeout of ten seconds.
	silence = 15 * time.Second
	// lookInterval is how old the numbers of the lanes in the metrics may be.
	lookInterval = time.Second
	// maxClockSkew is the difference of the clocks that is worth a warning: receivers check the time of a signature,
	// mostly to five minutes.
	maxClockSkew = 30 * time.Second
	// vitalsInterval is Options.VitalsInterval where it is not given.
	vitalsInterval = 10 * time.Second
)

// agent is the process: what outlives a session.
type agent struct {
	cfg     *config.Config
	log     *slog.Logger
	holder  string
	db      *outbox.DB
	slot    *outbox.Slot
	webhook *sink.Webhook
	metrics *metrics
	tune    func(endpoints int)
	vitals  time.Duration // Options.VitalsInterval
	counts  outbox.Counts
	local   localFaults
	current atomic.Pointer[session] // the session of this agent's term, nil while there is none
	standby atomic.Bool             // another agent holds the slot
	problem atomic.Pointer[string]  // why there is no session

	suspects suspects
	panicked sync.Map // places of panics that were logged

	// Of the goroutine of lead.
	told   string          // the last problem that was logged
	warned map[string]bool // warnings of the preflight that were logged
	// undecodable is how far the stream had come when it met changes that cannot be decoded, zero when it has not: a slot that
	// stands there or before has to be given up for a new one. It is set by stream, which has ended before the next session.
	undecodable outbox.LSN
	replaced    replacements
}

// Options are what an agent gets from its process.
type Options struct {
	Config  *config.Config
	Log     *slog.Logger
	Version string // of the program
	// Endpoints is told how many endpoints there are when a term begins, and when their number has changed much. It may be nil.
	Endpoints func(n int)
	// VitalsInterval is how often the slot's lag, the clocks and what is published are looked at; 10 s when it is zero.
	VitalsInterval time.Duration
}

// Run delivers until ctx ends, which lets attempts in flight finish (delivery.shutdown_timeout), records them, and
// frees the slot. It returns an error only for what waiting does not mend, and only before it has led for the first
// time.
func Run(ctx context.Context, o Options) error {
	cfg, log := o.Config, o.Log
	a := &agent{cfg: cfg, log: log, tune: o.Endpoints, vitals: cmp.Or(o.VitalsInterval, vitalsInterval), warned: map[string]bool{}}
	if a.tune == nil {
		a.tune = func(int) {}
	}
	a.local = localFaults{log: log, caught: a.caught}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the host's name: %w", err)
	}
	a.holder = fmt.Sprintf("%s/%d", host, os.Getpid())
	a.metrics = newMetrics(o.Version, a.source())
	db := a.outboxConfig()
	db.Watchful = true
	if a.db, err = outbox.Open(ctx, db); err != nil {
		return err
	}
	defer a.db.Close()
	a.slot = a.db.Slot(db.Slot)
	files := OpenFilesFor(cfg.Delivery.Concurrency)
	if files.concurrency < cfg.Delivery.Concurrency {
		bounded := *cfg
		bounded.Delivery.Concurrency = files.concurrency
		a.cfg = &bounded
	}
	if a.webhook, err = a.cfg.NewWebhook(ctx, o.Version, files.idle); err != nil {
		return err
	}
	defer a.webhook.Close()
	listener, err := admin.Listen(ctx, cfg.Admin.Listen)
	if err != nil {
		return err
	}
	if f := files.Finding(); f.Level != outbox.LevelOK {
		log.Warn(f.Reason, "remedy", f.Remedy)
	}
	for _, notice := range cfg.Notices {
		log.Warn(notice)
	}
	log.Info("webhook-agent starts", "version", o.Version, "admin", listener.Addr().String(), "slot", cfg.Outbox.Slot)

	// The admin listener ends after the agent has led for the last time, so that /readyz tells of the draining.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(panics.Guard(a.caught, func() error {
		return admin.Serve(adminCtx, listener, admin.Config{Admin: cfg.Admin, Ready: a.ready, Metrics: a.metrics.registry, Caught: a.caught})
	}))
	g.Go(panics.Guard(a.caught, func() error { return a.watchSlot(adminCtx) }))
	g.Go(panics.Guard(a.caught, func() error {
		defer stopAdmin()
		return a.lead(ctx)
	}))
	err = g.Wait()
	if err == nil {
		log.Info("webhook-agent ends")
	}
	return err
}

// outboxConfig returns the configuration of package outbox for the parts of the process, which count together.
func (a *agent) outboxConfig() outbox.Config {
	c := a.cfg.OutboxConfig()
	c.Counts, c.Caught = &a.counts, a.caught
	return c
}

// lead holds one session after another until ctx ends.
func (a *agent) lead(ctx context.Context) error {
	led := false
	pace := newPace()
	for {
		s := newSession(a)
		began := time.Now()
		err := panics.Guard(a.caught, func() error { return s.run(ctx) })()
		a.db.Reset() // what the server or its settings have become shows on new connections only
		panicked, isPanic := errors.AsType[*panics.Error](err)
		led = led || s.led
		if s.led && (!isPanic && !isFatal(err) || time.Since(began) > soundConnection) {
			a.told, pace = "", newPace()
		}
		if ctx.Err() != nil {
			if s.led && err != nil {
				a.log.Warn("ended before everything was recorded; the next leader sends the rest again", "error", err)
			}
			return nil
		}
		if problem, _ := errors.AsType[*outbox.Problem](err); isFatal(err) && !led {
			return problem
		}
		switch {
		case isPanic: // logged already
			text := panicked.Error()
			a.problem.Store(&text)
		case errors.Is(err, outbox.ErrFenced):
			a.log.Warn("another agent has taken over; standing by")
		case errors.Is(err, errCoverage):
			a.log.Warn(err.Error())
		default:
			a.tellProblem(err)
		}
		if !backoff.Sleep(ctx, pace.next(err, time.Now())) {
			return nil
		}
	}
}

// watchSlot keeps the metric of what the slot holds on the server's disk until ctx ends, also while this
// agent stands by or cannot lead: that is when the disk fills. While it leads, watch does. An agent that leads
// before the first look has opened no connection for it.
func (a *agent) watchSlot(ctx context.Context) error {
	for backoff.Sleep(ctx, a.vitals) {
		if a.current.Load() == nil {
			if bytes, err := a.slot.RetainedBytes(ctx); err == nil { // an error shows where the agent tries to lead
				a.metrics.vitals.retainedBytes.Set(float64(bytes))
			}
		}
	}
	return nil
}

// tellProblem says why nothing is delivered: once in the log, and on /readyz.
func (a *agent) tellProblem(err error) {
	text := err.Error()
	if text == a.told {
		return
	}
	a.told = text
	a.problem.Store(&text)
	a.log.Error("cannot stream the outbox; trying again", "error", err)
}

// ready says what the agent is doing, or why it is not ready: another agent holds the slot, or the stream advances
// and is recorded.
func (a *agent) ready() (string, error) {
	if s := a.current.Load(); s != nil {
		if heard := s.tailer.Heard(); time.Since(heard) > silence {
			return "", fmt.Errorf("the stream is silent since %s", heard.UTC().Format(time.RFC3339))
		}
		if s.broken.Load() {
			return "", errors.New("the stream is broken; reconnecting")
		}
		if why := s.uncovered.Load(); why != nil {
			return "", errors.New("the stream does not bring all events: " + *why)
		}
		switch stats := s.ledger.Stats(); {
		case stats.Failing != "":
			return "", errors.New("deliveries cannot be recorded: " + stats.Failing)
		case stats.Stalled:
			return "", errors.New("deliveries cannot be recorded in time: the commit under way takes long")
		}
		if err := a.local.lasting(); err != nil {
			return "", fmt.Errorf("attempts cannot be made: %w", err)
		}
		return "leading", nil
	}
	if a.standby.Load() {
		return "standing by", nil
	}
	if p := a.problem.Load(); p != nil {
		return "", errors.New(*p)
	}
	return "", errors.New("not leading yet")
}

// source is what metrics ask the agent for.
func (a *agent) source() source {
	ask := func(read func(*session) float64) func() float64 {
		return func() (value float64) {
			defer func() { // prometheus asks on goroutines of its own
				if p := panics.Recovered(recover()); p != nil {
					a.caught(p)
				}
			}()
			if s := a.current.Load(); s != nil {
				return read(s)
			}
			return 0
		}
	}
	// One look serves all metrics of a scrape: it goes through all lanes, and holds them up.
	var (
		mu     sync.Mutex // guards the rest
		stats  lanes.Stats
		looked time.Time
	)
	look := func(read func(lanes.Stats) int) func() float64 {
		return ask(func(s *session) float64 {
			mu.Lock()
			defer mu.Unlock()
			if now := time.Now(); now.Sub(looked) >= lookInterval {
				stats, looked = s.lanes.Stats(), now
			}
			return float64(read(stats))
		})
	}
	return source{
		leading: ask(func(*session) float64 { return 1 }),
		recovering: ask(func(s *session) float64 {
			if s.recovering.Load() || s.uncovered.Load() != nil {
				return 1
			}
			return 0
		}),
		lagSeconds:      ask(func(s *session) float64 { return s.ledger.Stats().Lag.Seconds() }),
		attemptsRunning: look(func(st lanes.Stats) int { return st.InFlight }),
		queued:          look(func(st lanes.Stats) int { return st.Queued }),
		queuedBytes:     look(func(st lanes.Stats) int { return st.Bytes }),
		lanesActive:     look(func(st lanes.Stats) int { return st.Active }),
		endpointsHeld:   look(func(st lanes.Stats) int { return st.Held }),
		endpointsOff:    look(func(st lanes.Stats) int { return st.Off }),
		counts:          &a.counts,
	}
}
