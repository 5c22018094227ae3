package lanes

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// announcedLocked returns what others know of an endpoint, as the ledger keeps it.
func (b *book) announcedLocked(row outbox.Endpoint) int {
	var last outbox.Notice
	for _, h := range b.healths {
		if len(h.Notices) > 0 && h.EndpointID == row.ID {
			last = h.Notices[len(h.Notices)-1]
		}
	}
	if b.off[row.ID] {
		last.Level, last.Generation = outbox.NoticeDisabled, row.Generation
	}
	if last.Generation != row.Generation {
		return min(last.Level, outbox.NoticeFormer)
	}
	return last.Level
}

// notices returns what was announced so far, such as "50 at 5", each once and in its order.
func (b *book) notices() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := map[int64]outbox.Notice{}
	var numbers []int64
	for _, h := range b.healths {
		for _, n := range h.Notices {
			if _, again := seen[n.Number]; !again {
				numbers = append(numbers, n.Number)
			}
			seen[n.Number] = n
		}
	}
	slices.Sort(numbers)
	for _, number := range numbers {
		all = append(all, fmt.Sprintf("%d at %d", seen[number].Level, seen[number].Failures))
	}
	return all
}

// script is an endpoint that fails, but for the attempts with these numbers.
func script(succeeds ...int) func(string, int) answer {
	return func(_ string, n int) answer {
		if slices.Contains(succeeds, n) {
			return ok(time.Millisecond)
		}
		return failing(time.Millisecond)
	}
}

func TestAnnounce_EachPartOfARunOfFailuresOnce(t *testing.T) {
	for _, test := range []struct {
		name         string
		disableAfter int
		answer       func(string, int) answer
		want         []string
	}{
		{"to the end", 10, script(), []string{"50 at 5", "70 at 7", "90 at 9"}},
		{"the default", 100, script(), []string{"50 at 50", "70 at 70", "90 at 90"}},
		{"parts that are reached at once", 6, script(), []string{"70 at 5"}},
		{"a part below the fifth failure", 8, script(), []string{"50 at 5", "70 at 6"}},
		{"five failures disable", 5, script(), nil},
		{"a server that fails now and then", 3, script(3, 4, 6, 9, 11, 12, 14), nil},
		{"one failure disables", 1, script(), nil},
		{"two runs", 10, script(7, 13), []string{"50 at 5", "0 at 0", "50 at 5", "0 at 0", "50 at 5", "70 at 7", "90 at 9"}},
		{"a success before the first part", 10, script(5), []string{"50 at 5", "70 at 7", "90 at 9"}},
		{"the server answers 410", 10, func(string, int) answer {
			return answer{time.Millisecond, sink.Result{Outcome: sink.Gone, Code: 410, Class: sink.ClassHTTPStatus, Error: "gone"}}
		}, nil},
		{"the agent's own fault", 10, func(string, int) answer {
			return answer{time.Millisecond, sink.Result{Outcome: sink.Failed, Class: sink.ClassInternalError, Error: "a fault"}}
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lt := newLaneTest(t, func(c *Config) { c.DisableAfter, c.EndpointConcurrency = test.disableAfter, 1 })
				lt.send(lt.endpoint("ep", test.answer), 40, 10)
				agenttest.Pass(2 * time.Hour)
				if diff := cmp.Diff(test.want, lt.book.notices()); diff != "" {
					t.Errorf("announced (-want +got):\n%s", diff)
				}
				if got := lt.Scheduler.byID["ep"].notices; got != nil {
					t.Errorf("the lane keeps %v, which are committed", got)
				}
			})
		})
	}
}

// With many attempts at a time, an earlier state of the counter may be committed after a later one.
func TestAnnounce_NothingIsLostOrRepeatedAcrossCrashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, func(c *Config) { c.DisableAfter = 40 })
		l := lt.endpoint("ep", script())
		row := outbox.Endpoint{ID: "ep", Generation: 1}
		for range 8 { // six failures or more for each
			lt.send(l, 1, 10)
			agenttest.Pass(2 * time.Hour)
			lt.crash([]outbox.Endpoint{row})
			l = lt.Scheduler.byID["ep"]
		}
		// Numbers begin anew with each agent, so they are left out here.
		var got []string
		for _, h := range lt.book.healths {
			for _, n := range h.Notices {
				if told := fmt.Sprintf("%d at %d", n.Level, n.Failures); !slices.Contains(got, told) {
					got = append(got, told)
				}
			}
		}
		if want := []string{"50 at 20", "70 at 28", "90 at 36"}; !slices.Equal(got, want) {
			t.Errorf("announced are %q, want %q", got, want)
		}
	})
}

func TestAnnounce_AnEndpointThatIsEnabledAgainBeginsANewRun(t *testing.T) {
	for _, test := range []struct {
		name  string
		fails int // attempts in all; ten disable it
		want  []string
	}{
		{"it succeeds", 10, []string{"0 at 0"}},
		{"it succeeds later", 12, []string{"0 at 0"}},
		{"it goes on to fail", 1000, []string{"50 at 5", "70 at 7", "90 at 9"}},
	} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, crash %t", test.name, crash), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					lt := newLaneTest(t, func(c *Config) { c.DisableAfter, c.EndpointConcurrency = 10, 1 })
					l := lt.endpoint("ep", func(_ string, n int) answer {
						if n > test.fails {
							return ok(time.Millisecond)
						}
						return failing(time.Millisecond)
					})
					lt.send(l, 5, 10)
					agenttest.Pass(2 * time.Hour)
					if !lt.book.hasDisabled() {
						t.Fatal("it is not disabled")
					}
					if crash {
						lt.crash([]outbox.Endpoint{{ID: "ep", Generation: 1}})
					}
					lt.book.mu.Lock()
					lt.book.healths = nil
					lt.book.mu.Unlock()
					lt.send(lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 2}, ""), 3, 10)
					agenttest.Pass(2 * time.Hour)
					if got := lt.book.notices(); !slices.Equal(got, test.want) {
						t.Errorf("announced are %q, want %q", got, test.want)
					}
				})
			})
		}
	}
}
