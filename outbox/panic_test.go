package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/panics"
)

const (
	brokenRelation = 5
	testCommit     = 300
	testEnd        = 310
)

// streamed returns a transaction as the server sends it. Each message inserts a row without a value
// into one relation.
func streamed(relations ...uint32) (messages [][]byte) {
	be := binary.BigEndian
	begin := append(be.AppendUint64([]byte{'B'}, testCommit), make([]byte, 8+4)...)
	begin[len(begin)-1] = 60
	messages = append(messages, begin)
	for _, relation := range relations {
		insert := be.AppendUint16(append(be.AppendUint32([]byte{'I'}, relation), 'N'), 6)
		messages = append(messages, append(insert, "nnnnnn"...))
	}
	commit := be.AppendUint64(be.AppendUint64([]byte{'C', 0}, testCommit), testEnd)
	return append(messages, append(commit, make([]byte, 8)...))
}

// readAll makes a new Tailer read messages, and returns what it yields.
func readAll(t *testing.T, messages [][]byte, aside func(Subject) bool) (*Batch, error) {
	t.Helper()
	tailer := NewTailer(testConfig("", ""), testLog(t))
	tailer.SetAside = aside
	tailer.dec = newTestDecoder(t)
	// Reading a row of this relation panics.
	tailer.dec.relations[brokenRelation] = &relation{outbox: &outboxColumns{id: -1}}
	out := make(chan *Batch, 1)
	err := panics.Catch(func() error {
		for _, m := range messages {
			if err := tailer.data(t.Context(), out, m); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(out) == 0 {
		return nil, err
	}
	return <-out, nil
}

func TestTailer_NamesTheChangeThatItPanicsOverAndPassesItOverWhenToldTo(t *testing.T) {
	messages := streamed(outboxRelation, otherRelation, brokenRelation, outboxRelation)
	_, err := readAll(t, messages, nil)
	p, ok := errors.AsType[*panics.Error](err)
	want := Subject{Part: tailerPart, Commit: testCommit, Index: 3}
	if !ok || p.Subject != want {
		t.Fatalf("reading returned %v about %+v, want a panic about %+v", err, p, want)
	}
	b, err := readAll(t, messages, func(s Subject) bool { return s == want })
	must(t, err)
	var indexes []int
	for _, c := range b.Changes {
		indexes = append(indexes, c.Index)
	}
	if diff := cmp.Diff([]int{1, 4}, indexes); diff != "" || b.Commit != testCommit || b.End != testEnd {
		t.Errorf("the batch %+v has other changes (-want +got):\n%s", b, diff)
	}
	if b, err := readAll(t, streamed(brokenRelation), func(Subject) bool { return true }); b != nil || err != nil {
		t.Errorf("a transaction of which nothing is left gave %+v, %v", b, err)
	}
}

// panickingJob panics in each step.
type panickingJob struct{ brokenJob }

func (j *panickingJob) step(context.Context, querier) (bool, error) {
	j.steps++
	panic("a fault")
}

func TestJobs_OneThatPanicsIsGivenUp(t *testing.T) {
	t.Parallel()
	db, _ := openDB(t)
	caught := 0
	cfg := db.cfg
	cfg.Caught = func(*panics.Error) { caught++ }
	l := NewLedger(LedgerConfig{Config: cfg, Term: newTerm(t, db), Log: testLog(t), Clock: &Clock{},
		Confirm: func(LSN) {}, Stalled: func(bool) {}, Requeued: func(string) {}})
	broken := &panickingJob{}
	l.jobs = []job{broken}
	must(t, l.step(t.Context()))
	defer closeConn(l.conn)
	if broken.steps != jobTries || broken.abandoned != 1 || len(l.jobs) != 0 || caught != jobTries {
		t.Errorf("%d steps, abandoned %d times, %d jobs left, %d panics caught", broken.steps, broken.abandoned, len(l.jobs), caught)
	}
}

func TestLedger_EndsWhenItsTimerHasPanicked(t *testing.T) {
	t.Parallel()
	db, _ := openDB(t)
	caught := make(chan *panics.Error, 1)
	l := NewLedger(LedgerConfig{Config: db.cfg, Term: newTerm(t, db), Log: testLog(t), Clock: &Clock{},
		Confirm: func(LSN) {}, Stalled: func(stalled bool) {
			if stalled {
				panic("a fault")
			}
		}})
	l.cfg.Caught = func(p *panics.Error) { caught <- p }
	defer func() {
		if l.conn != nil {
			closeConn(l.conn)
		}
	}()
	// A transaction that waits for the timer counts as a long one.
	must(t, l.transact(t.Context(), 1, func(context.Context, *pgx.Conn) error {
		select {
		case p := <-caught:
			if !strings.HasPrefix(p.Place, "outbox/panic_test.go:") {
				t.Errorf("the panic was at %s", p.Place)
			}
		case <-time.After(patience):
			t.Error("the timer did not panic")
		}
		return nil
	}))
	if _, ok := errors.AsType[*panics.Error](l.transact(t.Context(), 2, func(context.Context, *pgx.Conn) error { return nil })); !ok {
		t.Error("the ledger goes on")
	}
}
