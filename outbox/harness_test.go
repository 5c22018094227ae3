package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// patience bounds the wait for something that takes milliseconds on an idle machine.
const patience = time.Minute

// othersPatience is how long transactions of other tests in the same cluster may be open. A large
// one takes long on a busy machine.
const othersPatience = 2 * time.Minute

// testLog returns a logger that writes to the test's own output.
func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// asItIs is a replace function that keeps the slot.
func asItIs(LSN) (bool, error) { return false, nil }

// follower runs a Tailer as the agent does.
type follower struct {
	*Tailer
	batches chan *Batch
	leave   func()     // ends Run in good order
	ended   chan error // what Run returned; one value
}

// follow connects a Tailer, makes the slot if there is none, and streams from the checkpoint.
func follow(t *testing.T, db *DB) *follower {
	t.Helper()
	tailer := NewTailer(db.cfg, testLog(t))
	if err := tailer.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	from, err := db.configured().PrepareSlot(t.Context(), tailer, "test", asItIs, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := tailer.Start(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	return run(t, tailer)
}

// run runs a Tailer that was started.
func run(t *testing.T, tailer *Tailer) *follower {
	ctx, leave := context.WithCancel(context.Background())
	f := &follower{Tailer: tailer, batches: make(chan *Batch, 1), leave: leave, ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() { // ends by leave
		defer close(done)
		f.ended <- tailer.Run(ctx, ctx, f.batches)
	}()
	t.Cleanup(func() { leave(); <-done })
	return f
}

// next returns the next batch that is not idle.
func (f *follower) next(t *testing.T) *Batch {
	t.Helper()
	for {
		if b := f.any(t); !b.Idle() {
			return b
		}
	}
}

// any returns the next batch.
func (f *follower) any(t *testing.T) *Batch {
	t.Helper()
	select {
	case b := <-f.batches:
		return b
	default:
	}
	select {
	case b := <-f.batches:
		return b
	case err := <-f.ended:
		t.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		t.Fatalf("no batch within %s", patience)
	}
	return nil
}

// wait returns what Run returned. It takes batches meanwhile.
func (f *follower) wait(t *testing.T) error {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case <-f.batches:
		case err := <-f.ended:
			return err
		case <-timeout:
			t.Fatalf("Run did not end within %s", patience)
		}
	}
}

// eventIDs returns the ids of the events among the changes.
func eventIDs(changes []Change) (ids []string) {
	for _, c := range changes {
		if c.Event != nil {
			ids = append(ids, c.Event.ID)
		}
	}
	return ids
}

// addEvents inserts events PREFIX_00001 to PREFIX_n in one transaction.
func addEvents(t *testing.T, env *testenv.DB, prefix string, n int) {
	t.Helper()
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data)
	    select $1 || '_' || lpad(i::text, 5, '0'), 'lead.created', 'venue_a', json_build_object('n', i) from generate_series(1, $2::int) i`, prefix, n)
}

// begin opens a transaction of the app on a connection of its own, which closes with the test.
func begin(t *testing.T, env *testenv.DB) pgx.Tx {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), env.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeConn(conn) })
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// book runs a Ledger and keeps what the Ledger reports by its functions.
type book struct {
	*Ledger
	ended chan error // what Run returned; one value

	mu        sync.Mutex
	confirmed LSN
	committed []*Record
	requeued  []string
	stalls    []bool
}

// newTerm begins a term without a stream.
func newTerm(t *testing.T, db *DB) Term {
	t.Helper()
	tailer := &Tailer{}
	if _, err := db.pool.Exec(t.Context(), `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
	    values ($1, '0/0', 0, '', '', 0, current_database()) on conflict do nothing`, db.cfg.Slot); err != nil {
		t.Fatal(err)
	}
	term, err := db.configured().TakeOver(t.Context(), tailer, "test")
	if err != nil {
		t.Fatal(err)
	}
	return term
}

// keepBook runs a Ledger. With adjust, the test changes its configuration.
func keepBook(t testing.TB, cfg Config, term Term, adjust func(*book, *LedgerConfig)) *book {
	t.Helper()
	b := &book{ended: make(chan error, 1)}
	lc := LedgerConfig{
		Config: cfg, Term: term, Log: testLog(t), Clock: &Clock{}, ServerEnds: func() {},
		Confirm:   func(lsn LSN) { b.locked(func() { b.confirmed = lsn }) },
		Committed: func(r []*Record) { b.locked(func() { b.committed = append(b.committed, r...) }) },
		Requeued:  func(id string) { b.locked(func() { b.requeued = append(b.requeued, id) }) },
		Stalled:   func(stalled bool) { b.locked(func() { b.stalls = append(b.stalls, stalled) }) },
	}
	if adjust != nil {
		adjust(b, &lc)
	}
	b.Ledger = NewLedger(lc)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with Close or the test
		defer close(done)
		b.ended <- b.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

func (b *book) locked(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// close ends the Ledger and fails the test unless everything was committed.
func (b *book) close(t *testing.T) {
	t.Helper()
	b.Close()
	if err := b.wait(t); err != nil {
		t.Fatalf("the ledger ended with %v", err)
	}
}

func (b *book) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-b.ended:
		return err
	case <-time.After(patience):
		t.Fatalf("the ledger did not end within %s", patience)
		return nil
	}
}

// hasCommitted waits until n results were reported as durable.
func (b *book) hasCommitted(t *testing.T, n int) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.committed) < n {
			return fmt.Errorf("%d of %d results are committed", len(b.committed), n)
		}
		return nil
	})
}

// stalled returns the calls of Stalled so far.
func (b *book) stalled() []bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.stalls)
}

// track tracks a batch of new deliveries, one for each event id, to endpoint ep_1.
func (b *book) track(t *testing.T, end LSN, ids ...string) []*Delivery {
	t.Helper()
	var deliveries []*Delivery
	for _, id := range ids {
		deliveries = append(deliveries, newDelivery(id, "ep_1"))
	}
	must(t, b.Track(t.Context(), &Tracked{End: end, Read: time.Now(), Deliveries: deliveries}))
	return deliveries
}

func newDelivery(eventID, endpointID string) *Delivery {
	return &Delivery{EventID: eventID, EndpointID: endpointID, Venue: "venue_a", Type: "lead.created", Created: time.Now().UTC()}
}

// success is the result of a first attempt that was answered 200.
func success(d *Delivery) *Record {
	return &Record{Delivery: d, Status: Succeeded, Finished: time.Now(), Code: 200, Latency: 12 * time.Millisecond}
}

// failedAttempt is the result of the given attempt, answered 500; the next one is due in an hour.
func failedAttempt(d *Delivery, number int) *Record {
	now := time.Now()
	return &Record{Delivery: d, Status: Pending, NextAttempt: now.Add(time.Hour), Finished: now,
		Attempt: &Attempt{Number: number, At: now, Code: 500, Class: "http_status", Error: "status 500", Latency: time.Millisecond, Response: "oops"}}
}

// behindProxy makes db connect through a proxy.
func behindProxy(t *testing.T, db *DB, env *testenv.DB) *testenv.Proxy {
	t.Helper()
	p := testenv.StartProxy(t, env.Addr())
	db.cfg.URL = secret.New(p.Via(env.URL))
	return p
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError fails the test unless err is want.
func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}
