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
	// Created is when the event was created, and Committed when it was committed. Committed is zero
	// if the delivery came back from the database.
	Created   time.Time
	Committed time.Time
	// Body is the envelope, which all deliveries of the event share. It is nil if the delivery was
	// left to the database.
	Body []byte
	// Refilled reports that the delivery was read back from its row.
	Refilled bool
	// Attempts is the number of attempts so far in this round. A replay begins a new round.
	Attempts int
	// ReplayID is the id of the replay that made this delivery pending again.
	ReplayID string
	// Unfit is the reason why the event cannot be sent to anybody, or "".
	Unfit string
	// Traceparent is that of the event.
	Traceparent Traceparent
	// Trace is nil unless the event is traced. Package outbox keeps it and does not use it.
	Trace any

	undated      bool   // Created does not help to identify the event
	entry        *entry // the entry that waits for the first row; owned by the Ledger
	recorded     bool   // has a row; owned by the Ledger
	hasFormer    bool   // what it was before the replay ReplayID is known
	hadSucceeded bool   // had succeeded before that
}

// DeliveryBytes is about how many bytes of memory a Delivery takes without its body.
const DeliveryBytes = 512

// Size returns how many bytes of memory a Delivery takes with its body.
func (d *Delivery) Size() int { return len(d.Body) + DeliveryBytes }

// Subject names the delivery.
func (d *Delivery) Subject() Subject { return Subject{EventID: d.EventID, EndpointID: d.EndpointID} }

// Tracked is a batch of the stream with the deliveries that it asks for.
type Tracked struct {
	End        LSN // as in Batch
	Idle       bool
	Read       time.Time
	Deliveries []*Delivery
	// Records are known already. They belong to deliveries that did not fit into memory or cannot
	// be sent.
	Records []*Record
	// Opens is a hold that keeps the watermark before this batch, because further deliveries of it
	// come later. They come in batches that name the hold as their Piece. Last marks the last of
	// these pieces.
	Opens *Hold
	Piece *Hold
	Last  bool
}

// Record is what the Ledger writes into the row of a delivery: the result of an attempt, that the
// delivery has ended, or that it waits. A delivery that waits, parked or left to the database, has
// no Attempt.
type Record struct {
	Delivery *Delivery
	Status   Status
	// NextAttempt is when a pending delivery is due.
	NextAttempt time.Time
	// Finished is when the delivery ended, or the attempt did.
	Finished time.Time
	// Attempt describes a failed attempt. It is nil after a success, and if no attempt was made.
	Attempt *Attempt
	// Code and Latency belong to a success.
	Code    int
	Latency time.Duration
	// Error is why a delivery was missed.
	Error string
	// Health is the endpoint's failure counter after the attempt. It is nil if the counter has not
	// changed.
	Health *Health
	// Parked marks a row that the Ledger wrote because an attempt had not ended in time. Memory
	// still holds the delivery.
	Parked bool
	// Disable is the reason for which the attempt disables the endpoint, "" when it does not.
	Disable string
	// Taken reports that the delivery has no row of its own, because the row under the event's id
	// belongs to another event. Then only Attempt is recorded.
	Taken bool

	first      bool // the delivery had no row before the group that the record is in
	superseded bool // a later record of the delivery is in the same group
}

// ClassIDTaken is the class of an entry among the attempts of a pending delivery. The entry says
// that another event has the same id.
const ClassIDTaken = "id_taken"

// foundTaken is the text about an event that a comparison found without a row, because the row
// under its id belongs to another event. Nobody can know whether the row in the outbox was changed
// or replaced by another one, so nothing is sent.
const foundTaken = "a comparison found an event in the outbox whose id the delivery log has for another event (other venue, type or created): it was not sent; ids must be unique, and rows must stay as they were written"

// IDTaken returns the record of a delivery whose event has the id of another event, which the same
// endpoint still waits for.
func IDTaken(d *Delivery, now time.Time) *Record {
	return &Record{Delivery: d, Status: Failed, Finished: now, Taken: true, Attempt: &Attempt{At: now, Class: ClassIDTaken, Error: d.takenText("it was not sent")}}
}

// takenText returns the text about a second event that has the id of a pending one.
func (d *Delivery) takenText(outcome string) string {
	return fmt.Sprintf("the outbox has used the id again for another event (venue %s, type %s, created %s) while the delivery of the first was pending: %s; ids must be unique",
		d.Venue, d.Type, d.Created.UTC().Format(time.RFC3339Nano), outcome)
}

// Attempt is one failed attempt (a row of attempts).
type Attempt struct {
	Number   int
	At       time.Time
	Code     int // 0 if no status arrived
	Class    string
	Error    string
	Latency  time.Duration
	Response string
}

// Health is an endpoint's failure counter (a row of endpoint_health).
type Health struct {
	EndpointID string
	Generation int64
	// Version increases with each change in memory. One that arrives late is dropped.
	Version      int64
	Failures     int
	FirstFailure time.Time // zero if Failures is zero
	LastFailure  time.Time // zero keeps the recorded time
	LastSuccess  time.Time // zero keeps the recorded time
	LastError    string
	Unusable     string
	// HeldUntil is when the next attempt may start. It is zero if nothing holds the endpoint.
	// HeldBy says what holds it.
	HeldUntil time.Time
	HeldBy    string
	// Notices are what is to be announced of the endpoint and is not known to be committed, in
	// their order.
	Notices []Notice
}

// These are the reasons that hold an endpoint (endpoint_health.held_by).
const (
	HeldByFailures   = "failures"    // it has failed repeatedly, so attempts are paced
	HeldByRetryAfter = "retry_after" // its server asked for it
)

// Info returns the record as the delivery log shows it, without its Cursor: nearly all of the time
// would go into that, and few readers want it.
func (r *Record) Info() DeliveryInfo {
	d := r.Delivery
	info := DeliveryInfo{
		EventID: d.EventID, EndpointID: d.EndpointID, Venue: d.Venue, Type: d.Type, Status: r.Status, Attempts: r.attempts(),
		NextAttemptAt: orNull(r.NextAttempt), LastError: r.Error, ReplayID: d.ReplayID, Created: orNull(d.Created),
	}
	switch a := r.Attempt; {
	case a != nil:
		latency := int(a.Latency.Milliseconds())
		info.LastCode, info.LastClass, info.LastError, info.LastLatencyMS = orNull(a.Code), a.Class, a.Error, &latency
	case r.Status == Succeeded:
		latency := int(r.Latency.Milliseconds())
		info.LastCode, info.LastLatencyMS = orNull(r.Code), &latency
	}
	if r.Status != Pending {
		info.Finished = orNull(r.Finished)
	}
	return info
}

// Cursor returns the record's place in the delivery log, for DeliveryInfo.
func (r *Record) Cursor() string {
	d := r.Delivery
	return cursor{Created: d.Created.UTC().Format("2006-01-02 15:04:05.999999+00"), EventID: d.EventID, EndpointID: d.EndpointID}.String()
}
