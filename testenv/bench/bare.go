package main

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"
)

// bareTask is the task of the bare reader.
type bareTask struct {
	URL, Slot   string // the database, and the slot to make there
	Publication string
	Endpoint    string
	Concurrency int
}

// runBare streams the outbox by a temporary slot and POSTs each event to one endpoint at once,
// until ctx ends. It records nothing, confirms what it has read, and gives up at the first error.
func runBare(ctx context.Context, task bareTask) (result struct{}, err error) {
	conn, err := pgconn.Connect(ctx, task.URL+"&replication=database")
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.Background())) }()
	_, err = pglogrepl.CreateReplicationSlot(ctx, conn, task.Slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Temporary: true})
	if err != nil {
		return result, err
	}
	err = pglogrepl.StartReplication(ctx, conn, task.Slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names '" + task.Publication + "'"},
	})
	if err != nil {
		return result, err
	}
	transport := newTransport(task.Concurrency)
	var posts errgroup.Group
	posts.SetLimit(task.Concurrency)
	var confirmed time.Time
	var position pglogrepl.LSN
	for {
		if time.Since(confirmed) > time.Second {
			confirmed = time.Now()
			if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: position}); err != nil {
				return result, err
			}
		}
		receive, cancel := context.WithTimeout(ctx, time.Second)
		message, err := conn.ReceiveMessage(receive)
		cancel()
		switch {
		case ctx.Err() != nil:
			return result, posts.Wait()
		case pgconn.Timeout(err):
			continue
		case err != nil:
			return result, err
		}
		copied, ok := message.(*pgproto3.CopyData)
		if !ok || len(copied.Data) < 25 || copied.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		position = pglogrepl.LSN(binary.BigEndian.Uint64(copied.Data[9:]))
		change, err := pglogrepl.Parse(copied.Data[25:])
		if err != nil {
			return result, err
		}
		insert, ok := change.(*pglogrepl.InsertMessage)
		if !ok {
			continue
		}
		// The columns of webhooks.outbox are id, type, venue, data, created.
		id, venue := string(insert.Tuple.Columns[0].Data), string(insert.Tuple.Columns[2].Data)
		posts.Go(func() error { return post(transport, task.Endpoint, id, envelope(id, venue)) })
	}
}
