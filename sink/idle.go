package sink

import (
	"cmp"
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/panics"
)

const (
	// DefaultMaxIdle is how many idle connections are kept where WebhookConfig says nothing else.
	DefaultMaxIdle  = 512
	idleConnTimeout = time.Minute
	// sweepEvery is how often idle connections that are too old are closed.
	sweepEvery = idleConnTimeout / 4

	// An origin whose kept connections end again and again as they are used, so many in a row, gets a fresh one for each request
	// for a while: some servers close at once and do not say so.
	lostInARow = 3
	freshFor   = time.Minute
)

// idle keeps connections between exchanges. When there are too many, those that were used longest ago are closed.
type idle struct {
	perOrigin, most int

	mu      sync.Mutex
	origins map[origin]*kept
	oldest  *list.List // of *conn, in the order in which they were put
	sweeper *time.Timer
	closed  bool
}

// kept is what is known of an origin. It is forgotten when nothing of it is left.
type kept struct {
	conns []*list.Element // of idle.oldest, the last used last
	lost  int             // kept connections in a row that had ended when they were used
	fresh time.Time       // until then none is kept
}

func newIdle(perOrigin, most int) *idle {
	return &idle{
		perOrigin: perOrigin,
		most:      cmp.Or(most, max(DefaultMaxIdle, perOrigin)),
		origins:   map[origin]*kept{},
		oldest:    list.New(),
	}
}

// take returns an idle connection to an origin, the one used last, or nil.
func (i *idle) take(to origin) *conn {
	for {
		c := i.pop(to)
		if c == nil {
			return nil
		}
		if time.Now().Before(c.until) && c.alive() {
			c.reused = true
			return c
		}
		_ = c.Close() // nothing is lost with it
	}
}

func (i *idle) pop(to origin) *conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	k := i.origins[to]
	if k == nil || len(k.conns) == 0 {
		return nil
	}
	return i.removeLocked(k, len(k.conns)-1)
}

// put keeps a connection, and reports whether it does.
func (i *idle) put(c *conn) bool {
	c.until = c.used.Add(idleConnTimeout)
	if c.keepFor >= 0 {
		// The next request must arrive before the server closes: a second before, or half of a short time.
		c.until = c.used.Add(min(idleConnTimeout, c.keepFor-min(time.Second, c.keepFor/2)))
	}
	if c.ends.Before(c.until) {
		c.until = c.ends
	}
	if !c.used.Before(c.until) {
		return false
	}
	i.mu.Lock()
	k := i.ofLocked(c.origin)
	if i.closed || c.used.Before(k.fresh) {
		i.mu.Unlock()
		return false
	}
	var evicted *conn
	if len(k.conns) >= i.perOrigin {
		evicted = i.removeLocked(k, 0)
	} else if i.oldest.Len() >= i.most {
		oldest := i.oldest.Front().Value.(*conn)
		evicted = i.removeLocked(i.origins[oldest.origin], 0) // the first of its origin's, too
	}
	k.conns = append(k.conns, i.oldest.PushBack(c))
	i.mu.Unlock()
	if evicted != nil {
		_ = evicted.Close() // nothing is lost with it
	}
	return true
}

// lost takes note of a kept connection that had ended when it was used.
func (i *idle) lost(at origin) {
	i.mu.Lock()
	defer i.mu.Unlock()
	k := i.ofLocked(at)
	if k.lost++; k.lost >= lostInARow {
		k.lost, k.fresh = 0, time.Now().Add(freshFor)
	}
}

// worked takes note of a kept connection that was answered.
func (i *idle) worked(at origin) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if k := i.origins[at]; k != nil {
		k.lost = 0
	}
}

// ofLocked returns what is known of an origin, which sweep forgets some time.
func (i *idle) ofLocked(to origin) *kept {
	k := i.origins[to]
	if k == nil {
		k = new(kept)
		i.origins[to] = k
		i.sweepLaterLocked()
	}
	return k
}

// removeLocked takes away one of an origin's connections.
func (i *idle) removeLocked(k *kept, at int) *conn {
	c := i.oldest.Remove(k.conns[at]).(*conn)
	k.conns = slices.Delete(k.conns, at, at+1) // which clears what is behind
	return c
}

// sweepLaterLocked starts the timer of sweep, unless it runs.
func (i *idle) sweepLaterLocked() {
	if i.sweeper == nil && !i.closed {
		i.sweeper = time.AfterFunc(sweepEvery, panics.GuardFunc(nil, i.sweep))
	}
}

// sweep closes what has been idle for too long and forgets origins of which nothing is left, those of removed endpoints among them.
func (i *idle) sweep() {
	now := time.Now()
	i.mu.Lock()
	var ended []*conn
	for e := i.oldest.Front(); e != nil; {
		next := e.Next()
		if c := e.Value.(*conn); !now.Before(c.until) {
			k := i.origins[c.origin]
			ended = append(ended, i.removeLocked(k, slices.Index(k.conns, e)))
		}
		e = next
	}
	for to, k := range i.origins {
		if len(k.conns) == 0 && !now.Before(k.fresh) {
			delete(i.origins, to)
		}
	}
	i.sweeper = nil
	if len(i.origins) > 0 {
		i.sweepLaterLocked()
	}
	i.mu.Unlock()
	for _, c := range ended {
		_ = c.Close() // nothing is lost with it
	}
}

// close closes idle connections, and all others when their exchange is over.
func (i *idle) close() {
	i.mu.Lock()
	var ended []*conn
	for e := i.oldest.Front(); e != nil; e = e.Next() {
		ended = append(ended, e.Value.(*conn))
	}
	i.oldest.Init()
	clear(i.origins)
	i.closed = true
	if i.sweeper != nil {
		i.sweeper.Stop()
	}
	i.mu.Unlock()
	for _, c := range ended {
		_ = c.Close() // nothing is lost with it
	}
}
