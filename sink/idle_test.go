package sink

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// If a name leads elsewhere, the agent follows within a minute, although the former server still
// answers.
func TestClient_FollowsANameThatHasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(int64, int64) string { return ok200 }, nil)
		start := time.Now()
		for s.connections.Load() < 2 && time.Since(start) < 2*connAge {
			attempt(t, w, requestTo("http://hooks.example.com"))
			<-time.After(time.Second)
		}
		if age := time.Since(start); age < connAge*3/4 || age > connAge+time.Second {
			t.Errorf("the second connection was made after %v", age)
		}
		w.Close()
	})
}

// A server that says how long it keeps a connection gets no request at the end of that time.
func TestClient_HonoursTheServersKeepAlive(t *testing.T) {
	for _, c := range []struct {
		says        string
		every       time.Duration
		connections int64 // of four attempts
	}{
		{"timeout=5", 3900 * time.Millisecond, 1}, {"timeout=5", 4100 * time.Millisecond, 4}, {"timeout=5, max=100", 4100 * time.Millisecond, 4},
		{"timeout=1", 400 * time.Millisecond, 1}, {"timeout=1", 600 * time.Millisecond, 4}, {"max=5", 10 * time.Second, 1}, {"timeout=600", 10 * time.Second, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, s := pipeScript(t, func(_, request int64) string {
				if request > 1 {
					return ok200 // which says nothing
				}
				return "HTTP/1.1 200 OK\r\nKeep-Alive: " + c.says + "\r\nContent-Length: 0\r\n\r\n"
			}, nil)
			for range 4 {
				attempt(t, w, requestTo("http://hooks.example.com"))
				<-time.After(c.every)
			}
			if n := s.connections.Load(); n != c.connections {
				t.Errorf("%s, every %v: %d connections, want %d", c.says, c.every, n, c.connections)
			}
			w.Close()
		})
	}
}

// Idle connections are closed by themselves, and nothing is kept for endpoints that get no more
// events.
func TestClient_ForgetsOriginsOfWhichNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(int64, int64) string { return ok200 }, nil)
		for n := range 100 {
			attempt(t, w, requestTo(fmt.Sprintf("http://hooks-%d.example.com", n)))
		}
		<-time.After(idleConnTimeout + 2*sweepEvery)
		synctest.Wait()
		i := w.client.idle
		i.mu.Lock()
		defer i.mu.Unlock()
		if len(i.origins) > 0 || i.oldest.Len() > 0 || i.sweeper != nil || s.connections.Load() != 100 {
			t.Errorf("%d origins, %d connections, a sweep to come: %v", len(i.origins), i.oldest.Len(), i.sweeper != nil)
		}
	})
}

// If there are too many idle connections, those that were used longest ago are closed.
func TestClient_KeepsTheConnectionsThatWereUsedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(int64, int64) string { return ok200 }, func(c *WebhookConfig) { c.MaxIdle = 2 })
		to := func(hosts ...string) int64 {
			before := s.connections.Load()
			for _, host := range hosts {
				attempt(t, w, requestTo("http://"+host+".example.com"))
			}
			return s.connections.Load() - before
		}
		if n := to("a", "b", "a", "c"); n != 3 {
			t.Errorf("%d connections at first, want 3", n)
		}
		if n := to("a", "c"); n != 0 {
			t.Errorf("%d more to those used last", n)
		}
		if n := to("b"); n != 1 {
			t.Errorf("%d more to the one used longest ago", n)
		}
		w.Close()
		if n := to("a", "a"); n != 2 {
			t.Errorf("%d connections of two attempts after Close", n)
		}
		synctest.Wait() // a connection that was left open would keep its server, and the bubble
	})
}

// Connections are still kept if one of them ends now and then.
func TestClient_KeepsConnectionsThatMostlyWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(_, request int64) string {
			if request > 2 {
				return ""
			}
			return ok200
		}, nil)
		for range 40 {
			attempt(t, w, requestTo("http://hooks.example.com"))
		}
		if n := s.connections.Load(); n != 20 {
			t.Errorf("%d connections for 40 requests, where each serves two", n)
		}
		w.Close()
	})
}

func TestClient_KeepsAsManyConnectionsToOneHostAsItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const attempts, most = 5, 2
		var together, all sync.WaitGroup
		together.Add(attempts)
		w, _ := pipeScript(t, func(int64, int64) string {
			together.Done()
			together.Wait()
			return ok200
		}, func(c *WebhookConfig) { c.MaxIdlePerHost = most })
		for range attempts {
			all.Go(func() { attempt(t, w, requestTo("http://hooks.example.com")) })
		}
		all.Wait()
		if n := w.client.idle.oldest.Len(); n != most {
			t.Errorf("%d connections are kept, want %d", n, most)
		}
		w.Close()
	})
}

// Losses count as in a row only if no kept connection was answered between them.
func TestClient_CountsLossesInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s := pipeScript(t, func(connection, request int64) string {
			switch {
			case request == 1:
				return ok200
			case connection%2 == 1:
				return ""
			}
			return "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
		}, nil)
		for range 30 {
			attempt(t, w, requestTo("http://hooks.example.com"))
		}
		if n := s.connections.Load(); n != 20 {
			t.Errorf("%d connections, want 20: two for three requests", n)
		}
		w.Close()
	})
}

// A server that closes kept connections gets fresh ones for a minute only.
func TestClient_TriesAgainToKeepConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sound atomic.Bool
		w, s := pipeScript(t, func(_, request int64) string {
			if request > 1 && !sound.Load() {
				return ""
			}
			return ok200
		}, nil)
		for range 2 * lostInARow {
			if got := attempt(t, w, requestTo("http://hooks.example.com")); got.Outcome != Succeeded {
				t.Errorf("%+v", got)
			}
		}
		sound.Store(true)
		<-time.After(freshFor)
		before := s.connections.Load()
		for range 5 {
			attempt(t, w, requestTo("http://hooks.example.com"))
		}
		if n := s.connections.Load() - before; n != 1 {
			t.Errorf("%d connections of five attempts", n)
		}
		w.Close()
	})
}

// What is idle can be closed without an end of the keeping.
func TestIdle_KeepsAgainAfterADrop(t *testing.T) {
	s, url := startScript(t, func(int64, int64) string { return ok200 })
	w := newTestWebhook(t, nil)
	for range 2 {
		attempt(t, w, requestTo(url))
		attempt(t, w, requestTo(url))
		w.CloseIdle()
	}
	if c, r := s.connections.Load(), s.requests.Load(); c != 2 || r != 4 {
		t.Errorf("%d requests over %d connections, want 4 over 2", r, c)
	}
	attempt(t, w, requestTo(url))
	w.Close()
	attempt(t, w, requestTo(url))
	if n := w.client.idle.oldest.Len(); n != 0 {
		t.Errorf("%d connections are kept after Close", n)
	}
}
