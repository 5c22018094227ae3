package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/quintago/webhook-agent/crashpoint"
	"github.com/quintago/webhook-agent/panics"
)

// tailerPart tells a change that cannot be read from one that cannot be handled after that.
const tailerPart = "tailer"

const (
	// senderTimeout is wal_sender_timeout of the agent's own replication connection: when an agent's host hangs, the
	// server ends its connection after this long and a standby takes over.
	senderTimeout = 10 * time.Second
	// statusInterval is how often what was confirmed is told to the server while there is something to tell, and
	// idleStatusInterval while there is not. The second must stay well below senderTimeout: for what is left of it after a status,
	// a leader that is cut off may still believe that it leads.
	statusInterval     = time.Second
	idleStatusInterval = 2 * time.Second
	// askAfter is the silence of the server after which the next status asks it for a sign of life.
	askAfter = time.Second
	// writeTimeout bounds a status message to a server that does not read.
	writeTimeout = 5 * time.Second
	// leaveTimeout bounds the wait for the server to close the connection at the end.
	leaveTimeout = time.Second
	// batchEvents and batchBytes bound one Batch, and with the channel's capacity what the Tailer holds of a
	// transaction of any size.
	batchEvents = 500
	batchBytes  = 1 << 20
	// shutdownKeepalives is how many urgent keepalives for one position within a second mean that the server is
	// shutting down: it then asks without pause until everything is confirmed, which would keep it from ending.
	shutdownKeepalives = 20
)

// Tailer owns the replication connection. It yields committed transactions in order, keeps the connection alive while
// its consumer is slow, and confirms to the server what Confirm was told. After a connection broke, Connect and Start
// go on where the last one ended: no change is yielded twice in a Tailer's life. All its methods but Confirm, Heard
// and Interrupt belong to one goroutine.
type Tailer struct {
	// System identifies the server.
	System pglogrepl.IdentifySystemResult
	// SetAside reports whether a change is to be passed over unread, because reading it panics. It is
	// set before Run, or nil. It must give a change the same answer as long as this Tailer lives.
	SetAside func(Subject) bool

	cfg  Config
	log  *slog.Logger
	conn *pgconn.PgConn
	dec  *decoder

	confirmed atomic.Uint64 // LSN that the ledger has committed; set by Confirm
	received  atomic.Uint64 // LSN up to which the stream was handed over or is idle
	lastHeard atomic.Int64  // nanoseconds from made to the last message from the server, by the monotonic clock
	made      time.Time     // when NewTailer made it

	// interrupted ends a stream that does not read because its consumer is slow; sent without waiting, so one place is
	// enough.
	interrupted chan struct{}

	batch   *Batch  // the open transaction, nil between transactions
	at      Subject // the change that is being read
	handed  int     // changes of the open transaction that were handed over in earlier batches
	skip    int     // changes of the open transaction that an earlier connection has handed over already
	partial struct {
		commit  LSN // the transaction in whose middle the last connection broke
		changes int // how many of its changes were handed over
	}
	idle       LSN // position told by keepalives and empty transactions that was not yielded yet
	idleYield  time.Time
	sent       LSN // last confirmed position that the server was told
	statusDue  time.Time
	urgent     int // keepalives since urgentFrom that asked for a reply at the position urgentEnd
	urgentEnd  LSN
	urgentFrom time.Time
}

// NewTailer makes a Tailer. It connects to nothing.
func NewTailer(cfg Config, log *slog.Logger) *Tailer {
	return &Tailer{cfg: cfg, log: log, made: time.Now(), interrupted: make(chan struct{}, 1)}
}

// Connect opens the replication connection, instead of the last one if there was one. ErrOtherServer tells that it is another
// server than at first, or another timeline of it: the positions of this Tailer may mean something else there.
func (t *Tailer) Connect(ctx context.Context) error {
	t.Close()
	last := t.System
	rc, err := t.cfg.replicationConfig()
	if err != nil {
		return err
	}
	rc.OnNotice = t.onNotice
	conn, err := pgconn.ConnectConfig(ctx, rc)
	if err != nil {
		return t.cfg.explain("open the replication connection", err)
	}
	t.conn = conn
	if err := settleServer(ctx, conn); err != nil {
		t.Close()
		return t.cfg.explain("prepare the replication connection", err)
	}
	if t.System, err = pglogrepl.IdentifySystem(ctx, conn); err != nil {
		t.Close()
		if SQLState(err) == codeSyntax { // an ordinary connection does not know the command
			return t.cfg.poolerBetween("the replication connection became an ordinary one", err)
		}
		return t.cfg.explain("identify the server", err)
	}
	m, err := t.cfg.readMapping(ctx, replicationQuerier{conn})
	if err != nil {
		t.Close()
		return err
	}
	t.dec = newDecoder(t.cfg, m)
	if t.dec.below, err = t.tablesBelow(ctx); err != nil {
		t.Close()
		return t.cfg.explain("look at the tables of "+t.cfg.Table, err)
	}
	if now := t.System; last.SystemID != "" && (now.SystemID != last.SystemID || now.Timeline != last.Timeline) {
		t.Close()
		t.System = last
		return fmt.Errorf("%w: system %s timeline %d instead of %s timeline %d", ErrOtherServer, now.SystemID, now.Timeline, last.SystemID, last.Timeline)
	}
	return nil
}

var selectBelow = treeOf("$1") + `
select relation from tree where relation <> to_regclass($1)`

// tablesBelow returns the partitions of the outbox and its children by inheritance. A change of a child names the child, whatever
// the publication says of its parent. Those that come later end the term (Coverage).
func (t *Tailer) tablesBelow(ctx context.Context) (map[uint32]bool, error) {
	oids, err := queryRows(ctx, replicationQuerier{t.conn}, selectBelow, pgx.RowTo[uint32], t.cfg.table())
	if err != nil {
		return nil, err
	}
	below := map[uint32]bool{}
	for _, oid := range oids {
		below[oid] = true
	}
	return below, nil
}

// enableFailover has the slot copied to standbys that ask for it, where an earlier version of the agent or of PostgreSQL made it.
func (t *Tailer) enableFailover(ctx context.Context) error {
	ctx, cancel := answered(ctx)
	defer cancel()
	_, err := t.conn.Exec(ctx, "ALTER_REPLICATION_SLOT "+quoteIdent(t.cfg.Slot)+" (FAILOVER true)").ReadAll()
	if SQLState(err) == codeObjectInUse { // another agent was quicker
		return nil
	}
	return t.cfg.explain(fmt.Sprintf("alter slot %q", t.cfg.Slot), err)
}

// Start begins to stream at the position from, at where an earlier connection of this Tailer came, or at the slot's
// own position, whichever is latest. It returns ErrSlotActive while another agent holds the slot; Start may then be
// called again. ErrSlotGone tells that PrepareSlot has to make a new slot.
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
	case <-t.interrupted: // meant for an earlier connection
	default:
	}
	t.batch, t.handed, t.skip, t.idle, t.urgent = nil, 0, 0, 0, 0
	t.statusDue, t.idleYield = now, now
	return nil
}

// beginAt notes that the slot stands at a position.
func (t *Tailer) beginAt(confirmed LSN) { t.received.Store(max(t.received.Load(), uint64(confirmed))) }

// Reached returns how far the stream has come: everything before was handed over or is no concern of ours. It may be called
// while Run does not run.
func (t *Tailer) Reached() LSN { return max(LSN(t.received.Load()), t.idle) }

// Confirm sets the position that the server may forget everything before. It must be durable in the checkpoint. Safe
// for concurrent use.
func (t *Tailer) Confirm(lsn LSN) { t.confirmed.Store(uint64(lsn)) }

// Heard returns when the server was last heard. Safe for concurrent use.
func (t *Tailer) Heard() time.Time { return t.made.Add(time.Duration(t.lastHeard.Load())) }

func (t *Tailer) hear() { t.lastHeard.Store(int64(time.Since(t.made))) }

// Interrupt tells that PostgreSQL is shutting down, which Run may not notice while its consumer is slow. The server waits for
// the stream to end, so Run ends with ErrServerShutdown. Safe for concurrent use.
func (t *Tailer) Interrupt() {
	select {
	case t.interrupted <- struct{}{}:
	default:
	}
}

// Run yields batches to out until take ends; then it only keeps the connection alive until hold ends, confirms what
// was recorded last, and closes the connection, which frees the slot. It returns nil when take ended it, and
// otherwise why the stream broke: ErrServerShutdown, a Problem, or the network's error.
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

// read is the part of Run in which the stream is consumed.
func (t *Tailer) read(take context.Context, out chan<- *Batch) error {
	// A deadline in the past ends a blocked read at once. read sets a later one only before it looks at take again.
	conn := t.conn.Conn() // the function may run after t.conn is gone
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

// receive returns the next message, nil when none came before the deadline of the connection.
func (t *Tailer) receive(take context.Context) (pgproto3.BackendMessage, error) {
	// Frontend().Receive with a deadline of the connection may be repeated after a timeout; ReceiveMessage with a
	// context per message may not.
	msg, err := t.conn.Frontend().Receive()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// A server that lives answers when it is asked. What has become of it nobody may ever tell.
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

// hold answers keepalives by the clock, without reading, until ctx ends.
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
			// PostgreSQL 18 passes over a publication that is missing with this warning, and over its changes with it. The same code
			// from elsewhere means something else: a slot of synchronized_standby_slots that no standby uses, say.
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

// keepalive takes in how far the server has come. Between transactions that is a position up to which there is
// nothing for us: it moves the watermark on while only other tables are written.
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

// data takes in one message of pgoutput.
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
		// The order of changes within a transaction is the same each time it is sent.
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
		// PostgreSQL 14 sends every transaction of the database. An empty one is a position and nothing else.
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

// change takes in a change of a row, or a TRUNCATE.
func (t *Tailer) change(take context.Context, out chan<- *Batch, data []byte) error {
	if t.batch == nil {
		return fmt.Errorf("%w: a change outside a transaction", errDecode)
	}
	t.at.Index++
	if t.SetAside != nil && t.SetAside(t.at) {
		// Its content is in the database: what the next term loads, and a comparison, bring it back.
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
	// The transaction is committed: the server sends none before (protocol version 1), so its parts may be handed
	// over as they come.
	full := t.batch
	t.batch = &Batch{XID: full.XID, Committed: full.Committed, Commit: full.Commit}
	return t.yield(take, out, full)
}

// yield hands b over. While the consumer is slow it goes on telling the server that it lives.
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
				t.hear() // it is our consumer that is slow, not the server
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

// yieldIdle hands over the idle position, at most once in statusInterval and only when it costs no waiting.
func (t *Tailer) yieldIdle(take context.Context, out chan<- *Batch, now time.Time) error {
	if t.batch != nil || t.idle <= LSN(t.received.Load()) || now.Sub(t.idleYield) < statusInterval || len(out) == cap(out) {
		return nil
	}
	t.idleYield = now
	return t.yield(take, out, &Batch{End: t.idle})
}

// status tells the server what is confirmed, when it is time to.
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

// sendStatus sends one position as written, flushed and applied: pglogrepl would replace a zero by the written one,
// and only the flushed one moves the slot.
func (t *Tailer) sendStatus(lsn LSN) error {
	if lsn > t.sent {
		crashpoint.Hit(crashpoint.BeforeConfirm)
	}
	if err := t.conn.Conn().SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("confirm %s: %w", lsn, err)
	}
	// A server that hears from us has no reason of its own to speak while nothing is written, so it is asked to.
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

// leave confirms what was recorded last and ends the stream in good order, which frees the slot at once.
func (t *Tailer) leave() error {
	if err := t.sendStatus(LSN(t.confirmed.Load())); err != nil {
		return err
	}
	t.conn.Frontend().Send(&pgproto3.CopyDone{})
	t.conn.Frontend().Send(&pgproto3.Terminate{})
	if err := t.conn.Frontend().Flush(); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	// The server's end of the connection tells that the slot is free. What it has sent meanwhile is of no use, and
	// may be much.
	if err := t.conn.Conn().SetReadDeadline(time.Now().Add(leaveTimeout)); err == nil {
		_, _ = io.Copy(io.Discard, t.conn.Conn())
	}
	return nil
}

// Close closes the socket without a word: what pgconn's Close would say and wait for has no meaning in the middle of
// a stream.
func (t *Tailer) Close() {
	if t.conn != nil {
		_ = t.conn.Conn().Close()
		t.conn = nil
	}
}
