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
	// DefaultMaxIdle is how many idle connections are kept to all hosts if WebhookConfig.MaxIdle is
	// zero.
	DefaultMaxIdle  = 512
	idleConnTimeout = time.Minute
	// sweepEvery is how often idle connections that are too old are closed.
	sweepEvery = idleConnTimeout / 4

	// Some servers close a connection at once and do not say so. If lostInARow kept connections of
	// an origin in a row had ended when they were used, its requests get fresh connections for the
	// time freshFor.
	lostInARow = 3
	freshFor   = time.Minute
)

// idle keeps connections between exchanges. If there are too many, it closes those that were used
// longest ago. Any number of goroutines may call its methods; mu guards the fields below it.
type idle struct {
	perOrigin, most int

	mu      sync.Mutex
	origins map[origin]*kept
	oldest  *list.List // of *conn, in the order in which they were put
	sweeper *time.Timer
	closed  bool
}

// kept is what idle knows about an origin. sweep forgets it when it holds nothing any more.
type kept struct {
	conns []*list.Element // elements of idle.oldest; the one used last is last
	lost  int             // how many kept connections in a row had ended when they were used
	fresh time.Time       // no connection is kept before this time
}

func newIdle(perOrigin, most int) *idle {
	return &idle{
		perOrigin: perOrigin,
		most:      cmp.Or(most, max(DefaultMaxIdle, perOrigin)),
		origins:   map[origin]*kept{},
		oldest:    list.New(),
	}
}

// take returns the idle connection to an origin that was used last, or nil. It closes those that
// can no longer be used.
func (i *idle) take(to origin) *conn {
	for {
		c := i.pop(to)
		if c == nil {
			return nil
		}
		if time.Now().Before(c.until) {
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

// put keeps a connection for later, and reports whether it did. If not, the caller must close it.
func (i *idle) put(c *conn) bool {
	c.until = c.used.Add(idleConnTimeout)
	if c.keepFor >= 0 {
		// The next request must arrive before the server closes the connection. So stop using it
		// one second before that, or after half of a time below two seconds.
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
		// The oldest of all is also the oldest of its origin.
		evicted = i.removeLocked(i.origins[oldest.origin], 0)
	}
	k.conns = append(k.conns, i.oldest.PushBack(c))
	i.mu.Unlock()
	if evicted != nil {
		_ = evicted.Close() // nothing is lost with it
	}
	return true
}

// lost counts a kept connection that had ended when it was used.
func (i *idle) lost(at origin) {
	i.mu.Lock()
	defer i.mu.Unlock()
	k := i.ofLocked(at)
	if k.lost++; k.lost >= lostInARow {
		k.lost, k.fresh = 0, time.Now().Add(freshFor)
	}
}

// worked records that a kept connection was answered, so the count of lost ones starts again.
func (i *idle) worked(at origin) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if k := i.origins[at]; k != nil {
		k.lost = 0
	}
}

// ofLocked returns the entry of an origin, and makes it if there is none. sweep deletes it later.
func (i *idle) ofLocked(to origin) *kept {
	k := i.origins[to]
	if k == nil {
		k = new(kept)
		i.origins[to] = k
		i.sweepLaterLocked()
	}
	return k
}

// removeLocked removes and returns one of an origin's connections. at is its index in k.conns.
func (i *idle) removeLocked(k *kept, at int) *conn {
	c := i.oldest.Remove(k.conns[at]).(*conn)
	k.conns = slices.Delete(k.conns, at, at+1) // Delete also clears the freed element
	return c
}

// sweepLaterLocked starts the timer of sweep if it does not run yet.
func (i *idle) sweepLaterLocked() {
	if i.sweeper == nil && !i.closed {
		i.sweeper = time.AfterFunc(sweepEvery, panics.GuardFunc(nil, i.sweep))
	}
}

// sweep closes connections that have been idle for too long. It also forgets origins without
// connections, such as those of removed endpoints.
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

// drop closes all idle connections. Those in use may be kept afterwards.
func (i *idle) drop() {
	i.mu.Lock()
	var ended []*conn
	for e := i.oldest.Front(); e != nil; e = e.Next() {
		ended = append(ended, e.Value.(*conn))
	}
	i.oldest.Init()
	for _, k := range i.origins {
		k.conns = nil
	}
	i.mu.Unlock()
	for _, c := range ended {
		_ = c.Close() // nothing is lost with it
	}
}

// close closes all idle connections for good. A connection that is in use is closed after its
// exchange, because put refuses it.
func (i *idle) close() {
	i.mu.Lock()
	i.closed = true
	if i.sweeper != nil {
		i.sweeper.Stop()
	}
	i.mu.Unlock()
	i.drop()
}
