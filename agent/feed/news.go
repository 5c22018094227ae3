package feed

import (
	"slices"

	"github.com/quintago/webhook-agent/outbox"
)

// News finds what is new in the newest rows of the log, for who reads them again and again because
// another agent records them. The zero value has seen nothing.
type News struct{ seen map[rowState]bool }

// rowState is a row of the log in one of its states.
type rowState struct {
	event, endpoint string
	status          outbox.Status
	attempts        int
}

// Of returns those of the newest rows that the rows of the call before did not have in the same state,
// oldest first.
func (n *News) Of(newest []outbox.DeliveryInfo) (news []outbox.DeliveryInfo) {
	seen := map[rowState]bool{}
	for _, d := range slices.Backward(newest) {
		state := rowState{d.EventID, d.EndpointID, d.Status, d.Attempts}
		if seen[state] = true; !n.seen[state] {
			news = append(news, d)
		}
	}
	n.seen = seen
	return news
}
