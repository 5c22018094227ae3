package outbox

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

// transact runs write in a transaction that also stores lsn and increments the sequence. It returns
// when the transaction is durable, exactly once. It also returns if this agent is fenced or ctx has
// ended. After any other failure it tries again.
func (l *Ledger) transact(ctx context.Context, lsn LSN, write func(context.Context, *pgx.Conn) error) error {
	defer l.watchStall()()
	if p := l.panicked.Load(); p != nil {
		return p
	}
	fenced := func(err error) bool { return errors.Is(err, ErrFenced) }
	err := backoff.Retry(ctx, backoff.New(), &l.trouble, fenced, func(ctx context.Context) error {
		err := l.try(ctx, lsn, write)
		for errors.Is(err, errWrittenAnew) {
			crashpoint.Hit(crashpoint.InRefusal)
			err = l.try(ctx, lsn, write)
		}
		if err == nil || fenced(err) || ctx.Err() != nil {
			return err
		}
		// A connection that was ended (57P01) may belong to a restart that is over. A connection
		// that is refused shows the state now.
		if SQLState(err) == codeCannotConnectNow {
			l.cfg.ServerEnds()
		}
		err = l.cfg.explain("record", err)
		text := err.Error()
		l.stats.failing.Store(&text)
		return err
	})
	if err != nil {
		return err
	}
	l.stats.failing.Store(nil)
	l.sequence++
	if lsn > l.stored {
		l.stored = lsn
	}
	l.mark.busy = false
	l.storedAt = time.Now()
	l.stats.stored.Store(uint64(l.stored))
	l.cfg.Confirm(l.stored)
	return nil
}

// errWrittenAnew marks a refusal by PostgreSQL that the next try avoids. So it is not reported.
var errWrittenAnew = errors.New("the group is written anew")

// watchStall calls Stalled(true) if the returned function is not called within stallAfter. Then
// that function calls Stalled(false). The calls come in this order although a timer makes the first
// one.
func (l *Ledger) watchStall() (done func()) {
	var (
		mu             sync.Mutex
		over, reported bool
	)
	caught := l.cfg.Caught
	if caught != nil {
		caught = func(p *panics.Error) {
			l.cfg.Caught(p)
			l.panicked.Store(p)
		}
	}
	timer := time.AfterFunc(stallAfter, panics.GuardFunc(caught, func() {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			reported = true
			l.stats.stalled.Store(true)
			l.cfg.Log.Warn("recording takes long; no attempt starts until it is done", "after", stallAfter)
			l.cfg.Stalled(true)
		}
	}))
	return func() {
		timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		over = true
		if reported {
			l.stats.stalled.Store(false)
			l.cfg.Stalled(false)
		}
	}
}

const fence = `
update webhooks.checkpoint set lsn = greatest(lsn, $4), sequence = sequence + 1, updated = now()
where slot = $1 and epoch = $2 and sequence = $3`

const selectFence = `
select epoch, sequence from webhooks.checkpoint where slot = $1`

// try makes one attempt at a transaction. If it fails after the commit was sent, the outcome is
// unknown. The next try finds it out by the sequence.
func (l *Ledger) try(ctx context.Context, lsn LSN, write func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := answered(ctx) // after that the connection is dropped
	defer cancel()
	if l.conn == nil {
		cc, err := l.cfg.connConfig()
		if err != nil {
			return err
		}
		// The server ends a statement that waits too long for a lock. It also ends a transaction
		// whose agent was cut off or frozen in the middle: such a transaction keeps the checkpoint
		// locked, and the next leader waits for it. This must not take longer than the loss of the
		// slot.
		fix(&cc.Config, "lock_timeout", "5s")
		fix(&cc.Config, "idle_in_transaction_session_timeout", "5s")
		if l.conn, err = connect(ctx, cc); err != nil {
			l.conn = nil
			return err
		}
	}
	err := l.tryOn(ctx, l.conn, lsn, write)
	if err != nil && !errors.Is(err, ErrFenced) {
		// The connection may be in any state. A new one is cheap compared with a wrong assumption
		// about this one.
		closeConn(l.conn)
		l.conn = nil
	}
	return err
}

func (l *Ledger) tryOn(ctx context.Context, conn *pgx.Conn, lsn LSN, write func(context.Context, *pgx.Conn) error) error {
	crashpoint.Hit(crashpoint.BeforeLedgerCommit)
	var begin pgx.Batch
	begin.Queue("begin")
	begin.Queue(fence, l.cfg.Slot, l.cfg.Term.Epoch, l.sequence, lsn)
	results := conn.SendBatch(ctx, &begin)
	_, err := results.Exec()
	if err == nil {
		tag, ferr := results.Exec()
		if err = ferr; err == nil && tag.RowsAffected() == 0 {
			_ = results.Close()
			return l.refused(ctx, conn)
		}
	}
	if cerr := results.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := write(ctx, conn); err != nil {
		return err
	}
	crashpoint.Hit(crashpoint.InLedgerCommit)
	_, err = conn.Exec(ctx, "commit")
	if err == nil {
		crashpoint.Hit(crashpoint.AfterLedgerCommit)
	}
	return err
}

// refused finds out why the fence did not hold. Either an earlier try of this very transaction was
// committed after all (nil), or another agent has taken over.
func (l *Ledger) refused(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "rollback"); err != nil {
		return err
	}
	var epoch, sequence int64
	err := conn.QueryRow(ctx, selectFence, l.cfg.Slot).Scan(&epoch, &sequence)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrFenced
	case err != nil:
		return err
	case epoch == l.cfg.Term.Epoch && sequence == l.sequence+1:
		return nil
	}
	return ErrFenced
}

// transient reports whether a statement may succeed later. This is true of all errors that
// PostgreSQL reports, except for bad data, constraints, errors that a trigger of the app's raises,
// and missing objects or rights.
func transient(err error) bool {
	code := SQLState(err)
	return code != "" && !refusesContent(code) && !strings.HasPrefix(code, "42")
}

// closeConn closes a connection without waiting long for a server that is gone.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
