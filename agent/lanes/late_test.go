package lanes

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// missingNotes records each Missing.
type missingNotes struct {
	mu    sync.Mutex // guards calls
	calls []outbox.Missing
}

// before puts the notes between the lanes and the ledger.
func (n *missingNotes) before(write func(context.Context, ...outbox.Entry) error) func(context.Context, ...outbox.Entry) error {
	return func(ctx context.Context, entries ...outbox.Entry) error {
		n.mu.Lock()
		for _, e := range entries {
			if m, isMissing := e.(outbox.Missing); isMissing {
				n.calls = append(n.calls, m)
			}
		}
		n.mu.Unlock()
		return write(ctx, entries...)
	}
}

// take returns what was recorded since the last call.
func (n *missingNotes) take() []outbox.Missing {
	n.mu.Lock()
	defer n.mu.Unlock()
	calls := n.calls
	n.calls = nil
	return calls
}

// An endpoint is removed with an attempt under way. A counter that is recorded after the removal
// would stay for ever, and would count for an endpoint that is registered under the same id.
func TestLanes_TheCounterOfARemovedEndpointIsDeletedAfterItsLastResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &missingNotes{}
		lt := newLaneTest(t, func(c *Config) { c.Write = n.before(c.Write) })
		lt.send(lt.endpoint("ep", always(ok(20*time.Second))), 1, 10)
		agenttest.Pass(2 * time.Second)
		lt.tellAll(lt.Remove("ep"))
		agenttest.Pass(2 * time.Second)
		n.take()
		agenttest.Pass(time.Minute)
		if calls := n.take(); len(calls) != 1 || !calls[0].Removed || calls[0].EndpointID != "ep" {
			t.Errorf("after the last result the ledger was told %+v, want that ep is removed", calls)
		}
	})
}

// The endpoint is disabled after the ledger has committed a result and before its worker has ended
// the attempt.
func TestLanes_AnAttemptWhoseResultIsCommittedKeepsNoRowPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &missingNotes{}
		lt := newLaneTest(t, func(c *Config) { c.Write = n.before(c.Write) })
		l := lt.endpoint("ep", always(ok(20*time.Second)))
		id := lt.send(l, 1, 10)[0]
		agenttest.Pass(time.Second)
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1, Disabled: true}, "")
		agenttest.Pass(time.Second)
		if calls := n.take(); len(calls) != 1 || len(calls[0].Keep) != 1 {
			t.Errorf("with the attempt under way the ledger was told %+v, want one call that keeps its row", calls)
		}
		lt.Committed([]*outbox.Record{{Delivery: &outbox.Delivery{EventID: id, EndpointID: "ep"}, Status: outbox.Pending,
			NextAttempt: time.Now(), Attempt: &outbox.Attempt{Number: 1}}})
		agenttest.Pass(time.Second)
		if calls := n.take(); len(calls) != 1 || len(calls[0].Keep) > 0 {
			t.Errorf("the ledger was told %+v, want one call that keeps no row", calls)
		}
		agenttest.Pass(time.Minute)
	})
}
