package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

// tailerPart distinguishes a change that cannot be read from a change that cannot be handled after
// that.
const tailerPart = "tailer"

const (
	// senderTimeout is the wal_sender_timeout of the agent's own replication connection. If an
	// agent's host hangs, the server ends its connection after this time, and a standby takes over.
	senderTimeout = 10 * time.Second
	// statusInterval is how often the agent sends the confirmed position to the server while it
	// changes. idleStatusInterval applies while it does not change. The second must be well below
	// senderTimeout. A leader that is cut off may believe that it leads for the time between the
	// two.
	statusInterval     = time.Second
	idleStatusInterval = 2 * time.Second
	// askAfter is how long the server may be silent before the next status asks it for a reply.
	askAfter = time.Second
	// writeTimeout bounds a status message to a server that does not read.
	writeTimeout = 5 * time.Second
	// leaveTimeout bounds the wait at the end for the server to close the connection.
	leaveTimeout = time.Second
	// batchEvents and batchBytes bound one Batch. Together with the channel's capacity, they bound
	// how much of a transaction the Tailer holds.
	batchEvents = 500
	batchBytes  = 1 << 20
	// shutdownKeepalives is how many urgent keepalives for one position within a second mean that
	// the server is shutting down. The server then sends them without a pause until everything is
	// confirmed, so it could not end otherwise.
	shutdownKeepalives = 20
)

// Tailer owns the replication connection. It yields committed transactions in order. It keeps the
// connection alive while its consumer is slow. It confirms to the server the positions that Confirm
// was given. After a broken connection, Connect and Start continue where the last one ended: a
// Tailer never yields a change twice. All its methods except Confirm, Heard and Interrupt belong to
// one goroutine.
type Tailer struct {
	// System identifies the server.
	System pglogrepl.IdentifySystemResult
	// SetAside reports whether to skip a change without reading it, because reading it panics. It
	// is set before Run, or nil. As long as this Tailer lives, it must give the same answer for the
	// same change.
	SetAside func(Subject) bool

	cfg  Config
	log  *slog.Logger
	conn *pgconn.PgConn
	dec  *decoder

	confirmed atomic.Uint64 // the LSN that the ledger has committed; set by Confirm
	received  atomic.Uint64 // the LSN up to which the stream was handed over or is idle
	// Nanoseconds from made to the server's last message, by the monotonic clock.
	lastHeard atomic.Int64
	made      time.Time // when NewTailer made it

	// interrupted ends a stream that is not reading because its consumer is slow. The sender does
	// not wait, so one place is enough.
	interrupted chan struct{}

	batch   *Batch  // the open transaction, nil between transactions
	at      Subject // the change that is being read
	handed  int     // changes of the open transaction in earlier batches
	skip    int     // changes of the open transaction that an earlier connection handed over
	partial struct {
		commit  LSN // the transaction during which the last connection broke
		changes int // the number of its changes that were handed over
	}
	idle       LSN // the position of keepalives and empty transactions that was not yielded yet
	idleYield  time.Time
	sent       LSN // the last confirmed position that was sent to the server
	statusDue  time.Time
	urgent     int // keepalives since urgentFrom that asked for a reply at the position urgentEnd
	urgentEnd  LSN
	urgentFrom time.Time
}

// NewTailer makes a Tailer. It connects to nothing.
func NewTailer(cfg Config, log *slog.Logger) *Tailer {
	return &Tailer{cfg: cfg, log: log, made: time.Now(), interrupted: make(chan struct{}, 1)}
}

// Start begins to stream at the latest of three positions: from, where an earlier connection of
// this Tailer stopped, and the slot's own position. It returns ErrSlotActive while another agent
// holds the slot. Start may then be called again. It returns ErrSlotGone if PrepareSlot must make a
// new slot.
func (t *Tailer) Start(ctx context.Context, from LSN) error {
	ctx, cancel := answered(ctx)
	defer cancel()
	from = max(from, LSN(t.received.Load()))
	names := fmt.Sprintf("publication_names '%s,%s'", quoteIdent(t.cfg.Publication), quoteIdent(t.cfg.endpointsPublication()))
	err := pglogrepl.StartReplication(ctx, t.conn, quoteIdent(t.cfg.Slot), from, pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", names},
	})
	switch {
	case err == nil:
	case SQLState(err) == codeObjectInUse:
		return ErrSlotActive
	case SQLState(err) == codeNoObject, SQLState(err) == codeNotPrerequisite:
		return fmt.Errorf("%w: %w", ErrSlotGone, err)
	default:
		return t.cfg.explain(fmt.Sprintf("stream from slot %q", t.cfg.Slot), err)
	}
	now := time.Now()
	t.received.Store(uint64(from))
	t.hear()
	select {
	case <-t.interrupted: // this was meant for an earlier connection
	default:
	}
	t.batch, t.handed, t.skip, t.idle, t.urgent = nil, 0, 0, 0, 0
	t.statusDue, t.idleYield = now, now
	return nil
}

// beginAt records the position of the slot.
func (t *Tailer) beginAt(confirmed LSN) { t.received.Store(max(t.received.Load(), uint64(confirmed))) }

// Reached returns how far the stream has come. Everything before was handed over or does not matter
// here. It may be called while Run does not run.
func (t *Tailer) Reached() LSN { return max(LSN(t.received.Load()), t.idle) }

// Confirm sets the position before which the server may remove everything. The checkpoint must hold
// it durably. Confirm is safe for concurrent use.
func (t *Tailer) Confirm(lsn LSN) { t.confirmed.Store(uint64(lsn)) }

// Heard returns when the last message of the server arrived. It is safe for concurrent use.
func (t *Tailer) Heard() time.Time { return t.made.Add(time.Duration(t.lastHeard.Load())) }

func (t *Tailer) hear() { t.lastHeard.Store(int64(time.Since(t.made))) }

// Interrupt says that PostgreSQL is shutting down, which Run may not notice while its consumer is
// slow. The server waits for the stream to end, so Run ends with ErrServerShutdown. Interrupt is
// safe for concurrent use.
func (t *Tailer) Interrupt() {
	select {
	case t.interrupted <- struct{}{}:
	default:
	}
}

// Run yields batches to out until take ends. After that it only keeps the connection alive until
// hold ends. Then it confirms what was recorded last and closes the connection, which frees the
// slot. It returns nil if take ended it. Otherwise it returns why the stream broke:
// ErrServerShutdown, a Problem, or the network's error.
func (t *Tailer) Run(take, hold context.Context, out chan<- *Batch) error {
	defer t.Close()
	if err := t.read(take, out); err != nil {
		if t.batch != nil {
			t.partial.commit, t.partial.changes = t.batch.Commit, t.handed+t.skip
		}
		return err
	}
	if err := t.hold(hold); err != nil {
		return err
	}
	return t.leave()
}

// read is the part of Run that consumes the stream.
func (t *Tailer) read(take context.Context, out chan<- *Batch) error {
	// A deadline in the past ends a blocked read at once. read checks take before it sets a later
	// one.
	conn := t.conn.Conn() // the function below may run after t.conn is gone
	stop := context.AfterFunc(take, panics.GuardFunc(t.cfg.Caught, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }))
	defer stop()
	for {
		select {
		case <-t.interrupted:
			return ErrServerShutdown
		default:
		}
		if err := t.status(time.Now()); err != nil {
			return err
		}
		if err := t.yieldIdle(take, out, time.Now()); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(t.statusDue); err != nil {
			return fmt.Errorf("read the stream: %w", err)
		}
		if take.Err() != nil {
			return nil
		}
		msg, err := t.receive(take)
		if err != nil {
			return err
		}
		if msg == nil {
			continue
		}
		if err := t.handle(take, out, msg); err != nil {
			return err
		}
	}
}

// receive returns the next message. It returns nil if none came before the deadline of the
// connection.
func (t *Tailer) receive(take context.Context) (pgproto3.BackendMessage, error) {
	// Frontend().Receive with a deadline of the connection may be repeated after a timeout.
	// ReceiveMessage with a context for each message may not.
	msg, err := t.conn.Frontend().Receive()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// A living server answers when it is asked. If it does not, nobody may ever report what has
		// become of it.
		if silent := time.Since(t.Heard()); silent > senderTimeout && take.Err() == nil {
			return nil, fmt.Errorf("read the stream: the server has said nothing for %s", silent.Round(time.Second))
		}
		return nil, nil
	}
	if err != nil {
		return nil, t.cfg.explain("read the stream", err)
	}
	t.hear()
	return msg, nil
}

// hold answers keepalives at fixed intervals, without reading, until ctx ends.
func (t *Tailer) hold(ctx context.Context) error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		if err := t.status(time.Now()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (t *Tailer) handle(take context.Context, out chan<- *Batch, msg pgproto3.BackendMessage) error {
	switch m := msg.(type) {
	case *pgproto3.CopyData:
		if len(m.Data) == 0 {
			return fmt.Errorf("%w: empty message", errDecode)
		}
		switch m.Data[0] {
		case pglogrepl.PrimaryKeepaliveMessageByteID:
			k, err := pglogrepl.ParsePrimaryKeepaliveMessage(m.Data[1:])
			if err != nil {
				return fmt.Errorf("%w: keepalive: %w", errDecode, err)
			}
			return t.keepalive(k)
		case pglogrepl.XLogDataByteID:
			x, err := pglogrepl.ParseXLogData(m.Data[1:])
			if err != nil {
				return fmt.Errorf("%w: data: %w", errDecode, err)
			}
			return t.data(take, out, x.WALData)
		}
		return fmt.Errorf("%w: unknown message %q", errDecode, m.Data[0])
	case *pgproto3.ErrorResponse:
		pe := pgconn.ErrorResponseToPgError(m)
		switch pe.Code {
		case codeAdminShutdown:
			return fmt.Errorf("%w: %w", ErrServerShutdown, pe)
		case codeNoObject:
			return fmt.Errorf("%w: %w", ErrUndecodable, pe)
		}
		return t.cfg.explain("read the stream", pe)
	case *pgproto3.NoticeResponse:
		notice := pgconn.ErrorResponseToPgError((*pgproto3.ErrorResponse)(m))
		t.onNotice(nil, (*pgconn.Notice)(notice))
		if notice.Code == codeNotPrerequisite && notice.File == "pgoutput.c" {
			// PostgreSQL 18 skips a missing publication and its changes, with this warning. From
			// elsewhere, the same code means something else, for example a slot in
			// synchronized_standby_slots that no standby uses.
			return fmt.Errorf("%w: %w", ErrUndecodable, notice)
		}
		return nil
	case *pgproto3.CopyDone, *pgproto3.CommandComplete:
		return ErrServerShutdown
	case *pgproto3.ParameterStatus:
		return nil
	}
	return fmt.Errorf("%w: unexpected %T", errDecode, msg)
}

func (t *Tailer) onNotice(_ *pgconn.PgConn, n *pgconn.Notice) {
	t.log.Warn("PostgreSQL says on the replication connection: "+n.Message, "sqlstate", n.Code)
}

// keepalive handles the server's report of how far it has come. Between transactions, everything up
// to that position does not matter here. So the watermark moves on while only other tables are
// written.
func (t *Tailer) keepalive(k pglogrepl.PrimaryKeepaliveMessage) error {
	if t.batch == nil {
		t.idle = max(t.idle, k.ServerWALEnd)
	}
	if !k.ReplyRequested {
		return nil
	}
	now := time.Now()
	if k.ServerWALEnd != t.urgentEnd || now.Sub(t.urgentFrom) > time.Second {
		t.urgent, t.urgentEnd, t.urgentFrom = 0, k.ServerWALEnd, now
	}
	if t.urgent++; t.urgent > shutdownKeepalives {
		return ErrServerShutdown
	}
	t.statusDue = now
	return nil
}

// data handles one message of pgoutput.
func (t *Tailer) data(take context.Context, out chan<- *Batch, data []byte) error {
	defer t.at.Blame()
	if len(data) == 0 {
		return fmt.Errorf("%w: empty message", errDecode)
	}
	switch data[0] {
	case msgBegin:
		return t.begin(data)
	case msgCommit:
		return t.commit(take, out, data)
	case msgInsert, msgUpdate, msgDelete, msgTruncate:
		return t.change(take, out, data)
	}
	return t.dec.learn(data)
}

func (t *Tailer) begin(data []byte) error {
	var m pglogrepl.BeginMessage
	if err := m.Decode(data[1:]); err != nil {
		return fmt.Errorf("%w: %w", errDecode, err)
	}
	t.batch = &Batch{XID: m.Xid, Committed: m.CommitTime.UTC(), Commit: m.FinalLSN}
	t.handed, t.skip = 0, 0
	t.at = Subject{Part: tailerPart, Commit: m.FinalLSN}
	if m.FinalLSN == t.partial.commit {
		// The changes of a transaction come in the same order each time it is sent.
		t.skip = t.partial.changes
	}
	return nil
}

func (t *Tailer) commit(take context.Context, out chan<- *Batch, data []byte) error {
	var m pglogrepl.CommitMessage
	if err := m.Decode(data[1:]); err != nil {
		return fmt.Errorf("%w: %w", errDecode, err)
	}
	t.at = Subject{}
	if t.batch == nil {
		return fmt.Errorf("%w: a commit without a begin", errDecode)
	}
	if len(t.batch.Changes) == 0 && t.handed == 0 {
		// PostgreSQL 14 sends every transaction of the database. An empty transaction is only a
		// position.
		t.batch, t.idle = nil, max(t.idle, m.TransactionEndLSN)
		return nil
	}
	t.batch.End = m.TransactionEndLSN
	if err := t.yield(take, out, t.batch); err != nil {
		return err
	}
	t.batch = nil
	return nil
}

// change handles a change of a row, or a TRUNCATE.
func (t *Tailer) change(take context.Context, out chan<- *Batch, data []byte) error {
	if t.batch == nil {
		return fmt.Errorf("%w: a change outside a transaction", errDecode)
	}
	t.at.Index++
	if t.SetAside != nil && t.SetAside(t.at) {
		// The change's content is in the database. The next term loads it, or a comparison finds
		// it.
		return nil
	}
	var (
		change Change
		ok     bool
		err    error
	)
	if data[0] == msgTruncate {
		change, ok, err = t.dec.truncate(data)
	} else {
		change, ok, err = t.dec.change(data, t.batch.Committed)
	}
	if err != nil || !ok {
		return err
	}
	if change.Event != nil {
		change.Event.judge(t.batch.XID, t.batch.Committed)
	}
	if t.skip > 0 {
		t.skip--
		t.handed++
		return nil
	}
	change.Index = t.at.Index
	t.batch.Changes = append(t.batch.Changes, change)
	if change.Event != nil {
		t.batch.Bytes += len(change.Event.Data)
	}
	if len(t.batch.Changes) < batchEvents && t.batch.Bytes < batchBytes {
		return nil
	}
	// The transaction is committed, because with protocol version 1 the server sends none before.
	// So its parts may be handed over as they come.
	full := t.batch
	t.batch = &Batch{XID: full.XID, Committed: full.Committed, Commit: full.Commit}
	return t.yield(take, out, full)
}

// yield hands b over. While the consumer is slow, yield goes on sending status messages to the
// server.
func (t *Tailer) yield(take context.Context, out chan<- *Batch, b *Batch) error {
	if len(b.Changes) > 0 {
		crashpoint.Hit(crashpoint.AfterRead)
	}
	select {
	case out <- b:
	default:
		tick := time.NewTicker(statusInterval)
		defer tick.Stop()
		for sent := false; !sent; {
			select {
			case out <- b:
				sent = true
			case <-take.Done():
				return nil
			case <-t.interrupted:
				return ErrServerShutdown
			case <-tick.C:
				t.hear() // the consumer is slow, not the server
				if err := t.status(time.Now()); err != nil {
					return err
				}
			}
		}
	}
	t.handed += len(b.Changes)
	if b.End != 0 {
		t.received.Store(uint64(b.End))
	}
	return nil
}

// yieldIdle hands over the idle position. It does so at most once in statusInterval, and only if it
// need not wait.
func (t *Tailer) yieldIdle(take context.Context, out chan<- *Batch, now time.Time) error {
	if t.batch != nil || t.idle <= LSN(t.received.Load()) || now.Sub(t.idleYield) < statusInterval || len(out) == cap(out) {
		return nil
	}
	t.idleYield = now
	return t.yield(take, out, &Batch{End: t.idle})
}

// status sends the confirmed position to the server if it is time to do so.
func (t *Tailer) status(now time.Time) error {
	if now.Before(t.statusDue) {
		return nil
	}
	confirmed := LSN(t.confirmed.Load())
	if err := t.sendStatus(confirmed); err != nil {
		return err
	}
	interval := idleStatusInterval
	if confirmed != t.sent || confirmed < LSN(t.received.Load()) {
		interval = statusInterval
	}
	t.sent, t.statusDue = confirmed, now.Add(interval)
	return nil
}

// sendStatus sends one position as written, flushed and applied. pglogrepl would replace a zero by
// the written position, and only the flushed position moves the slot.
func (t *Tailer) sendStatus(lsn LSN) error {
	if lsn > t.sent {
		crashpoint.Hit(crashpoint.BeforeConfirm)
	}
	if err := t.conn.Conn().SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("confirm %s: %w", lsn, err)
	}
	// A server that receives status messages has no reason to send anything while nothing is
	// written. So the status asks for a reply.
	err := pglogrepl.SendStandbyStatusUpdate(context.Background(), t.conn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: lsn, WALFlushPosition: lsn, WALApplyPosition: lsn, ReplyRequested: time.Since(t.Heard()) > askAfter,
	})
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return fmt.Errorf("confirm %s: the server has not read for %s: %w", lsn, writeTimeout, err)
		}
		return fmt.Errorf("confirm %s: %w", lsn, err)
	}
	return nil
}
