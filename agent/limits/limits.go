package limits

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// samplePause is the time between two samples to one endpoint.
	samplePause = 5 * time.Second
	// requestsAtOnce bounds the requests under way, of all callers. More than the connections of the
	// pool, since not all of them wait for the database.
	requestsAtOnce = 8
	// answersOfCaller bounds the requests of one caller until their answers are written. A caller who
	// reads slowly keeps the memory of his answers, and no place of others.
	answersOfCaller = 8
	// placeWait is how long a request waits for one of them to end.
	placeWait = 2 * time.Second
	// Streams of all callers, and of one.
	maxStreams, maxStreamsOfCaller = 32, 4
	// mostWork is what one request takes of a budget at most: it may have waited for others.
	mostWork = 100 * time.Millisecond
	// refusalPause is how long a refusal is held back, of waitingRefusals requests at a time: a client
	// that asks again at once would cost as much as its answers.
	refusalPause, waitingRefusals = time.Second, 64
	// forgetAfter is when the counts of a caller that is silent are forgotten.
	forgetAfter = 5 * time.Minute
)

// Rate is how much of something is allowed: so much a second, and Burst at once after a pause.
type Rate struct {
	PerSecond rate.Limit
	Burst     int
}

func (r Rate) limiter() *rate.Limiter { return rate.NewLimiter(r.PerSecond, r.Burst) }

// Rates are the rates of requests.
type Rates struct {
	// Reads and Writes are requests of one caller.
	Reads, Writes Rate
	// Work is the time of the requests of all callers together, and CallerWork that of one, in
	// milliseconds. Their queries compete with the deliveries for the processors.
	Work, CallerWork Rate
}

// Unlimited allows everything.
var Unlimited = Rates{Reads: all, Writes: all, Work: all, CallerWork: all}

var all = Rate{rate.Inf, 1}

// Default returns the rates of this machine: the more processors it has, the more time it has for
// requests.
func Default() Rates {
	processors := rate.Limit(runtime.GOMAXPROCS(0))
	return Rates{Reads: Rate{20, 40}, Writes: Rate{2, 10}, Work: Rate{50 * processors, 1000}, CallerWork: Rate{15 * processors, 500}}
}

// Limits bounds what callers may ask for. All methods are safe for concurrent use.
type Limits struct {
	rates  Rates
	places chan struct{}
	held   chan struct{} // of refusals that are held back
	work   *rate.Limiter // of all callers, in milliseconds

	mu      sync.Mutex
	callers map[string]*callerLimits
	swept   time.Time
	streams int
}

// callerLimits are those of one caller: the operator, or all tokens of a venue together.
type callerLimits struct {
	reads, writes *rate.Limiter
	work          *rate.Limiter        // in milliseconds
	samples       map[string]time.Time // when the last sample was sent, by endpoint
	heavy         bool                 // a query that counts much is under way
	answers       chan struct{}        // of requests whose answer is not written yet
	streams       int
	last          time.Time
}

// New returns limits that nobody has used yet.
func New(rates Rates) *Limits {
	return &Limits{rates: rates, places: make(chan struct{}, requestsAtOnce), held: make(chan struct{}, waitingRefusals),
		work: rates.Work.limiter(), callers: map[string]*callerLimits{}}
}

// locked runs do with the limits of a caller.
func (l *Limits) locked(caller string, do func(*callerLimits)) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.swept) > forgetAfter {
		for name, c := range l.callers {
			if now.Sub(c.last) > forgetAfter && c.streams == 0 && !c.heavy && len(c.answers) == 0 {
				delete(l.callers, name)
			}
		}
		l.swept = now
	}
	c := l.callers[caller]
	if c == nil {
		c = &callerLimits{reads: l.rates.Reads.limiter(), writes: l.rates.Writes.limiter(), work: l.rates.CallerWork.limiter(), samples: map[string]time.Time{},
			answers: make(chan struct{}, answersOfCaller)}
		l.callers[caller] = c
	}
	c.last = now
	do(c)
}

// Request counts a request and returns how long the caller has to wait; 0 when it may go on.
func (l *Limits) Request(caller string, write bool) (wait time.Duration) {
	l.locked(caller, func(c *callerLimits) {
		limiter := c.reads
		if write {
			limiter = c.writes
		}
		if r := limiter.Reserve(); r.Delay() > 0 {
			wait = r.Delay()
			r.Cancel()
		}
		wait = max(wait, overdrawn(l.work), overdrawn(c.work))
	})
	return wait
}

// HoldBack waits before a request is refused.
func (l *Limits) HoldBack(ctx context.Context) {
	select {
	case l.held <- struct{}{}:
		defer func() { <-l.held }()
	default: // too many are held back already
		return
	}
	timer := time.NewTimer(refusalPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// ErrBusy reports that too many requests are under way.
var ErrBusy = errors.New("too many requests are under way")

// Answer takes a place among the requests of one caller, which it waits for. The caller calls done
// when the answer is written. err is ErrBusy, or that of ctx.
func (l *Limits) Answer(ctx context.Context, caller string) (done func(), err error) {
	var answers chan struct{}
	l.locked(caller, func(c *callerLimits) { answers = c.answers })
	if err := take(ctx, answers); err != nil {
		return nil, err
	}
	return func() { <-answers }, nil
}

// take takes one of the places, which it waits for.
func take(ctx context.Context, places chan struct{}) error {
	timer := time.NewTimer(placeWait)
	defer timer.Stop()
	select {
	case places <- struct{}{}:
		return nil
	case <-timer.C:
		return ErrBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Enter takes a place among the requests under way, which it waits for. The caller calls leave at the
// end. wait is how long the caller has to wait instead, where others have used up the budget
// meanwhile. err is ErrBusy, or that of ctx.
func (l *Limits) Enter(ctx context.Context, caller string) (leave func(), wait time.Duration, err error) {
	if err := take(ctx, l.places); err != nil {
		return nil, 0, err
	}
	leave = func() { <-l.places }
	l.locked(caller, func(c *callerLimits) { wait = max(overdrawn(l.work), overdrawn(c.work)) })
	if wait > 0 {
		leave()
		return nil, wait, nil
	}
	return leave, 0, nil
}

// overdrawn returns how long it takes until a budget has something left.
func overdrawn(work *rate.Limiter) time.Duration {
	if work.Limit() == rate.Inf {
		return 0
	}
	return max(0, time.Duration(-work.Tokens()/float64(work.Limit())*float64(time.Second)))
}

// Worked takes the time of a request from the budgets. It may overdraw them.
func (l *Limits) Worked(caller string, took time.Duration) {
	l.locked(caller, func(c *callerLimits) {
		now := time.Now()
		for _, work := range []*rate.Limiter{l.work, c.work} {
			work.ReserveN(now, min(int(min(took, mostWork).Milliseconds())+1, work.Burst()))
		}
	})
}

// Sample counts a sample to an endpoint, as Request does.
func (l *Limits) Sample(caller, endpointID string) (wait time.Duration) {
	l.locked(caller, func(c *callerLimits) {
		now := time.Now()
		for id, at := range c.samples {
			if now.Sub(at) > samplePause {
				delete(c.samples, id)
			}
		}
		if at, ok := c.samples[endpointID]; ok {
			wait = samplePause - now.Sub(at)
			return
		}
		c.samples[endpointID] = now
	})
	return wait
}

// Heavy takes the one place that a caller has for queries that count much. ok reports that it was
// free; then the caller of Heavy calls done.
func (l *Limits) Heavy(caller string) (done func(), ok bool) {
	l.locked(caller, func(c *callerLimits) {
		ok, c.heavy = !c.heavy, true
	})
	return func() { l.locked(caller, func(c *callerLimits) { c.heavy = false }) }, ok
}

// Stream takes one of the places for streams, as Heavy does.
func (l *Limits) Stream(caller string) (done func(), ok bool) {
	l.locked(caller, func(c *callerLimits) {
		if ok = l.streams < maxStreams && c.streams < maxStreamsOfCaller; ok {
			l.streams++
			c.streams++
		}
	})
	return func() {
		l.locked(caller, func(c *callerLimits) {
			l.streams--
			c.streams--
		})
	}, ok
}
