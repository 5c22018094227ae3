// Package lanes makes the attempts: it decides which delivery is sent when, and what follows from
// the answer.
//
// Each endpoint has a lane: a bounded queue in memory, a limit of attempts at a time, and what is
// known of its failures. The Scheduler holds all lanes.
//
//	Offer    takes new deliveries (router)       → in a lane's queue, or left to the database
//	refill   reads due rows from the database    → in a lane's queue (refill.go)
//	dispatch starts attempts, in turn            → Config.Attempt, on a worker's goroutine (dispatch.go)
//	finish   draws the conclusions of an answer  → entries for Config.Write, which is outbox.Ledger.Write (finish.go)
//	Committed lets go of what is recorded        → memory is free, or the lane has a row that is due later
//
// Who is sent to next is in dispatch.go, where venues take turns. What a lane may hold is in
// room.go: no venue holds all of the memory, and large deliveries share a part. How an endpoint
// that fails is held, paced and tried again is in standing.go. An endpoint's own row comes by Load,
// Change and Remove (endpoint.go).
//
// # Endpoints that fail
//
// Each attempt counts, and the hundredth failure in a row disables the endpoint
// (delivery.disable_after). How fast it spends its failures is left to the agent. After a failure
// the lane is held, for twice as long after each further one. From the tenth on, attempts are made
// one at a time, delivery.failing_interval apart. A Retry-After holds the lane as well. A lane that
// is held for long has nothing in memory: its deliveries are pending rows, and a refill brings one
// when the hold is over. What holds an endpoint is recorded with its counter, so another agent goes
// on with it. A server that refuses some events for their number gets a gap between two attempts,
// and one that breaks at several attempts at a time gets fewer.
//
// An attempt that fails on this side of the wire (sink.NotMade) is none. Its delivery goes back to
// the lane, which tries again within seconds.
//
// # Locking
//
// One mutex guards everything. Nothing waits while it is held: what is to be recorded is collected
// under it, returned as entries, and written after it.
package lanes
