package manage

import (
	"errors"
	"testing"

	"github.com/quintago/webhook-agent/outbox"
)

func TestPlan_AnEmptyListIsNotEverything(t *testing.T) {
	for field, r := range map[string]outbox.ReplayRequest{
		"event_ids": {EndpointID: "ep_1", EventIDs: []string{}},
		"statuses":  {EndpointID: "ep_1", Statuses: []outbox.Status{}},
	} {
		_, err := (&Desk{}).Plan(t.Context(), r)
		if found, ok := errors.AsType[*FieldError](err); !ok || found.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
