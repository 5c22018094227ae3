package outbox

import (
	"fmt"
	"time"
)

// Status is the state of a delivery (deliveries.status).
type Status string

// A delivery is pending until it ends in one of the other states.
const (
	Pending   Status = "pending"
	Succeeded Status = "succeeded"
	Failed    Status = "failed"
	Missed    Status = "missed"
)

// Delivery is one event on its way to one endpoint.
type Delivery struct {
	EventID    string
	EndpointID string
	Venue      string
	Type       string
	// Created is the event's, Committed the time of its commit; the latter is zero when the delivery came back from
	// the database.
	Created   time.Time
	Committed time.Time
	// Body is the envelope, shared by all deliveries of the event; nil when the delivery is left to the database.
	Body []byte
	// Refilled reports that the delivery was read from its row.
	Refilled bool
	// Attempts is how many were made so far in this round; a replay begins a new one.
	Attempts int
	// ReplayID names the replay that sent the delivery on its way again.
	ReplayID string
	// Unfit is why the event cannot be sent to anybody, "" when it can.
	Unfit string

	undated      bool   // Created tells nothing about which event it is
	entry        *entry // what waits for the first row; owned by the Ledger
	recorded     bool   // has a row; owned by the Ledger
	hadSucceeded bool   // before the replay ReplayID
}

// DeliveryBytes is what a Delivery takes in memory beside its body, roughly.
const DeliveryBytes = 512

// Size is what a Delivery takes in memory, in bytes, with its body.
func (d *Delivery) Size() int { return len(d.Body) + DeliveryBytes }

// Subject names the delivery.
func (d *Delivery) Subject() Subject { return Subject{EventID: d.EventID, EndpointID: d.EndpointID} }

// Tracked is a batch of the stream with the deliveries that it asks for.
type Tracked struct {
	End        LSN // as in Batch
	Idle       bool
	Read       time.Time
	Deliveries []*Delivery
	// Records are those that stand already: deliveries that did not fit into memory, or cannot be sent.
	Records []*Record
	// Opens keeps the watermark before this batch: further deliveries of it come later, each batch of them as a
	// Piece of the hold. Last marks the piece after which there is none.
	Opens *Hold
	Piece *Hold
	Last  bool
}

// Record is what the row of a delivery is to say: what came of an attempt, that it has ended, or that it waits. One that waits,
// parked or left to the database, has no Attempt.
type Record struct {
	Delivery *Delivery
	Status   Status
	// NextAttempt is when a pending delivery is due.
	NextAttempt time.Time
	// Finished is when the delivery ended, or the attempt did.
	Finished time.Time
	// Attempt describes a failed attempt; nil for a success and when none was made.
	Attempt *Attempt
	// Code and Latency are those of a success.
	Code    int
	Latency time.Duration
	// Error is why a delivery was missed.
	Error string
	// Health is the endpoint's failure counter after the attempt, nil when it has not changed.
	Health *Health
	// Parked marks a row that the Ledger wrote because an attempt had not ended in time; memory still holds the
	// delivery.
	Parked bool
	// Disable is the reason for which the attempt disables the endpoint, "" when it does not.
	Disable string
	// Taken reports that the delivery has no row, since the endpoint's row under its event's id belongs to another event: only Attempt
	// is recorded.
	Taken bool
}

// ClassIDTaken is the class of what stands among the attempts of a delivery that is pending about another event with the same id.
const ClassIDTaken = "id_taken"

// foundTaken is what an event that a comparison found without a row is told to have instead. Whether a row of the outbox was changed or another one written
// in its place, nothing tells, so nothing is sent.
const foundTaken = "a comparison found an event in the outbox whose id the delivery log has for another event (other venue, type or created): it was not sent; ids must be unique, and rows must stay as they were written"

// IDTaken is the record of a delivery whose event has the id of another one that the same endpoint still waits for.
func IDTaken(d *Delivery, now time.Time) *Record {
	return &Record{Delivery: d, Status: Failed, Finished: now, Taken: true, Attempt: &Attempt{At: now, Class: ClassIDTaken, Error: d.takenText("it was not sent")}}
}

// takenText tells of a second event with the id of one that is pending.
func (d *Delivery) takenText(outcome string) string {
	return fmt.Sprintf("the outbox has used the id again for another event (venue %s, type %s, created %s) while the delivery of the first was pending: %s; ids must be unique",
		d.Venue, d.Type, d.Created.UTC().Format(time.RFC3339Nano), outcome)
}

// Attempt is one failed attempt (a row of attempts).
type Attempt struct {
	Number   int
	At       time.Time
	Code     int // 0 when no status arrived
	Class    string
	Error    string
	Latency  time.Duration
	Response string
}

// Health is an endpoint's failure counter (a row of endpoint_health).
type Health struct {
	EndpointID   string
	Generation   int64
	Version      int64 // counts up with each change in memory; an earlier one that comes in later is dropped
	Failures     int
	FirstFailure time.Time // zero when Failures is
	LastFailure  time.Time // zero keeps what is recorded
	LastSuccess  time.Time // zero keeps what is recorded
	LastError    string
	Unusable     string
	// HeldUntil is when the next attempt may start, zero where nothing holds the endpoint; HeldBy is what holds it.
	HeldUntil time.Time
	HeldBy    string
}

// What holds an endpoint (endpoint_health.held_by).
const (
	HeldByFailures   = "failures"    // it has failed again and again, and is paced
	HeldByRetryAfter = "retry_after" // its server asked for it
)
