// Package agent is the process: commands, configuration, and the data path from the outbox to the customers' servers.
//
// # Data path
//
//	PostgreSQL WAL ─ outbox.Tailer ─► router ─► lanes (one per endpoint) ─► sink.Webhook ─► the customer's server
//	      ▲                                       ▲    │                        │
//	      │                                refill │    │ overflow               │ result
//	      └─── confirmed LSN ◄── outbox.Ledger ◄──┴────┴────────────────────────┘
//
// The Tailer yields committed transactions in commit order. The router applies each change of an endpoint where it
// stands between the events, finds the endpoints that want an event (subscriptions), offers the deliveries to their
// lanes, and tells the ledger what it is to wait for (Track). A lane holds a bounded number of deliveries; what does
// not fit is recorded as pending at once and comes back by a refill. A worker makes one attempt and hands the result
// to the ledger, which commits it with others, the failure counters and the position of the stream in one
// transaction. A delivery that has no result a second after it was read is recorded as pending, so the position moves
// on however long an attempt takes.
//
// An event that very many endpoints want is handed over in pieces behind what the stream brings next, while the
// position waits for it (fanout.go). Venues take turns, and none holds all of the memory (dispatch.go). A bulk import of
// one venue therefore delays no other, as long as its data fit into an eighth of delivery.queue_memory: a larger one holds
// the stream until a part of it is handed over.
//
// # Endpoints that fail
//
// Each attempt counts, and the hundredth failure in a row disables the endpoint. What is left to the agent is how fast it
// spends them (standing.go). After a failure the lane is held, for twice as long after each further one, until from the tenth
// on attempts are made one at a time, delivery.failing_interval apart. A Retry-After holds it as well. A lane that is held for
// long has nothing in memory: its deliveries are pending rows, and a refill brings one when the hold is over. What holds an
// endpoint is recorded with its counter, so another agent goes on with it. A server that refuses some events for their number
// is given a gap between two attempts, and one that breaks at several attempts at a time gets fewer.
//
// An attempt that fails on this side of the wire (sink.NotMade) is none: its delivery goes back to the lane, which tries again
// within seconds, and /readyz says what it was (local.go).
//
// # Guarantee
//
// At least once. The position that PostgreSQL may forget is never ahead of what is recorded, and what is recorded as
// pending is attempted again until it ends as succeeded, failed or missed. An attempt is repeated only when its
// result was not committed: by a process or a connection that died. New attempts wait while a commit takes longer
// than a second, so those are the ones of about the last second.
//
// # Goroutines
//
//	name      owns                                             ends
//	admin     the HTTP listener                                after the last session
//	slot      the look at what the slot keeps, if not leading  after the last session
//	stream    the Tailer and its connection                    when hold ends (last of a session), or the agent is fenced
//	router    the subscriptions; the goroutine of lead         when take ends
//	ledger    the Ledger and its connection                    after Close, when all is committed; when alive ends
//	refill    the queries for due deliveries                   after the lanes have stopped
//	watch     the look at slot lag, clocks and coverage        after the lanes have stopped, or when coverage has changed
//	reconcile the comparison of outbox and delivery log;      after the lanes have stopped
//	          after a gap the recovery, beside the stream
//	prune     the Pruner                                       after the lanes have stopped
//	seal      the sealing of secrets                           after the lanes have stopped
//	lease     the lease                                        after the lanes have stopped, or the agent is fenced
//	workers   one attempt each, at most delivery.concurrency   when no lane has anything to start
//
// The state of lanes and workers is in lanes, guarded by one mutex. Nothing waits while it holds that mutex; what is
// to be recorded is collected under it and handed over after it.
//
// # Leading, standing by, draining
//
// A session is one try to lead. It waits for the slot, which has one consumer, and takes over by counting the
// checkpoint's epoch up, which fences every earlier leader. A broken replication connection is replaced within the
// session; a new epoch, another server, or a change of what is published ends it.
//
// The epoch keeps a former leader from recording, the lease keeps it from sending: no attempt starts unless the server was
// heard a moment ago or the epoch was found to be this agent's own. The next leader waits longer than that for the slot.
//
// Two levels of stopping: take ends what brings new work in, alive ends everything. On shutdown, in this order: the
// stream is no longer read but kept alive; no attempt starts; those under way finish, for at most
// delivery.shutdown_timeout, then they are canceled, which leaves them unrecorded; the ledger commits what it has;
// the position is confirmed and the slot is free; the admin listener closes.
//
// # Panics
//
// A panic is a fault of ours. It ends the term and not the process: every goroutine and timer is guarded (panic.go,
// package panics; a test of the repository looks for those that are not). It is counted and logged once for each place,
// without the value, which may quote an event. The next term builds its memory anew from the database.
//
// What makes the agent panic in one term after the other is set aside by what was being handled (outbox.Subject): after
// the third panic a delivery is recorded as failed, an endpoint is shown as unusable, a change that cannot be read is
// passed over, and pruning or sealing is left out; after the sixth nothing is done with an event or an endpoint. The
// counts are in memory, so a restart tries everything again. A panic in an attempt harms nothing in memory and is that
// attempt's own: class internal_error, which is tried again like any failure and counts for no endpoint.
package agent
