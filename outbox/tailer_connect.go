package outbox

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// This file opens and closes the replication connection of a Tailer.

// Connect opens the replication connection. It replaces an earlier one. It returns ErrOtherServer
// if the server is not the first one any more, or is on another timeline. The positions of this
// Tailer may mean something else there.
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
		if SQLState(err) == codeSyntax { // an ordinary connection does not know this command
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

// tablesBelow returns the partitions and the children by inheritance of the outbox. A change of a
// child names the child, even if its parent is published. A partition or child that comes later
// ends the term (Coverage).
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

// enableFailover lets standbys copy the slot if they ask for it. An earlier version of the agent or
// of PostgreSQL may have made the slot without that.
func (t *Tailer) enableFailover(ctx context.Context) error {
	ctx, cancel := answered(ctx)
	defer cancel()
	_, err := t.conn.Exec(ctx, "ALTER_REPLICATION_SLOT "+quoteIdent(t.cfg.Slot)+" (FAILOVER true)").ReadAll()
	if SQLState(err) == codeObjectInUse { // another agent was quicker
		return nil
	}
	return t.cfg.explain(fmt.Sprintf("alter slot %q", t.cfg.Slot), err)
}

// leave confirms what was recorded last and ends the stream in good order. This frees the slot at
// once.
func (t *Tailer) leave() error {
	if err := t.sendStatus(LSN(t.confirmed.Load())); err != nil {
		return err
	}
	t.conn.Frontend().Send(&pgproto3.CopyDone{})
	t.conn.Frontend().Send(&pgproto3.Terminate{})
	if err := t.conn.Frontend().Flush(); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	// The slot is free when the server closes the connection. What the server has sent meanwhile is
	// not needed, and may be much.
	if err := t.conn.Conn().SetReadDeadline(time.Now().Add(leaveTimeout)); err == nil {
		_, _ = io.Copy(io.Discard, t.conn.Conn())
	}
	return nil
}

// Close only closes the socket. The farewell that pgconn's Close would send and wait for has no
// meaning in the middle of a stream.
func (t *Tailer) Close() {
	if t.conn != nil {
		_ = t.conn.Conn().Close()
		t.conn = nil
	}
}
