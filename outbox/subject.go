package outbox

import "github.com/quintago/webhook-agent/panics"

// Subject is what the agent was handling when it panicked. If the same subject causes panic after
// panic, it can be set aside. The fields that are set say which kind of subject it is.
type Subject struct {
	// Commit and Index identify a change in the stream. Commit is where the commit record of its
	// transaction begins. Index is the change's place within the transaction.
	Commit LSN
	Index  int
	// EndpointID alone means an endpoint. With EventID it means a delivery.
	EventID, EndpointID string
	// Part is the part of the agent that fails over the subject, when other parts should go on with
	// that subject. Alone, Part is a helper that the agent can do without.
	Part string
}

// Blame adds the subject to a panic and panics on. Code that handles one subject after another
// defers it. A panic that has a subject already keeps it. The zero Subject adds nothing.
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
