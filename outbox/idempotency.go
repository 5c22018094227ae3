package outbox

import "errors"

// Idempotency names a request that may come twice, so that the second one makes nothing. The zero
// value names none.
type Idempotency struct {
	Key  string
	Hash []byte // of what was asked
}

// ErrIdempotency reports that a key was used before, for another request.
var ErrIdempotency = errors.New("the idempotency key was used for another request")

var keyOfAnother = &Problem{Thing: "the idempotency key", Reason: "it was used for another request", Remedy: "use a new key for a new request", Err: ErrIdempotency}
