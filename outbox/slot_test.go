package outbox

import (
	"testing"
	"time"
)

func TestVitals_ShowSlotBacklogAndClock(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	v, err := db.configured().Vitals(t.Context())
	must(t, err)
	if v.WALStatus != "" || v.LagBytes != 0 || v.Pending != 0 {
		t.Errorf("without a slot: %+v", v)
	}
	env.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, env.Slot)
	addEvents(t, env, "evt", 100)
	addPending(t, env, "evt_1", "ep_1", time.Now(), 0)
	addDelivery(t, env, "evt_2", "ep_1", "v", "t", Failed, 1)
	v, err = db.configured().Vitals(t.Context())
	must(t, err)
	if v.WALStatus != "reserved" || v.LagBytes <= 0 || v.RetainedBytes < v.LagBytes || v.Pending != 1 || v.ClockSkew.Abs() > time.Second {
		t.Errorf("got %+v", v)
	}
}
