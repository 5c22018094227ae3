package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/quintago/webhook-agent/testenv"
)

// addEvent inserts one event in an open transaction.
func addEvent(t *testing.T, tx pgx.Tx, id string) {
	t.Helper()
	_, err := tx.Exec(t.Context(), `insert into webhooks.outbox (id, type, venue, data) values ($1, 'lead.created', 'venue_a', '{}')`, id)
	must(t, err)
}

// events returns the next n events.
func (f *follower) events(t *testing.T, n int) (ids []string) {
	t.Helper()
	for len(ids) < n {
		ids = append(ids, eventIDs(f.next(t).Changes)...)
	}
	return ids
}

func TestTailer_YieldsWhatCommittedInCommitOrder(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	early, late, rolledBack, unfinished := begin(t, env), begin(t, env), begin(t, env), begin(t, env)
	addEvent(t, unfinished, "unfinished")
	addEvent(t, late, "late")
	addEvent(t, rolledBack, "rolled back")
	addEvent(t, early, "early")
	savepoint, err := early.Begin(t.Context())
	must(t, err)
	addEvent(t, savepoint, "rolled back to the savepoint")
	must(t, savepoint.Rollback(t.Context()))
	addEvent(t, early, "early too")
	must(t, rolledBack.Rollback(t.Context()))
	must(t, early.Commit(t.Context()))
	must(t, late.Commit(t.Context()))
	addEvents(t, env, "last", 1)
	want := []string{"early", "early too", "late", "last_00001"}
	if got := f.events(t, len(want)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	must(t, unfinished.Commit(t.Context()))
	if got := f.events(t, 1); got[0] != "unfinished" {
		t.Errorf("got %q after its commit", got)
	}
}

func TestTailer_DescribesTheTransaction(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	tx := begin(t, env)
	addEvent(t, tx, "evt_1")
	var xid string
	must(t, tx.QueryRow(t.Context(), `select (pg_current_xact_id()::text::bigint & 4294967295)::text`).Scan(&xid))
	before := testenv.QueryOne[string](t, env, `select pg_current_wal_insert_lsn()::text`)
	must(t, tx.Commit(t.Context()))
	after := testenv.QueryOne[string](t, env, `select pg_current_wal_insert_lsn()::text`)
	b := f.next(t)
	var from, to LSN
	must(t, from.Scan(before))
	must(t, to.Scan(after))
	if fmt.Sprint(b.XID) != xid || b.Commit < from || b.End <= b.Commit || b.End > to || b.Bytes != len(b.Changes[0].Event.Data) {
		t.Errorf("transaction %s between %s and %s: %+v", xid, from, to, b)
	}
	if time.Since(b.Committed).Abs() > time.Minute || b.Committed.Location() != time.UTC {
		t.Errorf("committed %v", b.Committed)
	}
	// This is recorded after the batch was handed over.
	testenv.Eventually(t, patience, func() error {
		if received, heard := LSN(f.received.Load()), f.Heard(); received < b.End || time.Since(heard) > time.Minute {
			return fmt.Errorf("progress is %s, heard %v", received, heard)
		}
		return nil
	})
}

func TestTailer_BoundsTheBatchesOfALargeTransaction(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	const events = 3000
	addEvents(t, env, "evt", events)
	var all []string
	for last := false; !last; {
		b := f.next(t)
		all = append(all, eventIDs(b.Changes)...)
		last = b.End != 0
		if len(b.Changes) > batchEvents {
			t.Fatalf("a batch of %d events", len(b.Changes))
		}
	}
	if len(all) != events || !slices.IsSorted(all) {
		t.Errorf("%d of %d events before the end of the transaction, in order: %t", len(all), events, slices.IsSorted(all))
	}

	env.Exec(t, `insert into webhooks.outbox (type, venue, data) select 't', 'v', to_json(repeat('x', 300000)) from generate_series(1, 9)`)
	for n := 0; n < 9; {
		b := f.next(t)
		n += len(b.Changes)
		if b.Bytes > batchBytes+300_002 {
			t.Errorf("a batch of %d bytes", b.Bytes)
		}
	}
}

func TestTailer_DecodesChangesOfEndpointsAndReplays(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	addEndpoint(t, env, "ep_1", "venue_a", "lead.*", `odd "name", {}`)
	env.Exec(t, `update webhooks.endpoints set disabled_at = now(), previous_secret = 'old', previous_secret_until = '2030-01-01' where id = 'ep_1'`)
	env.Exec(t, `update webhooks.endpoints set disabled_at = null where id = 'ep_1'`)
	env.Exec(t, `delete from webhooks.endpoints where id = 'ep_1'`)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id) values ('rpl_1', 'ep_1')`)
	env.Exec(t, `update webhooks.replays set state = 'running'`)
	env.Exec(t, `truncate webhooks.endpoints`)

	one := func() Change {
		t.Helper()
		b := f.next(t)
		if len(b.Changes) != 1 {
			t.Fatalf("a batch of %d changes", len(b.Changes))
		}
		return b.Changes[0]
	}
	inserted := one().Endpoint
	e := inserted.Endpoint
	if inserted.ID != "ep_1" || e.Venue != "venue_a" || !cmp.Equal(e.Events, []string{"lead.*", `odd "name", {}`}) || e.Secret.Reveal() != "sentinel" ||
		e.Disabled || e.Generation != 1 || time.Since(e.Created).Abs() > time.Minute {
		t.Errorf("insert: %+v", e)
	}
	if e = one().Endpoint.Endpoint; !e.Disabled || e.DisabledReason != ReasonManual || e.Previous.Reveal() != "old" || e.PreviousUntil.Year() != 2030 {
		t.Errorf("disabled: %+v", e)
	}
	if e = one().Endpoint.Endpoint; e.Disabled || e.Generation != 2 {
		t.Errorf("enabled: %+v", e)
	}
	if c := one().Endpoint; !c.Removed || c.ID != "ep_1" {
		t.Errorf("delete: %+v", c)
	}
	if r := one().Replay; r == nil || r.ID != "rpl_1" {
		t.Errorf("replay: %+v", r)
	}
	if c := one().Endpoint; !c.AllRemoved {
		t.Errorf("truncate: %+v", c)
	}
}

func TestTailer_LeavesOutAnUnchangedLargeURL(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set url = (select 'https://h.example/' || string_agg(md5(i::text), '') from generate_series(1, 500) i)`)
	env.Exec(t, `update webhooks.endpoints set description = 'books'`)
	f.next(t)
	large, change := f.next(t).Changes[0].Endpoint, f.next(t).Changes[0].Endpoint
	change.Merge(large.Endpoint)
	if len(large.Endpoint.URL.Reveal()) < 16_000 || !change.Endpoint.URL.Equal(large.Endpoint.URL) {
		t.Errorf("the URL has %d bytes, after another change %d", len(large.Endpoint.URL.Reveal()), len(change.Endpoint.URL.Reveal()))
	}
}

// slotPosition returns the confirmed position of the slot.
func slotPosition(t *testing.T, env *testenv.DB) (lsn LSN) {
	t.Helper()
	must(t, lsn.Scan(testenv.QueryOne[string](t, env, `select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1`, env.Slot)))
	return lsn
}

// confirm confirms lsn and waits until the slot has reached it.
func (f *follower) confirm(t *testing.T, env *testenv.DB, lsn LSN) {
	t.Helper()
	f.Confirm(lsn)
	testenv.Eventually(t, patience, func() error {
		if at := slotPosition(t, env); at != lsn {
			return fmt.Errorf("the slot is at %s, want %s", at, lsn)
		}
		return nil
	})
}

func TestTailer_ConfirmsWhatItWasToldAndNothingBeyond(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	addEvents(t, env, "a", 1)
	first := f.next(t)
	addEvents(t, env, "b", 1)
	second := f.next(t)
	if at := slotPosition(t, env); at >= first.End {
		t.Fatalf("the slot is at %s although nothing was confirmed", at)
	}
	f.confirm(t, env, first.End)
	// The last confirmed position is sent when the stream ends, and the next stream begins after
	// it.
	f.Confirm(second.End)
	f.leave()
	if err := f.wait(t); err != nil {
		t.Fatalf("Run ended with %v", err)
	}
	if at := slotPosition(t, env); at != second.End {
		t.Errorf("the slot is at %s after leaving, want %s", at, second.End)
	}
	addEvents(t, env, "c", 1)
	if got := follow(t, db).events(t, 1); got[0] != "c_00001" {
		t.Errorf("after what was confirmed comes %q", got)
	}
}

func TestTailer_YieldsIdlePositionsWhileOtherTablesAreWritten(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	env.Exec(t, `create table public.other (t text)`)
	env.Exec(t, `insert into public.other select repeat('x', 1000) from generate_series(1, 1000)`)
	var written LSN
	must(t, written.Scan(testenv.QueryOne[string](t, env, `select pg_current_wal_flush_lsn()::text`)))
	for {
		b := f.any(t)
		if !b.Idle() {
			t.Fatalf("a batch of %d changes", len(b.Changes))
		}
		f.Confirm(b.End)
		if b.End >= written {
			break
		}
	}
	testenv.Eventually(t, patience, func() error {
		if at := slotPosition(t, env); at < written {
			return fmt.Errorf("the slot is at %s and pins what was written up to %s", at, written)
		}
		return nil
	})
}

func TestTailer_StaysConnectedWhileTheConsumerIsSlow(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	f.leave()
	must(t, f.wait(t))
	tailer := NewTailer(db.cfg, testLog(t))
	must(t, tailer.Connect(t.Context()))
	_, err := tailer.conn.Exec(t.Context(), `set wal_sender_timeout = '4s'`).ReadAll()
	must(t, err)
	must(t, tailer.Start(t.Context(), 0))
	f = run(t, tailer)
	addEvents(t, env, "early", 1)
	f.next(t)
	addEvents(t, env, "evt", 3000)
	first := f.next(t)
	// The test takes no batch while it asks the server when it last heard from the tailer. Only a
	// superuser may see that.
	super, err := pgx.Connect(t.Context(), env.SuperuserURL)
	must(t, err)
	defer closeConn(super)
	since := time.Now()
	testenv.Eventually(t, patience, func() error {
		var heard time.Time
		must(t, super.QueryRow(t.Context(), `select reply_time from pg_stat_replication r join pg_replication_slots s on s.active_pid = r.pid
		    where s.slot_name = $1`, env.Slot).Scan(&heard)) // no row: the server has ended the connection
		if waited := heard.Sub(since); waited < 6*time.Second {
			return fmt.Errorf("the tailer was last heard after %v", waited)
		}
		return nil
	})
	if got := len(first.Changes) + len(f.events(t, 3000-len(first.Changes))); got != 3000 {
		t.Errorf("%d events", got)
	}
}

func TestTailer_GoesOnWhenAColumnIsAdded(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	tx := begin(t, env)
	addEvent(t, tx, "evt_1")
	_, err := tx.Exec(t.Context(), `alter table webhooks.outbox add column trace text not null default 'none'`)
	must(t, err)
	addEvent(t, tx, "evt_2")
	must(t, tx.Commit(t.Context()))
	env.Exec(t, `alter table webhooks.outbox drop column trace`)
	addEvents(t, env, "evt_3", 1)
	var got []string
	for len(got) < 3 {
		for _, c := range f.next(t).Changes {
			got = append(got, strings.Join([]string{c.Event.ID, c.Event.Type, c.Event.Venue}, " "))
		}
	}
	if want := []string{"evt_1 lead.created venue_a", "evt_2 lead.created venue_a", "evt_3_00001 lead.created venue_a"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTailer_StopsAtARenamedColumnAndLosesNothing(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	f := follow(t, db)
	addEvents(t, env, "a", 1)
	f.confirm(t, env, f.next(t).End)
	env.Exec(t, `alter table webhooks.outbox rename column type to kind`)
	env.Exec(t, `insert into webhooks.outbox (id, kind, venue, data) values ('renamed', 'lead.created', 'venue_a', '{}')`)
	wantProblem(t, f.wait(t), "table webhooks.outbox", `no column "type"`, "[outbox.columns]")

	db.cfg.Columns.Type = "kind"
	if e := follow(t, db).next(t).Changes[0].Event; e.ID != "renamed" || e.Type != "lead.created" {
		t.Errorf("after the mapping was corrected: %+v", e)
	}
}

func TestTailer_WaitsForASlotThatIsHeld(t *testing.T) {
	t.Parallel()
	db, _ := openDB(t)
	holder := follow(t, db)
	second := NewTailer(db.cfg, testLog(t))
	must(t, second.Connect(t.Context()))
	t.Cleanup(second.Close)
	for range 2 {
		wantError(t, second.Start(t.Context(), 0), ErrSlotActive)
	}
	holder.leave()
	must(t, holder.wait(t))
	must(t, second.Start(t.Context(), 0))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, second.Run(gone, gone, make(chan *Batch)))
}

func TestTailer_TellsAMissingPublicationFromOtherWarnings(t *testing.T) {
	tailer := NewTailer(Config{}, testLog(t))
	for file, want := range map[string]error{"pgoutput.c": ErrUndecodable, "slot.c": nil} {
		err := tailer.handle(t.Context(), nil, &pgproto3.NoticeResponse{Severity: "WARNING", Code: codeNotPrerequisite, Message: "of " + file, File: file})
		if !errors.Is(err, want) {
			t.Errorf("a warning of %s: %v, want %v", file, err, want)
		}
	}
}
