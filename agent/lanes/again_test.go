package lanes

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// An endpoint is removed and registered again under its id while an attempt is under way. The
// delivery's row is pending and due. laneTest would see a second attempt at the same time.
func TestLanes_AnEndpointThatComesBackLeavesAttemptsUnderWayAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lt := newLaneTest(t, nil)
		ids := lt.send(lt.endpoint("ep", always(ok(20*time.Second))), 1, 10)
		agenttest.Pass(2 * time.Second) // the delivery is parked
		lt.tellAll(lt.Remove("ep"))
		lt.changeTo(outbox.Endpoint{ID: "ep", Generation: 1}, "")
		agenttest.Pass(time.Minute)
		if n := lt.made("ep"); n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
		if row := lt.book.rows[deliveryKey{"ep", ids[0]}]; row.status != outbox.Succeeded {
			t.Errorf("the delivery is %+v, want succeeded", *row)
		}
		lt.quiet()
	})
}
