package outbox

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// replayed returns the delivery of an event of addLog as a refill brings it for the replay rpl_1.
func replayed(event string, attempts int) *Delivery {
	d := newDelivery(event, "ep_1")
	d.recorded, d.Refilled, d.undated, d.ReplayID, d.hasFormer, d.hadSucceeded, d.Attempts = true, true, true, "rpl_1", true, true, attempts
	return d
}

// addSucceeded writes n deliveries of ep_1 that have succeeded, as addLog does, with what their successes left.
func addSucceeded(t *testing.T, env *testenv.DB, n int) {
	t.Helper()
	addLog(t, env, Succeeded, n)
	env.Exec(t, `update webhooks.deliveries set attempts = 2, last_code = 204, last_latency_ms = 7, finished = '2026-01-02 00:00:00+00'`)
}

// wasSucceeded is what rowText says of a delivery that addSucceeded wrote.
const wasSucceeded = "succeeded 2 204 7 2026-01-02"

// rowText returns the state of a delivery with what its last attempt left.
func rowText(t *testing.T, env *testenv.DB, event string) string {
	t.Helper()
	return testenv.QueryOne[string](t, env, `select concat_ws(' ', status, attempts, last_code, last_class, last_error, last_latency_ms,
	    (finished at time zone 'utc')::date) from webhooks.deliveries where event_id = $1`, event)
}

// replayText returns the state of rpl_1, with how many are to be sent, have ended, and were not sent.
func replayText(t *testing.T, env *testenv.DB) string {
	t.Helper()
	return testenv.QueryOne[string](t, env, `select concat_ws(' ', state, total, done, unsent, error) from webhooks.replays where id = 'rpl_1'`)
}

func awaitReplay(t *testing.T, env *testenv.DB, want string) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		if got := replayText(t, env); got != want {
			return fmt.Errorf("the replay is %q, want %q", got, want)
		}
		return nil
	})
}

// Of five deliveries that had succeeded, the replay sends one with success and one without before it ends for the others. One
// waits in memory for its first attempt, one for its second, and the last has its row alone.
func TestReplay_WhatItDoesNotSendHadSucceededAndHasSucceeded(t *testing.T) {
	t.Parallel()
	const off = "the endpoint is disabled"
	for _, test := range []struct {
		name   string
		end    func(b *book, tried *Delivery) []Entry
		want   [5]string
		replay string
	}{
		{"disabled", func(_ *book, tried *Delivery) []Entry {
			return []Entry{
				&Record{Delivery: replayed("evt_00003", 0), Status: Missed, Finished: time.Now(), Error: off},
				&Record{Delivery: tried, Status: Missed, Finished: time.Now(), Error: off},
				Missing{EndpointID: "ep_1", Reason: off, Version: 1},
			}
		}, [5]string{"succeeded 1 200", "failed 6 500", wasSucceeded, wasSucceeded, wasSucceeded},
			"failed 5 3 2 2 of 5 deliveries were not sent: the endpoint is disabled; once that is mended, replay again"},
		{"disabled, and nothing in memory", func(*book, *Delivery) []Entry {
			return []Entry{Missing{EndpointID: "ep_1", Reason: off, Version: 1}}
		}, [5]string{"succeeded 1 200", "failed 6 500", wasSucceeded, wasSucceeded, wasSucceeded},
			"failed 5 3 2 2 of 5 deliveries were not sent: the endpoint is disabled; once that is mended, replay again"},
		{"the events are gone", func(_ *book, tried *Delivery) []Entry {
			lost := func(d *Delivery) *Record {
				return &Record{Delivery: d, Status: Failed, Finished: time.Now(), Error: lostGone}
			}
			return []Entry{lost(replayed("evt_00003", 0)), lost(tried), success(replayed("evt_00005", 0))}
		}, [5]string{"succeeded 1 200", "failed 6 500", wasSucceeded, "failed 1 500", "succeeded 1 200"},
			"failed 5 4 1 1 of 5 deliveries was not sent: the event is no longer in the outbox"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, 5)
			addReplay(t, env, "rpl_1", `{succeeded}`)
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitReplay(t, env, "running 5 0 0")
			failed := failedAttempt(replayed("evt_00002", 5), 6)
			failed.Status, failed.NextAttempt = Failed, time.Time{}
			must(t, b.Write(t.Context(), success(replayed("evt_00001", 0)), failed, failedAttempt(replayed("evt_00004", 0), 1)))
			awaitReplay(t, env, "running 5 2 0")
			must(t, b.Write(t.Context(), test.end(b, replayed("evt_00004", 1))...))
			awaitReplay(t, env, test.replay)
			b.close(t)
			for i, want := range test.want {
				if got := rowText(t, env, fmt.Sprintf("evt_%05d", i+1)); !strings.HasPrefix(got, want) {
					t.Errorf("delivery %d is %q, want %q", i+1, got, want)
				}
			}
		})
	}
}

// A delivery that had failed is failed again, as it was, and a later replay does not bring back an earlier success.
func TestReplay_WhatItDoesNotSendHadFailedAndHasFailed(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addSucceeded(t, env, 1)
	addReplay(t, env, "rpl_1", `{succeeded}`)
	b := keepBook(t, db.cfg, newTerm(t, db), nil)
	must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
	awaitReplay(t, env, "running 1 0 0")
	failed := failedAttempt(replayed("evt_00001", 5), 6)
	failed.Status, failed.NextAttempt = Failed, time.Time{}
	must(t, b.Write(t.Context(), failed))
	awaitReplay(t, env, "done 1 1 0")
	env.Exec(t, `update webhooks.replays set id = 'rpl_0'`)
	addReplay(t, env, "rpl_1", `{failed}`)
	must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
	awaitReplay(t, env, "running 1 0 0")
	must(t, b.Write(t.Context(), Missing{EndpointID: "ep_1", Reason: "the endpoint was removed", Version: 1}))
	awaitReplay(t, env, "failed 1 0 1 1 of 1 delivery was not sent: the endpoint was removed; once that is mended, replay again")
	b.close(t)
	if got := rowText(t, env, "evt_00001"); !strings.HasPrefix(got, "failed 6 500 http_status status 500") {
		t.Errorf("the delivery is %s", got)
	}
}

// Nearly all of an endpoint's part of the log may be of another status than the replay is of. All
// groups wait for a step, so it looks at a bounded number of rows.
func TestReplay_AStepLooksAtABoundedNumberOfRows(t *testing.T) {
	t.Parallel()
	const n = 2*lookStep + 5
	for _, test := range []struct {
		name, until, off string
		want             []string // after each step
	}{
		{"to the end", "infinity", "", []string{"running 0 0 0", "running 0 0 0", "running 1 0 0"}},
		{"until before all", "2000-01-01", "", []string{"done 0 0 0"}},
		{"removed half way", "infinity", `delete from webhooks.endpoints`,
			[]string{"running 0 0 0", "running 0 0 0", "failed 1 0 1 1 of 1 delivery was not sent: the endpoint was removed"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, n)
			env.Exec(t, `update webhooks.deliveries set status = 'failed', attempts = 6 where event_id = (select max(event_id) from webhooks.deliveries)`)
			env.Exec(t, `insert into webhooks.replays (id, endpoint_id, statuses, until) values ('rpl_1', 'ep_1', '{failed}', $1::text::timestamptz)`, test.until)
			l := newReplayLedger(t, db, env)
			for i, want := range test.want {
				if i == 1 && test.off != "" {
					env.Exec(t, test.off)
				}
				l.next(t)
				if got := replayText(t, env); got != want {
					t.Errorf("after step %d the replay is %s, want %s", i+1, got, want)
				}
			}
		})
	}
}

// The endpoint is disabled, removed or enabled again between two steps of a replay of many deliveries.
func TestReplay_CountsWhatItLeavesWhereItsEndpointIsOffHalfWay(t *testing.T) {
	t.Parallel()
	const n = lookStep + jobStep + 11
	for _, test := range []struct{ name, off, on, want, log string }{
		{"disabled", `update webhooks.endpoints set disabled_at = now()`, ``,
			fmt.Sprintf("failed %d 500 %d %[2]d of %[1]d deliveries were not sent: the endpoint is disabled: enable it first, then replay again", n, n-jobStep),
			fmt.Sprintf("succeeded:%d", n)},
		{"removed", `delete from webhooks.endpoints`, ``,
			fmt.Sprintf("failed %d 500 %d %[2]d of %[1]d deliveries were not sent: the endpoint was removed", n, n-jobStep),
			fmt.Sprintf("succeeded:%d", n)},
		{"enabled again", `update webhooks.endpoints set disabled_at = now()`, `update webhooks.endpoints set disabled_at = null`,
			fmt.Sprintf("running %d 500 %d the endpoint is disabled: enable it first, then replay again", n, lookStep),
			fmt.Sprintf("pending:11 succeeded:%d", n-11)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addSucceeded(t, env, n)
			addReplay(t, env, "rpl_1", `{succeeded}`)
			l := NewLedger(LedgerConfig{Config: db.cfg, Term: newTerm(t, db), Log: testLog(t), Clock: db.Clock(), ServerEnds: func() {}, Confirm: func(LSN) {}, Requeued: func(string) {}, Stalled: func(bool) {}})
			l.jobs = []job{&replayJob{Replay: Replay{ID: "rpl_1"}}}
			must(t, l.step(t.Context()))
			env.Exec(t, test.off)
			must(t, l.step(t.Context()))
			if test.on != "" {
				env.Exec(t, test.on)
			}
			closeConn(l.conn)
			// Another agent goes on.
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			for i := 1; i <= jobStep; i++ {
				must(t, b.Write(t.Context(), success(replayed(fmt.Sprintf("evt_%05d", i), 0))))
			}
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitReplay(t, env, test.want)
			b.close(t)
			if got := countByStatus(t, env); got != test.log {
				t.Errorf("deliveries are %s, want %s", got, test.log)
			}
		})
	}
}

func TestReplay_SaysWhichNamedEventsItCannotSend(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, events, statuses, want string }{
		{"unknown", `{evt_x}`, `{missed,failed,succeeded}`,
			"failed 1 0 1 1 of 1 delivery was not sent: event evt_x: the delivery log has no delivery of it to this endpoint"},
		{"of another endpoint", `{evt_2}`, `{missed,failed,succeeded}`,
			"failed 1 0 1 1 of 1 delivery was not sent: event evt_2: the delivery log has no delivery of it to this endpoint"},
		{"of another venue", `{evt_3}`, `{missed,failed,succeeded}`,
			"failed 1 0 1 1 of 1 delivery was not sent: event evt_3: the delivery log has no delivery of it to this endpoint"},
		{"pending", `{evt_4}`, `{missed,failed,succeeded}`,
			"failed 1 0 1 1 of 1 delivery was not sent: event evt_4: its delivery is pending, and the replay is of those that are missed or failed or succeeded"},
		{"of another status", `{evt_1}`, `{missed,failed}`,
			"failed 1 0 1 1 of 1 delivery was not sent: event evt_1: its delivery is succeeded, and the replay is of those that are missed or failed"},
		{"some, named twice", `{evt_1,evt_x,evt_1,evt_x,evt_y}`, `{succeeded}`,
			"failed 3 1 2 2 of 3 deliveries were not sent: event evt_x (and 1 more): the delivery log has no delivery of it to this endpoint"},
		{"none", `{}`, `{succeeded}`, "done 0 0 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			addEndpoint(t, env, "ep_1", "venue_a", "*")
			addDelivery(t, env, "evt_1", "ep_1", "venue_a", "t", Succeeded, 1)
			addDelivery(t, env, "evt_2", "ep_2", "venue_a", "t", Succeeded, 1)
			addDelivery(t, env, "evt_3", "ep_1", "venue_b", "t", Succeeded, 1)
			addDelivery(t, env, "evt_4", "ep_1", "venue_a", "t", Pending, 1)
			env.Exec(t, `insert into webhooks.replays (id, endpoint_id, event_ids, statuses) values ('rpl_1', 'ep_1', $1::text::text[], $2::text::text[])`, test.events, test.statuses)
			b := keepBook(t, db.cfg, newTerm(t, db), nil)
			must(t, b.Write(t.Context(), Replay{ID: "rpl_1"}))
			awaitRequeued(t, env, "rpl_1")
			if strings.Contains(test.events, "evt_1") && strings.Contains(test.statuses, "succeeded") {
				must(t, b.Write(t.Context(), success(replayed("evt_1", 0))))
			}
			awaitReplay(t, env, test.want)
			b.close(t)
		})
	}
}
