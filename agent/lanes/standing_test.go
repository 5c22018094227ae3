package lanes

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// paced sets the pacing of failing endpoints that the product has.
func paced(c *Config) {
	c.FailingInterval, c.Lengthen = config.Default().Delivery.FailingInterval, lengthen
}

func tooMany(retryAfter time.Duration) answer {
	return answer{time.Millisecond, sink.Result{Outcome: sink.Failed, Code: 429, Class: sink.ClassHTTPStatus, Error: "the server answered 429", RetryAfter: retryAfter}}
}

func refused() answer {
	return answer{time.Millisecond, sink.Result{Outcome: sink.Failed, Class: sink.ClassConnectRefused, Error: "refused"}}
}

// outcome is the result of an outage.
type outcome struct {
	attempts, failures int
	disabledAfter      time.Duration // zero where it was not disabled
	missed             int
	drained            time.Duration // from the receiver's return until nothing waits
}

// playOutage plays an outage of a receiver that takes rate events a second.
func playOutage(t *testing.T, rate int, down time.Duration) (o outcome) {
	const before = 2 * time.Second
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		now := func() time.Duration { return time.Since(lt.began) }
		isDown := func() bool { return now() >= before && now() < before+down }
		l := lt.endpoint("ep", func(string, int) answer {
			if isDown() {
				o.failures++
				return refused()
			}
			return ok(10 * time.Millisecond)
		})
		const step = 100 * time.Millisecond
		for n := 0; now() < before+down; n += rate {
			if events := (n+rate)/10 - n/10; events > 0 {
				lt.send(l, events, 10)
			}
			agenttest.Pass(step - now()%step)
			if o.disabledAfter == 0 && lt.book.hasDisabled() {
				o.disabledAfter = now() - before
			}
		}
		for {
			states := lt.book.states()
			o.missed = states[outbox.Missed] + states[outbox.Failed]
			left := lt.sent - states[outbox.Succeeded] - o.missed
			if left == 0 {
				break
			}
			if o.drained = now() - before - down; o.drained > 3*time.Hour {
				t.Fatalf("%d deliveries wait three hours after the receiver's return", left)
			}
			agenttest.Pass(step)
		}
		o.attempts = lt.made("ep")
		lt.quiet()
	})
	return o
}

func TestLanes_AnOutageOfAQuarterOfAnHourDisablesNobody(t *testing.T) {
	t.Parallel()
	rates := []int{1, 50}
	if testing.Short() {
		rates = rates[:1]
	}
	for _, down := range []time.Duration{2 * time.Second, 30 * time.Second, 5 * time.Minute, 14 * time.Minute, 20 * time.Minute} {
		for _, rate := range rates {
			o := playOutage(t, rate, down)
			t.Logf("down %-6s %3d events/s: %+v", down, rate, o)
			if down > 15*time.Minute {
				if o.disabledAfter < 15*time.Minute || o.failures != 100 {
					t.Errorf("down %s, %d events/s: disabled after %s by %d failures, want a quarter of an hour at least and 100", down, rate, o.disabledAfter, o.failures)
				}
				continue
			}
			if o.disabledAfter != 0 || o.missed != 0 {
				t.Errorf("down %s, %d events/s: disabled after %s, %d missed", down, rate, o.disabledAfter, o.missed)
			}
		}
	}
}

// bucket is a server that takes rate events a second, and as many at once. It answers 429 to all
// others.
func bucket(rate float64) func(string, int) answer {
	most := max(1, rate)
	tokens, at := most, time.Now()
	return func(string, int) answer {
		now := time.Now()
		tokens = min(most, tokens+now.Sub(at).Seconds()*rate)
		if at = now; tokens < 1 {
			return tooMany(0)
		}
		tokens--
		return ok(20 * time.Millisecond)
	}
}

// counting counts the answers that are failures, and how many of them came in a row at most.
func counting(next func(string, int) answer, failures, inARow *int) func(string, int) answer {
	row := 0
	return func(eventID string, n int) answer {
		a := next(eventID, n)
		if row++; a.result.Outcome == sink.Succeeded {
			row = 0
			return a
		}
		*failures++
		*inARow = max(*inARow, row)
		return a
	}
}

// everythingSucceeded waits until every delivery has succeeded, and returns how long that took.
func (lt *laneTest) everythingSucceeded(most time.Duration) time.Duration {
	lt.t.Helper()
	began := time.Now()
	for {
		states := lt.book.states()
		if states[outbox.Succeeded] == lt.sent {
			return time.Since(began)
		}
		if time.Since(began) > most {
			lt.t.Fatalf("of %d deliveries after %s: %v", lt.sent, most, states)
		}
		agenttest.Pass(100 * time.Millisecond)
	}
}

// The servers of this test take few attempts. The lane must find how many, and stay there.
func TestLanes_ASmallLimitIsFoundAndKeptTo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name           string
		server         func(lt *laneTest) func(string, int) answer
		events         int
		most           time.Duration
		failures, many int // at most
	}{
		{"5 a second", func(*laneTest) func(string, int) answer { return bucket(5) }, 300, 5 * time.Minute, 90, pacedFrom},
		{"500 a second", func(*laneTest) func(string, int) answer { return bucket(500) }, 5000, 2 * time.Minute, 500, pacedFrom},
		{"one connection", func(lt *laneTest) func(string, int) answer {
			return func(string, int) answer {
				if lt.open > 1 {
					return refused()
				}
				return ok(20 * time.Millisecond)
			}
		}, 2000, 3 * time.Minute, 60, pacedFrom},
	} {
		synctest.Test(t, func(t *testing.T) {
			lt := newLaneTest(t, paced)
			failures, inARow := 0, 0
			l := lt.endpoint("ep", counting(test.server(lt), &failures, &inARow))
			lt.send(l, test.events, 10)
			took := lt.everythingSucceeded(test.most)
			t.Logf("%s: %d events after %s, %d failures, %d in a row", test.name, test.events, took, failures, inARow)
			if failures > test.failures || inARow > test.many || lt.book.hasDisabled() {
				t.Errorf("%s: %d failures, %d in a row, disabled: %t", test.name, failures, inARow, lt.book.hasDisabled())
			}
			lt.quiet()
		})
	}
}

func TestLanes_ARetryAfterHoldsTheWholeEndpoint(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{3 * time.Second, 30 * time.Second, time.Hour} {
		for _, interval := range []time.Duration{0, 10 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				lt := newLaneTest(t, func(c *Config) { c.FailingInterval = interval })
				l := lt.endpoint("ep", func(_ string, n int) answer {
					if n == 20 {
						return tooMany(wait)
					}
					return ok(time.Millisecond)
				})
				lt.send(l, 300, 10)
				agenttest.Pass(wait / 4)
				at, held := lt.made("ep"), lt.Stats()
				lt.send(l, 10, 10)
				agenttest.Pass(wait/2 + wait/5)
				if n := lt.made("ep"); at >= 20+lt.cfg.EndpointConcurrency || n != at {
					t.Errorf("%s, pace %s: %d attempts, %d with new events, want those in flight beside the 20th at most", wait, interval, at, n)
				}
				if held.Queued != 0 || held.Held != 1 {
					t.Errorf("%s, pace %s: %+v while held", wait, interval, held)
				}
				if h := lt.book.healthOfEP(); h.HeldBy != outbox.HeldByRetryAfter || h.HeldUntil.IsZero() {
					t.Errorf("%s, pace %s: recorded %+v", wait, interval, h)
				}
				lt.everythingSucceeded(wait/20 + 10*time.Second)
				if first := lt.seen("ep").lastOpen; first < wait {
					t.Errorf("%s: the last attempt came after %s", wait, first)
				}
				lt.quiet()
			})
		}
	}
}

func TestLanes_APaceOutlivesACrashAndEndsWithASuccess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		down := true
		l := lt.endpoint("ep", func(string, int) answer {
			if down {
				return refused()
			}
			return ok(time.Millisecond)
		})
		rows := []outbox.Endpoint{{ID: "ep", Generation: 1}}
		lt.send(l, 50, 10)
		agenttest.Pass(2 * time.Minute)
		interval := lt.cfg.FailingInterval
		for range 20 { // each within the pace of the last attempt
			before := lt.made("ep")
			lt.crash(rows)
			agenttest.Pass(interval / 4)
			if n := lt.made("ep"); n > before+1 {
				t.Fatalf("%d attempts within a quarter of the pace", n-before)
			}
		}
		var starts []time.Duration
		for _, times := range lt.seen("ep").times {
			starts = append(starts, times...)
		}
		slices.Sort(starts)
		for i := 1 + pacedFrom; i < len(starts); i++ {
			if apart := starts[i] - starts[i-1]; apart < interval {
				t.Errorf("attempts %d and %d are %s apart", i, i+1, apart)
			}
		}
		lt.mu.Lock()
		down = false
		lt.mu.Unlock()
		lt.everythingSucceeded(interval + interval/5 + 6*time.Second) // nothing waits longer than for one attempt and its own retry
		if h := lt.book.healthOfEP(); h.Failures != 0 || !h.HeldUntil.IsZero() {
			t.Errorf("recorded %+v", h)
		}
		lt.quiet()
	})
}

// Attempts that were under way together fail together. The failures that are left must still last a
// quarter of an hour.
func TestLanes_FailuresThatCameAtOnceShortenNoOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		var down time.Time
		l := lt.endpoint("ep", func(string, int) answer {
			if down.IsZero() {
				return ok(50 * time.Millisecond)
			}
			return failing(50 * time.Millisecond)
		})
		lt.send(l, 400, 10)
		agenttest.Pass(time.Second)
		lt.mu.Lock()
		down = time.Now()
		lt.mu.Unlock()
		agenttest.Pass(time.Second)
		if n := lt.book.healthOfEP().Failures; n < lt.cfg.EndpointConcurrency {
			t.Errorf("%d failures at once, want those in flight: the test shows nothing", n)
		}
		for !lt.book.hasDisabled() {
			agenttest.Pass(time.Second)
		}
		if after := time.Since(down); after < 15*time.Minute || after > 18*time.Minute {
			t.Errorf("disabled after %s", after)
		}
	})
}

// The events of a held endpoint wait in the database. A refill brings a failing endpoint only what
// it can send soon.
func TestLanes_EventsOfAHeldEndpointWaitInTheDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		held := func(string, int) answer { return tooMany(time.Minute) }
		behave := held
		l := lt.endpoint("ep", func(id string, n int) answer { return behave(id, n) })
		lt.send(l, 1, 10)
		agenttest.Pass(time.Second)
		lt.send(l, 10, 10) // to a lane that holds nothing
		if st := lt.Stats(); st.Queued != 0 || st.Held != 1 {
			t.Errorf("%+v after events for a held endpoint", st)
		}
		// Everything that a refill has brought goes back, and nothing else is due. It must still
		// come again.
		agenttest.Pass(time.Minute + 5*time.Second)
		if st := lt.Stats(); st.Queued != 0 || st.Active != 0 {
			t.Errorf("%+v after the second answer", st)
		}
		lt.mu.Lock()
		behave = always(failing(5 * time.Second))
		lt.mu.Unlock()
		lt.send(l, 200, 10)
		agenttest.Pass(2 * time.Minute)
		if st := lt.Stats(); st.Queued > restrainedRows {
			t.Errorf("%+v while it keeps failing", st)
		}
		attempts, bodies := lt.made("ep"), lt.book.bodiesRead()
		agenttest.Pass(3 * time.Minute)
		if attempts, bodies = lt.made("ep")-attempts, lt.book.bodiesRead()-bodies; bodies > attempts+1 {
			t.Errorf("%d bodies were fetched for %d attempts", bodies, attempts)
		}
		lt.mu.Lock()
		behave = always(ok(time.Millisecond))
		lt.mu.Unlock()
		lt.everythingSucceeded(5 * time.Minute)
		lt.quiet()
	})
}

// A lane gives back what a refill has brought. It fetches it again although the delivery whose
// failure caused the hold has failed for good.
func TestLanes_WhatIsGivenBackComesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.Retries = nil })
		l := lt.endpoint("ep", func(_ string, n int) answer {
			if n <= 3 {
				return tooMany(time.Minute)
			}
			return ok(time.Millisecond)
		})
		lt.send(l, 6, 10)
		agenttest.Pass(5 * time.Minute)
		if n := lt.made("ep"); n != 6 {
			t.Errorf("%d attempts of 6 deliveries", n)
		}
		lt.quiet()
	})
}

// The endpoint is registered again before what its lane gave back is recorded.
func TestLanes_WhatIsGivenBackHoldsNothingOfAnEndpointThatComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		lt.delays = func() time.Duration { return 300 * time.Millisecond }
		l := lt.endpoint("ep", always(tooMany(time.Minute)))
		lt.send(l, 5, 10)
		agenttest.Pass(310 * time.Millisecond)
		if len(l.leaving) == 0 {
			t.Error("nothing was given back: the test shows nothing")
		}
		removed := lt.Remove("ep")
		_, made := lt.Change(&outbox.Endpoint{ID: "ep", Generation: 1}, lt.target("ep"), "")
		lt.tellAll(append(removed, made...))
		agenttest.Pass(3 * time.Hour)
		lt.quiet()
	})
}

// Failures that happen now and then slow an endpoint down only a little, however many attempts are
// made.
func TestLanes_RareFailuresSlowNobody(t *testing.T) {
	t.Parallel()
	failures := map[string]answer{"resets": refused(), "busy": tooMany(0), "errors": failing(time.Millisecond)}
	if testing.Short() {
		delete(failures, "errors")
	}
	for name, failure := range failures {
		synctest.Test(t, func(t *testing.T) {
			lt := newLaneTest(t, paced)
			random := rand.New(rand.NewPCG(1, 2))
			l := lt.endpoint("ep", func(string, int) answer {
				if random.IntN(100) == 0 {
					return failure
				}
				return ok(200 * time.Millisecond)
			})
			const events = 3000
			lt.send(l, events, 10)
			least := events * 200 * time.Millisecond / time.Duration(lt.cfg.EndpointConcurrency)
			took := lt.everythingSucceeded(10 * least)
			t.Logf("1 %% %s: %s, %s at least", name, took, least)
			if took > 2*least+30*time.Second { // some fail twice, and wait for that
				t.Errorf("1 %% %s: %d events took %s, %s at least", name, events, took, least)
			}
		})
	}
}

// A refill that was under way when its lane became held brings nothing into memory.
func TestLanes_ARefillBringsAHeldLaneNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		lt.delays = func() time.Duration { return 150 * time.Millisecond }
		l := lt.endpoint("ep", func(_ string, n int) answer {
			if n == 1 {
				return answer{800 * time.Millisecond, tooMany(time.Hour).result}
			}
			return ok(time.Millisecond)
		})
		lt.send(l, 1, 10)
		lt.Scheduler.mu.Lock()
		l.backlog = true // the next ones are left to the database
		lt.Scheduler.mu.Unlock()
		lt.send(l, 50, 10)
		agenttest.Pass(30 * time.Minute)
		if st := lt.Stats(); st.Queued != 0 {
			t.Errorf("%+v while it is held", st)
		}
		lt.everythingSucceeded(time.Hour)
		lt.quiet()
	})
}

// When a hold becomes shorter, the lane starts at its new end, although a timer waits for the old
// one.
func TestLanes_AShorterHoldIsHeeded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		l := lt.endpoint("ep", always(ok(time.Millisecond)))
		lt.Scheduler.mu.Lock()
		l.trouble = &trouble{asked: time.Now().Add(keepFor)} // short enough for memory
		lt.Scheduler.mu.Unlock()
		lt.send(l, 1, 10)
		agenttest.Pass(100 * time.Millisecond)
		lt.Scheduler.mu.Lock()
		l.trouble.asked = time.Now().Add(100 * time.Millisecond)
		lt.listLocked(l)
		lt.Scheduler.mu.Unlock()
		agenttest.Pass(200 * time.Millisecond)
		if n := lt.made("ep"); n != 1 {
			t.Errorf("%d attempts after the shorter hold", n)
		}
		lt.quiet()
	})
}

// Sealing changes the text of a secret. That must not end a hold.
func TestLanes_SealingForgivesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		l := lt.endpoint("ep", always(tooMany(time.Hour)))
		lt.send(l, 3, 10)
		agenttest.Pass(time.Minute)
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1, Secret: secret.New("sealed:v1:...")}, "")
		agenttest.Pass(time.Minute)
		if n := lt.made("ep"); n != 1 {
			t.Errorf("%d attempts", n)
		}
	})
}

// Whatever the number of attempts under way, their failures leave half of the failures that are
// left.
func TestLanes_AnOutageAtManyAttemptsAtATimeDisablesNobody(t *testing.T) {
	t.Parallel()
	for _, disableAfter := range []int{1, 4, 16, 100} {
		synctest.Test(t, func(t *testing.T) {
			lt := newLaneTest(t, func(c *Config) {
				paced(c)
				c.EndpointConcurrency, c.DisableAfter = 200, disableAfter
			})
			var down atomic.Bool
			l := lt.endpoint("ep", func(string, int) answer {
				if down.Load() {
					return refused()
				}
				return ok(50 * time.Millisecond)
			})
			lt.send(l, 1500, 10)
			agenttest.Pass(300 * time.Millisecond)
			down.Store(true)
			agenttest.Pass(2 * time.Second)
			down.Store(false)
			if disableAfter > 3 && lt.book.hasDisabled() {
				t.Errorf("disabled at %d by an outage of two seconds", disableAfter)
			}
		})
	}
}

// A person who enables an endpoint, or gives it another URL, sees at once whether that has helped.
func TestLanes_AnEndpointThatIsMendedIsTriedAtOnce(t *testing.T) {
	t.Parallel()
	for name, mend := range map[string]func(*outbox.Endpoint){
		"enabled":     func(e *outbox.Endpoint) { e.Generation++ },
		"another URL": func(e *outbox.Endpoint) { e.URL = secret.New("https://other.example/") },
	} {
		synctest.Test(t, func(t *testing.T) {
			lt := newLaneTest(t, paced)
			l := lt.endpoint("ep", func(string, int) answer { return tooMany(time.Hour) })
			lt.send(l, 3, 10)
			agenttest.Pass(10 * time.Minute)
			before := lt.made("ep")
			e := outbox.Endpoint{ID: "ep", Generation: 1}
			lt.changeTo(e, "") // a change that does not end a hold
			agenttest.Pass(time.Minute)
			if n := lt.made("ep"); n != before {
				t.Errorf("%s: %d attempts while it was held", name, n-before)
			}
			mend(&e)
			lt.changeTo(e, "")
			agenttest.Pass(time.Second)
			if n := lt.made("ep"); n <= before {
				t.Errorf("%s: no attempt", name)
			}
		})
	}
}

func TestLanes_EndpointsThatFailTogetherDoNotComeBackTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, paced)
		const endpoints = 300
		for i := range endpoints {
			lt.send(lt.endpoint(fmt.Sprint("ep_", i), always(failing(time.Millisecond))), 1, 10)
		}
		agenttest.Pass(2 * time.Hour)
		var last time.Duration
		for attempt := range lt.cfg.Retries {
			var first, end time.Duration
			for i := range endpoints {
				for _, times := range lt.seen(fmt.Sprint("ep_", i)).times {
					at := times[attempt+1] - times[attempt]
					if at < lt.cfg.Retries[attempt] {
						t.Errorf("attempt %d came after %s", attempt+2, at)
					}
					if at = times[attempt+1]; first == 0 || at < first {
						first = at
					}
					end = max(end, at)
				}
			}
			if wave := end - first; wave < lt.cfg.Retries[attempt]/11 || wave < last {
				t.Errorf("attempts %d came within %s", attempt+2, wave)
			} else {
				last = wave
			}
		}
	})
}
