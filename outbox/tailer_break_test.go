package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

func TestTailer_YieldsNothingTwiceAndMissesNothingWhenTheConnectionBreaks(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := behindProxy(t, db, env)
	f := follow(t, db)
	// This is more than the buffers of the sockets hold, so that the connection breaks in the
	// middle of it. There is one transaction before and one after it.
	addEvents(t, env, "a", 2)
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data)
	    select 'b_' || lpad(i::text, 5, '0'), 'lead.created', 'venue_a', to_json(repeat('x', 2000)) from generate_series(1, 10000) i`)
	addEvents(t, env, "c", 2)
	want := testenv.QueryAll[string](t, env, `select id from webhooks.outbox order by id`)

	var got []string
	take := func(b *Batch) { got = append(got, eventIDs(b.Changes)...) }
	// The third break comes during or soon after the skipping for the second.
	for _, breakAfter := range []int{700, 2100, 2100, 5000} {
		for len(got) < breakAfter {
			take(f.next(t))
		}
		p.Reset()
		for ended := false; !ended; {
			select {
			case b := <-f.batches:
				take(b)
			case err := <-f.ended:
				ended = true
				if err == nil {
					t.Fatal("Run returned nil although the connection broke")
				}
			case <-time.After(patience):
				t.Fatal("Run did not end although the connection broke")
			}
		}
		for len(f.batches) > 0 {
			take(<-f.batches)
		}
		resume(t, f.Tailer)
		f = run(t, f.Tailer)
	}
	for len(got) < len(want) {
		take(f.next(t))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d events, want %d; each once and in order: %t", len(got), len(want), slices.Equal(got, want))
	}
	addEvents(t, env, "d", 1)
	if next := f.events(t, 1); next[0] != "d_00001" {
		t.Errorf("then came %q", next)
	}
}

// resume connects again and continues where the Tailer was. The server may need a moment to see
// that the last connection is gone.
func resume(t *testing.T, tailer *Tailer) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		if err := tailer.Connect(t.Context()); err != nil {
			return err
		}
		return tailer.Start(t.Context(), 0)
	})
}

func TestTailer_GoesOnAfterTheServerEndedItsConnection(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	addEvents(t, env, "a", 3)
	f.events(t, 3)
	env.Exec(t, `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1`, env.Slot)
	if err := f.wait(t); err == nil {
		t.Fatal("Run returned nil although the server ended the connection")
	}
	addEvents(t, env, "b", 1)
	resume(t, f.Tailer)
	f = run(t, f.Tailer)
	if got := f.events(t, 1); got[0] != "b_00001" {
		t.Errorf("got %q: what was handed over is not confirmed, but must not come twice", got)
	}
}

func TestTailer_LetsTheServerShutDown(t *testing.T) {
	t.Parallel()
	for name, confirmed := range map[string]bool{"everything confirmed": true, "nothing confirmed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := testenv.NewCluster(t, testenv.Options{})
			env := cluster.NewDB(t)
			db, err := Open(t.Context(), testConfig(env.URL, env.Slot))
			must(t, err)
			defer db.Close()
			f := follow(t, db)
			addEvents(t, env, "a", 1)
			if b := f.next(t); confirmed {
				f.confirm(t, env, b.End)
			}
			started := time.Now()
			ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("the tailer kept the server from ending for %s", patience))
			defer cancel()
			must(t, cluster.Stop(ctx, testenv.Fast))
			if took := time.Since(started); took > patience/2 {
				t.Errorf("the shutdown took %s", took)
			}
			wantError(t, f.wait(t), ErrServerShutdown)
			must(t, cluster.Resume(t.Context()))
			addEvents(t, env, "b", 1)
			resume(t, f.Tailer)
			f = run(t, f.Tailer)
			if got := f.events(t, 1); got[0] != "b_00001" {
				t.Errorf("after the restart came %q", got)
			}
			f.leave()
			must(t, f.wait(t))
		})
	}
}

func TestTailer_TellsAnUnknownSlot(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	tailer := NewTailer(db.cfg, testLog(t))
	must(t, tailer.Connect(t.Context()))
	t.Cleanup(tailer.Close)
	if err := tailer.Start(t.Context(), 0); SQLState(err) != codeNoObject || !strings.Contains(err.Error(), env.Slot) {
		t.Errorf("without a slot: %v", err)
	}
}
