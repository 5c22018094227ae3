// Package outbox knows PostgreSQL: it is the only package with SQL in it.
//
// # Types
//
// Who needs what:
//
//	DB         everybody: Open gives one. A small pool, and what concerns the database as a whole:
//	           checks, the schema, adoption, publications, the clock, the endpoints of the
//	           configuration file, sealing, the overview
//	Slot       a leader (DB.Slot): what goes by the name of a replication slot or by a term. It
//	           takes over, loads the state, refills lanes, and compares the outbox with the log
//	Venue      whatever works for one venue (DB.Venue): its endpoints, deliveries and replays
//	AllVenues  the operator's commands (DB.AllVenues): the same, of all venues
//	Tailer     a leader: owns the replication connection and yields what was committed, in commit
//	           order
//	Ledger     a leader: owns the recording connection. While a term lasts, its transactions are the
//	           only writes to deliveries, attempts and endpoint_health, except for what the Pruner
//	           deletes. Few others write to the checkpoint: TakeOver, Adopt, and NoteGap
//	Pruner     a leader (Slot.NewPruner): deletes what is older than the retention, on a connection
//	           of the pool
//
// A process may have several slots. No type keeps anything for the process: what a term learns of
// the database is kept by its Slot, its Tailer and its Ledger, which have the same Config.Slot.
// Only the clock belongs to the DB, since all slots of a database have the same.
//
// # Where to find what
//
//	a term begins              leader.go (the slot and the checkpoint), state.go (what memory holds)
//	the stream                 tailer.go, tailer_connect.go, decode.go (its messages), message.go
//	the recording              ledger.go, entry.go, group.go (what one commit writes), watermark.go,
//	                           jobs.go, transact.go
//	the agent's own events     notice.go, announcer.go
//	what an event is           event.go, mapping.go (an app's columns), pattern.go (types), zone.go
//	pending deliveries         refill.go
//	passed-over events         reconcile.go, walk.go (in parts), recover.go (their rows),
//	                           event_sql.go (the statements)
//	publications               publication.go, check_publication.go, coverage.go (what reaches the
//	                           stream), row_filter.go
//	what people see            view.go (whose rows), endpoints.go, deliveries.go, replays.go,
//	                           status.go
//	what they search           search.go (the log), stats.go, explain_event.go (why an event was not
//	                           sent)
//	endpoints of the file      managed.go
//	webhook-agent check        check.go and check_*.go
//	webhook-agent migrate      migration.go (a file), migrate.go, migrate_lock.go, migrate_index.go,
//	                           migrate_print.go, schema.go (which binary)
//	how statements are built   compose.go (named pieces and values), query.go (how they are run)
//
// # Venues
//
// A view runs no statement that does not name the venue (view.go). In the view of one venue each
// statement has the condition that its rows are of that venue, also where ids are given, and also
// where it changes something. A row of webhooks.attempts has no venue of its own: it is of the
// venue of its delivery. A replay has one, given by a trigger, so that the replays of an endpoint
// that was removed stay visible to its venue.
//
// # Positions
//
// A position is an LSN. What is stored and confirmed for a transaction is its end, the first byte
// after the commit record (CommitMessage.TransactionEndLSN): the server sends a transaction again
// when its commit record starts at or after the requested position, so this one is not sent again
// and the next one is not lost.
//
// The checkpoint is the low watermark: every delivery of every transaction that ended at or before
// it has a row. It is written in the same transaction as those rows. The Tailer confirms to
// PostgreSQL what the checkpoint holds and nothing beyond it, so confirmed_flush_lsn <=
// checkpoint.lsn always, and a restart begins at the checkpoint.
//
// # Recording
//
// A delivery is recorded when its first row is committed: by what came of its attempt if that comes
// within ParkAfter of being read, as pending otherwise ("parked"), so that one slow customer holds
// back neither the watermark nor WAL. From then on the row is the truth and memory a cache of it.
//
// A transaction that fans out widely is tracked in pieces, behind others (Hold): the watermark
// stands before it until its last piece is recorded, and everything behind it is recorded
// meanwhile. A commit gathers a bounded number of rows, and parks a bounded number, whatever there
// is.
//
// # Notices
//
// The agent writes into the outbox in one case: to announce what has become of an endpoint
// (announcer). The event and its mark, endpoint_health.notified, are in the transaction that
// records the state, so a crash neither loses nor repeats it. The table may be the app's, so the
// insertion stands behind a savepoint, and the ledger goes on without what is refused. That an
// endpoint was disabled is tried again later. A group without notices has no savepoint and no
// statement for them, but for a look at the beginning of a term for what is late.
//
// A notice is not for the endpoint that it is about. The type and the text of the data say which
// that is, both to the stream (Event.Concerns) and to a comparison (aboutSQL), since a comparison
// that judged otherwise would send what was left out.
//
// # Replays
//
// A replay sets deliveries that have ended back to pending, in steps of the Ledger (replayJob), and
// counts how each ends. One that ends without an attempt, since its endpoint is off meanwhile or
// its event is gone, counts as unsent, and a replay with any of those ends as failed with the
// reason. A delivery keeps what it was (deliveries.former). It is so again where the endpoint is
// off before the delivery has ended, and where the replay is canceled; one that had succeeded also
// where it cannot be attempted. If the endpoint is off before all are set back, the others count as
// unsent and stay as they are. A named event counts as unsent, too, if it has no delivery with one of
// the wanted statuses.
//
// A step sets back only while fewer than 500 deliveries of the replay are pending (lookAhead), and
// what its pace allows. The pace is a time in the row up to which it is used up, so a restart sends
// no burst. It is of first attempts: retries come beside it. Deliveries that wait for a retry take
// room of the 500, so a replay to an endpoint that keeps failing goes on as those end.
//
// People pause, resume, cancel and pace replays by SQL. A trigger judges the states by old and new
// alone, and the job reads the row in each step, for the stream brings inserts only. What was
// pending when a replay was paused is sent all the same. A canceled one ends at once for people,
// and has finished set when nothing of it is pending: lanes drop what is not under way
// (LedgerConfig.Withdraw), the rows are what they were again, and those under way follow once their
// attempts are recorded. It finds them by going back over the log once (replay_cancel.go). A replay
// that rests is only looked at, without a transaction. People may hold the row in a transaction.
// Nothing waits for that: what cannot be counted stands in checkpoint.uncounted, and the next step
// of the replay counts it. A job lasts until its replay has finished, and rests most of the time.
//
// # Reconciling
//
// The stream may pass events over without a word: a slot that was dropped, lost, advanced or left
// behind by a failover; a table that left the publication for a while, was made anew, or got a
// partition or a child that holds rows. A new term compares the checkpoint with the server and
// finds such a gap (checkpoint.gap). It leads at once: what was passed over is looked for beside
// the stream.
//
// A comparison takes a horizon, a snapshot with a position of the WAL that was read after it. It
// waits until the Ledger has recorded everything before the position, and then looks for events
// that the snapshot sees and that lack a row. Such an event was passed over, and no event is sent
// twice: what the snapshot sees has its commit record before the position, so if the stream of this
// term brings it at all, it has brought it, and it has its rows. What an earlier term has recorded
// stands before Term.LookupUntil, which is read under the lock that fences that term; the stream of
// this term is past it by then. The rows of a comparison are written by the Ledger alone, as all
// others are.
//
// After a gap there are two such comparisons of all of the outbox. The first waits for no
// transaction. One that was invisible to it, and is older than the new slot, is found by the
// second, which is made once all transactions before Term.Barrier have ended. Nothing is lost in
// this order: publication, slot, barrier, stream, second comparison. A transaction whose commit
// record stands after the slot's consistent point is streamed, and one whose record stands before
// it had its id before the barrier.
//
// The tables are walked by the places of their rows (ctid) in parts that take about half a second,
// and rows are given in transactions of a bounded number of pairs of event and endpoint, so that
// the recording of others goes on between them. Every second the checkpoint is told where the walk
// stands (checkpoint.sweep), and another term goes on there with the same horizon: what stands
// before the place was compared for that horizon, and what came later is for the next comparison. A
// row that was updated meanwhile stands elsewhere, and is looked for at the end. The place means
// nothing once the table is kept in another file (VACUUM FULL, ALTER TABLE, TRUNCATE), nor on
// another server; then the walk begins anew. The walk goes by no index, since there may be none.
//
// While all is well the latest part of the outbox is compared every few minutes all the same.
//
// # Which endpoints an event that was passed over goes to
//
// No event may reach an endpoint that was registered after it, and the row's xmin does not say when
// an event was committed: an update, a change of the table and a restore give it a new one. Two
// rules take its place.
//
// In webhooks.outbox the column xid keeps the transaction that inserted the event, through
// rewrites, dumps and restores. Against the last horizon it says exactly whether the event was
// committed before it or after. One of before was handed over, or found by the comparison that made
// the horizon, and is not looked at again, however its row is rewritten. One of after goes to the
// endpoints that were registered before it was created or before the horizon was taken, for the
// event came later than both. An id that is greater than the row's own xmin is of another server,
// and stands for none.
//
// In an app's table, and for rows without that column's value, only created says how old an event
// is. One that is younger than the last horizon goes to the endpoints that were registered before
// created. One that is older, and whose row the horizon does not see, is a suspect: the event of a
// transaction that was open for long, one with a time of the past, or an old one whose row was
// rewritten. It goes to those endpoints that have wanted the same since before created
// (endpoints.subscribed). Had the event been handed over, such an endpoint would have its row, so
// it is found only if it was passed over, and no rewrite finds anything. A disabled endpoint has
// its row too, as missed. The one exception is an event older than the retention, whose rows may be
// pruned: such a suspect is given to nobody. Without a horizon, at the first start and after a
// restore, every event is a suspect.
//
// What the rules do not find: in an app's table, an event that was passed over with a time before
// the last horizon, for an endpoint that was registered or changed between that time and its
// commit.
//
// What a row filter of the publication leaves out is no event: a comparison evaluates the filter
// that is in force now, over the columns of the row (Coverage.Filters). A changed filter changes
// the coverage, so a new term begins with a recovery; rows of since the last horizon are judged by
// the new filter then.
//
// # An id that is registered again
//
// An endpoint under the id of one that was removed is another endpoint, and no event of before its
// registration may reach it. A trigger notes the reuse (endpoints.reused), so this holds as well if
// both happen while no agent runs. Pending rows of the former endpoint are missed when they are due
// (Refill.Former), its health is deleted when a term begins (EndpointState.FormerHealth), and no
// replay sends its deliveries (ofFormer). An endpoint that is inserted with its former time of
// registration is the same one again, and gets all of that.
//
// # Pruning
//
// What is older than Config.Retention is deleted in an order (Pruner): events that are handed over
// and have nothing pending, then deliveries whose event is gone. So a delivery outlives its event,
// and whatever a comparison finds in the outbox without a delivery never had one. Nothing is
// deleted while a recovery is under way, since the stream may then bring events again that a
// comparison has found, and only their rows show that. What an open replay may still send is kept, also
// while it is paused. So a paused replay that everybody has forgotten keeps its rows until somebody
// resumes or cancels it.
//
// The index deliveries_created costs each delivery 68 bytes of WAL. Pruning needs it to find the
// oldest rows in their order, and so do lists of all venues to find the latest. A BRIN index costs
// nothing, but its ranges only grow: pages whose rows were pruned take new rows, and then every
// range has old times and new.
//
// What a removed endpoint leaves (webhooks.removed_endpoints) goes last, once the log has no row of
// it: a venue's log is found by its endpoints, those that were removed among them.
//
// # Leadership
//
// The slot has one consumer at a time, so holding the stream is leadership. A new leader counts
// checkpoint.epoch up; every commit of the Ledger requires its own epoch, so a former leader that
// wakes up late commits nothing (ErrFenced). It requires its own sequence number as well, which the
// commit counts up: a commit whose answer was lost is looked up by it and neither repeated nor
// forgotten.
//
// # What a migration may do
//
// A rolling upgrade has two binaries on one schema: migrate runs first, and agents of the release
// before go on and may restart. So a change takes two releases: the first adds (an expansion), the
// next takes away what no binary uses any more (a contraction). The first lines of each file in
// migrations/ say which of the two it is, which binary is the oldest that works with the schema
// after it, what it locks and what costs time (migration). The Migrator writes the number into
// webhooks.schema_version.compatible, and SchemaInfo.judge goes by it.
//
// An expansion may make tables, views, functions and indexes, and may add columns that are null or
// have a default. A table gives the rights of its neighbour to the same roles, as 014 does, for the
// roles of an upgrade get no new grants. A function or a trigger that is replaced does for an old
// binary what it did. Where old rows and new ones differ in meaning, as sealed secrets did, it is a
// contraction, whatever the statements are.
//
// Everything else is a contraction: what drops or renames, refuses what was accepted, or changes a
// type. The oldest binary that it works with is the one that has stopped to use what goes.
//
// A binary does its part: each statement names the columns that it returns and those that it
// inserts, so a column that comes later changes nothing.
//
// No statement waits long for a lock, for the app would wait behind it (migrate_lock.go). An index
// of a table that may be large is made by CREATE INDEX IF NOT EXISTS, since it was built
// CONCURRENTLY by then. A migration reads no large table otherwise.
//
// The protocol is described in https://www.postgresql.org/docs/current/protocol-replication.html
// and https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
package outbox
