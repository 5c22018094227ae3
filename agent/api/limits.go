package api

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// Requests of one caller: per second, and at once after a pause.
	readsPerSecond, readsAtOnce   = 20, 40
	writesPerSecond, writesAtOnce = 2, 10
	// samplePause is the time between two samples to one endpoint.
	samplePause = 5 * time.Second
	// requestsAtOnce bounds the requests under way, of all callers. More than the connections of the
	// pool, since not all of them wait for the database.
	requestsAtOnce = 8
	// placeWait is how long a request waits for one of them to end.
	placeWait = 2 * time.Second
	// Streams of all callers, and of one.
	maxStreams, maxStreamsOfCaller = 32, 4
	// Requests take time from a budget, in milliseconds a second and for each processor, since their queries
	// compete with the deliveries for the processors: of all callers, and of one. After a pause there is more.
	workPerSecond, callerWork  = 50, 15
	workAtOnce, callerWorkOnce = 1000, 500
	// mostWork is what one request takes at most: it may have waited for others.
	mostWork = 100 * time.Millisecond
	// refusalPause is how long a refusal is held back, of waitingRefusals requests at a time: a client that
	// asks again at once would cost as much as its answers.
	refusalPause, waitingRefusals = time.Second, 64
	// forgetAfter is when the counts of a caller that is silent are forgotten.
	forgetAfter = 5 * time.Minute
)

// limits bounds what callers may ask for. All methods are safe for concurrent use.
type limits struct {
	places chan struct{}
	held   chan struct{} // of refusals that are held back
	work   *rate.Limiter // of all callers, in milliseconds
	// Of a caller, a second. Tests set others.
	reads, writes, callerWork rate.Limit

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
	streams       int
	last          time.Time
}

func newLimits() *limits {
	return &limits{places: make(chan struct{}, requestsAtOnce), held: make(chan struct{}, waitingRefusals), work: rate.NewLimiter(ofProcessors(workPerSecond), workAtOnce),
		reads: readsPerSecond, writes: writesPerSecond, callerWork: ofProcessors(callerWork), callers: map[string]*callerLimits{}}
}

// ofProcessors returns a budget of milliseconds a second.
func ofProcessors(each int) rate.Limit { return rate.Limit(each * runtime.GOMAXPROCS(0)) }

// locked runs do with the limits of a caller.
func (l *limits) locked(caller string, do func(*callerLimits)) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.swept) > forgetAfter {
		for name, c := range l.callers {
			if now.Sub(c.last) > forgetAfter && c.streams == 0 && !c.heavy {
				delete(l.callers, name)
			}
		}
		l.swept = now
	}
	c := l.callers[caller]
	if c == nil {
		c = &callerLimits{reads: rate.NewLimiter(l.reads, readsAtOnce), writes: rate.NewLimiter(l.writes, writesAtOnce), work: rate.NewLimiter(l.callerWork, callerWorkOnce), samples: map[string]time.Time{}}
		l.callers[caller] = c
	}
	c.last = now
	do(c)
}

// request counts a request and returns how long the caller has to wait; 0 when it may go on.
func (l *limits) request(caller string, write bool) (wait time.Duration) {
	l.locked(caller, func(c *callerLimits) {
		limiter := c.reads
		if write {
			limiter = c.writes
		}
		if r := limiter.Reserve(); r.Delay() > 0 {
			wait = r.Delay()
			r.Cancel()
		}
	})
	return wait
}

// holdBack waits before a request is refused.
func (l *limits) holdBack(ctx context.Context) {
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

// afford returns how long a caller has to wait until there is time in the budgets.
func (l *limits) afford(caller string) (wait time.Duration) {
	l.locked(caller, func(c *callerLimits) { wait = max(overdrawn(l.work), overdrawn(c.work)) })
	return wait
}

// overdrawn returns how long it takes until a budget has something left.
func overdrawn(work *rate.Limiter) time.Duration {
	if work.Limit() == rate.Inf {
		return 0
	}
	return max(0, time.Duration(-work.Tokens()/float64(work.Limit())*float64(time.Second)))
}

// worked takes the time of a request from the budgets. It may overdraw them.
func (l *limits) worked(caller string, took time.Duration) {
	l.locked(caller, func(c *callerLimits) {
		now := time.Now()
		for _, work := range []*rate.Limiter{l.work, c.work} {
			work.ReserveN(now, min(int(min(took, mostWork).Milliseconds())+1, work.Burst()))
		}
	})
}

// sample counts a sample to an endpoint, as request does.
func (l *limits) sample(caller, endpointID string) (wait time.Duration) {
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

// heavy takes the one place that a caller has for queries that count much. ok reports that it was
// free; then the caller of heavy calls done.
func (l *limits) heavy(caller string) (done func(), ok bool) {
	l.locked(caller, func(c *callerLimits) {
		ok, c.heavy = !c.heavy, true
	})
	return func() { l.locked(caller, func(c *callerLimits) { c.heavy = false }) }, ok
}

// stream takes one of the places for streams, as heavy does.
func (l *limits) stream(caller string) (done func(), ok bool) {
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
