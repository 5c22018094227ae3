// Package agent is the process: it leads, or stands by, and brings each event from the outbox to
// the customers' servers.
//
// The packages below it have parts of their own: agent/config the configuration, agent/lanes the
// attempts, agent/admin the listeners, agent/api the HTTP API, agent/access who its callers are,
// agent/manage what the API and the commands do, agent/limits what callers may ask for, and
// agent/feed what is recorded at this moment, for those who look, and agent/tracing the traces.
// agent/cli, above it, has the commands.
//
// # Follow an event
//
//		PostgreSQL WAL ─ outbox.Tailer ─► router ─► lanes.Scheduler ─► sink.Webhook ─► the customer's server
//		      ▲                             │             ▲  │                 │
//		      │                             │      refill │  │ what does       │ result
//		      │                             ▼             │  ▼ not fit         ▼
//		      └──── confirmed LSN ◄──── outbox.Ledger ◄───┴──┴─────────────────┘
//
//	 1. candidate.try starts the tailer, which yields committed transactions in commit order (outbox.Batch).
//	 2. term.routeAll gives each batch to router.route. It finds the endpoints that want an event (subscriptions.match) and makes
//	    a delivery for each of them.
//	 3. router.hand offers the deliveries to their lanes (lanes.Scheduler.Offer) and informs the ledger what it has to wait for
//	    (outbox.Ledger.Track). A lane holds a bounded number of deliveries. What does not fit is recorded as pending at once, and
//	    a refill brings it back later.
//	 4. A worker of the scheduler makes one attempt (term.attempt, sink.Webhook.Attempt).
//
// # Follow a result
//
//  1. Scheduler.finish draws the conclusions of an attempt and returns outbox.Entry values: the
//     delivery's new state, the endpoint's failure counter, its disabling.
//  2. The worker hands them to outbox.Ledger.Write.
//  3. The ledger commits them, together with others and with the position of the stream, in one
//     transaction.
//  4. It then informs the lanes (Scheduler.Committed), which let go of what is recorded, the tailer
//     (Confirm), which lets PostgreSQL forget the WAL up to that position, and those who look at
//     the log at that moment (package feed).
//
// A delivery that has no result one second after it was read is recorded as pending. So the
// position moves on, however long an attempt takes.
//
// # Follow a change of an endpoint
//
// It comes by the same stream. router.change applies it where it stands between the events: it
// replaces the subscription, and Scheduler.Change puts the new row into the lane. Events before the
// change are matched without it, events after it with it.
//
// # Follow a notice
//
// A notice is an event of the agent's own: an endpoint keeps failing, was disabled, or is well again.
// Scheduler.finish decides it with the result of an attempt, and outbox.Health takes it along. The
// ledger inserts it into the outbox in the transaction of the result (a disabling, in that of the
// disabling). From there the stream brings it, and router.match leaves out the endpoint that it is
// about. A run of failures causes five at most, whatever becomes of them.
//
// # Large events and large venues
//
// An event that very many endpoints want is handed over in pieces, behind what the stream brings
// next, and the position waits for it (fanout.go). Venues take turns, and none holds all of the
// memory (package lanes). So a bulk import of one venue delays no other, as long as its data fit
// into an eighth of delivery.queue_memory. A larger one holds the stream until a part of it is
// handed over.
//
// # Guarantee
//
// At least once. The position that PostgreSQL may forget is never ahead of what is recorded. What
// is recorded as pending is attempted again until it ends as succeeded, failed or missed. An
// attempt is repeated only if its result was not committed, because a process or a connection died.
// New attempts wait while a commit takes longer than a second, so at most the attempts of about the
// last second are repeated.
//
// # Candidate and term
//
// A candidate is this agent as it tries to lead with a slot. It waits for the slot, which has one
// consumer, and takes over by counting up the checkpoint's epoch. That fences every earlier leader:
// it can record nothing any more. takeOver returns a term, which is one time of leading with all of
// its parts. A broken replication connection is replaced within the term (stream.go). Another
// epoch, another server, or a change of what is published ends it, and the candidate tries again.
//
// The epoch keeps a former leader from recording. The lease keeps it from sending (lease.go): no
// attempt starts unless the server was heard a moment ago, or the epoch was found to be this
// agent's own. The next leader waits for the slot longer than that.
//
// # Stopping
//
// A lifetime has two levels (lifetime.go). When take ends, nothing new is taken in; when alive
// ends, everything ends at once. A shutdown goes in this order: the stream is no longer read but
// its connection is kept; no attempt starts; the attempts under way end; the ledger commits what it
// has; the position is confirmed and the slot is free; the admin listener closes. All that may take
// delivery.shutdown_timeout. Then alive ends: attempts are canceled and not recorded, so the next
// leader makes them again.
//
// # Goroutines
//
//	name      owns                                             ends
//	admin     the HTTP listeners                               after the last term
//	slot      the look at what the slot keeps, if not leading  after the last term
//	traces    the spans that have ended (tracing.Tracer)       after the last term
//	stream    the Tailer and its connection                    when alive ends, or this agent is fenced
//	router    the subscriptions; it is the goroutine of lead   when take ends
//	ledger    the Ledger and its connection                    when all is committed after Close; when alive ends
//	refill    the queries for due deliveries                   when take ends
//	watch     the look at slot lag, clocks and coverage        when take ends, or when coverage has changed
//	recovery  the comparison of outbox and delivery log        when take ends
//	prune     the Pruner                                       when take ends
//	seal      the sealing of secrets                           when take ends
//	managed   the endpoints of the file, if one was held       when they are taken over, or take ends
//	lease     the lease                                        when take ends, or this agent is fenced
//	workers   one attempt each, at most delivery.concurrency   when no lane has anything to start
//
// # Panics
//
// A panic is a fault of ours. It ends the term, not the process: every goroutine and timer is
// guarded (lifetime.go, package panics), and a test of the repository looks for those that are not.
// It is counted, and logged once for each place, without its value, which may quote an event. The
// next term builds its memory anew from the database.
//
// What makes the agent panic in one term after the other is set aside, by what was being handled
// (outbox.Subject, suspects.go). After the third panic a delivery is recorded as failed, an
// endpoint is shown as unusable, a change that cannot be read is passed over, and pruning or
// sealing is left out. After the sixth nothing is done with an event or an endpoint. The counts are
// in memory, so a restart tries everything again. A panic in an attempt harms nothing in memory: it
// is that attempt's own, of the class internal_error, is tried again like any failure, and counts
// against no endpoint.
package agent
