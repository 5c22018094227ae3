package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	writerCount = 4
	// maxSize is the number of events in the largest transaction.
	maxSize = 20
	// writerTimeout bounds one statement of a writer. A writer connects to PostgreSQL without a
	// proxy.
	writerTimeout = 10 * time.Second
	// largeEvent is the size in bytes of each event in a large transaction. With a
	// logical_decoding_work_mem of 64 kB, PostgreSQL decodes such a transaction from a file, and
	// would stream it before its commit if the agent asked for that.
	largeEvent = 12 << 10
)

// writers play the app.
type writers struct {
	url     string // without a proxy
	rate    float64
	venues  []string
	clock   stopwatch
	writes  *journal[write]
	endings *journal[ending]
}

// start runs the writers until ctx ends. The end of ctx interrupts no transaction. The function
// that it returns waits for the writers.
func (w *writers) start(ctx context.Context, seed uint64) (wait func()) {
	var all sync.WaitGroup
	for i := range writerCount {
		random := rand.New(rand.NewPCG(seed, 100+uint64(i)))
		all.Go(func() { w.run(ctx, random, i) })
	}
	return all.Wait
}

// run writes transactions until ctx ends.
func (w *writers) run(ctx context.Context, random *rand.Rand, number int) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for n := 1; ctx.Err() == nil; n++ {
		if conn == nil {
			var err error
			if conn, err = pgx.Connect(ctx, w.url); err != nil {
				conn = nil
				pause(ctx, 50*time.Millisecond) // PostgreSQL is down
				continue
			}
		}
		begun := w.clock.now()
		t := w.newTransaction(random, fmt.Sprintf("w%d.%d", number, n))
		w.writes.add(t.write)
		f := t.execute(context.WithoutCancel(ctx), conn)
		w.endings.add(ending{t.Tx, w.clock.now(), f})
		if conn.IsClosed() {
			conn = nil
		}
		// On average each writer writes its share of the rate.
		share := float64(len(t.Events)) * writerCount / w.rate * between(random, 0.5, 1.5)
		pause(ctx, time.Duration(share*float64(time.Second))-(w.clock.now()-begun))
	}
}

// transaction is a write, and how to carry it out.
type transaction struct {
	write
	rollBack  bool
	savepoint int           // set before the event with this index; -1 for none
	released  bool          // release the savepoint; otherwise undo what follows it
	holds     time.Duration // how long it stays open before its end
}

func (w *writers) newTransaction(random *rand.Rand, name string) *transaction {
	size := 1 + random.IntN(3)
	if random.IntN(2) == 0 {
		size = 1 + random.IntN(maxSize)
	}
	t := &transaction{write: write{Tx: name, At: w.clock.now()}, savepoint: -1, rollBack: random.IntN(10) == 0}
	large := random.IntN(30) == 0
	if large {
		size, t.rollBack = maxSize, random.IntN(2) == 0
	}
	switch random.IntN(30) {
	case 0:
		t.holds = time.Duration(between(random, 0.5, 2.5) * float64(time.Second))
	case 1, 2, 3, 4, 5:
		t.holds = time.Duration(between(random, 0.01, 0.2) * float64(time.Second))
	}
	if large {
		// This gives a consumer time to wrongly send what is not committed.
		t.holds += 300 * time.Millisecond
	}
	for i := range size {
		now := time.Now().UTC().Truncate(time.Microsecond)
		e := writtenEvent{
			ID: newEventID(random, now), Type: eventTypes[random.IntN(len(eventTypes))],
			Venue: w.venues[random.IntN(len(w.venues))], Created: now, Data: newData(random, i),
		}
		if large {
			e.Data = fmt.Sprintf(`{"large":"%s"}`, padding(random, largeEvent))
		}
		t.Events = append(t.Events, e)
	}
	if size > 1 && random.IntN(6) == 0 {
		t.savepoint = 1 + random.IntN(size-1)
		t.released = t.rollBack || random.IntN(2) == 0
		for i := t.savepoint; i < size && !t.released; i++ {
			t.Events[i].Undone = true
		}
	}
	return t
}

const insertEvent = `insert into webhooks.outbox (id, type, venue, data, created) values ($1, $2, $3, $4, $5)`

// execute carries out the transaction and returns how it ended, as far as its writer knows.
func (t *transaction) execute(ctx context.Context, conn *pgx.Conn) fate {
	run := func(sql string, args ...any) bool {
		ctx, cancel := context.WithTimeout(ctx, writerTimeout)
		defer cancel()
		_, err := conn.Exec(ctx, sql, args...)
		if err != nil {
			// The state of this one is unknown, so the next transaction has a new one.
			_ = conn.Close(ctx)
		}
		return err == nil
	}
	if !run("begin") {
		return rolledBack
	}
	for i, e := range t.Events {
		if i == t.savepoint && !run("savepoint s") {
			return rolledBack
		}
		if !run(insertEvent, e.ID, e.Type, e.Venue, e.Data, e.Created) {
			return rolledBack
		}
	}
	if t.savepoint >= 0 {
		end := "rollback to savepoint s"
		if t.released {
			end = "release savepoint s"
		}
		if !run(end) {
			return rolledBack
		}
	}
	pause(ctx, t.holds)
	if t.rollBack {
		run("rollback")
		return rolledBack
	}
	if !run("commit") {
		return unknown
	}
	return committed
}

// pause waits for d. It returns early if ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// wants reports whether an endpoint subscribes to a type, as the customers' documentation says.
func (e *endpointInfo) wants(eventType string) bool {
	for _, pattern := range e.Events {
		group, wildcard := strings.CutSuffix(pattern, "*")
		if pattern == eventType || wildcard && strings.HasPrefix(eventType, group) {
			return true
		}
	}
	return false
}
