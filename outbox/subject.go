package outbox

import "github.com/quintago/webhook-agent/panics"

// Subject is what is being handled when the agent panics, so that what makes it panic again and again
// can be set aside. The fields that are set tell which kind it is.
type Subject struct {
	// Commit and Index are a change in the stream: where its transaction's commit record begins, and
	// its place within the transaction.
	Commit LSN
	Index  int
	// EndpointID alone is an endpoint, with EventID a delivery.
	EventID, EndpointID string
	// Part is the part of the agent that fails over the subject, where others are to go on with it, or
	// alone a helper that can be left out.
	Part string
}

// Blame is deferred by what handles one subject after another: a panic goes on with the one that it
// is about, unless it has one already. The zero Subject is none.
func (s *Subject) Blame() {
	p := panics.Recovered(recover())
	if p == nil {
		return
	}
	if p.Subject == nil && *s != (Subject{}) {
		p.Subject = *s
	}
	panic(p)
}
