// Package outbox knows PostgreSQL: it is the only package with SQL in it.
//
// # Parts
//
//	Tailer   owns the replication connection and yields what was committed, in commit order
//	Ledger   owns the recording connection; its transactions are the only writes to deliveries, attempts, endpoint_health
//	         and checkpoint while a term lasts, but for what the Pruner deletes
//	Pruner   deletes what is older than the retention, on a connection of the pool
//	DB       a small pool for everything else: loading state, refilling lanes, and the commands
//
// # Positions
//
// A position is an LSN. What is stored and confirmed for a transaction is its end, the first byte after the commit
// record (CommitMessage.TransactionEndLSN): the server sends a transaction again when its commit record starts at or
// after the requested position, so this one is not sent again and the next one is not lost.
//
// The checkpoint is the low watermark: every delivery of every transaction that ended at or before it has a row. It
// is written in the same transaction as those rows. The Tailer confirms to PostgreSQL what the checkpoint holds and
// nothing beyond it, so confirmed_flush_lsn <= checkpoint.lsn always, and a restart begins at the checkpoint.
//
// # Recording
//
// A delivery is recorded when its first row is committed: by its result if that comes within ParkAfter of being read,
// as pending otherwise ("parked"), so that one slow customer holds back neither the watermark nor WAL. From then on
// the row is the truth and memory a cache of it.
//
// A transaction that fans out widely is tracked in pieces, behind others (Hold): the watermark stands before it until
// its last piece is recorded, and everything behind it is recorded meanwhile. A commit gathers a bounded number of
// rows, and parks a bounded number, whatever there is.
//
// # Reconciling
//
// The stream may pass events over without a word: a slot that was dropped, lost, advanced or left behind by a failover; a
// table that left the publication for a while, was made anew, or got a partition that holds rows. A new term compares
// the checkpoint with the server and finds such a gap (checkpoint.gap). It then sweeps the outbox for events without a
// delivery row before it reads its first batch. A transaction that was still invisible then, and is older than the new slot, is
// found by a second comparison (Reconcile) once all transactions before Term.Barrier have ended. Nothing is lost in this
// order: publication, slot, barrier, sweep, stream, second comparison: a transaction whose commit record stands after
// the slot's consistent point is streamed, and one whose record stands before it had its id before the barrier.
//
// While all is well the latest part of the outbox is compared every few minutes all the same.
//
// # Pruning
//
// What is older than Config.Retention is deleted in an order (Pruner): events that are handed over and have nothing pending, then
// deliveries whose event is gone. So a delivery outlives its event, and whatever a comparison finds in the outbox without a delivery
// never had one. Nothing is deleted while a recovery is under way, since the stream may then bring events again that a sweep has
// found, and only their rows tell.
//
// # Leadership
//
// The slot has one consumer at a time, so holding the stream is leadership. A new leader counts checkpoint.epoch up;
// every commit of the Ledger requires its own epoch, so a former leader that wakes up late commits nothing
// (ErrFenced). It requires its own sequence number as well, which the commit counts up: a commit whose answer was
// lost is looked up by it and neither repeated nor forgotten.
//
// The protocol is described in https://www.postgresql.org/docs/current/protocol-replication.html and
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
package outbox
