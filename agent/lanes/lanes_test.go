package lanes

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// slack is the longest delay that the book adds to a wait.
const slack = 20 * time.Millisecond

// waits returns the times between attempts without what the book has added.
func waits(times []time.Duration) (between []time.Duration) {
	for i := 1; i < len(times); i++ {
		between = append(between, (times[i] - times[i-1]).Truncate(time.Second))
	}
	return between
}

// TestLanes_RetryAfter5s25s2m10m30mAndEndAfterSixAttempts shows P6.
func TestLanes_RetryAfter5s25s2m10m30mAndEndAfterSixAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		event := lt.send(lt.endpoint("ep", always(failing(0))), 1, 10)[0]
		agenttest.Pass(3 * time.Hour)
		times := lt.seen("ep").times[event]
		want := []time.Duration{5 * time.Second, 25 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute}
		if diff := cmp.Diff(want, waits(times)); diff != "" {
			t.Fatalf("waits between attempts (-want +got):\n%s", diff)
		}
		if drift := times[5] - (42*time.Minute + 30*time.Second); drift > 5*slack {
			t.Errorf("the sixth attempt is %v late", drift)
		}
		if row := lt.book.rows[deliveryKey{"ep", event}]; row.status != outbox.Failed || row.attempts != 6 {
			t.Errorf("the row is %+v, want failed after 6 attempts", *row)
		}
		lt.quiet()
	})
}

func TestLanes_RetryAfterLengthensAWaitAndNeverShortensIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		event := lt.send(lt.endpoint("ep", func(_ string, n int) answer {
			a := failing(0)
			a.result.RetryAfter = []time.Duration{0, time.Second, time.Hour, time.Second, 11 * time.Minute, 31 * time.Minute, time.Hour}[n]
			return a
		}), 1, 10)[0]
		agenttest.Pass(5 * time.Hour)
		want := []time.Duration{5 * time.Second, time.Hour, 2 * time.Minute, 11 * time.Minute, 31 * time.Minute}
		if diff := cmp.Diff(want, waits(lt.seen("ep").times[event])); diff != "" {
			t.Errorf("waits between attempts (-want +got):\n%s", diff)
		}
	})
}

// TestLanes_DisableAtExactlyTheHundredthConsecutiveFailure shows P7.
func TestLanes_DisableAtExactlyTheHundredthConsecutiveFailure(t *testing.T) {
	for _, before := range []int{0, 40, 500} { // successes before, which widen the window
		synctest.Test(t, func(t *testing.T) {
			lt := newLaneTest(t, nil)
			l := lt.endpoint("ep", func(_ string, n int) answer {
				if n <= before {
					return ok(10 * time.Millisecond)
				}
				return failing(time.Duration(20+n%7) * time.Millisecond)
			})
			lt.send(l, before+300, 10)
			agenttest.Pass(3 * time.Hour)
			if got := lt.seen("ep").n - before; got != 100 {
				t.Errorf("%d attempts after the last success, want 100", got)
			}
			if before > 100 && lt.seen("ep").peak != 16 {
				t.Errorf("at most %d attempts at a time, want 16: the limit was not put to the test", lt.seen("ep").peak)
			}
			if diff := cmp.Diff([]string{outbox.ReasonFailures}, lt.book.disabled); diff != "" {
				t.Errorf("reasons for disabling (-want +got):\n%s", diff)
			}
			if last := lt.book.healths[len(lt.book.healths)-1]; last.Failures != 100 {
				t.Errorf("the last counter recorded is %d, want 100", last.Failures)
			}
			if n := lt.book.count("ep", outbox.Missed); n != 300 {
				t.Errorf("%d deliveries missed, want all 300 that had not succeeded", n)
			}
			for _, at := range []string{"50", "70", "90"} {
				if n := bytes.Count(lt.log.Bytes(), []byte("will be disabled\" endpoint=ep venue=\"\" consecutive_failures="+at+" ")); n != 1 {
					t.Errorf("%d warnings at %s failures, want one", n, at)
				}
			}
			if n := bytes.Count(lt.log.Bytes(), []byte("will be disabled")); n != 3 {
				t.Errorf("%d warnings, want three", n)
			}
			lt.quiet()
		})
	}
}

func TestLanes_InFlightNeverExceedsTheFailuresLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.DisableAfter = 4 }) // less than the window at first
		// Attempts that have begun count as failures here: the limit must hold even if all of them
		// fail.
		failures := 0
		lt.send(lt.endpoint("ep", func(_ string, n int) answer {
			if n <= 100 {
				return ok(time.Millisecond)
			}
			if failures++; failures > 4 {
				t.Errorf("attempt %d after the last success begins before 4 have failed", failures)
			}
			return failing(time.Second / 2 * time.Duration(1+n%3))
		}), 200, 10)
		agenttest.Pass(time.Hour)
		if failures != 4 {
			t.Errorf("%d failed attempts, want 4", failures)
		}
	})
}

func TestLanes_OneSuccessSetsTheCounterToZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.EndpointConcurrency = 1 })
		lt.send(lt.endpoint("ep", func(_ string, n int) answer {
			if n%100 == 0 {
				return ok(0)
			}
			return failing(0)
		}), 300, 10)
		agenttest.Pass(5 * time.Hour)
		if len(lt.book.disabled) != 0 {
			t.Errorf("disabled (%v) after at most 99 consecutive failures", lt.book.disabled)
		}
		if zero := lt.book.healths[99]; zero.Failures != 0 || !zero.FirstFailure.IsZero() || zero.LastSuccess.IsZero() {
			t.Errorf("counter after the success: %+v", *zero)
		}
	})
}

func TestLanes_DisableOn410(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		lt.send(lt.endpoint("ep", always(answer{0, sink.Result{Outcome: sink.Gone, Code: 410}})), 5, 10)
		agenttest.Pass(time.Hour)
		if diff := cmp.Diff([]string{outbox.ReasonGone}, lt.book.disabled); diff != "" {
			t.Errorf("reasons for disabling (-want +got):\n%s", diff)
		}
		if n, missed := lt.seen("ep").n, lt.book.count("ep", outbox.Missed); n != 1 || missed != 5 {
			t.Errorf("%d attempts and %d missed, want 1 and 5", n, missed)
		}
	})
}

func TestLanes_SendNothingWhileOffAndKeepItAsMissed(t *testing.T) {
	off := outbox.Endpoint{ID: "ep", Generation: 1, Disabled: true}
	on := outbox.Endpoint{ID: "ep", Generation: 1}
	for name, turnOff := range map[string]func(*laneTest) string{
		"disabled": func(lt *laneTest) string { lt.changeTo(off, ""); return offDisabled },
		"unusable": func(lt *laneTest) string { lt.changeTo(on, "bad URL"); return offUnusable + "bad URL" },
		"removed":  func(lt *laneTest) string { lt.tellAll(lt.Remove("ep")); return offRemoved },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lt := newLaneTest(t, func(c *Config) { c.EndpointConcurrency = 1 })
				l := lt.endpoint("ep", func(_ string, n int) answer {
					if n == 1 {
						return failing(0)
					}
					return ok(2 * time.Second)
				})
				lt.send(l, 10, 10) // one waits in the database for its second attempt, one is in flight, eight queue
				agenttest.Pass(time.Second)
				reason := turnOff(lt)
				lt.send(l, 3, 10)
				agenttest.Pass(time.Hour)
				if n := lt.seen("ep").n; n != 2 {
					t.Errorf("%d attempts, want the 2 that had begun", n)
				}
				if s, m := lt.book.count("ep", outbox.Succeeded), lt.book.count("ep", outbox.Missed); s != 1 || m != 12 {
					t.Errorf("%d succeeded and %d missed, want the one in flight and 12", s, m)
				}
				for key, row := range lt.book.rows {
					if row.status == outbox.Missed && row.reason != reason {
						t.Errorf("%s is missed because %q, want %q", key.eventID, row.reason, reason)
					}
				}
				if last := lt.book.healths[len(lt.book.healths)-1]; name == "removed" && last.Failures == 0 {
					t.Errorf("a success after the removal brings the endpoint's counter back: %+v", *last)
				}
				lt.quiet()
			})
		})
	}
}

func TestLanes_CountAnewAfterAnEndpointWasEnabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("ep", always(failing(0)))
		lt.send(l, 200, 10)
		agenttest.Pass(time.Hour)
		// A change that was written before the agent's own one arrives: it must not enable.
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1, Events: []string{"*"}}, "")
		lt.send(l, 1, 10)
		agenttest.Pass(time.Hour)
		if n, missed := lt.seen("ep").n, lt.book.count("ep", outbox.Missed); n != 100 || missed != 201 {
			t.Fatalf("a stale row enabled the endpoint: %d attempts, %d missed, want 100 and all 201", n, missed)
		}
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 2}, "")
		lt.send(l, 200, 10)
		agenttest.Pass(time.Hour)
		if n := lt.seen("ep").n; n != 200 {
			t.Errorf("%d attempts, want another 100 after the endpoint was enabled", n)
		}
		if h := lt.book.healths[100]; h.Generation != 2 || h.Failures != 0 {
			t.Errorf("recorded when enabled: %+v, want generation 2 and no failures", *h)
		}
	})
}

func TestLanes_GoOnWhenAnUnusableEndpointIsMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		e := outbox.Endpoint{ID: "ep", Generation: 1}
		l := lt.endpoint("ep", always(ok(0)))
		lt.changeTo(e, "bad URL")
		lt.send(l, 1, 10)
		lt.changeTo(e, "")
		lt.send(l, 1, 10)
		agenttest.Pass(time.Second)
		if m, s := lt.book.count("ep", outbox.Missed), lt.book.count("ep", outbox.Succeeded); m != 1 || s != 1 {
			t.Errorf("%d missed, %d succeeded, want one each", m, s)
		}
		if h := lt.book.healths; len(h) != 2 || h[0].Unusable != "bad URL" || h[1].Unusable != "" {
			t.Errorf("%d records of its usability, want the reason and its end", len(h))
		}
	})
}

// Otherwise a lane would stand still at its limit of failures after its endpoint is repaired.
func TestLanes_DisableAnUnusableEndpointWhoseAttemptsUnderWayFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.DisableAfter = 1 })
		l := lt.endpoint("ep", always(failing(2*time.Second)))
		lt.send(l, 1, 10)
		agenttest.Pass(time.Second)
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1}, "bad URL")
		agenttest.Pass(time.Hour)
		if diff := cmp.Diff([]string{outbox.ReasonFailures}, lt.book.disabled); diff != "" {
			t.Errorf("reasons for disabling (-want +got):\n%s", diff)
		}
	})
}

// A retry is on its way to the ledger while the endpoint is disabled. Its row must not stay
// pending.
func TestLanes_MissAResultThatIsOvertakenByTheDisabling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		var delay atomic.Int64
		lt.delays = func() time.Duration { return time.Duration(delay.Load()) }
		l := lt.endpoint("ep", always(failing(0)))
		agenttest.Pass(time.Second)
		lt.Stall(true)
		event := lt.send(l, 1, 10)[0]
		delay.Store(int64(time.Second))
		lt.Stall(false)
		agenttest.Pass(time.Second / 2) // the attempt has failed, its result waits for the ledger
		delay.Store(0)
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1, Disabled: true}, "")
		agenttest.Pass(time.Minute)
		if row := lt.book.rows[deliveryKey{"ep", event}]; row.status != outbox.Missed || row.reason != offDisabled || row.attempts != 1 {
			t.Errorf("the row is %+v, want missed because %s after one attempt", *row, offDisabled)
		}
		lt.quiet()
	})
}

func TestLanes_StartNothingWhileTheLedgerIsStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("ep", always(ok(0)))
		lt.Stall(true)
		lt.send(l, 5, 10)
		agenttest.Pass(time.Minute)
		if n := lt.seen("ep").n; n != 0 {
			t.Errorf("%d attempts while stalled", n)
		}
		lt.Stall(false)
		agenttest.Pass(time.Second)
		if n := lt.book.count("ep", outbox.Succeeded); n != 5 {
			t.Errorf("%d succeeded after the stall, want 5", n)
		}
	})
}

func TestLanes_StopWaitsForAttemptsAndCancelsThemAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		quick, hung := lt.endpoint("quick", always(ok(3*time.Second))), lt.endpoint("hung", always(ok(time.Hour)))
		lt.send(quick, 5, 10)
		lt.send(hung, 5, 10)
		grace, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		lt.Stop(grace)
		if took := time.Since(lt.began); took.Truncate(time.Second) != 10*time.Second {
			t.Errorf("stop took %v, want the 10s of its deadline", took)
		}
		agenttest.Pass(time.Second)
		if q, h := lt.seen("quick").n, lt.seen("hung").n; q != 1 || h != 1 {
			t.Errorf("%d and %d attempts, want the one each that had begun", q, h)
		}
		if n := lt.book.count("quick", outbox.Succeeded); n != 1 {
			t.Error("the result of the attempt that ended in time is not recorded")
		}
		if n := lt.book.count("hung", outbox.Pending); n != 5 {
			t.Errorf("%d of the hung endpoint's deliveries are pending, want all 5: a canceled attempt is none", n)
		}
	})
}

func TestRefill_PausesBetweenTriesWhileTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		l := lt.endpoint("ep", func(_ string, n int) answer {
			if n == 1 {
				return failing(0)
			}
			return ok(0)
		})
		agenttest.Pass(time.Second)
		before := lt.book.breakReads(errors.New("connection refused"))
		lt.send(l, 1, 10)
		agenttest.Pass(15 * time.Second)
		if n := lt.book.breakReads(nil) - before; n < 9 || n > 11 {
			t.Errorf("%d tries in the 10 s after the delivery was due, want one each second", n)
		}
		agenttest.Pass(2 * time.Second)
		if lt.book.count("ep", outbox.Succeeded) != 1 {
			t.Error("the delivery was not made after the database came back")
		}
		for _, text := range []string{"cannot fetch due deliveries", "fetching due deliveries again"} {
			if n := bytes.Count(lt.log.Bytes(), []byte(text)); n != 1 {
				t.Errorf("logged %d times %q, want once", n, text)
			}
		}
	})
}
